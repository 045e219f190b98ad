//! The edge agent.

pub mod session;
