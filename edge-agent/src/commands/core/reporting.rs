//! What is reported to the bridge: the state of a command after each step, and again, ever more rarely, until it has
//! noted it. Percentages are reported now and then, and never kept.

use std::time::Duration;

use schema::message::{CommandId, Noted};

use super::Core;
use super::entry::{Entry, Stage};
use super::interface::{Effect, Moment};

/// Pauses before what is not noted is reported again: the first, and the longest.
pub(super) const REPORT_FIRST: Duration = Duration::from_secs(3);
pub(super) const REPORT_MAX: Duration = Duration::from_secs(60);

/// Shortest time between two percentages of one command.
pub(super) const PERCENT_INTERVAL: Duration = Duration::from_secs(1);

impl Core {
    /// Percentages are reported and not written: the next one is worth as much.
    pub(super) fn progressed(&mut self, id: CommandId, percent: u8) {
        let Some(entry) = self.open.get_mut(&id) else {
            return;
        };
        if *entry.stage() == Stage::Running && percent > entry.progress.percent {
            entry.progress.percent = percent.min(100);
            entry.percent_waits = true;
        }
    }

    /// The bridge has noted these states: they need not be reported again.
    pub(super) fn note(&mut self, noted: &[Noted]) {
        for Noted { id, state } in noted {
            let Some(entry) = self.open.get_mut(id) else {
                continue;
            };
            if entry.progress.state != *state || matches!(entry.stage(), Stage::Ending(_)) {
                continue;
            }
            entry.is_noted = true;
            if *entry.stage() == Stage::Ended {
                self.open.remove(id);
            }
        }
    }

    /// The bridge sent an open command again, or asked about it: the last report may not have arrived. The bridge
    /// does not send a command that has ended for it, so one that an earlier start kept has not run in another copy
    /// of the file, as far as the bridge knows.
    pub(super) fn report_again(&mut self, id: CommandId, now: Moment, out: &mut Vec<Effect>) {
        let Some(entry) = self.open.get_mut(&id) else {
            return;
        };
        if *entry.stage() == Stage::Found {
            entry.enter(Stage::Waiting);
        }
        if !matches!(entry.stage(), Stage::Ending(_)) {
            self.report(id, now, out);
        }
    }

    /// Reports one command now, and again until that is noted.
    pub(super) fn report(&mut self, id: CommandId, now: Moment, out: &mut Vec<Effect>) {
        let Some(entry) = self.open.get_mut(&id) else {
            return;
        };
        entry.is_noted = false;
        publish(entry, now, out);
        self.report_pause.reset();
        self.report_at = now.at + self.report_pause.next_delay(now.random);
    }

    /// Reports every command whose state is not noted.
    pub(super) fn report_all(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for entry in self.open.values_mut().filter(|entry| entry.needs_report()) {
            publish(entry, now, out);
        }
        self.report_at = now.at + self.report_pause.next_delay(now.random);
    }
}

pub(super) fn publish(entry: &mut Entry, now: Moment, out: &mut Vec<Effect>) {
    entry.percent_waits = false;
    entry.percent_at = now.at + PERCENT_INTERVAL;
    out.push(Effect::Publish(entry.progress.clone()));
}
