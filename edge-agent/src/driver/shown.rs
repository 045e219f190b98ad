//! The driver's part of the status.

use crate::status::{InFlight, NextProbe, Status, Waiting};

use super::DriverTask;

impl DriverTask {
    /// Shows where everything stands, if that has changed.
    pub(super) fn publish_status(&mut self) {
        let next = self.parts.probes.next();
        let next = next.filter(|_| self.uplink.is_some());
        let known = self.next_probe.take();
        self.next_probe = next.map(|(reason, due)| match known {
            Some(known) if (known.1.reason, known.0) == (reason, due) => known,
            _ => {
                let left = due.saturating_sub(self.origin.elapsed()).as_millis();
                let at_ms = u128::from(self.parts.clock.wall_ms().max(0).unsigned_abs()) + left;
                let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX);
                (due, NextProbe { reason, at_ms })
            }
        });
        let session = &self.parts.session;
        let (in_flight, waiting) = (session.in_flight(), session.waiting());
        let balance = self.parts.buffer.balance();
        let offered =
            waiting.fresh + waiting.history + waiting.suspect + waiting.alarm + in_flight.rows;
        let untimed = match self.parts.is_held {
            true => balance.pending.saturating_sub(offered),
            false => 0,
        };
        self.parts.status.send_if_modified(|status| {
            let now = Status {
                epoch: self.parts.buffer.epoch(),
                connected: self.uplink.is_some(),
                balance,
                in_flight: InFlight {
                    batches: in_flight.batches,
                    rows: in_flight.rows,
                    bytes: in_flight.bytes,
                },
                waiting: Waiting {
                    fresh: waiting.fresh,
                    history: waiting.history,
                    suspect: waiting.suspect,
                    alarm: waiting.alarm,
                    untimed,
                },
                clock: self.parts.clock.report(),
                ack_latency_seconds: session.ack_latency().map(|latency| latency.as_secs_f64()),
                last_error: self.last_error.clone(),
                next_probe: self.next_probe.map(|(_, shown)| shown),
                storage: self.parts.buffer.storage().borrow().clone(),
                ..status.clone()
            };
            let changed = *status != now;
            *status = now;
            changed
        });
    }
}
