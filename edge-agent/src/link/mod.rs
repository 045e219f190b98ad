//! The link to the broker, as the rest of the agent sees it: up or down, a way to publish, and
//! the messages of the bridge. It knows none of those who receive them.
//!
//! A publish that the link took is not sent, and one that is sent is not delivered: nothing here
//! proves anything about a reading. Only an acknowledgement by the bridge does.
//!
//! Reading order: `mqtt` (a connection from its first packet to its last) → `route` (which broker is next), `dial` and `proxy` (how it is
//! reached) → `governor` (what may be sent now), over `quiet` and `budget` → `shown`, for the status.

pub mod budget;
mod counted;
mod dial;
mod error;
pub mod governor;
mod meters;
mod mqtt;
pub mod proxy;
pub mod quiet;
mod route;
mod shown;

use std::sync::Arc;
use std::time::Duration;

use certs::tls::TlsFiles;
use certs::tls::floor::FlooredClock;
use schema::message::{CommandRequest, DesiredConfig, Downlink, Noted};
use schema::{BrokerAddress, DeviceId, Epoch};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use counted::Traffic;
pub use error::LinkError;
#[cfg(feature = "mqtt")]
pub(crate) use error::tls_reason;
pub use governor::{Closed, LinkRules};
pub use meters::LinkMeters;
pub use mqtt::Uplink;
#[cfg(feature = "mqtt")]
pub(crate) use mqtt::refusal;
pub use proxy::Proxy;
pub use shown::{BudgetStatus, TrafficStatus};
pub(crate) use shown::{LinkCollector, LinkUse};

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

/// Most brokers of one device: each is a label of a metric.
pub const BROKERS_MAX: usize = 8;

/// How long connecting may take by default: TCP, TLS, CONNACK; and then SUBACK. A handshake on a small
/// device over a slow link fits; a broker that thinks longer is overloaded.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Before the first broker is tried again, by default: longer than a restart, shorter than a shift.
pub const PREFER_FIRST_AFTER: Duration = Duration::from_secs(1800);

/// The brokers, the way to them, and this device's identity.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// In the order in which they are tried, at least one and at most [`BROKERS_MAX`]. The certificate of each must hold its host.
    pub brokers: Vec<BrokerAddress>,
    /// While another broker is used, the first is tried again after about this time, from half of it to one and a half; `None`: only
    /// when the other one fails.
    pub prefer_first_after: Option<Duration>,
    /// How long connecting may take, and then the subscription.
    pub connect_timeout: Duration,
    /// The proxy on the way to the brokers.
    pub proxy: Option<Proxy>,
    /// Hosts that are reached without it, as the variable `NO_PROXY` has them.
    pub no_proxy: String,
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

impl LinkConfig {
    /// One broker, reached directly.
    #[must_use]
    pub fn new(broker: BrokerAddress, device: DeviceId, tls: TlsFiles) -> Self {
        Self {
            brokers: vec![broker],
            prefer_first_after: Some(PREFER_FIRST_AFTER),
            connect_timeout: CONNECT_TIMEOUT,
            proxy: None,
            no_proxy: String::new(),
            device,
            tls,
            keep_alive: KEEP_ALIVE,
            backoff: BACKOFF,
        }
    }
}

/// Half a minute: carriers forget idle connections after minutes, and a dead device should show
/// before the next shift.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A broker that restarts is back within a second or two; a fleet must not wait in step. Half a minute of jittered pause keeps ten
/// thousand devices at some 600 attempts a second.
pub(crate) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(30));

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
    /// While it holds something, the link stays closed for that.
    pub(crate) closed: watch::Receiver<Option<Closed>>,
    /// Addresses that led nowhere.
    useless: dial::Useless,
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
    /// While it holds something, the link disconnects in order and stays closed for that.
    pub closed: watch::Sender<Option<Closed>>,
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
        let (closed_sender, closed) = watch::channel(None);
        let stop = CancellationToken::new();
        let handle = LinkHandle {
            state: state_receiver,
            downlinks: downlinks_receiver,
            instructions: instructions_receiver,
            documents: documents_receiver,
            closed: closed_sender,
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
            closed,
            useless: dial::Useless::default(),
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
