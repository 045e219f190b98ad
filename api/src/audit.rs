//! The audit: what was changed through the API, and who was turned away.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Page;
use crate::endpoint::{endpoint, listing};

endpoint! {
    /// Lists what was changed through the API and who was turned away, latest first
    ListAudit: GET "/api/v1/audit", Administer, "access";
    query Page; answer AuditLog
}

/// What was changed, or who was turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditLine {
    /// When, RFC 3339.
    pub at: String,
    /// Who; empty when nobody knows.
    pub actor: String,
    /// A method and a path, or `authenticate`.
    #[schema(example = "POST /api/v1/devices/{device}/commands")]
    pub action: String,
    /// The path that was asked for.
    pub target: String,
    /// The caller's IP address.
    pub address: String,
    /// The status of the answer, or why there was no caller.
    #[schema(example = "201")]
    pub outcome: String,
}

/// A part of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditLog {
    /// The entries of this page.
    pub entries: Vec<AuditLine>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

listing!(AuditLog.entries: AuditLine);
