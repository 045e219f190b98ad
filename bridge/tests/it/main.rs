//! The bridge's integration tests, in one binary.

mod store;
