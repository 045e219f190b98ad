//! Access as the database keeps it: tokens that were revoked, and the audit.

use async_trait::async_trait;
use schema::time::ReceivedAt;

use super::StoreError;
use super::sql::{Access, Cell, Database, Row, cells, limited, page_limit};

/// A token that counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The token's own name.
    pub jti: String,
    /// Whom it was made out to.
    pub subject: String,
    /// What the person who revoked it gave as the reason.
    pub reason: String,
    /// When it was revoked.
    pub revoked_at: ReceivedAt,
    /// The caller that revoked it.
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
    /// The subject of the tokens.
    pub subject: String,
    /// The last moment that it is about.
    pub issued_until: ReceivedAt,
    /// What the person who revoked it gave as the reason.
    pub reason: String,
    /// When it was said.
    pub revoked_at: ReceivedAt,
    /// The caller that revoked it.
    pub revoked_by: String,
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When it was answered.
    pub at: ReceivedAt,
    /// The caller; empty when nobody knows.
    pub actor: String,
    /// What was done: a method and a path with names in braces, or `authenticate`.
    pub action: String,
    /// What it was done to: the path.
    pub target: String,
    /// The IP address that it came from.
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

const REVOKE: &str = "INSERT INTO revoked_tokens (jti, subject, reason, revoked_at, revoked_by, \
     expires_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (jti) DO NOTHING";

const REVOKE_SUBJECT: &str = "INSERT INTO revoked_subjects (subject, issued_until, reason, \
         revoked_at, revoked_by) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (subject) DO UPDATE SET issued_until = excluded.issued_until, \
         reason = excluded.reason, revoked_at = excluded.revoked_at, \
         revoked_by = excluded.revoked_by \
     WHERE revoked_subjects.issued_until < excluded.issued_until";

const IS_REVOKED: &str = "SELECT 1 WHERE EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = $1) \
     OR EXISTS (SELECT 1 FROM revoked_subjects WHERE subject = $2 AND issued_until >= $3)";

const SUBJECTS: &str = "SELECT subject, issued_until, reason, revoked_at, revoked_by \
     FROM revoked_subjects WHERE subject > $1 ORDER BY subject LIMIT $2";

const REVOCATIONS: &str = "SELECT jti, subject, reason, revoked_at, revoked_by, expires_at \
     FROM revoked_tokens WHERE jti > $1 ORDER BY jti LIMIT $2";

const FORGET_ENDED: &str = "DELETE FROM revoked_tokens WHERE expires_at < $1 AND revoked_at < $2";

const FORGET_SUBJECTS: &str =
    "DELETE FROM revoked_subjects WHERE issued_until < $2 AND revoked_at < $1";

const FORGET_AUDIT: &str = "DELETE FROM audit_log WHERE at < $1";

const NOTE: &str = "INSERT INTO audit_log (at, id, actor, action, target, address, outcome) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (at, id) DO NOTHING";

const AUDIT: &str = "SELECT at, id, actor, action, target, address, outcome FROM audit_log \
     WHERE (at, id) < ($1, $2) ORDER BY at DESC, id DESC LIMIT $3";

/// Behind everything.
const END: AuditCursor = AuditCursor {
    at: ReceivedAt::from_micros(i64::MAX),
    id: i64::MAX,
};

#[async_trait]
impl<D: Database> AccessStore for D {
    async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        let cells = cells![
            &revocation.jti,
            &revocation.subject,
            &revocation.reason,
            revocation.revoked_at,
            &revocation.revoked_by,
            revocation.expires_at,
        ];
        self.execute(REVOKE, cells).await.map(drop)
    }

    async fn revoke_subject(&self, revocation: &SubjectRevocation) -> Result<(), StoreError> {
        let cells = cells![
            &revocation.subject,
            revocation.issued_until,
            &revocation.reason,
            revocation.revoked_at,
            &revocation.revoked_by,
        ];
        self.execute(REVOKE_SUBJECT, cells).await.map(drop)
    }

    async fn is_revoked(&self, token: &Presented<'_>) -> Result<bool, StoreError> {
        let cells = cells![token.jti, token.subject, token.issued_at];
        let found = self.first(Access::Read, IS_REVOKED, cells, |_| Ok(()));
        Ok(found.await?.is_some())
    }

    async fn revoked_subjects(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubjectRevocation>, StoreError> {
        let cells = cells![after.unwrap_or_default(), limited(limit)];
        self.rows(Access::Read, SUBJECTS, cells, subject).await
    }

    async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Revocation>, StoreError> {
        let cells = cells![after.unwrap_or_default(), limited(limit)];
        self.rows(Access::Read, REVOCATIONS, cells, revocation)
            .await
    }

    async fn forget_access(
        &self,
        now: ReceivedAt,
        revoked: ReceivedAt,
        audit: Option<ReceivedAt>,
    ) -> Result<u64, StoreError> {
        let mut gone = 0;
        for sql in [FORGET_ENDED, FORGET_SUBJECTS] {
            gone += self.execute(sql, cells![now, revoked]).await?;
        }
        if let Some(before) = audit {
            gone += self.execute(FORGET_AUDIT, cells![before]).await?;
        }
        Ok(gone)
    }

    async fn audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let rows: Vec<_> = entries.iter().map(numbered).collect();
        self.run(Access::Transaction, rows, |port, rows| {
            Box::pin(async move {
                for cells in rows {
                    port.execute(NOTE, cells.clone()).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn audit_log(
        &self,
        after: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<(AuditCursor, AuditEntry)>, StoreError> {
        let AuditCursor { at, id } = after.unwrap_or(END);
        let cells = cells![at, id, page_limit(limit)];
        self.list(Access::Read, AUDIT, cells, entry).await
    }
}

/// An entry as a row, with a number of its own: random and positive.
fn numbered(entry: &AuditEntry) -> Vec<Cell> {
    cells![
        entry.at,
        rand::random_range(0..i64::MAX),
        &entry.actor,
        &entry.action,
        &entry.target,
        &entry.address,
        &entry.outcome,
    ]
}

fn revocation(row: &dyn Row) -> Result<Revocation, StoreError> {
    Ok(Revocation {
        jti: row.text(0)?,
        subject: row.text(1)?,
        reason: row.text(2)?,
        revoked_at: row.time(3)?,
        revoked_by: row.text(4)?,
        expires_at: row.time(5)?,
    })
}

fn subject(row: &dyn Row) -> Result<SubjectRevocation, StoreError> {
    Ok(SubjectRevocation {
        subject: row.text(0)?,
        issued_until: row.time(1)?,
        reason: row.text(2)?,
        revoked_at: row.time(3)?,
        revoked_by: row.text(4)?,
    })
}

fn entry(row: &dyn Row) -> Result<(AuditCursor, AuditEntry), StoreError> {
    let at = row.time(0)?;
    let cursor = AuditCursor {
        at,
        id: row.int(1)?,
    };
    let entry = AuditEntry {
        at,
        actor: row.text(2)?,
        action: row.text(3)?,
        target: row.text(4)?,
        address: row.text(5)?,
        outcome: row.text(6)?,
    };
    Ok((cursor, entry))
}
