//! Access in the file.

use async_trait::async_trait;
use libsql::{Row, Value as Cell};
use schema::time::ReceivedAt;

use super::super::StoreError;
use super::super::access::{
    AccessStore, AuditCursor, AuditEntry, Presented, Revocation, SubjectRevocation, numbered,
};
use super::Embedded;
use super::query::limited;
use super::values::{int, received, text, text_cell, time_cell};

const REVOKE: &str = "INSERT INTO revoked_tokens (jti, subject, reason, revoked_at, revoked_by, \
     expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

const REVOKE_SUBJECT: &str = "INSERT INTO revoked_subjects (subject, issued_until, reason, \
         revoked_at, revoked_by) VALUES (?1, ?2, ?3, ?4, ?5) \
     ON CONFLICT (subject) DO UPDATE SET issued_until = excluded.issued_until, \
         reason = excluded.reason, revoked_at = excluded.revoked_at, \
         revoked_by = excluded.revoked_by \
     WHERE revoked_subjects.issued_until < excluded.issued_until";

const IS_REVOKED: &str = "SELECT 1 WHERE EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = ?1) \
     OR EXISTS (SELECT 1 FROM revoked_subjects WHERE subject = ?2 AND issued_until >= ?3)";

const SUBJECTS: &str = "SELECT subject, issued_until, reason, revoked_at, revoked_by \
     FROM revoked_subjects WHERE subject > ?1 ORDER BY subject LIMIT ?2";

const REVOCATIONS: &str = "SELECT jti, subject, reason, revoked_at, revoked_by, expires_at \
     FROM revoked_tokens WHERE jti > ?1 ORDER BY jti LIMIT ?2";

const FORGET_ENDED: &str = "DELETE FROM revoked_tokens WHERE expires_at < ?1 AND revoked_at < ?2";

const FORGET_SUBJECTS: &str =
    "DELETE FROM revoked_subjects WHERE issued_until < ?2 AND revoked_at < ?1";

const FORGET_AUDIT: &str = "DELETE FROM audit_log WHERE at < ?1";

const NOTE: &str = "INSERT INTO audit_log (at, id, actor, action, target, address, outcome) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";

const AUDIT: &str = "SELECT at, id, actor, action, target, address, outcome FROM audit_log \
     WHERE (at, id) < (?1, ?2) ORDER BY at DESC, id DESC LIMIT ?3";

#[async_trait]
impl AccessStore for Embedded {
    async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        let values = vec![
            text_cell(&revocation.jti),
            text_cell(&revocation.subject),
            text_cell(&revocation.reason),
            time_cell(revocation.revoked_at),
            text_cell(&revocation.revoked_by),
            time_cell(revocation.expires_at),
        ];
        self.write(move |file| {
            file.execute(REVOKE, values)?;
            Ok(())
        })
        .await
    }

    async fn revoke_subject(&self, revocation: &SubjectRevocation) -> Result<(), StoreError> {
        let values = vec![
            text_cell(&revocation.subject),
            time_cell(revocation.issued_until),
            text_cell(&revocation.reason),
            time_cell(revocation.revoked_at),
            text_cell(&revocation.revoked_by),
        ];
        self.write(move |file| {
            file.execute(REVOKE_SUBJECT, values)?;
            Ok(())
        })
        .await
    }

    async fn revoked_subjects(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubjectRevocation>, StoreError> {
        let values = vec![text_cell(after.unwrap_or_default()), limited(limit)];
        self.read(move |file| file.query(SUBJECTS, values, subject))
            .await
    }

    async fn is_revoked(&self, token: &Presented<'_>) -> Result<bool, StoreError> {
        let values = vec![
            text_cell(token.jti),
            text_cell(token.subject),
            time_cell(token.issued_at),
        ];
        let found = self
            .read(move |file| file.query(IS_REVOKED, values, |_| Ok(())))
            .await?;
        Ok(!found.is_empty())
    }

    async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Revocation>, StoreError> {
        let values = vec![text_cell(after.unwrap_or_default()), limited(limit)];
        self.read(move |file| file.query(REVOCATIONS, values, revocation))
            .await
    }

    async fn forget_access(
        &self,
        now: ReceivedAt,
        revoked: ReceivedAt,
        audit: Option<ReceivedAt>,
    ) -> Result<u64, StoreError> {
        self.write(move |file| {
            let mut gone = 0;
            for sql in [FORGET_ENDED, FORGET_SUBJECTS] {
                gone += file.execute(sql, vec![time_cell(now), time_cell(revoked)])?;
            }
            if let Some(before) = audit {
                gone += file.execute(FORGET_AUDIT, vec![time_cell(before)])?;
            }
            Ok(gone as u64)
        })
        .await
    }

    async fn audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let rows: Vec<Vec<Cell>> = numbered(entries)
            .into_iter()
            .map(|(id, entry)| {
                vec![
                    time_cell(entry.at),
                    Cell::Integer(id),
                    text_cell(&entry.actor),
                    text_cell(&entry.action),
                    text_cell(&entry.target),
                    text_cell(&entry.address),
                    text_cell(&entry.outcome),
                ]
            })
            .collect();
        self.write(move |file| {
            for values in rows {
                file.execute(NOTE, values)?;
            }
            Ok(())
        })
        .await
    }

    async fn audit_log(
        &self,
        after: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<(AuditCursor, AuditEntry)>, StoreError> {
        let (at, id) = after.map_or((i64::MAX, i64::MAX), |after| (after.at.micros(), after.id));
        let values = vec![Cell::Integer(at), Cell::Integer(id), limited(limit)];
        self.read(move |file| file.query_sound(AUDIT, values, entry))
            .await
    }
}

fn revocation(row: &Row) -> Result<Revocation, StoreError> {
    Ok(Revocation {
        jti: text(row, 0)?.to_owned(),
        subject: text(row, 1)?.to_owned(),
        reason: text(row, 2)?.to_owned(),
        revoked_at: received(row, 3)?,
        revoked_by: text(row, 4)?.to_owned(),
        expires_at: received(row, 5)?,
    })
}

fn subject(row: &Row) -> Result<SubjectRevocation, StoreError> {
    Ok(SubjectRevocation {
        subject: text(row, 0)?.to_owned(),
        issued_until: received(row, 1)?,
        reason: text(row, 2)?.to_owned(),
        revoked_at: received(row, 3)?,
        revoked_by: text(row, 4)?.to_owned(),
    })
}

fn entry(row: &Row) -> Result<(AuditCursor, AuditEntry), StoreError> {
    let at = received(row, 0)?;
    let cursor = AuditCursor {
        at,
        id: int(row, 1)?,
    };
    let entry = AuditEntry {
        at,
        actor: text(row, 2)?.to_owned(),
        action: text(row, 3)?.to_owned(),
        target: text(row, 4)?.to_owned(),
        address: text(row, 5)?.to_owned(),
        outcome: text(row, 6)?.to_owned(),
    };
    Ok((cursor, entry))
}
