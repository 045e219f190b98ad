//! What is settled goes back to its devices: acknowledgements joined by device and buffer file. Each is published after
//! the commit that it speaks of (promise P1), and may be lost: a device that hears nothing sends again, and the ledger
//! knows what it has.

use std::collections::BTreeMap;

use daemon::{Clock as _, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use schema::message::{Ack, Downlink, Rejection};
use schema::{Channel, DeviceId, Epoch, SeqRange, Topic, envelope, limits};
use store::{Settled, StoreClock};
use tracing::warn;

use crate::intake::Broker;

/// Acknowledgements, joined by device and epoch.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    by_epoch: BTreeMap<(DeviceId, Epoch), (Settled, Vec<SeqRange>)>,
}

/// Publishes them, and counts them.
#[derive(Debug, Clone)]
pub(crate) struct AckPublisher {
    broker: Broker,
    clock: StoreClock,
    published: Counter,
}

impl Acks {
    /// Adds what is settled, and what is asked for again.
    pub(crate) fn add(
        &mut self,
        device: DeviceId,
        epoch: Epoch,
        settled: Settled,
        resync: Vec<SeqRange>,
    ) {
        let (all, all_resync) = self.by_epoch.entry((device, epoch)).or_default();
        all.committed.extend(settled.committed);
        all.rejected.extend(settled.rejected);
        all.evicted.extend(settled.evicted);
        all_resync.extend(resync);
    }
}

impl AckPublisher {
    /// Registers its metric.
    pub(crate) fn register(broker: Broker, clock: StoreClock, registry: &mut Registry) -> Self {
        Self {
            broker,
            clock,
            published: registered(
                registry,
                "tideline_bridge_acks",
                "Acknowledgements published",
            ),
        }
    }

    /// Publishes one message for each device and epoch, or several where the ranges are many.
    pub(crate) fn publish(&self, acks: Acks) {
        let bridge_time_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        for ((device, epoch), (settled, resync)) in acks.by_epoch {
            let committed = joined(settled.committed);
            let evicted = joined(settled.evicted);
            let resync = joined(resync);
            let parts = [
                committed.len(),
                evicted.len(),
                settled.rejected.len(),
                resync.len(),
            ]
            .into_iter()
            .max()
            .unwrap_or(0)
            .div_ceil(limits::MESSAGE_RANGES_MAX);
            for part in 0..parts {
                let ack = Downlink::Ack(Ack {
                    bridge_time_ms,
                    epoch,
                    committed: slice(&committed, part),
                    evicted: slice(&evicted, part),
                    rejected: slice::<Rejection>(&settled.rejected, part),
                    resync: slice(&resync, part),
                });
                if publish(&self.broker, &device, &ack) {
                    self.published.inc();
                }
            }
        }
    }
}

fn joined(ranges: Vec<SeqRange>) -> Vec<SeqRange> {
    let set: schema::RangeSet = ranges.into_iter().collect();
    set.as_slice().to_vec()
}

fn slice<T: Clone>(all: &[T], part: usize) -> Vec<T> {
    all.chunks(limits::MESSAGE_RANGES_MAX)
        .nth(part)
        .unwrap_or_default()
        .to_vec()
}

pub(super) fn publish(broker: &Broker, device: &DeviceId, message: &Downlink) -> bool {
    let topic = Topic::new(device.clone(), Channel::Ack);
    match envelope::encode(message) {
        Ok(payload) => broker.publish(&topic, payload),
        Err(error) => {
            warn!(%device, %error, "an acknowledgement cannot be encoded");
            false
        }
    }
}
