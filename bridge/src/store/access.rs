//! Access as the database keeps it: tokens that were revoked, and the audit.

use async_trait::async_trait;
use schema::time::ReceivedAt;

use super::StoreError;

/// A token that counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The token's own name.
    pub jti: String,
    /// Whom it was made out to.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// When it was revoked.
    pub revoked_at: ReceivedAt,
    /// By whom.
    pub revoked_by: String,
    /// When it would have ended.
    pub expires_at: ReceivedAt,
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: ReceivedAt,
    /// Who; empty when nobody knows.
    pub actor: String,
    /// What: a method and a path with names in braces, or `authenticate`.
    pub action: String,
    /// On what: the path.
    pub target: String,
    /// From where.
    pub address: String,
    /// The status of the answer, or why there was no caller.
    pub outcome: String,
}

/// Where a page of the audit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditCursor {
    /// The last entry's time.
    pub at: ReceivedAt,
    /// Its number among those of the same time.
    pub id: i64,
}

/// What a database keeps of access.
#[async_trait]
pub trait AccessStore: Send + Sync {
    /// Revokes a token; one that is revoked already stays as it is.
    async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError>;

    /// Whether a token was revoked.
    async fn is_revoked(&self, jti: &str) -> Result<bool, StoreError>;

    /// Revoked tokens by name, behind `after`.
    async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Revocation>, StoreError>;

    /// Forgets revoked tokens that have ended by themselves, and audit entries from before `audit`.
    /// Returns how many rows are gone.
    async fn forget_access(
        &self,
        ended: ReceivedAt,
        audit: Option<ReceivedAt>,
    ) -> Result<u64, StoreError>;

    /// Adds to the audit.
    async fn audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError>;

    /// The audit, latest first, behind `after`.
    async fn audit_log(
        &self,
        after: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<(AuditCursor, AuditEntry)>, StoreError>;
}

/// A number for each entry, random and positive.
pub(super) fn numbered(entries: &[AuditEntry]) -> Vec<(i64, &AuditEntry)> {
    entries
        .iter()
        .map(|entry| (rand::random_range(0..i64::MAX), entry))
        .collect()
}
