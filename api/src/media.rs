//! The kinds of bodies that travel, as `Content-Type` and `Accept` name them.

/// JSON, of every endpoint.
pub const JSON: &str = "application/json";

/// Comma-separated values with a head (RFC 4180).
pub const CSV: &str = "text/csv";

/// An Arrow IPC stream.
pub const ARROW: &str = "application/vnd.apache.arrow.stream";

/// One batch of readings, as devices publish it.
pub const BATCH: &str = "application/vnd.tideline.batch";
