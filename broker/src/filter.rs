//! Subscription filters, compiled to what they can match at all: Tideline has six topics a
//! device, so a filter is a set of channels of one device or of all.
//!
//! Invariant: a compiled filter matches exactly those of our topics that MQTT's own rules would
//! let it match; a test compares the two. Whether a client may have the filter: [`crate::rules`].

use schema::{Channel, DeviceId, topic};

/// Longest filter, in bytes; our longest topic has 83.
const FILTER_BYTES_MAX: usize = 256;

/// Longest name of a group that shares a subscription, in bytes.
const GROUP_BYTES_MAX: usize = 64;

/// What a client subscribes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    /// The group that shares the subscription, if any.
    pub(crate) group: Option<String>,
    /// What is matched.
    pub(crate) filter: Filter,
}

/// Which of our topics are matched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Filter {
    /// The only device, or `None` for all.
    pub(crate) device: Option<DeviceId>,
    /// The channels.
    pub(crate) channels: Channels,
}

/// A set of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Channels(u8);

/// A text that is no filter by MQTT's rules or by our limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid;

impl Channels {
    /// All that devices publish.
    pub(crate) const UP: Self = Self(0b000_111);
    /// All that bridges publish.
    pub(crate) const DOWN: Self = Self(0b111_000);

    const fn bit(channel: Channel) -> u8 {
        1 << match channel {
            Channel::Telemetry => 0,
            Channel::Event => 1,
            Channel::Status => 2,
            Channel::Ack => 3,
            Channel::Command => 4,
            Channel::Config => 5,
        }
    }

    pub(crate) const fn contains(self, channel: Channel) -> bool {
        self.0 & Self::bit(channel) != 0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

impl Requested {
    /// Reads a filter, with or without `$share/GROUP/` before it.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(Invalid);
        }
        let (group, path) = match text.strip_prefix("$share/") {
            None => (None, text),
            Some(rest) => {
                let (group, path) = rest.split_once('/').ok_or(Invalid)?;
                check_group(group)?;
                (Some(group.to_owned()), path)
            }
        };
        let filter = Filter::parse(path)?;
        Ok(Self { group, filter })
    }
}

impl Filter {
    fn parse(path: &str) -> Result<Self, Invalid> {
        let printable = path.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if path.is_empty() || !printable || path.starts_with('$') {
            return Err(Invalid);
        }
        let levels: Vec<&str> = path.split('/').collect();
        check_wildcards(&levels)?;
        let (device, sample) = match device_level(&levels) {
            None => (None, "x"),
            Some(name) => match name.parse() {
                Ok(device) => (Some(device), name),
                // A valid filter over a device that cannot exist.
                Err(_) => return Ok(Self::nothing()),
            },
        };
        let mut channels = Channels::default();
        for channel in Channel::ALL {
            let concrete = format!("{}/{sample}/{}", topic::ROOT, channel.suffix());
            if matches(&levels, &concrete) {
                channels.0 |= Channels::bit(channel);
            }
        }
        Ok(Self { device, channels })
    }

    const fn nothing() -> Self {
        Self {
            device: None,
            channels: Channels(0),
        }
    }

    /// Whether a message on this channel of this device is matched.
    pub(crate) fn matches(&self, device: &str, channel: Channel) -> bool {
        self.channels.contains(channel)
            && self
                .device
                .as_ref()
                .is_none_or(|only| only.as_str() == device)
    }
}

/// Splits one of our own topics, which were checked when they came in.
pub(crate) fn split_topic(topic: &str) -> Option<(&str, Channel)> {
    let rest = topic.strip_prefix(topic::ROOT)?.strip_prefix('/')?;
    let (device, suffix) = rest.split_once('/')?;
    let channel = Channel::ALL
        .into_iter()
        .find(|channel| channel.suffix() == suffix)?;
    Some((device, channel))
}

fn check_group(group: &str) -> Result<(), Invalid> {
    let sound = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'+' | b'#');
    match group.len() {
        1..=GROUP_BYTES_MAX if group.bytes().all(sound) => Ok(()),
        _ => Err(Invalid),
    }
}

/// `#` stands alone and last, `+` stands alone.
fn check_wildcards(levels: &[&str]) -> Result<(), Invalid> {
    for (at, level) in levels.iter().enumerate() {
        let last = at + 1 == levels.len();
        let sound = match *level {
            "#" => last,
            "+" => true,
            other => !other.contains(['#', '+']),
        };
        if !sound {
            return Err(Invalid);
        }
    }
    Ok(())
}

