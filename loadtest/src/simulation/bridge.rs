//! One simulated bridge: the real admission and pipeline over the simulated database. What a
//! crash takes is everything; what it leaves is what was committed. It judges by the database's
//! time, which is the simulation's.

use std::collections::BTreeSet;
use std::time::Duration;

use bridge::admit::{Bounds, admit, admit_event};
use bridge::pipeline::{Pipeline, PipelineConfig, Write, WriteId};
use schema::message::ack::payload_digest;
use schema::message::{Ack, Downlink, Event, Hello, PROTOCOL, Refusal};
use schema::time::ReceivedAt;
use schema::{Batch, DeviceId, Epoch, envelope};
use store::{Delivery, DeviceReport, Ingested, Settled};

use super::store::Store;

/// Readings that no bridge of these days can read.
pub(super) type Poison = BTreeSet<(DeviceId, Epoch, u64)>;

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

    /// A payload on `up/telemetry`.
    pub(super) fn telemetry(
        &mut self,
        device: &DeviceId,
        payload: &[u8],
        wall_micros: i64,
        now: Duration,
        poison: &Poison,
    ) -> Option<Answer> {
        if !self.pipeline.has_room() {
            return None;
        }
        let received_at = ReceivedAt::from_micros(wall_micros);
        let readable = |batch: &Batch| {
            !batch
                .rows
                .iter()
                .any(|row| poison.contains(&(device.clone(), batch.epoch, row.seq)))
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
        match admit_event(payload) {
            Ok(Event::Ledger(report)) => {
                let epochs: Vec<Epoch> = report.epochs.iter().map(|of| of.epoch).collect();
                let received_at = ReceivedAt::from_micros(wall_micros);
                let report = DeviceReport::new(device.clone(), report, received_at);
                let settled = store.report(report);
                epochs
                    .into_iter()
                    .zip(settled)
                    .filter_map(|(epoch, of)| acknowledge(device, epoch, of, wall_micros))
                    .collect()
            }
            Ok(Event::TimeRequest(request)) => {
                let hello = Downlink::Hello(Hello {
                    nonce: request.nonce,
                    bridge_time_ms: wall_micros / 1000,
                    protocol: PROTOCOL,
                });
                answer(device, &hello).into_iter().collect()
            }
            Ok(Event::Report(_) | Event::Command(_) | Event::Config(_) | Event::Sensors(_))
            | Err(_) => Vec::new(),
        }
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

    /// The database refuses a write: it is tried apart.
    pub(super) fn refused(&mut self, id: WriteId, now: Duration) {
        if let Some(at) = self.writes.iter().position(|write| write.id == id) {
            let write = self.writes.swap_remove(at);
            self.pipeline.refused(write, "simulated", now);
            // The broker would keep what is let go; here its device sends it again.
            self.pipeline.take_let_go();
        }
    }

    /// A write is committed, with this result: acknowledgements for its devices.
    pub(super) fn committed(
        &mut self,
        id: WriteId,
        ingested: Ingested,
        wall_micros: i64,
    ) -> Vec<Answer> {
        self.pipeline.complete(id, &ingested.stored);
        let Some(at) = self.writes.iter().position(|write| write.id == id) else {
            return Vec::new();
        };
        let write = self.writes.swap_remove(at);
        write
            .deliveries
            .iter()
            .zip(ingested.settled)
            .filter_map(|(delivery, of)| {
                acknowledge(&delivery.device, delivery.batch.epoch, of, wall_micros)
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

fn acknowledge(
    device: &DeviceId,
    epoch: Epoch,
    settled: Settled,
    wall_micros: i64,
) -> Option<Answer> {
    let ack = Downlink::Ack(Ack {
        bridge_time_ms: wall_micros / 1000,
        epoch,
        committed: settled.committed,
        evicted: settled.evicted,
        rejected: settled.rejected,
        resync: Vec::new(),
    });
    answer(device, &ack)
}

fn answer(device: &DeviceId, message: &Downlink) -> Option<Answer> {
    let payload = envelope::encode(message).ok()?;
    Some((device.clone(), payload))
}
