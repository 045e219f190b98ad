//! Tokens that count no more: single ones, and all of somebody.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Limit;
use crate::endpoint::{endpoint, listing, paged};

endpoint! {
    /// Lists revoked tokens
    ListRevokedTokens: GET "/api/v1/tokens/revoked", Administer, "access";
    query Behind; answer RevokedTokens
}

endpoint! {
    /// Revokes a token: within 5 seconds no bridge takes it any more
    RevokeToken: POST "/api/v1/tokens/revoke", Administer, "access";
    body RevokeBody; answer RevokedToken
}

endpoint! {
    /// Lists whose tokens are revoked
    ListRevokedSubjects: GET "/api/v1/tokens/subjects", Administer, "access";
    query Behind; answer RevokedSubjects
}

endpoint! {
    /// Revokes all tokens of somebody: within 5 seconds no bridge takes them any more
    ///
    /// All that were issued until now, on whichever keys and whoever has them. One that is issued a second later counts.
    RevokeSubject: POST "/api/v1/tokens/subjects/{subject}/revoke", Administer, "access";
    path OfSubject; body RevokeSubjectBody; answer RevokedSubject
}

/// The subject of tokens that a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfSubject {
    /// Whom the tokens are made out to
    #[param(pattern = "^[^/]{1,256}$", min_length = 1, max_length = 256)]
    pub subject: String,
}

/// Which part of a list is asked for, by names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Behind {
    /// The name behind which to go on
    pub after: Option<String>,
    /// At most so many
    #[param(value_type = Option<usize>, minimum = 1, maximum = 10_000)]
    pub limit: Option<Limit>,
}

/// A token to revoke.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeBody {
    /// The token's own name, its `jti`.
    #[schema(
        min_length = 1,
        max_length = 256,
        example = "0d8f7c6b5a4938271605f4e3d2c1b0a9"
    )]
    pub jti: String,
    /// Whom it was made out to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 256)]
    pub subject: String,
    /// Why it is revoked, for those who ask later.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub reason: String,
    /// When the token ends by itself, if that is known, RFC 3339. It is remembered until then, and at
    /// least for as long as any token is good: a wrong time brings no token back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2027-01-01T00:00:00Z")]
    pub expires_at: Option<String>,
}

/// A token that counts no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedToken {
    /// The token's own name.
    pub jti: String,
    /// Whom it was made out to; empty where that was not said.
    pub subject: String,
    /// Why it was revoked.
    pub reason: String,
    /// When, RFC 3339.
    pub revoked_at: String,
    /// Who revoked it.
    pub revoked_by: String,
    /// Until when this is remembered: from then on the token has ended by itself.
    pub expires_at: String,
}

/// Tokens that count no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedTokens {
    /// The entries of this page.
    pub tokens: Vec<RevokedToken>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Why somebody's tokens are revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeSubjectBody {
    /// The reason, for those who ask later.
    #[serde(default)]
    #[schema(max_length = 256)]
    pub reason: String,
}

/// Somebody whose tokens count no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedSubject {
    /// Whom the tokens were made out to.
    pub subject: String,
    /// Tokens that were issued until then count no more.
    pub issued_until: String,
    /// Why they were revoked.
    pub reason: String,
    /// When, RFC 3339.
    pub revoked_at: String,
    /// Who revoked them.
    pub revoked_by: String,
}

/// Whose tokens count no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedSubjects {
    /// The entries of this page.
    pub subjects: Vec<RevokedSubject>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

listing!(RevokedTokens.tokens: RevokedToken);
listing!(RevokedSubjects.subjects: RevokedSubject);
paged!(Behind, after);