/// The device that the filter names, if it names one.
fn device_level<'a>(levels: &[&'a str]) -> Option<&'a str> {
    levels
        .get(2)
        .copied()
        .filter(|level| !matches!(*level, "+" | "#"))
}

/// MQTT's rule, for topics that do not begin with `$`.
fn matches(levels: &[&str], topic: &str) -> bool {
    let mut concrete = topic.split('/');
    for level in levels {
        match (*level, concrete.next()) {
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (level, Some(part)) if level == part => {}
            _ => return false,
        }
    }
    concrete.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, device: Option<&str>, channels: &[Channel]) {
        let filter = Requested::parse(text).unwrap().filter;
        assert_eq!(
            filter.device.as_ref().map(DeviceId::as_str),
            device,
            "{text}"
        );
        for channel in Channel::ALL {
            let expected = channels.contains(&channel);
            assert_eq!(
                filter.channels.contains(channel),
                expected,
                "{text} {channel:?}"
            );
        }
    }

    #[test]
    fn filters_compile_to_channels_of_devices() {
        use Channel::{Ack, Command, Config, Event, Status, Telemetry};
        check("tl/v1/+/up/#", None, &[Telemetry, Event, Status]);
        check("tl/v1/a/down/#", Some("a"), &[Ack, Command, Config]);
        check("tl/v1/a/down/config", Some("a"), &[Config]);
        check("tl/v1/a/#", Some("a"), &Channel::ALL);
        check("#", None, &Channel::ALL);
        check("tl/#", None, &Channel::ALL);
        check("+/+/+/+/+", None, &Channel::ALL);
        check("+/+/a/+/status", Some("a"), &[Status]);
        check("tl/v1/+", None, &[]);
        check("tl/v1", None, &[]);
        check("tl/v1/a/up/telemetry/#", Some("a"), &[Telemetry]);
        check("tl/v1/a b/up/#", None, &[]);
        check("other/topic", None, &[]);
        check("/", None, &[]);
        check("$share/g/tl/v1/+/up/#", None, &[Telemetry, Event, Status]);
    }

    #[test]
    fn what_mqtt_forbids_is_invalid() {
        for text in [
            "",
            "#/x",
            "a/#/b",
            "a#",
            "a+",
            "+a/b",
            "a/##",
            "a/++",
            "$SYS/#",
            "$share",
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//tl/#",
            "$share/a+/tl/#",
            "$share/g/$SYS/#",
            "tl/v1/ü/#",
            "tl/\u{7f}",
            "a\0b",
            "$share/ü/#",
        ] {
            assert_eq!(Requested::parse(text), Err(Invalid), "{text:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        for (bytes, fits) in [(255, true), (256, true), (257, false)] {
            assert_eq!(
                Requested::parse(&"x".repeat(bytes)).is_ok(),
                fits,
                "{bytes}"
            );
        }
        for (bytes, fits) in [(63, true), (64, true), (65, false)] {
            let text = format!("$share/{}/#", "g".repeat(bytes));
            assert_eq!(Requested::parse(&text).is_ok(), fits, "{bytes}");
        }
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("+".to_owned()),
            Just("#".to_owned()),
            Just("tl".to_owned()),
            Just("v1".to_owned()),
            Just("d1".to_owned()),
            Just("d2".to_owned()),
            Just("up".to_owned()),
            Just("down".to_owned()),
            Just("status".to_owned()),
            Just("config".to_owned()),
            Just(String::new()),
        ]
    }

    proptest! {
        #[test]
        fn compiled_filters_match_as_mqtt_says(levels in prop::collection::vec(level(), 1..7)) {
            let text = levels.join("/");
            let Ok(Requested { filter, .. }) = Requested::parse(&text) else {
                return Ok(());
            };
            for device in ["d1", "d2", "other"] {
                for channel in Channel::ALL {
                    let topic = format!("tl/v1/{device}/{}", channel.suffix());
                    let expected = rumqttd::protocol::matches(&topic, &text);
                    prop_assert_eq!(filter.matches(device, channel), expected, "{} on {}", text, topic);
                    prop_assert_eq!(split_topic(&topic), Some((device, channel)));
                }
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = Requested::parse(&text);
            let _ = split_topic(&text);
        }
    }
}
