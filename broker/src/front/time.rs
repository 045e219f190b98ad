//! What only time tells: silence, a client that takes nothing, a rate that allows more again.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Front;
use crate::error::Close;

/// No alarm is set for longer.
const ALARM_MAX: Duration = Duration::from_secs(86_400);

impl<S> Front<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    /// Whether the client has yet to take what was written.
    pub(super) fn owes(&self) -> bool {
        self.unflushed || !self.out.is_empty()
    }

    /// Something is about to be written: from now on the client owes progress.
    pub(super) fn owe(&mut self) {
        if !self.owes() {
            self.progressed = Instant::now();
        }
    }

    /// When the next thing is due that only time tells.
    fn due(&self) -> Instant {
        let mut due = Instant::now() + ALARM_MAX;
        if let Some(keep_alive) = self.keep_alive {
            due = due.min(self.seen + keep_alive);
        }
        if self.owes() {
            due = due.min(self.progressed + self.core.timeouts.stall);
        }
        if let Some(throttled) = self.throttled {
            due = due.min(throttled);
        }
        due
    }

    /// Moves the alarm forward if it would ring too late. One that rings too early is cheaper
    /// than one that moves with every packet.
    pub(super) fn set_alarm(&mut self) {
        let due = self.due();
        if due < self.alarm.deadline() || self.alarm.is_elapsed() {
            self.alarm.as_mut().reset(due);
        }
    }

    pub(super) fn check_time(&mut self) -> Result<(), Close> {
        let now = Instant::now();
        if self.throttled.is_some_and(|until| until <= now) {
            self.throttled = None;
        }
        if self.owes() && self.progressed + self.core.timeouts.stall <= now {
            return Err(Close::Slow);
        }
        // One that may not speak is not silent.
        let may_speak = self.may_take();
        if !may_speak {
            self.seen = now;
        }
        match self.keep_alive {
            Some(keep_alive) if self.seen + keep_alive <= now => Err(Close::KeepAlive),
            _ => Ok(()),
        }
    }
}
