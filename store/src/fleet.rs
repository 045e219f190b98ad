//! The fleet as people see it: which devices there are, their labels, and which are retired.
//!
//! A retired device is left out of fan-outs and gets nothing sent: what waited for it is cancelled.
//! What it still says is taken down all the same, because nothing accepted is lost.

use async_trait::async_trait;
use schema::time::ReceivedAt;
use schema::{DeviceId, Epoch};

use super::StoreError;
use super::labels::{LabelChanges, Labels};

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its identity.
    pub device: DeviceId,
    /// When the bridge first heard of it.
    pub first_seen: ReceivedAt,
    /// When the bridge last heard of it: presence, report or readings.
    pub last_seen: ReceivedAt,
    /// Whether its last word on `up/status` was a birth, and it gave a sign of life lately
    /// ([`Store::set_offline_after`](super::Store::set_offline_after)).
    pub online: bool,
    /// The agent's version, from its last birth.
    pub agent_version: Option<String>,
    /// The epoch in use, from its last birth.
    pub epoch: Option<Epoch>,
    /// What people call it by.
    pub labels: Labels,
    /// Since when it is retired.
    pub retired_at: Option<ReceivedAt>,
}

/// The fleet's part of a store.
#[async_trait]
pub trait FleetStore: Send + Sync {
    /// The devices by id, behind `after`, retired ones included.
    async fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Device>, StoreError>;

    /// One device, if the database has ever heard of it.
    async fn device(&self, device: &DeviceId) -> Result<Option<Device>, StoreError>;

    /// The devices that a filter lets through, by id.
    async fn find_devices(&self, filter: &DeviceFilter) -> Result<Vec<Device>, StoreError>;

    /// Changes labels; a device that nobody has heard of yet is met by it. One that joins or leaves
    /// a group has its configuration changed in the same commit.
    async fn change_labels(
        &self,
        device: &DeviceId,
        changes: &LabelChanges,
        author: &Author,
    ) -> Result<Labelled, StoreError>;

    /// Retires a device and cancels what waits for it, in one commit. `None` when it is unknown.
    async fn retire(
        &self,
        device: &DeviceId,
        now: ReceivedAt,
    ) -> Result<Option<Retired>, StoreError>;

    /// How many devices there are.
    async fn fleet_size(&self) -> Result<FleetSize, StoreError>;

    /// Takes a retired device back. `None` when it is unknown.
    async fn reinstate(&self, device: &DeviceId) -> Result<Option<Device>, StoreError>;
}

/// Which devices to return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFilter {
    /// All of these hold.
    pub labels: Labels,
    /// Only those that are, or are not, online.
    pub online: Option<bool>,
    /// Only those that are, or are not, retired.
    pub retired: Option<bool>,
    /// The id begins so.
    pub prefix: String,
    /// Behind this one.
    pub after: Option<DeviceId>,
    /// At most so many, capped at [`super::QUERY_ROWS_MAX`].
    pub limit: usize,
}

/// Counts of devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetSize {
    /// All of them.
    pub devices: u64,
    /// Those that are online.
    pub online: u64,
    /// Those that are retired.
    pub retired: u64,
}

/// Who changes something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// Who.
    pub name: String,
    /// When.
    pub at: ReceivedAt,
}

/// What became of a change of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labelled {
    /// Done.
    Done {
        /// As it is now.
        device: Device,
        /// Its configuration has changed with its group.
        is_configured: bool,
    },
    /// Nothing was done: the device would have more than [`super::labels::LABELS_MAX`].
    TooMany,
}

/// What retiring did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// As it is now.
    pub device: Device,
    /// Commands that were cancelled.
    pub cancelled: u64,
}

impl DeviceFilter {
    /// Behind every id that begins with the prefix: no id has a character as late as this one.
    pub(crate) fn prefix_end(&self) -> String {
        format!("{}~", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_behind_all_that_begin_with_it() {
        let end = |prefix: &str| {
            let filter = DeviceFilter {
                prefix: prefix.to_owned(),
                ..DeviceFilter::default()
            };
            filter.prefix_end()
        };
        for device in ["press", "press-7", "presszzz", "press_9"] {
            let device: DeviceId = device.parse().unwrap();
            assert!(device.as_str() < end("press").as_str() && device.as_str() < end("").as_str());
        }
        assert!("presst" > end("press").replace('~', "").as_str());
        assert!("prest" > end("press").as_str());
    }
}
