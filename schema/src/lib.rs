//! The vocabulary that every part of Tideline agrees on: identities, readings, versions, sequence
//! ranges, topics, messages and the batch codec.
//!
//! Pure values and functions: no IO, no async, no clock and no randomness of its own. Everything
//! that arrives from a network, a file or a person is parsed here once, into types whose
//! invariants the rest of the system trusts.
//!
//! Reading order: [`id`] → [`reading`] and [`sensor`] → [`stamp`] and [`timestamp`] → [`hlc`] and [`lww`] → [`range`] and [`ledger`] →
//! [`topic`] and [`address`] → [`envelope`] and [`message`] → [`setting`] →
//! [`codec`].

pub mod address;
pub mod batch;
pub mod codec;
pub mod digest;
pub mod envelope;
pub mod hlc;
pub mod id;
pub mod ledger;
pub mod limits;
pub mod lww;
pub mod message;
pub mod range;
pub mod reading;
pub mod sensor;
pub mod setting;
pub mod stamp;
pub mod time;
pub mod timestamp;
pub mod topic;

pub use self::time::{ObservedAt, ReceivedAt};
pub use address::BrokerAddress;
pub use batch::{Batch, Row};
pub use hlc::{Hlc, HlcClock};
pub use id::{CommonName, DeviceId, Epoch, SensorName};
pub use ledger::{Balance, DiscardedBy, EpochLedger};
pub use lww::Version;
pub use range::{RangeSet, SeqRange};
pub use reading::{Quality, Reading, Value};
pub use sensor::{SensorDeclaration, ValueType};
pub use timestamp::{TimestampUnit, WrittenTime, rfc3339};
pub use topic::{Channel, Topic};
