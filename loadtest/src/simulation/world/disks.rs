//! What people do with disks: copies that are put back, and at the end, order. A copy that is put back makes two devices
//! of one: both give the same names.

use super::super::Violation;
use super::super::plan::Fault;
use super::{ORDER_AGAIN, World};
use crate::memory::MemoryBuffer;

/// A disk that is not in use.
#[derive(Debug)]
pub(super) struct Disk {
    /// Told apart by this.
    number: u64,
    pub(super) buffer: MemoryBuffer,
}

impl World {
    /// An older copy of the disk is put in its place.
    pub(super) fn restore(&mut self, agent: usize) {
        let Some(copy) = self.copies[agent].clone() else {
            return;
        };
        self.chance.count(Fault::Restore);
        self.throw_away(agent);
        let buffer = std::mem::replace(&mut self.agents[agent].buffer, copy);
        let number = std::mem::replace(&mut self.disks[agent], self.disks_made);
        self.disks_made += 1;
        self.spares[agent] = Some(Disk { number, buffer });
        self.replaced.insert(self.agents[agent].id.clone());
        self.restart(agent);
    }

    /// The disk that was taken out is used again, and the other one is not.
    pub(super) fn swap(&mut self, agent: usize) {
        let Some(disk) = &mut self.spares[agent] else {
            return;
        };
        self.chance.count(Fault::Swap);
        std::mem::swap(&mut disk.buffer, &mut self.agents[agent].buffer);
        std::mem::swap(&mut disk.number, &mut self.disks[agent]);
        self.restart(agent);
    }

    /// The disk that is not in use is thrown away.
    fn throw_away(&mut self, agent: usize) {
        if let Some(disk) = self.spares[agent].take() {
            let device = &self.agents[agent];
            let held = device.buffer.held().collect();
            self.oracle.thrown_away(&device.id, &disk.buffer, &held);
        }
    }

    pub(super) fn requeue(&mut self, agent: usize) -> Result<(), Violation> {
        let mut out = Vec::new();
        let wall_ms = self.wall_ms(agent);
        let rows = self.agents[agent]
            .requeue(None, self.now, wall_ms, &mut out)
            .map_err(Violation::Breach)?;
        if rows > 0 {
            self.chance.count(Fault::Requeue);
        }
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }

    pub(super) fn put_in_order(&mut self) -> Result<(), Violation> {
        self.is_in_order = self.now >= ORDER_AGAIN;
        for agent in 0..self.agents.len() {
            self.throw_away(agent);
            self.copies[agent] = None;
            self.requeue(agent)?;
        }
        Ok(())
    }
}
