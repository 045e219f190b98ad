//! What is settled, told to its devices: acknowledgements joined by device and buffer file. Each is published after
//! the commit that it speaks of (promise P1), and may be lost: a device that hears nothing sends again, and the ledger
//! knows what it has.

use std::collections::BTreeMap;

use schema::message::{Ack, Downlink, Rejection};
use schema::{Channel, DeviceId, Epoch, SeqRange, Topic, envelope, limits};
use store::Settled;
use tracing::warn;

use crate::intake::Broker;
use crate::metrics::IngestMeters;

/// Acknowledgements, joined by device and epoch.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    by_epoch: BTreeMap<(DeviceId, Epoch), (Settled, Vec<SeqRange>)>,
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

    /// Publishes one message for each device and epoch, or several where the ranges are many.
    pub(crate) fn publish(self, broker: &Broker, meters: &IngestMeters, now_ms: u64) {
        let bridge_time_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        for ((device, epoch), (settled, resync)) in self.by_epoch {
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
                if publish(broker, &device, &ack) {
                    meters.acks.inc();
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
