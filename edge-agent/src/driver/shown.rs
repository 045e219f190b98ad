//! The driver's part of the status.

use crate::link::LinkError;
use crate::status::{InFlight, LinkStatus, NextProbe, Status, Waiting};

use super::DriverTask;

impl DriverTask {
    /// Notes since when the link is as it is, and what last ended it.
    pub(super) fn link_changed(&mut self, is_up: bool, error: Option<&LinkError>) {
        let Some(before) = self
            .link
            .take()
            .or_else(|| self.parts.status.borrow().link.clone())
        else {
            return;
        };
        let connected = self.parts.link_control.shown.broker();
        let is_news = is_up != self.uplink.is_some();
        let now_ms = self.parts.clock.wall_ms().max(0).unsigned_abs();
        self.link = Some(LinkStatus {
            since_ms: if is_news { now_ms } else { before.since_ms },
            last_error: error.map(ToString::to_string).or(before.last_error),
            help: error.map(|error| error.help().to_owned()).or(before.help),
            broker: connected.unwrap_or(before.broker),
        });
    }

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
        self.parts.rates.note((balance.accepted, balance.committed));
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
                link: self.link.clone().or_else(|| status.link.clone()),
                storage: self.parts.buffer.storage().borrow().clone(),
                ..status.clone()
            };
            let changed = *status != now;
            *status = now;
            changed
        });
    }
}
