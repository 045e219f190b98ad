//! Commands: what is due is claimed and sent; fan-outs that their bridge left are gone on with.

use std::sync::Arc;
use std::time::Duration;

use schema::{Channel, envelope};
use store::StoreError;
use store::commands::DueCommand;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::Sender;

/// How often, when nobody says that there is something to send.
const INTERVAL: Duration = Duration::from_secs(2);

/// Commands that are claimed at a time; fewer, if a second has not so many turns: what is claimed is
/// soon due again.
const CLAIM_MAX: usize = 256;

/// A bridge that could not send for so long may have missed turns of fan-outs.
const AWAY: Duration = Duration::from_secs(5);

/// Fan-outs of one look that are gone on with.
const FAN_OUTS_MAX: usize = 16;

pub(super) struct Commands<'s> {
    sender: &'s Sender,
    notify: Arc<Notify>,
    /// When this bridge could last send.
    was_here: Option<Instant>,
}

impl<'s> Commands<'s> {
    pub(super) fn new(sender: &'s Sender, notify: Arc<Notify>) -> Self {
        Self {
            sender,
            notify,
            was_here: None,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            // Nothing expires while the time is not known.
            self.sender.store.clock().known().await;
            if self.sender.broker.is_connected() {
                match self.look().await {
                    Ok(()) => self.was_here = Some(Instant::now()),
                    Err(error) => debug!(%error, "commands were not sent"),
                }
            }
            tokio::select! {
                () = self.notify.notified() => {}
                () = sleep(INTERVAL) => {}
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let Sender { store, .. } = self.sender;
        if self.was_here.is_none_or(|here| here.elapsed() > AWAY) {
            let postponed = store.postpone_fan_outs(self.sender.now()).await?;
            if postponed > 0 {
                info!(
                    postponed,
                    "commands whose turn was missed go behind the others"
                );
            }
        }
        self.send_due().await?;
        // What somebody waits for goes first.
        for id in store
            .unfinished_fan_outs(self.sender.now(), FAN_OUTS_MAX)
            .await?
        {
            info!(command = %id, "going on with a command to many devices");
            while store.advance_fan_out(id, self.sender.now()).await? {}
        }
        Ok(())
    }

    async fn send_due(&self) -> Result<(), StoreError> {
        let Sender { store, meters, .. } = self.sender;
        let claim_max = CLAIM_MAX.min(self.sender.rate.per_second());
        loop {
            let now = self.sender.now();
            let expired = store.expire_commands(now).await?;
            meters.commands_expired.inc_by(expired);
            let claimed = store.claim_commands(now, claim_max).await?;
            let is_last = claimed.len() < claim_max;
            for due in claimed {
                self.send(due).await;
            }
            if is_last || !self.sender.broker.is_connected() {
                return Ok(());
            }
        }
    }

    async fn send(&self, due: DueCommand) {
        let (id, device) = (due.command.id, due.device.clone());
        for request in due.requests() {
            match envelope::encode(&request) {
                Ok(payload) => {
                    let sender = self.sender;
                    let taken = sender.send(device.clone(), Channel::Command, payload).await;
                    sender.meters.commands_sent.inc_by(u64::from(taken));
                    debug!(command = %id, %device, taken, "command sent");
                }
                Err(error) => warn!(command = %id, %error, "a command cannot be encoded"),
            }
        }
    }
}
