//! The link to the broker, as the rest of the agent sees it: up or down, a way to publish, and
//! what the bridge says.
//!
//! A publish that the link took is not sent, and one that is sent is not delivered: nothing here
//! proves anything about a reading. Only an acknowledgement by the bridge does.

mod error;
mod mqtt;

use std::sync::Arc;
use std::time::Duration;

use certs::tls::TlsFiles;
use certs::tls::floor::FlooredClock;
use schema::message::{DesiredConfig, Downlink};
use schema::{DeviceId, Epoch};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::commands::Instruction;

pub use crate::metrics::LinkMeters;
pub use error::LinkError;
pub use mqtt::Uplink;

/// Most messages of the bridge that wait for the session. One more is dropped: it was an
/// acknowledgement, and costs a retransmission.
const DOWNLINK_QUEUE: usize = 256;

/// Most orders of the bridge that wait. One more is dropped, and sent again.
const INSTRUCTIONS_QUEUE: usize = 64;

/// Most documents of settings that wait. One more is dropped, and sent again.
const DOCUMENTS_QUEUE: usize = 8;

/// Where the broker is and who we are.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The broker's host name or IPv4 address; its certificate must hold it.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// This device, equal to the certificate's common name.
    pub device: DeviceId,
    /// Authority, certificate and key. Read again for each connection, so that a renewed
    /// certificate needs no restart.
    pub tls: TlsFiles,
    /// How often an otherwise silent connection is probed. Carriers drop idle connections after
    /// some minutes; a broker notices a dead device after one and a half times this.
    pub keep_alive: Duration,
    /// The first and the longest pause between attempts to connect, before jitter.
    pub backoff: (Duration, Duration),
}

/// Whether the broker can be talked to.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// Not connected; why, once an attempt failed.
    Down(Option<Arc<LinkError>>),
    /// Connected and subscribed.
    Up(Uplink),
}

/// What the link needs to run, and the other end of what it tells.
#[derive(Debug)]
pub struct Link {
    pub(crate) config: LinkConfig,
    /// The epoch that takes new readings.
    pub(crate) epoch: watch::Receiver<Epoch>,
    /// By what the broker's certificate is judged.
    pub(crate) clock: Arc<FlooredClock>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) downlinks: mpsc::Sender<Downlink>,
    pub(crate) instructions: mpsc::Sender<Instruction>,
    pub(crate) documents: mpsc::Sender<DesiredConfig>,
    pub(crate) meters: LinkMeters,
    /// Says goodbye and ends, when cancelled.
    pub(crate) stop: CancellationToken,
}

/// What the driver holds of the link.
#[derive(Debug)]
pub struct LinkHandle {
    /// Whether the broker can be talked to.
    pub state: watch::Receiver<LinkState>,
    /// What the bridge says of readings.
    pub downlinks: mpsc::Receiver<Downlink>,
    /// What it says of commands; `None` once somebody took it.
    pub instructions: Option<mpsc::Receiver<Instruction>>,
    /// What it wants of the settings; `None` once somebody took it.
    pub documents: Option<mpsc::Receiver<DesiredConfig>>,
    /// Says goodbye and ends the link, when cancelled; then the state is `Down(None)`.
    pub stop: CancellationToken,
}

impl Link {
    /// A link that does nothing before [`Self::run`].
    #[must_use]
    pub fn new(
        config: LinkConfig,
        epoch: watch::Receiver<Epoch>,
        clock: Arc<FlooredClock>,
        meters: LinkMeters,
    ) -> (Self, LinkHandle) {
        let (state, state_heard) = watch::channel(LinkState::Down(None));
        let (downlinks, downlinks_heard) = mpsc::channel(DOWNLINK_QUEUE);
        let (instructions, instructions_heard) = mpsc::channel(INSTRUCTIONS_QUEUE);
        let (documents, documents_heard) = mpsc::channel(DOCUMENTS_QUEUE);
        let stop = CancellationToken::new();
        let handle = LinkHandle {
            state: state_heard,
            downlinks: downlinks_heard,
            instructions: Some(instructions_heard),
            documents: Some(documents_heard),
            stop: stop.clone(),
        };
        let link = Self {
            config,
            epoch,
            clock,
            state,
            downlinks,
            instructions,
            documents,
            meters,
            stop,
        };
        (link, handle)
    }

    /// Connects, and again when the connection breaks, until stopped.
    pub async fn run(self) {
        mqtt::run(self).await;
    }
}

/// The link did not take a publish: down, or its queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link takes no more for now")]
pub struct NotTaken;
