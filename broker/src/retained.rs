//! Retained messages: the last status of each device, and its configuration. Kept in front of
//! the routers, so that a subscriber over many of them sees all, however many there are: rumqttd
//! forgets what does not fit into one hand-over.
//!
//! Invariant: at most two messages a device, and at most so many bytes in all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use schema::{Channel, DeviceId};

use crate::filter::Filter;
use crate::router::Message;
use crate::wire::Qos;

/// Room that one message takes beside its payload, roughly: topic, map entry, allocations.
const OVERHEAD_BYTES: usize = 256;

/// The bytes that all shards may retain together.
#[derive(Debug)]
pub(crate) struct RetainedRoom {
    used: AtomicUsize,
    max: usize,
}

/// The retained messages of one shard.
#[derive(Debug)]
pub(crate) struct Retained {
    devices: HashMap<DeviceId, Kept>,
    room: Arc<RetainedRoom>,
    count: usize,
}

#[derive(Debug, Default)]
struct Kept {
    status: Option<Message>,
    config: Option<Message>,
}

impl RetainedRoom {
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Retained {
    pub(crate) fn new(room: Arc<RetainedRoom>) -> Self {
        Self {
            devices: HashMap::new(),
            room,
            count: 0,
        }
    }

    /// How many messages are retained.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Takes a message in the place of the one before; an empty payload only removes that.
    /// `false` when there is no room: then nothing is retained, rather than something old.
    pub(crate) fn put(&mut self, device: &DeviceId, channel: Channel, message: &Message) -> bool {
        let empty = message.payload.is_empty();
        if empty && !self.devices.contains_key(device) {
            return true;
        }
        let kept = self.devices.entry(device.clone()).or_default();
        let Some(slot) = kept.slot(channel) else {
            return true;
        };
        if let Some(old) = slot.take() {
            self.room.give_back(bytes(&old));
            self.count -= 1;
        }
        let fits = empty || self.room.take(bytes(message));
        if fits && !empty {
            *slot = Some(message.clone());
            self.count += 1;
        }
        if kept.status.is_none() && kept.config.is_none() {
            self.devices.remove(device);
        }
        fits
    }

    /// Everything that a filter matches, with no more than the subscription's quality.
    pub(crate) fn matching(&self, filter: &Filter, qos: Qos, into: &mut impl Extend<Message>) {
        match &filter.device {
            Some(device) => {
                if let Some(kept) = self.devices.get(device) {
                    kept.matching(filter, qos, into);
                }
            }
            None => {
                for kept in self.devices.values() {
                    kept.matching(filter, qos, into);
                }
            }
        }
    }
}

impl Kept {
    const fn slot(&mut self, channel: Channel) -> Option<&mut Option<Message>> {
        match channel {
            Channel::Status => Some(&mut self.status),
            Channel::Config => Some(&mut self.config),
            Channel::Telemetry | Channel::Event | Channel::Ack | Channel::Command => None,
        }
    }

    fn matching(&self, filter: &Filter, qos: Qos, into: &mut impl Extend<Message>) {
        let kept = [
            (Channel::Status, &self.status),
            (Channel::Config, &self.config),
        ];
        let matched = kept.into_iter().filter_map(|(channel, message)| {
            let message = message.as_ref()?;
            filter.channels.contains(channel).then(|| Message {
                topic: message.topic.clone(),
                payload: Bytes::clone(&message.payload),
                qos: message.qos.min(qos),
            })
        });
        into.extend(matched);
    }
}

fn bytes(message: &Message) -> usize {
    OVERHEAD_BYTES + message.payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Requested;

    fn store(max: usize) -> Retained {
        Retained::new(Arc::new(RetainedRoom::new(max)))
    }

    fn message(payload: &'static str) -> Message {
        Message {
            topic: Bytes::from_static(b"tl/v1/x/up/status"),
            payload: Bytes::from_static(payload.as_bytes()),
            qos: Qos::One,
        }
    }

    fn check(store: &Retained, filter: &str, expected: &[&str]) {
        let filter = Requested::parse(filter).unwrap().filter;
        let mut found: Vec<Message> = Vec::new();
        store.matching(&filter, Qos::One, &mut found);
        let mut payloads: Vec<&[u8]> = found.iter().map(|m| &m.payload[..]).collect();
        payloads.sort_unstable();
        let expected: Vec<&[u8]> = expected.iter().map(|text| text.as_bytes()).collect();
        assert_eq!(payloads, expected);
    }

    #[test]
    fn the_last_message_of_each_topic_is_kept() {
        let (one, two) = ("d1".parse().unwrap(), "d2".parse().unwrap());
        let mut store = store(10_000);
        store.put(&one, Channel::Status, &message("old"));
        store.put(&one, Channel::Status, &message("s1"));
        store.put(&one, Channel::Config, &message("c1"));
        store.put(&two, Channel::Status, &message("s2"));
        assert_eq!(store.count(), 3);
        check(&store, "tl/v1/+/up/#", &["s1", "s2"]);
        check(&store, "tl/v1/d1/down/#", &["c1"]);
        check(&store, "tl/v1/d1/#", &["c1", "s1"]);
        check(&store, "tl/v1/d3/#", &[]);
        store.put(&one, Channel::Status, &message(""));
        store.put(&two, Channel::Status, &message(""));
        store.put(&two, Channel::Config, &message(""));
        check(&store, "#", &["c1"]);
        assert_eq!((store.count(), store.devices.len()), (1, 1));
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let device: DeviceId = "d1".parse().unwrap();
        let text = "x".repeat(44);
        for (max, fits) in [(299, false), (300, true), (301, true)] {
            let mut store = store(max);
            let full = Message {
                payload: Bytes::from(text.clone()),
                ..message("")
            };
            assert_eq!(store.put(&device, Channel::Status, &full), fits, "{max}");
            assert_eq!(store.put(&device, Channel::Status, &full), fits, "{max}");
            assert!(!store.put(&device, Channel::Config, &full));
            store.put(&device, Channel::Status, &message(""));
            assert_eq!(store.put(&device, Channel::Config, &full), fits);
        }
    }
}
