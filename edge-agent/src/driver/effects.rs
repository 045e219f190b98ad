//! Carries out what the session decides: batches are made and handed to the link, answers go to the buffer, reports
//! to the bridge.

use std::collections::VecDeque;

use schema::message::{Event, LedgerReport};
use schema::{Channel, envelope};
use tracing::{debug, error};

use super::DriverTask;
use crate::gather::{GatherError, Gathered};
use crate::link::NotTaken;
use crate::session::{BatchRequest, Effect, Input, Prepared, Settle};

impl DriverTask {
    /// Feeds one input, and all that follows from it, to the session.
    pub(super) async fn input(&mut self, input: Input<'_>) {
        let now = self.origin.elapsed();
        let mut effects: VecDeque<Effect> = self.parts.session.handle(input, now).into();
        // Bounded: each batch that follows another takes room in the window.
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(request) => effects.extend(self.send(&request).await),
                Effect::Settle(settle) => self.settle(settle).await,
                Effect::Report => self.report().await,
                Effect::Sent {
                    batch,
                    rows,
                    bytes,
                    retransmission,
                } => {
                    let meters = &self.parts.meters;
                    meters.batches.inc();
                    meters.rows.inc_by(rows);
                    meters.bytes.inc_by(bytes as u64);
                    meters.retransmitted.inc_by(u64::from(retransmission));
                    debug!(?batch, rows, bytes, retransmission, "batch sent");
                }
                Effect::Completed { batch, latency } => {
                    self.parts.meters.ack_latency.observe(latency.as_secs_f64());
                    debug!(
                        ?batch,
                        latency_seconds = latency.as_secs_f64(),
                        "batch settled"
                    );
                }
                Effect::Refused { batch, rows } => {
                    self.parts.meters.refused.inc();
                    debug!(?batch, rows, "batch refused");
                }
            }
        }
    }

    /// Makes a batch, hands it to the link, and returns what the session makes of that.
    async fn send(&mut self, request: &BatchRequest) -> Vec<Effect> {
        let outcome = self.try_send(request).await;
        let now = self.origin.elapsed();
        let input = match outcome {
            Ok(prepared) => Input::Prepared(prepared),
            Err(reason) => {
                debug!(reason, "batch not sent");
                Input::NotSent(request.batch)
            }
        };
        self.parts.session.handle(input, now)
    }

    async fn try_send(&mut self, request: &BatchRequest) -> Result<Prepared, &'static str> {
        let gathered = self.gatherer.gather(&self.parts.buffer, request).await;
        let Gathered { prepared, payload } = gathered.map_err(|error| {
            self.gather_failed(&error);
            "it could not be made"
        })?;
        self.storage_works();
        if let Some(payload) = payload {
            let uplink = self.uplink.as_ref().ok_or("the link is down")?;
            uplink
                .publish(Channel::Telemetry, payload)
                .map_err(|NotTaken| "the link takes no more")?;
        }
        Ok(prepared)
    }

    fn gather_failed(&mut self, error: &GatherError) {
        match error {
            GatherError::Buffer(error) => self.storage_failed("read", error),
            GatherError::Encode { .. } => {
                // A row that was checked when it was accepted: our bug, and the row stays.
                error!(%error, "batch cannot be encoded");
                self.last_error = Some(error.to_string());
            }
        }
    }

    async fn settle(&mut self, settle: Settle) {
        let Settle {
            epoch,
            committed,
            rejected,
            evicted,
        } = settle;
        let is_of_rows = epoch == self.parts.session.epoch();
        let probes = &mut self.parts.probes;
        let now = self.origin.elapsed();
        let mended = match is_of_rows {
            true => probes.answered(&committed, &rejected, rand::random(), now),
            false => Vec::new(),
        };
        let buffer = &self.parts.buffer;
        let outcome = match is_of_rows {
            true => buffer.settle_rows(committed, rejected, evicted).await,
            false => buffer.settle(epoch, committed, rejected, evicted).await,
        };
        // If the buffer has ended, its rows are sent and acknowledged again after the next start.
        self.storage_did("settle", outcome);
        for reason in mended {
            self.offer_sample(reason, u64::MAX).await;
        }
    }

    /// Reports; while the bridge may still say which protocol it understands, later.
    pub(super) async fn report(&mut self) {
        self.report_waits = self.time.may_greet();
        if !self.report_waits {
            self.send_report().await;
        }
    }

    pub(super) async fn send_report(&mut self) {
        let reported = self.parts.buffer.report().await;
        let Some(epochs) = self.storage_did("report", reported) else {
            return;
        };
        let report = LedgerReport {
            device_time_ms: self.parts.clock.wall_ms(),
            clock: self.parts.clock.report(),
            epochs,
        };
        let event = match self.time.protocol() {
            Some(_) => Event::Ledger(report),
            None => Event::Report(report.into()),
        };
        match envelope::encode(&event) {
            Ok(payload) => {
                let taken = self
                    .uplink
                    .as_ref()
                    .is_some_and(|uplink| uplink.publish(Channel::Event, payload).is_ok());
                debug!(taken, "report made");
            }
            Err(error) => error!(%error, "report cannot be encoded"),
        }
    }
}
