//! Access: a row at a time, at the pace of people.

use async_trait::async_trait;
use schema::time::ReceivedAt;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::super::StoreError;
use super::super::access::{
    AccessStore, AuditCursor, AuditEntry, Presented, Revocation, SubjectRevocation, numbered,
};
use super::arguments::Micros;
use super::dialect::Purpose;
use super::ingest::micros;
use super::query::limited;
use super::{Cockroach, rows};

const REVOKE: &str = "INSERT INTO revoked_tokens (jti, subject, reason, revoked_at, revoked_by, \
     expires_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (jti) DO NOTHING";

const REVOKE_SUBJECT: &str = "INSERT INTO revoked_subjects (subject, issued_until, reason, \
         revoked_at, revoked_by) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (subject) DO UPDATE SET issued_until = excluded.issued_until, \
         reason = excluded.reason, revoked_at = excluded.revoked_at, \
         revoked_by = excluded.revoked_by \
     WHERE revoked_subjects.issued_until < excluded.issued_until";

const IS_REVOKED: &str = "SELECT EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = $1) \
     OR EXISTS (SELECT 1 FROM revoked_subjects WHERE subject = $2 AND issued_until >= $3)";

const SUBJECTS: &str = "SELECT subject, issued_until, reason, revoked_at, revoked_by \
     FROM revoked_subjects WHERE subject > $1 ORDER BY subject LIMIT $2";

const REVOCATIONS: &str = "SELECT jti, subject, reason, revoked_at, revoked_by, expires_at \
     FROM revoked_tokens WHERE jti > $1 ORDER BY jti LIMIT $2";

const FORGET_ENDED: &str = "DELETE FROM revoked_tokens WHERE expires_at < $1 AND revoked_at < $2";

const FORGET_SUBJECTS: &str = "DELETE FROM revoked_subjects \
     WHERE issued_until < $2 AND revoked_at < $1";

const FORGET_AUDIT: &str = "DELETE FROM audit_log WHERE at < $1";

const NOTE: &str = "INSERT INTO audit_log (at, id, actor, action, target, address, outcome) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (at, id) DO NOTHING";

const AUDIT: &str = "SELECT at, id, actor, action, target, address, outcome FROM audit_log \
     WHERE (at, id) < ($1, $2) ORDER BY at DESC, id DESC LIMIT $3";

/// Behind everything that SQL can hold as a time.
const END: AuditCursor = AuditCursor {
    at: ReceivedAt::from_micros(super::super::plan::OBSERVED_AT_MAX.micros()),
    id: i64::MAX,
};

#[async_trait]
impl AccessStore for Cockroach {
    async fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let insert = sqlx::query(REVOKE)
                .bind(&revocation.jti)
                .bind(&revocation.subject)
                .bind(&revocation.reason)
                .bind(micros(revocation.revoked_at))
                .bind(&revocation.revoked_by)
                .bind(micros(revocation.expires_at));
            connection.execute(insert).await
        })?;
        Ok(())
    }

    async fn revoke_subject(&self, revocation: &SubjectRevocation) -> Result<(), StoreError> {
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let insert = sqlx::query(REVOKE_SUBJECT)
                .bind(&revocation.subject)
                .bind(micros(revocation.issued_until))
                .bind(&revocation.reason)
                .bind(micros(revocation.revoked_at))
                .bind(&revocation.revoked_by);
            connection.execute(insert).await
        })?;
        Ok(())
    }

    async fn is_revoked(&self, token: &Presented<'_>) -> Result<bool, StoreError> {
        // A token may say any time.
        let issued = token.issued_at.micros().clamp(0, END.at.micros());
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(IS_REVOKED).bind(token.jti).bind(token.subject);
            connection
                .fetch_one(query.bind(Micros(issued)))
                .await?
                .try_get(0)
        })
    }

    async fn revoked_subjects(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubjectRevocation>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(SUBJECTS).bind(after.unwrap_or_default());
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            found.iter().map(subject).collect()
        })
    }

    async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Revocation>, StoreError> {
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(REVOCATIONS).bind(after.unwrap_or_default());
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            found.iter().map(revocation).collect()
        })
    }

    async fn forget_access(
        &self,
        now: ReceivedAt,
        revoked: ReceivedAt,
        audit: Option<ReceivedAt>,
    ) -> Result<u64, StoreError> {
        let mut gone = 0;
        for sql in [FORGET_ENDED, FORGET_SUBJECTS] {
            gone += run!(self, &mut self.budget(), Purpose::Write, |connection| {
                let delete = sqlx::query(sql).bind(micros(now)).bind(micros(revoked));
                Ok(connection.execute(delete).await?.rows_affected())
            })?;
        }
        if let Some(before) = audit {
            gone += run!(self, &mut self.budget(), Purpose::Write, |connection| {
                let delete = sqlx::query(FORGET_AUDIT).bind(micros(before));
                Ok(connection.execute(delete).await?.rows_affected())
            })?;
        }
        Ok(gone)
    }

    async fn audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let entries = numbered(entries);
        run!(self, &mut self.budget(), Purpose::Write, |connection| {
            let mut transaction = connection.begin().await?;
            for (id, entry) in &entries {
                let insert = sqlx::query(NOTE)
                    .bind(micros(entry.at))
                    .bind(id)
                    .bind(&entry.actor)
                    .bind(&entry.action)
                    .bind(&entry.target)
                    .bind(&entry.address)
                    .bind(&entry.outcome);
                transaction.execute(insert).await?;
            }
            transaction.commit().await
        })
    }

    async fn audit_log(
        &self,
        after: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<(AuditCursor, AuditEntry)>, StoreError> {
        let AuditCursor { at, id } = after.unwrap_or(END);
        run!(self, &mut self.budget(), Purpose::Read, |connection| {
            let query = sqlx::query(AUDIT).bind(micros(at)).bind(id);
            let found = connection.fetch_all(query.bind(limited(limit))).await?;
            found.iter().map(entry).collect()
        })
    }
}

fn revocation(row: &PgRow) -> Result<Revocation, sqlx::Error> {
    Ok(Revocation {
        jti: row.try_get(0)?,
        subject: row.try_get(1)?,
        reason: row.try_get(2)?,
        revoked_at: rows::received(row, 3)?,
        revoked_by: row.try_get(4)?,
        expires_at: rows::received(row, 5)?,
    })
}

fn subject(row: &PgRow) -> Result<SubjectRevocation, sqlx::Error> {
    Ok(SubjectRevocation {
        subject: row.try_get(0)?,
        issued_until: rows::received(row, 1)?,
        reason: row.try_get(2)?,
        revoked_at: rows::received(row, 3)?,
        revoked_by: row.try_get(4)?,
    })
}

fn entry(row: &PgRow) -> Result<(AuditCursor, AuditEntry), sqlx::Error> {
    let at = rows::received(row, 0)?;
    let cursor = AuditCursor {
        at,
        id: row.try_get(1)?,
    };
    let entry = AuditEntry {
        at,
        actor: row.try_get(2)?,
        action: row.try_get(3)?,
        target: row.try_get(4)?,
        address: row.try_get(5)?,
        outcome: row.try_get(6)?,
    };
    Ok((cursor, entry))
}
