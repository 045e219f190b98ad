//! The link to the broker, as the rest of the agent sees it: up or down, a way to publish, and
//! the messages of the bridge. It knows none of those who receive them.
//!
//! A publish that the link took is not sent, and one that is sent is not delivered: nothing here
//! proves anything about a reading. Only an acknowledgement by the bridge does.

mod error;
mod meters;
mod mqtt;

use std::sync::Arc;
use std::time::Duration;

use certs::tls::TlsFiles;
use certs::tls::floor::FlooredClock;
use schema::message::{CommandRequest, DesiredConfig, Downlink, Noted};
use schema::{DeviceId, Epoch};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use error::LinkError;
pub use meters::LinkMeters;
pub use mqtt::Uplink;
#[cfg(feature = "mqtt")]
pub(crate) use mqtt::{refusal, tls_reason};

/// Most publishes that wait for the client, and most that the broker has not confirmed: a full
/// window of batches with room for reports and presence.
pub(crate) const PUBLISHES_MAX: u16 = 48;

/// Most messages of the bridge that wait for the session. One more is dropped: it was an
/// acknowledgement, and costs a retransmission.
const DOWNLINK_QUEUE: usize = 256;

/// Most messages about commands that wait. One more is dropped, and sent again.
const INSTRUCTIONS_QUEUE: usize = 64;

/// Most documents of settings that wait. One more is dropped, and sent again.
const DOCUMENTS_QUEUE: usize = 8;

/// The broker's address, and this device's identity.
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
    /// Not connected; with the reason, once an attempt failed.
    Down(Option<Arc<LinkError>>),
    /// Connected and subscribed.
    Up(Uplink),
}

/// What the bridge sends about commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// A command, its withdrawal, or a question about one.
    Command(CommandRequest),
    /// States that the bridge has recorded; they need not be reported again.
    Noted(Vec<Noted>),
}

/// What the link needs to run, and the sending end of what it receives.
#[derive(Debug)]
pub struct Link {
    pub(crate) config: LinkConfig,
    /// The epoch that takes new readings.
    pub(crate) epoch: watch::Receiver<Epoch>,
    /// The time against which the broker's certificate is checked.
    pub(crate) clock: Arc<FlooredClock>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) downlinks: mpsc::Sender<Downlink>,
    pub(crate) instructions: mpsc::Sender<Instruction>,
    pub(crate) documents: mpsc::Sender<DesiredConfig>,
    pub(crate) meters: LinkMeters,
    /// When cancelled, the link disconnects in order and ends.
    pub(crate) stop: CancellationToken,
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct LinkHandle {
    /// Whether the broker can be talked to.
    pub state: watch::Receiver<LinkState>,
    /// Messages about readings: acknowledgements, refusals, the bridge's greeting.
    pub downlinks: mpsc::Receiver<Downlink>,
    /// Messages about commands.
    pub instructions: mpsc::Receiver<Instruction>,
    /// Settings that the bridge wants on this device.
    pub documents: mpsc::Receiver<DesiredConfig>,
    /// When cancelled, the link disconnects in order and ends; the state is `Down(None)` then.
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
        let (state, state_receiver) = watch::channel(LinkState::Down(None));
        let (downlinks, downlinks_receiver) = mpsc::channel(DOWNLINK_QUEUE);
        let (instructions, instructions_receiver) = mpsc::channel(INSTRUCTIONS_QUEUE);
        let (documents, documents_receiver) = mpsc::channel(DOCUMENTS_QUEUE);
        let stop = CancellationToken::new();
        let handle = LinkHandle {
            state: state_receiver,
            downlinks: downlinks_receiver,
            instructions: instructions_receiver,
            documents: documents_receiver,
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
