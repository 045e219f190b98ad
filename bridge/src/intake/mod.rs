//! The bridge's connection to the broker: messages in, acknowledgements out.

mod inbox;
mod meters;
pub mod mqtt;

use std::time::Instant;

use bytes::Bytes;
use schema::Topic;

pub use inbox::{Inbox, Outbox, inbox};
pub use meters::IntakeMeters;
pub use mqtt::{Broker, BrokerConfig};

/// One message from a device, or what claims to be one.
#[derive(Debug)]
pub struct Message {
    /// Where it arrived, parsed; or as it came, when it is none of our topics.
    pub topic: Result<Topic, String>,
    /// Its payload.
    pub payload: Bytes,
    /// When it arrived: the database's time of it is known when it is judged.
    pub received: Instant,
    /// What tells the broker that we have it.
    pub receipt: mqtt::Receipt,
}
