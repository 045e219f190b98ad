//! Topics: `tl/v1/{device}/{up|down}/{channel}`, built and parsed in one place.
//!
//! A topic is concrete, a filter has wildcards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DeviceId;
use crate::id::IdError;

/// The first two levels of every topic.
pub const ROOT: &str = "tl/v1";

/// A concrete topic of one device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Whose topic it is.
    pub device: DeviceId,
    /// What travels there.
    pub channel: Channel,
}

/// What travels on a topic, and in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// `up/telemetry`, QoS 1: one batch.
    Telemetry,
    /// `up/event`, QoS 1: reports, command progress, reported configuration.
    Event,
    /// `up/status`, QoS 1, retained: birth; the last will says offline.
    Status,
    /// `down/ack`, QoS 0 or 1: committed ranges, rejected readings.
    Ack,
    /// `down/command`, QoS 1: one command.
    Command,
    /// `down/config`, QoS 1, retained: the whole desired configuration.
    Config,
}

/// Why a text is none of our topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It does not have the form `tl/v1/{device}/{up|down}/{channel}`.
    #[error("topic is not of the form {ROOT}/DEVICE/up|down/CHANNEL")]
    Form,
    /// The third level is no device id.
    #[error("topic names no device: {0}")]
    Device(#[from] IdError),
}

impl Channel {
    /// Every channel, upward ones first.
    pub const ALL: [Self; 6] = [
        Self::Telemetry,
        Self::Event,
        Self::Status,
        Self::Ack,
        Self::Command,
        Self::Config,
    ];

    /// The last two levels of the topic.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Telemetry => "up/telemetry",
            Self::Event => "up/event",
            Self::Status => "up/status",
            Self::Ack => "down/ack",
            Self::Command => "down/command",
            Self::Config => "down/config",
        }
    }

    /// Whether the device publishes here; otherwise the bridge does.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Telemetry | Self::Event | Self::Status)
    }

    /// Whether the broker keeps the last message for later subscribers.
    #[must_use]
    pub const fn is_retained(self) -> bool {
        matches!(self, Self::Status | Self::Config)
    }
}

impl Topic {
    /// The topic of one device and channel.
    #[must_use]
    pub const fn new(device: DeviceId, channel: Channel) -> Self {
        Self { device, channel }
    }
}

/// The one filter that a device subscribes with: all that is meant for it.
#[must_use]
pub fn down_filter(device: &DeviceId) -> String {
    format!("{ROOT}/{device}/down/#")
}

/// The filter over everything that devices publish.
#[must_use]
pub fn up_filter() -> String {
    format!("{ROOT}/+/up/#")
}

/// The presence of all devices, for a bridge that was away: it is retained.
#[must_use]
pub fn status_filter() -> String {
    format!("{ROOT}/+/{}", Channel::Status.suffix())
}

/// The filter that the bridges of one group share the work through. One filter a group: a broker
/// may serve only the first.
#[must_use]
pub fn shared_up_filter(group: &str) -> String {
    format!("$share/{group}/{ROOT}/+/up/#")
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let rest = text
            .strip_prefix(ROOT)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(TopicError::Form)?;
        let (device, suffix) = rest.split_once('/').ok_or(TopicError::Form)?;
        let channel = Channel::ALL
            .into_iter()
            .find(|channel| channel.suffix() == suffix)
            .ok_or(TopicError::Form)?;
        Ok(Self {
            device: device.parse()?,
            channel,
        })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ROOT}/{}/{}", self.device, self.channel.suffix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_topic_parses_back() {
        for channel in Channel::ALL {
            let topic = Topic::new("press-7".parse().unwrap(), channel);
            assert_eq!(topic.to_string().parse(), Ok(topic));
        }
    }

    #[test]
    fn other_topics_are_refused() {
        for text in [
            "",
            "tl",
            "tl/v1",
            "tl/v1/",
            "tl/v1/d",
            "tl/v1/d/up",
            "tl/v1/d/up/ack",
            "tl/v1/d/down/telemetry",
            "tl/v1/d/up/telemetry/x",
            "tl/v1//up/telemetry",
            "tl/v1/a/b/up/telemetry",
            "tl/v2/d/up/telemetry",
            "tl/v1/+/up/telemetry",
            "TL/v1/d/up/telemetry",
            "$SYS/tl/v1/d/up/event",
        ] {
            assert!(text.parse::<Topic>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_the_same(text in ".{0,80}") {
            if let Ok(topic) = text.parse::<Topic>() {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }
}
