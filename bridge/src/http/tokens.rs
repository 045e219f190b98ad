//! Tokens that count no more.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use schema::time::ReceivedAt;
use serde::{Deserialize, Serialize};
use store::QUERY_ROWS_MAX;
use store::access::{Revocation, SubjectRevocation};
use utoipa::ToSchema;

use super::problem::Problem;
use super::query::{Query, time};
use super::{Caller, Shared};
use crate::auth::token::{LEEWAY_SECONDS, VALIDITY_SECONDS_MAX};

/// Tokens of one answer, unless told otherwise.
const LIMIT: usize = 100;

/// Longest text of a token's name, subject or reason, in characters.
const TEXT_CHARS_MAX: usize = 256;

/// A token to revoke.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeBody {
    /// The token's own name, its `jti`.
    #[schema(
        min_length = 1,
        max_length = 256,
        example = "0d8f7c6b5a4938271605f4e3d2c1b0a9"
    )]
    jti: String,
    /// Whom it was made out to.
    #[serde(default)]
    #[schema(max_length = 256)]
    subject: String,
    /// Why.
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: String,
    /// When the token ends by itself, if that is known, RFC 3339. It is remembered until then, and at
    /// least for as long as any token is good: a wrong time brings no token back.
    #[serde(default)]
    #[schema(example = "2027-01-01T00:00:00Z")]
    expires_at: Option<String>,
}

/// A token that counts no more.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokedToken {
    jti: String,
    subject: String,
    reason: String,
    revoked_at: String,
    revoked_by: String,
    /// Until when this is remembered: from then on the token has ended by itself.
    expires_at: String,
}

/// Why somebody's tokens are revoked.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeSubjectBody {
    #[serde(default)]
    #[schema(max_length = 256)]
    reason: String,
}

/// Somebody whose tokens count no more.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokedSubject {
    subject: String,
    /// Tokens that were issued until then count no more.
    issued_until: String,
    reason: String,
    revoked_at: String,
    revoked_by: String,
}

/// Whose tokens count no more.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokedSubjects {
    subjects: Vec<RevokedSubject>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Tokens that count no more.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RevokedTokens {
    tokens: Vec<RevokedToken>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Lists revoked tokens
#[utoipa::path(
    get,
    path = "/api/v1/tokens/revoked",
    tag = "access",
    params(
        ("after" = Option<String>, Query, description = "The name behind which to go on"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = RevokedTokens))
)]
pub(crate) async fn revoked(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<RevokedTokens>, Problem> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query.get("after", plain)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.revocations(after.as_deref(), limit).await?;
    let next = match found.last() {
        Some(last) if found.len() == limit => Some(last.jti.clone()),
        _ => None,
    };
    Ok(Json(RevokedTokens {
        tokens: found.into_iter().map(RevokedToken::from).collect(),
        next,
    }))
}

