//! The messages beside batches, one file for each topic that carries them. All travel through
//! [`crate::envelope`]; the order of fields and variants is the wire format.

pub mod ack;
pub mod command;
pub mod config;
pub mod event;
pub mod status;

pub use ack::{Ack, Downlink, Refusal, RejectReason, Rejection};
pub use command::{Command, CommandId, CommandProgress, CommandState};
pub use config::{ConfigEntry, DesiredConfig, FailedKey, ReportedConfig};
pub use event::{EpochReport, Event, Report};
pub use status::Status;
