//! The edge buffer: what was accepted stays here until the bridge says that the database has
//! committed it. Promise P1's other half at the edge.

mod error;
pub mod eviction;
mod handle;
mod recovery;
mod row;
mod settings;
mod writer;

pub use error::BufferError;
pub use eviction::{Policies, Policy, SensorPattern};
pub use handle::{Appended, Buffer, Opened, Progress, Taken};
pub use recovery::Recovery;
pub use row::{ReadingError, SENSORS_MAX};
pub use settings::{BufferSettings, SettingsError};
