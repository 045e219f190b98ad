//! Writes that were asked for and have not ended: which devices are in them, and what they hold.

use std::collections::HashSet;
use std::time::Duration;

use schema::DeviceId;

use super::WriteId;
use super::apart::Group;
use super::item::{Held, Item};

/// All of them. A device is in one at most.
#[derive(Debug)]
pub(super) struct InFlight<Token>(Vec<Flight<Token>>);

/// One write, while the shell has its deliveries.
#[derive(Debug)]
pub(super) struct Flight<Token> {
    id: WriteId,
    devices: HashSet<DeviceId>,
    pub(super) held: Held,
    /// Bytes and age of each delivery.
    pub(super) parts: Vec<(usize, Duration)>,
    /// The group, without its deliveries, of what is apart.
    pub(super) apart: Option<Group<Token>>,
}

impl<Token> InFlight<Token> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a write of this device has not ended.
    pub(super) fn is_busy(&self, device: &DeviceId) -> bool {
        self.0.iter().any(|write| write.devices.contains(device))
    }

    pub(super) fn is_any_apart(&self) -> bool {
        self.0.iter().any(|write| write.apart.is_some())
    }

    pub(super) fn is_apart(&self, id: WriteId) -> bool {
        let apart = |write: &Flight<Token>| write.id == id && write.apart.is_some();
        self.0.iter().any(apart)
    }

    /// The one device of what is apart, and its rows there.
    pub(super) fn trying(&self) -> Option<(&DeviceId, usize)> {
        let apart = self.0.iter().find(|write| write.apart.is_some())?;
        let device = apart.devices.iter().next()?;
        (apart.devices.len() == 1).then_some((device, apart.held.rows))
    }

    pub(super) fn begin(
        &mut self,
        id: WriteId,
        items: &[Item<Token>],
        apart: Option<Group<Token>>,
    ) {
        let mut held = Held::default();
        for item in items {
            held.add(item.held());
        }
        let devices = items.iter().map(|item| item.delivery.device.clone());
        self.0.push(Flight {
            id,
            devices: devices.collect(),
            held,
            parts: items.iter().map(|item| (item.bytes, item.since)).collect(),
            apart,
        });
    }

    pub(super) fn end(&mut self, id: WriteId) -> Flight<Token> {
        let at = self
            .0
            .iter()
            .position(|write| write.id == id)
            .expect("a write ends once");
        self.0.swap_remove(at)
    }
}
