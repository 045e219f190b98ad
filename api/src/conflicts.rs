//! Versions of readings that lost to others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::endpoint::{endpoint, listing};
use crate::telemetry::ReadingBody;
use crate::{OfDevice, Page};

endpoint! {
    /// Lists versions that lost to another one, latest first
    ListConflicts: GET "/api/v1/devices/{device}/conflicts", ReadDevice, "telemetry";
    path OfDevice; query Page; answer Conflicts
}

/// Versions that lost
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Conflicts {
    /// The latest first.
    pub conflicts: Vec<ConflictBody>,
    /// Where the next page begins, if there is one: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many more there were of which no copy was kept, because a quota is used up; on the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_kept: Option<u64>,
}

/// A version that lost
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConflictBody {
    /// The reading as it was sent.
    pub loser: ReadingBody,
    /// The version that won over it then.
    pub winner: VersionBody,
    /// When the bridge saw it, RFC 3339.
    pub recorded_at: String,
}

/// The version of a reading
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionBody {
    /// Of which epoch, 12 hexadecimal digits.
    pub epoch: String,
    /// Its sequence there.
    pub seq: u64,
    /// Its clock, 64 bits.
    pub hlc: u64,
}

listing!(Conflicts.conflicts: ConflictBody);
