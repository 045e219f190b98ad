//! Sends commands that are due, and again until their devices have them; and configuration, retained,
//! when it changes and again while a device that is online has not said that it has it. Several
//! bridges do so at once: each claims the commands that it sends. Whether a message arrives is not
//! known; what the device says is.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Clock, Failure};
use schema::message::{Cancel, Order};
use schema::time::ReceivedAt;
use schema::{Channel, DeviceId, Topic, envelope};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::intake::Broker;
use crate::metrics::IngestMeters;
use crate::store::commands::DueCommand;
use crate::store::{Store, StoreError};

/// How often, when nobody says that there is something to send.
const INTERVAL: Duration = Duration::from_secs(2);

/// Commands that are claimed at a time.
const CLAIM_MAX: usize = 256;

/// How often devices are looked for that have not got their configuration.
const CONFIG_INTERVAL: Duration = Duration::from_secs(20);

/// Devices of one such look.
const CONFIGS_MAX: usize = 256;

/// Changed configurations that wait; more are found by the next look.
const CHANGED_QUEUE: usize = 1_024;

/// Tells the dispatcher that there is something to send.
#[derive(Debug, Clone)]
pub(crate) struct Bell {
    commands: Arc<Notify>,
    configs: mpsc::Sender<DeviceId>,
}

/// The dispatcher's side of it.
#[derive(Debug)]
pub(crate) struct Rung {
    commands: Arc<Notify>,
    configs: mpsc::Receiver<DeviceId>,
}

/// A bell, and who hears it.
pub(crate) fn bell() -> (Bell, Rung) {
    let commands = Arc::new(Notify::new());
    let (configs, heard) = mpsc::channel(CHANGED_QUEUE);
    let bell = Bell {
        commands: Arc::clone(&commands),
        configs,
    };
    let rung = Rung {
        commands,
        configs: heard,
    };
    (bell, rung)
}

impl Bell {
    /// A command was queued or withdrawn, or a device with commands came back.
    pub(crate) fn commands(&self) {
        self.commands.notify_one();
    }

    /// This device's configuration has changed.
    pub(crate) fn config(&self, device: &DeviceId) {
        // What finds no room is found by the next look.
        let _ = self.configs.try_send(device.clone());
    }
}

/// The task.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) broker: Broker,
    pub(crate) meters: IngestMeters,
    pub(crate) rung: Rung,
    pub(crate) stop: CancellationToken,
}

impl Dispatch {
    /// Runs until stopped.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let mut looks = interval(CONFIG_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.broker.is_connected()
                && let Err(error) = self.send_due().await
            {
                debug!(%error, "commands were not sent");
            }
            tokio::select! {
                () = self.rung.commands.notified() => {}
                Some(device) = self.rung.configs.recv() => self.send_config(&device).await,
                _ = looks.tick() => self.look_at_configs().await,
                () = sleep(INTERVAL) => {}
                () = self.stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn send_due(&self) -> Result<(), StoreError> {
        loop {
            let now = ReceivedAt::from_micros(self.clock.now_micros());
            let expired = self.store.expire_commands(now).await?;
            self.meters.commands_expired.inc_by(expired);
            let claimed = self.store.claim_commands(now, CLAIM_MAX).await?;
            let is_last = claimed.len() < CLAIM_MAX;
            for due in claimed {
                self.send(due);
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Sends what is desired of a device, if anything is.
    async fn send_config(&self, device: &DeviceId) {
        let document = match self.store.config(device).await {
            Ok(config) => config.document(),
            Err(error) => return debug!(%device, %error, "a configuration was not read"),
        };
        if document.entries.is_empty() {
            return;
        }
        match envelope::encode(&document) {
            Ok(payload) => {
                let topic = Topic::new(device.clone(), Channel::Config);
                let taken = self.broker.publish(&topic, payload);
                self.meters.configs_sent.inc_by(u64::from(taken));
                debug!(%topic, taken, "configuration sent");
            }
            Err(error) => warn!(%device, %error, "a configuration cannot be encoded"),
        }
    }

    async fn look_at_configs(&self) {
        match self.store.configs_unheard(CONFIGS_MAX).await {
            Ok(devices) => {
                for device in devices {
                    self.send_config(&device).await;
                }
            }
            Err(error) => debug!(%error, "configurations were not looked at"),
        }
    }

    fn send(&self, due: DueCommand) {
        let DueCommand {
            device,
            command,
            cancel,
        } = due;
        let id = command.id;
        let order = if cancel {
            Order::Cancel(Cancel {
                id,
                expires_at_ms: command.expires_at_ms,
            })
        } else {
            Order::Run(command)
        };
        match envelope::encode(&order) {
            Ok(payload) => {
                let topic = Topic::new(device, Channel::Command);
                let taken = self.broker.publish(&topic, payload);
                self.meters.commands_sent.inc_by(u64::from(taken));
                debug!(command = %id, %topic, taken, cancel, "command sent");
            }
            Err(error) => warn!(command = %id, %error, "a command cannot be encoded"),
        }
    }
}
