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
    /// When it would have ended, or later: until then this is remembered.
    pub expires_at: ReceivedAt,
}

/// A token as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presented<'t> {
    /// Its own name.
    pub jti: &'t str,
    /// Whom it is made out to.
    pub subject: &'t str,
    /// When it was issued.
    pub issued_at: ReceivedAt,
}

/// Somebody none of whose tokens counts any more that were issued until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectRevocation {
    /// Who.
    pub subject: String,
    /// The last moment that it is about.
    pub issued_until: ReceivedAt,
    /// Why.
    pub reason: String,
    /// When it was said.
    pub revoked_at: ReceivedAt,
    /// By whom.
    pub revoked_by: String,
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

    /// Revokes all tokens of somebody that were issued until a moment; of two moments the later one
    /// counts.
    async fn revoke_subject(&self, revocation: &SubjectRevocation) -> Result<(), StoreError>;

    /// Whether a token was revoked, itself or with all of its subject's.
    async fn is_revoked(&self, token: &Presented<'_>) -> Result<bool, StoreError>;

    /// Whose tokens were revoked, by name, behind `after`.
    async fn revoked_subjects(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubjectRevocation>, StoreError>;

    /// Revoked tokens by name, behind `after`.
    async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Revocation>, StoreError>;

    /// Forgets revocations of tokens that have ended by themselves, whoever said when: they were
    /// revoked before `revoked`, longer ago than any token is good, and their end was before `now`.
    /// And audit entries from before `audit`. Returns how many rows are gone.
    async fn forget_access(
        &self,
        now: ReceivedAt,
        revoked: ReceivedAt,
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
