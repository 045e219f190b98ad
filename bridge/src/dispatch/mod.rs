//! Sends commands that are due, and again until their devices have them; and configuration, retained,
//! when it changes and again while a device that is online has not said that it has it. Several
//! bridges do so at once: each claims the commands that it sends. Whether a message arrives is not
//! known; what the device says is.
//!
//! Both share one rate, so that what a fleet is sent at once reaches the broker as a stream.

mod commands;
mod configs;
mod meters;
mod rate;

use std::sync::Arc;

use daemon::Failure;
use schema::time::ReceivedAt;
use schema::{Channel, DeviceId, Topic};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::intake::Broker;
pub(crate) use meters::DispatchMeters;
pub(crate) use rate::{PER_SECOND, PER_SECOND_BOUNDS, Rate};
use store::Store;

/// Changed configurations that wait; more are found by the next look.
const CHANGED_QUEUE: usize = 1_024;

/// Tells the dispatcher that there is something to send.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    commands: Arc<Notify>,
    groups: Arc<Notify>,
    configs: mpsc::Sender<DeviceId>,
}

/// The dispatcher's side of it.
#[derive(Debug)]
pub(crate) struct Notifications {
    commands: Arc<Notify>,
    groups: Arc<Notify>,
    configs: mpsc::Receiver<DeviceId>,
}

/// Both ends of it.
pub(crate) fn notifier() -> (Notifier, Notifications) {
    let commands = Arc::new(Notify::new());
    let groups = Arc::new(Notify::new());
    let (configs, heard) = mpsc::channel(CHANGED_QUEUE);
    let notifier = Notifier {
        commands: Arc::clone(&commands),
        groups: Arc::clone(&groups),
        configs,
    };
    let notifications = Notifications {
        commands,
        groups,
        configs: heard,
    };
    (notifier, notifications)
}

impl Notifier {
    /// A command was queued or withdrawn, or a device with commands came back.
    pub(crate) fn commands(&self) {
        self.commands.notify_one();
    }

    /// This device's configuration has changed.
    pub(crate) fn config(&self, device: &DeviceId) {
        // What finds no room is found by the next look.
        let _ = self.configs.try_send(device.clone());
    }

    /// The configuration of many devices has changed.
    pub(crate) fn configs(&self) {
        self.groups.notify_one();
    }
}

/// The task.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) sender: Sender,
    pub(crate) notifications: Notifications,
    pub(crate) stop: CancellationToken,
}

/// What both halves of the task share.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) broker: Broker,
    pub(crate) meters: DispatchMeters,
    /// What this bridge sends at most.
    pub(crate) rate: Rate,
}

impl Dispatch {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Notifications {
            commands,
            groups,
            configs,
        } = self.notifications;
        let commands = commands::Commands::new(&self.sender, commands);
        let configs = configs::Configs::new(&self.sender, configs, groups);
        tokio::select! {
            () = async { tokio::join!(commands.run(), configs.run()); } => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }
}

impl Sender {
    fn now(&self) -> ReceivedAt {
        self.store.clock().now()
    }

    /// Sends one message when its turn has come. Returns whether the connection took it.
    async fn send(&self, device: DeviceId, channel: Channel, payload: Vec<u8>) -> bool {
        self.rate.turn().await;
        self.broker.publish(&Topic::new(device, channel), payload)
    }
}