/// Revokes a token: within 5 seconds no bridge takes it any more
#[utoipa::path(
    post,
    path = "/api/v1/tokens/revoke",
    tag = "access",
    request_body = RevokeBody,
    responses((status = 200, body = RevokedToken))
)]
pub(crate) async fn revoke(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<RevokedToken>, Problem> {
    super::is_json(&headers)?;
    let body: RevokeBody = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    for (name, text) in [
        ("jti", &body.jti),
        ("subject", &body.subject),
        ("reason", &body.reason),
    ] {
        plain(text).map_err(|error| Problem::bad_request(format!("{name}: {error}")))?;
    }
    if body.jti.is_empty() {
        return Err(Problem::bad_request("jti: is empty"));
    }
    let now = store.clock().now().micros();
    let ends = match &body.expires_at {
        Some(text) => {
            let at = time(text);
            storable(at.map_err(|error| Problem::bad_request(format!("expires_at: {error}")))?)?
        }
        None => now,
    };
    let revocation = Revocation {
        jti: body.jti,
        subject: body.subject,
        reason: body.reason,
        revoked_at: ReceivedAt::from_micros(now),
        revoked_by: caller.name,
        expires_at: ReceivedAt::from_micros(ends.max(last_end(now))),
    };
    store.revoke(&revocation).await?;
    Ok(Json(revocation.into()))
}

/// Revokes all tokens of somebody: within 5 seconds no bridge takes them any more
///
/// All that were issued until now, on whichever keys and whoever has them. One that is issued a second later counts.
#[utoipa::path(
    post,
    path = "/api/v1/tokens/subjects/{subject}/revoke",
    tag = "access",
    params(
        ("subject" = String, Path, description = "Whom the tokens are made out to", pattern = "^[^/]{1,256}$", min_length = 1, max_length = 256),
    ),
    request_body = RevokeSubjectBody,
    responses((status = 200, body = RevokedSubject))
)]
pub(crate) async fn revoke_subject(
    State(store): Shared,
    Extension(caller): Extension<Caller>,
    Path(subject): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<RevokedSubject>, Problem> {
    super::is_json(&headers)?;
    let body: RevokeSubjectBody = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    for (name, text) in [("subject", &subject), ("reason", &body.reason)] {
        plain(text).map_err(|error| Problem::bad_request(format!("{name}: {error}")))?;
    }
    if subject.is_empty() {
        return Err(Problem::bad_request("subject: is empty"));
    }
    let now = store.clock().now();
    let revocation = SubjectRevocation {
        subject,
        issued_until: now,
        reason: body.reason,
        revoked_at: now,
        revoked_by: caller.name,
    };
    store.revoke_subject(&revocation).await?;
    Ok(Json(revocation.into()))
}

/// Lists whose tokens are revoked
#[utoipa::path(
    get,
    path = "/api/v1/tokens/subjects",
    tag = "access",
    params(
        ("after" = Option<String>, Query, description = "The name behind which to go on"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10_000, description = "At most so many"),
    ),
    responses((status = 200, body = RevokedSubjects))
)]
pub(crate) async fn subjects(
    State(store): Shared,
    RawQuery(query): RawQuery,
) -> Result<Json<RevokedSubjects>, Problem> {
    let query = Query::parse(query.as_deref(), &["after", "limit"])?;
    let after = query.get("after", plain)?;
    let limit = query.limit(LIMIT, QUERY_ROWS_MAX)?;
    let found = store.revoked_subjects(after.as_deref(), limit).await?;
    let next = match found.last() {
        Some(last) if found.len() == limit => Some(last.subject.clone()),
        _ => None,
    };
    Ok(Json(RevokedSubjects {
        subjects: found.into_iter().map(RevokedSubject::from).collect(),
        next,
    }))
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
        false => Err(Problem::bad_request("expires_at: is out of the calendar")),
    }
}

/// A text that every store holds.
fn plain(text: &str) -> Result<String, String> {
    if text.chars().count() > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "must have at most {TEXT_CHARS_MAX} characters, none of them a control character"
        ));
    }
    Ok(text.to_owned())
}

impl From<SubjectRevocation> for RevokedSubject {
    fn from(revocation: SubjectRevocation) -> Self {
        Self {
            subject: revocation.subject,
            issued_until: schema::rfc3339(revocation.issued_until.micros()),
            reason: revocation.reason,
            revoked_at: schema::rfc3339(revocation.revoked_at.micros()),
            revoked_by: revocation.revoked_by,
        }
    }
}

impl From<Revocation> for RevokedToken {
    fn from(revocation: Revocation) -> Self {
        Self {
            jti: revocation.jti,
            subject: revocation.subject,
            reason: revocation.reason,
            revoked_at: schema::rfc3339(revocation.revoked_at.micros()),
            revoked_by: revocation.revoked_by,
            expires_at: schema::rfc3339(revocation.expires_at.micros()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_a_longest_length_and_no_control_characters() {
        assert!(plain(&"ü".repeat(TEXT_CHARS_MAX)).is_ok());
        assert!(plain(&"ü".repeat(TEXT_CHARS_MAX + 1)).is_err());
        assert!(plain("a\0").is_err());
    }
}
