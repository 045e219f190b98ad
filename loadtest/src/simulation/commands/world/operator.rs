//! What operators do: they ask for commands, and withdraw them.

use std::time::Duration;

use rand::RngExt;
use schema::message::{Command, CommandId};

use super::super::plan::PlannedCommand;
use super::{Event, Truth, World};

impl World {
    /// Somebody asks a bridge for a command, and again when none can take it.
    pub(super) fn ask(&mut self, planned: PlannedCommand) {
        let Some(bridge) = self.bridge_of(planned.device).filter(|_| self.has_store()) else {
            return self.at(self.now + Duration::from_millis(700), Event::Ask(planned));
        };
        self.to_ask -= 1;
        let made_ms = (self.bridge_wall().micros() / 1000).unsigned_abs();
        let id = CommandId::new(made_ms, self.chance.rng.random());
        let ttl_ms = u64::try_from(planned.ttl.as_millis()).unwrap_or(u64::MAX);
        let command = Command {
            id,
            name: "exec".to_owned(),
            arguments: "{}".to_owned(),
            expires_at_ms: i64::try_from(made_ms + ttl_ms).unwrap_or(i64::MAX),
            priority: planned.priority,
        };
        let truth = Truth {
            device: planned.device,
            ..Truth::default()
        };
        self.truths.insert(id, truth);
        let device = self.devices[planned.device].id.clone();
        let now = self.bridge_wall();
        self.store.queue(device, command, now);
        self.dispatch(bridge, Duration::ZERO, false);
        if let Some(at) = planned.withdrawn_at {
            self.at(at.max(self.now), Event::Withdraw(id));
        }
    }

    pub(super) fn withdraw(&mut self, id: CommandId) {
        let device = self.truths.get(&id).map_or(0, |truth| truth.device);
        let Some(bridge) = self.bridge_of(device).filter(|_| self.has_store()) else {
            return self.at(self.now + Duration::from_millis(700), Event::Withdraw(id));
        };
        let now = self.bridge_wall();
        self.store.withdraw(id, now);
        self.dispatch(bridge, Duration::ZERO, false);
    }
}
