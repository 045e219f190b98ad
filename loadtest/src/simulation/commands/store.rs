//! The simulated database: the rules of the real ones, kept over every crash.

use std::collections::BTreeMap;

use schema::DeviceId;
use schema::message::{Command, CommandId, CommandProgress};
use schema::time::ReceivedAt;
use store::command_rules::Standing;
use store::commands::DueCommand;

use super::super::Violation;

/// A command in the database.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) device: DeviceId,
    pub(super) command: Command,
    pub(super) standing: Standing,
}

/// The table of commands.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) commands: BTreeMap<CommandId, Known>,
}

impl Store {
    pub(super) fn queue(&mut self, device: DeviceId, command: Command, now: ReceivedAt) {
        let known = Known {
            device,
            standing: Standing::queued(now),
            command,
        };
        self.commands.insert(known.command.id, known);
    }

    pub(super) fn claim(&mut self, now: ReceivedAt) -> Vec<DueCommand> {
        let mut due = Vec::new();
        for known in self.commands.values_mut() {
            if known.standing.claim(now) {
                due.push(DueCommand {
                    device: known.device.clone(),
                    command: known.command.clone(),
                    cancel: known.standing.cancel,
                    is_known: known.standing.is_known(),
                });
            }
        }
        due
    }

    pub(super) fn recall(&mut self, device: &DeviceId, now: ReceivedAt) {
        for known in self.commands.values_mut() {
            if known.device == *device {
                known.standing.recall(now);
            }
        }
    }

    /// An end that the device reported is the end.
    pub(super) fn hear(
        &mut self,
        device: &DeviceId,
        progress: &CommandProgress,
        now: ReceivedAt,
    ) -> Result<(), Violation> {
        let Some(known) = self.commands.get_mut(&progress.id) else {
            return Ok(());
        };
        if known.device != *device {
            return Ok(());
        }
        let before = known.standing.clone();
        known.standing.hear(progress, now);
        if before.is_settled() && known.standing.state != before.state {
            let what = format!(
                "was {} and became {}",
                before.state.as_str(),
                progress.state.as_str()
            );
            return Err(Violation::Command {
                id: progress.id,
                what,
            });
        }
        Ok(())
    }

    pub(super) fn withdraw(&mut self, id: CommandId, now: ReceivedAt) {
        if let Some(known) = self.commands.get_mut(&id) {
            known.standing.withdraw(now);
        }
    }

    pub(super) fn expire(&mut self, now: ReceivedAt) {
        for known in self.commands.values_mut() {
            known.standing.expire(known.command.expires_at_ms, now);
        }
    }
}
