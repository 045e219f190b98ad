//! Sends commands that are due, and again until their devices have them. Several bridges do so at
//! once: each claims what it sends. Whether a message arrives is not known; what the device says is.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Clock, Failure};
use schema::message::{Cancel, Order};
use schema::time::ReceivedAt;
use schema::{Channel, Topic, envelope};
use tokio::sync::Notify;
use tokio::time::sleep;
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

/// The task.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) broker: Broker,
    pub(crate) meters: IngestMeters,
    /// Somebody queued a command, or a device came back.
    pub(crate) due: Arc<Notify>,
    pub(crate) stop: CancellationToken,
}

impl Dispatch {
    /// Runs until stopped.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        loop {
            if self.broker.is_connected()
                && let Err(error) = self.send_due().await
            {
                debug!(%error, "commands were not sent");
            }
            tokio::select! {
                () = self.due.notified() => {}
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
