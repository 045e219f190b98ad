//! Tokens that count no more.

use api::Time;
use api::tokens::{
    Behind, OfSubject, RevokeBody, RevokeSubjectBody, RevokedSubject, RevokedSubjects,
    RevokedToken, RevokedTokens,
};
use axum::extract::State;
use axum::{Extension, Json};
use schema::time::ReceivedAt;
use store::access::{Revocation, SubjectRevocation};

use super::extract::{Body, Of, Params, next, parsed, wrong};
use super::problem::Problem;
use super::{Caller, Shared};
use crate::auth::token::{LEEWAY_SECONDS, VALIDITY_SECONDS_MAX};

/// Tokens of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Longest text of a token's name, subject or reason, in characters.
const TEXT_CHARS_MAX: usize = 256;

/// Lists revoked tokens.
pub(super) async fn revoked(
    State(store): Shared,
    Params(asked): Params<Behind>,
) -> Result<Json<RevokedTokens>, Problem> {
    let (after, limit) = page(&asked)?;
    let found = store.revocations(after, limit).await?;
    let next = next(&found, limit, |last| last.jti.clone());
    Ok(Json(RevokedTokens {
        tokens: found.into_iter().map(token).collect(),
        next,
    }))
}

/// Revokes a token: within 5 seconds no bridge takes it any more.
pub(super) async fn revoke(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<RevokeBody>,
) -> Result<Json<RevokedToken>, Problem> {
    let now = store.clock().now();
    name("jti", &asked.jti)?;
    text("subject", &asked.subject)?;
    text("reason", &asked.reason)?;
    let time = |text: &str| Time::try_from(text.to_owned());
    let ends = match parsed("expires_at", asked.expires_at.as_deref(), time)? {
        Some(Time(at)) => storable(at)?,
        None => now.micros(),
    };
    let revocation = Revocation {
        jti: asked.jti,
        subject: asked.subject,
        reason: asked.reason,
        revoked_at: now,
        revoked_by: caller.name,
        expires_at: ReceivedAt::from_micros(ends.max(last_end(now.micros()))),
    };
    store.revoke(&revocation).await?;
    Ok(Json(token(revocation)))
}

/// Revokes all tokens of somebody: within 5 seconds no bridge takes them any more.
pub(super) async fn revoke_subject(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Of(OfSubject { subject }): Of<OfSubject>,
    Body(asked): Body<RevokeSubjectBody>,
) -> Result<Json<RevokedSubject>, Problem> {
    // Once all of the request is there: what was issued while it came is revoked, too.
    let now = store.clock().now();
    name("subject", &subject)?;
    text("reason", &asked.reason)?;
    let revocation = SubjectRevocation {
        subject,
        issued_until: now,
        reason: asked.reason,
        revoked_at: now,
        revoked_by: caller.name,
    };
    store.revoke_subject(&revocation).await?;
    Ok(Json(of_subject(revocation)))
}

/// Lists whose tokens are revoked.
pub(super) async fn subjects(
    State(store): Shared,
    Params(asked): Params<Behind>,
) -> Result<Json<RevokedSubjects>, Problem> {
    let (after, limit) = page(&asked)?;
    let found = store.revoked_subjects(after, limit).await?;
    let next = next(&found, limit, |last| last.subject.clone());
    Ok(Json(RevokedSubjects {
        subjects: found.into_iter().map(of_subject).collect(),
        next,
    }))
}

/// The name behind which a page begins, and how many it has.
fn page(asked: &Behind) -> Result<(Option<&str>, usize), Problem> {
    let after = asked.after.as_deref();
    text("after", after.unwrap_or_default())?;
    Ok((after, asked.limit.map_or(LIMIT, usize::from)))
}

/// When the last token has ended that may be there now, by a clock that may be a little ahead.
fn last_end(now_micros: i64) -> i64 {
    let seconds = VALIDITY_SECONDS_MAX + 2 * LEEWAY_SECONDS;
    now_micros.saturating_add(i64::try_from(1_000_000 * seconds).unwrap_or(i64::MAX))
}

/// A time that every store holds.
fn storable(at: schema::ObservedAt) -> Result<i64, Problem> {
    use store::{OBSERVED_AT_MAX, OBSERVED_AT_MIN};
    match (OBSERVED_AT_MIN..=OBSERVED_AT_MAX).contains(&at) {
        true => Ok(at.micros()),
        false => Err(wrong("expires_at", "is out of the calendar")),
    }
}

/// A name that every store holds.
fn name(what: &str, given: &str) -> Result<(), Problem> {
    text(what, given)?;
    match given.is_empty() {
        true => Err(wrong(what, "is empty")),
        false => Ok(()),
    }
}

/// A text that every store holds.
fn text(what: &str, given: &str) -> Result<(), Problem> {
    if given.chars().count() > TEXT_CHARS_MAX || given.chars().any(char::is_control) {
        let rule = format!(
            "must have at most {TEXT_CHARS_MAX} characters, none of them a control character"
        );
        return Err(wrong(what, rule));
    }
    Ok(())
}

fn of_subject(revocation: SubjectRevocation) -> RevokedSubject {
    RevokedSubject {
        subject: revocation.subject,
        issued_until: schema::rfc3339(revocation.issued_until.micros()),
        reason: revocation.reason,
        revoked_at: schema::rfc3339(revocation.revoked_at.micros()),
        revoked_by: revocation.revoked_by,
    }
}

fn token(revocation: Revocation) -> RevokedToken {
    RevokedToken {
        jti: revocation.jti,
        subject: revocation.subject,
        reason: revocation.reason,
        revoked_at: schema::rfc3339(revocation.revoked_at.micros()),
        revoked_by: revocation.revoked_by,
        expires_at: schema::rfc3339(revocation.expires_at.micros()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_a_longest_length_and_no_control_characters() {
        assert!(text("reason", &"ü".repeat(TEXT_CHARS_MAX)).is_ok());
        assert!(text("reason", &"ü".repeat(TEXT_CHARS_MAX + 1)).is_err());
        assert!(text("reason", "a\0").is_err());
        assert!(text("reason", "").is_ok() && name("jti", "").is_err());
    }
}
