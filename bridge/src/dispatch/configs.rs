//! Configuration: of single devices as they change, and of all that have not heard, page by page,
//! until nobody is left.

use std::sync::Arc;
use std::time::Duration;

use schema::message::DesiredConfig;
use schema::{Channel, DeviceId, envelope};
use store::StoreError;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::Sender;

/// How often devices are looked for that have not got their configuration.
const INTERVAL: Duration = Duration::from_secs(20);

/// Devices of one page: a document has up to a megabyte, and who waits for a single device's does
/// not wait longer than a page takes.
const PAGE: usize = 64;

pub(super) struct Configs<'s> {
    sender: &'s Sender,
    changed: mpsc::Receiver<DeviceId>,
    groups: Arc<Notify>,
}

impl<'s> Configs<'s> {
    pub(super) fn new(
        sender: &'s Sender,
        changed: mpsc::Receiver<DeviceId>,
        groups: Arc<Notify>,
    ) -> Self {
        Self {
            sender,
            changed,
            groups,
        }
    }

    pub(super) async fn run(mut self) {
        let mut looks = interval(INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                Some(device) = self.changed.recv() => self.send(&[device]).await,
                () = self.groups.notified() => self.look().await,
                _ = looks.tick() => self.look().await,
            };
            if let Err(error) = done {
                debug!(%error, "configurations were not sent");
            }
        }
    }

    /// Sends to everybody who has not heard. A device that says nothing is sent to again by the
    /// next look, not by this one.
    async fn look(&mut self) -> Result<(), StoreError> {
        let mut after: Option<DeviceId> = None;
        while self.sender.broker.is_connected() {
            let store = &self.sender.store;
            let page = store.configs_unheard(after.as_ref(), PAGE).await?;
            self.send(&page).await?;
            // Somebody waits for these.
            while let Ok(device) = self.changed.try_recv() {
                self.send(&[device]).await?;
            }
            if page.len() < PAGE {
                break;
            }
            after = page.into_iter().next_back();
        }
        Ok(())
    }

    async fn send(&self, devices: &[DeviceId]) -> Result<(), StoreError> {
        if devices.is_empty() {
            return Ok(());
        }
        for (device, document) in self.sender.store.documents(devices).await? {
            self.send_one(device, &document).await;
        }
        Ok(())
    }

    async fn send_one(&self, device: DeviceId, document: &DesiredConfig) {
        match envelope::encode(document) {
            Ok(payload) => {
                let sender = self.sender;
                let taken = sender.send(device.clone(), Channel::Config, payload).await;
                sender.meters.configs_sent.inc_by(u64::from(taken));
                debug!(%device, taken, "configuration sent");
            }
            Err(error) => warn!(%device, %error, "a configuration cannot be encoded"),
        }
    }
}
