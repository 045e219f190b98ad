//! A stop: what is left is sent for a short time, as long as the bridge acknowledges, and the link disconnects in order.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::{DriverTask, Happening};
use crate::link::LinkState;
use crate::session::Input;

/// How long a stop may wait for the bridge to acknowledge what is left. What it does not, the
/// next start sends.
const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// How long the link may take to disconnect in order.
const GOODBYE_GRACE: Duration = Duration::from_millis(1_200);

impl DriverTask {
    /// Sends what is left, as long as the bridge acknowledges.
    pub(super) async fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_GRACE;
        self.is_draining = true;
        self.appended().await;
        self.input(Input::Flush(true)).await;
        let may_send = !self.governing.holds_back();
        while may_send
            && self.uplink.is_some()
            && self.broken.is_none()
            && !self.parts.session.is_idle()
        {
            let left = tokio::time::timeout_at(deadline, self.next_while_stopping());
            match left.await {
                Ok(happening) => self.apply(happening).await,
                Err(_) => break,
            }
        }
        self.send_report().await;
        let pending = self.parts.buffer.balance().pending;
        if pending > 0 {
            info!(pending, "what is pending is sent after the next start");
        }
    }

    /// Waits for a bounded time until the link has disconnected in order.
    pub(super) async fn leave(&mut self) {
        self.parts.link_stop.cancel();
        let gone = self
            .parts
            .link_state
            .wait_for(|state| matches!(state, LinkState::Down(None)));
        let _ = tokio::time::timeout(GOODBYE_GRACE, gone).await;
        self.uplink = None;
        self.publish_status();
    }

    /// As [`Self::next`], after a stop was requested.
    async fn next_while_stopping(&mut self) -> Happening {
        let stop = std::mem::take(&mut self.parts.stop);
        let happening = self.next().await;
        self.parts.stop = stop;
        happening
    }
}
