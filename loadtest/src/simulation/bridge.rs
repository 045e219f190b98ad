//! One simulated bridge: the real admission and pipeline over the simulated database. What a
//! crash takes is everything; what it leaves is what was committed.

use std::collections::BTreeSet;
use std::time::Duration;

use bridge::admit::{Bounds, admit};
use bridge::pipeline::{Pipeline, PipelineConfig, Write, WriteId};
use bridge::store::Delivery;
use schema::message::ack::payload_digest;
use schema::message::{Ack, Downlink, Event, Refusal, Report};
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, SeqRange, envelope};

use super::store::Store;

/// A bridge's memory.
#[derive(Debug)]
pub(super) struct Bridge {
    pipeline: Pipeline<()>,
    writes: Vec<Write<()>>,
    /// Counts restarts: what an older run had in flight is nobody's business any more.
    pub(super) run: u64,
    pub(super) up: bool,
}

/// A message for a device.
pub(super) type Answer = (DeviceId, Vec<u8>);

impl Bridge {
    pub(super) fn new() -> Self {
        Self {
            pipeline: Pipeline::new(config()),
            writes: Vec::new(),
            run: 0,
            up: true,
        }
    }

    /// Forgets everything.
    pub(super) fn crash(&mut self) {
        *self = Self {
            run: self.run + 1,
            up: false,
            ..Self::new()
        };
    }

    /// A payload on `up/telemetry`. `poison` are readings that this bridge cannot read.
    pub(super) fn telemetry(
        &mut self,
        device: &DeviceId,
        payload: &[u8],
        wall_micros: i64,
        now: Duration,
        poison: &BTreeSet<(DeviceId, u64)>,
    ) -> Option<Answer> {
        if !self.pipeline.has_room() {
            return None;
        }
        let received_at = ReceivedAt::from_micros(wall_micros);
        let readable = |batch: &Batch| {
            !batch
                .rows
                .iter()
                .any(|row| poison.contains(&(device.clone(), row.seq)))
        };
        match admit(device.clone(), payload, received_at, &Bounds::default()) {
            Ok(delivery) if readable(&delivery.batch) => {
                self.pipeline.offer(delivery, payload.len(), (), now);
                None
            }
            Ok(_) | Err(_) => Self::refuse(device, payload),
        }
    }

    /// What a bridge says that cannot read a payload.
    pub(super) fn refuse(device: &DeviceId, payload: &[u8]) -> Option<Answer> {
        let refusal = Downlink::Refused(Refusal {
            payload_digest: payload_digest(payload),
            reason: "simulated".to_owned(),
        });
        answer(device, &refusal)
    }

    /// A payload on `up/event`.
    pub(super) fn event(
        &self,
        device: &DeviceId,
        payload: &[u8],
        store: &mut Store,
        wall_micros: i64,
    ) -> Vec<Answer> {
        let Ok(Event::Report(Report { epochs, .. })) = envelope::decode(payload) else {
            return Vec::new();
        };
        let mut answers = Vec::new();
        for epoch in epochs {
            store.report(device, &epoch);
            let ack = Downlink::Ack(Ack {
                bridge_time_ms: wall_micros / 1000,
                epoch: epoch.epoch,
                committed: Vec::new(),
                evicted: epoch.evicted,
                rejected: epoch.rejected,
                resync: Vec::new(),
            });
            answers.extend(answer(device, &ack));
        }
        answers
    }

    /// The next write, if one is due.
    pub(super) fn next_write(&mut self, now: Duration) -> Option<WriteId> {
        let write = self.pipeline.next_write(now, false)?;
        let id = write.id;
        self.writes.push(write);
        Some(id)
    }

    pub(super) fn next_wakeup(&self) -> Option<Duration> {
        self.pipeline.next_wakeup()
    }

    /// Whether a write is still this run's.
    pub(super) fn deliveries(&self, id: WriteId) -> Option<&[Delivery]> {
        self.writes
            .iter()
            .find(|write| write.id == id)
            .map(|write| &write.deliveries[..])
    }

    /// A write is committed: acknowledgements for its devices.
    pub(super) fn committed(&mut self, id: WriteId, wall_micros: i64) -> Vec<Answer> {
        self.pipeline.complete(id);
        let Some(at) = self.writes.iter().position(|write| write.id == id) else {
            return Vec::new();
        };
        let write = self.writes.swap_remove(at);
        write
            .deliveries
            .iter()
            .filter_map(|delivery| {
                let committed: Vec<SeqRange> = delivery.batch.ranges().collect();
                let ack = Downlink::Ack(Ack {
                    bridge_time_ms: wall_micros / 1000,
                    epoch: delivery.batch.epoch,
                    committed,
                    evicted: Vec::new(),
                    rejected: delivery.rejected.clone(),
                    resync: Vec::new(),
                });
                answer(&delivery.device, &ack)
            })
            .collect()
    }
}

/// Small bounds, so that they are met.
fn config() -> PipelineConfig {
    PipelineConfig {
        write_rows: 200,
        rows_max: 2_000,
        ..PipelineConfig::default()
    }
}

fn answer(device: &DeviceId, message: &Downlink) -> Option<Answer> {
    let payload = envelope::encode(message).ok()?;
    Some((device.clone(), payload))
}
