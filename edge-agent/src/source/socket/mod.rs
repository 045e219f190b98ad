//! A local socket on which other programs of this machine hand over readings, in lines of JSON or line protocol
//! ([`super::format`]), and get an answer to each: whether it was accepted. Over UDP there are no answers (`datagrams`).
//!
//! ```text
//! → {"sensor": "press/pressure_pascals", "value": 101325.5}
//! ← {"accepted": 4711}              on disk, under this sequence
//! → {"sensor": "press/pressure_pascals"}
//! ← {"refused": "line is no reading: missing field `value` …"}
//! ```
//!
//! Every line is answered, in their order. Lines that arrive together are committed together; a
//! producer that waits for its answer has it as soon as the disk allows, one that writes on shares commits
//! with others (`habit`). When an answer never comes, nothing is known; the producer sends again, and readings
//! of one sensor that it gave one time become one row. A reading without a time is stamped when it is read,
//! and is a row of its own. When the buffer is full and keeps what it holds, a line is refused with
//! `buffer full`: the producer keeps its reading and comes again.
//!
//! A line that begins with `refused` may also be the last one of a connection, which says why it is
//! closed (`connection`, `seats`). What is not done here: any check of who connects, beyond the rights
//! of the socket's file or the loopback interface.

mod connection;
mod datagrams;
mod habit;
mod place;
mod seats;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use connection::Connection;
pub use connection::Patience;
use daemon::{Class, Failure};
use place::{Bound, Standing};
use schema::TimestampUnit;
use seats::{CONNECTIONS_MAX, Seats};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::config::Section;
use super::format::{Format, LineRules};
use super::{Outlet, Source, SourceConfig, SourceName};
use crate::place::check_folder_of;
use crate::repeat::Repeats;

/// What a check says of an address that somebody listens on: the agent itself, or another program.
pub(crate) const TAKEN: &str = "a program listens there now";

/// Its name as a kind.
pub const KIND: &str = "socket";

/// A warning about producers that find no place, this often while it lasts.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The `socket` source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSource {
    /// Where producers connect or send to.
    pub address: SocketAddress,
    /// How their lines are read.
    pub rules: LineRules,
    /// How long producers are waited for.
    pub patience: Patience,
}

/// Where producers connect or send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address of TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// An address of UDP: what comes there is not answered.
    Udp(SocketAddr),
}

#[derive(Debug, Deserialize)]
struct RawSocket {
    unix: Option<PathBuf>,
    tcp: Option<SocketAddr>,
    udp: Option<SocketAddr>,
    #[serde(default)]
    allow_remote: bool,
    #[serde(default)]
    format: Format,
    timestamp_unit: Option<TimestampUnit>,
    #[serde(default)]
    tags_ignored: Vec<String>,
}

/// Reads the section of a socket source.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let raw: RawSocket = section.read()?;
    let (key, address) = match (raw.unix, raw.tcp, raw.udp) {
        (Some(path), None, None) => ("unix", SocketAddress::Unix(section.path(&path))),
        (None, Some(address), None) => ("tcp", SocketAddress::Tcp(address)),
        (None, None, Some(address)) => ("udp", SocketAddress::Udp(address)),
        _ => {
            section.problem_of_all("needs either unix, tcp or udp");
            return None;
        }
    };
    if let SocketAddress::Tcp(at) | SocketAddress::Udp(at) = &address {
        section.check(
            raw.allow_remote || at.ip().is_loopback(),
            key,
            "must be a loopback address: producers are not authenticated. allow_remote = true takes readings from \
             whoever reaches it",
        );
    } else {
        section.check(!raw.allow_remote, "allow_remote", "is for tcp and udp");
    }
    let rules = LineRules::check(raw.format, raw.timestamp_unit, raw.tags_ignored, section);
    Some(Arc::new(SocketSource {
        rules,
        ..SocketSource::at(address)
    }))
}

impl SocketSource {
    /// A socket at this address, all else as it is unless set.
    #[must_use]
    pub fn at(address: SocketAddress) -> Self {
        Self {
            address,
            rules: LineRules::of(Format::Json),
            patience: Patience::default(),
        }
    }

    /// A Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::at(SocketAddress::Unix(path.into()))
    }

    /// A source named `socket`.
    #[must_use]
    pub fn named(self) -> SourceConfig {
        SourceConfig::named(SourceName::of_kind(KIND), self)
    }

    /// Checks whether a source could listen there, and returns what stands there now. Changes nothing.
    ///
    /// # Errors
    /// A [`Failure`] that names the address.
    async fn look(&self) -> Result<String, Failure> {
        // A check beside an agent that runs finds its socket.
        let in_use = || format!("{self} ({TAKEN})");
        let unusable = |error| self.unusable(error);
        let path = match &self.address {
            SocketAddress::Unix(path) => path,
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => {
                return match self.bind().await {
                    Ok(_) => Ok(self.to_string()),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(in_use()),
                    Err(error) => Err(unusable(error)),
                };
            }
        };
        // The system takes short paths only.
        UnixAddress::from_pathname(path).map_err(unusable)?;
        check_folder_of(path).map_err(unusable)?;
        match place::look(path).await.map_err(unusable)? {
            Standing::Nothing => Ok(self.to_string()),
            Standing::InUse => Ok(in_use()),
            Standing::Leftover(_) => Ok(format!("{self} (a leftover socket will be replaced)")),
            standing @ Standing::Other(_) => Err(unusable(io::Error::other(standing.to_string()))),
        }
    }

    /// Begins to listen. A socket that a killed agent left behind is replaced, and nothing else.
    async fn bind(&self) -> io::Result<Listener> {
        Ok(match &self.address {
            SocketAddress::Unix(path) => Listener::Unix(place::bind(path).await?),
            SocketAddress::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
            SocketAddress::Udp(address) => Listener::Udp(UdpSocket::bind(address).await?),
        })
    }

    fn unusable(&self, error: io::Error) -> Failure {
        Failure::new(Class::Network, format!("listen for readings on {self}"))
            .because(error)
            .help("choose another address for the source, or see to what stands there")
    }
}

impl fmt::Display for SocketSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            SocketAddress::Unix(path) => path.display().fmt(f),
            SocketAddress::Tcp(address) => write!(f, "tcp {address}"),
            SocketAddress::Udp(address) => write!(f, "udp {address}"),
        }
    }
}

enum Listener {
    Unix(Bound),
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// What producers connect to.
enum Doors {
    Unix(Bound),
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Doors {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(bound) => Ok(Box::new(bound.listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are whole when they are written, and are waited for.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

#[async_trait]
impl Source for SocketSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        self.to_string()
    }

    async fn check(&self) -> Result<String, Failure> {
        self.look().await
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        match &self.address {
            SocketAddress::Unix(path) => vec![("unix", path)],
            SocketAddress::Tcp(_) | SocketAddress::Udp(_) => Vec::new(),
        }
    }

    fn listens(&self) -> bool {
        true
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let listener = self.bind().await.map_err(|error| self.unusable(error))?;
        let rules = Arc::new(self.rules.clone());
        outlet.working();
        let doors = match listener {
            Listener::Unix(bound) => Doors::Unix(bound),
            Listener::Tcp(listener) => {
                if let Ok(address) = listener.local_addr() {
                    info!(%address, "producers may connect");
                }
                Doors::Tcp(listener)
            }
            Listener::Udp(socket) => {
                return datagrams::receive(&socket, &rules, &outlet, &stop)
                    .await
                    .map_err(|error| self.unusable(error));
            }
        };
        self.serve(&doors, &rules, &outlet, &stop).await;
        Ok(())
    }
}

impl SocketSource {
    /// Serves producers that connect, until `stop`.
    async fn serve(
        &self,
        doors: &Doors,
        rules: &Arc<LineRules>,
        outlet: &Outlet,
        stop: &CancellationToken,
    ) {
        let seats = Seats::default();
        // Producers that are being turned away.
        let doorstep = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        let mut warnings = Repeats::new(WARN_EVERY);
        loop {
            let stream = tokio::select! {
                accepted = doors.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors, or the producer left at once: the next may work.
                    warn!(%error, "producer could not be taken in");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(seat) = seats.take(Instant::now(), self.patience.idle) else {
                outlet.producer_closed("turned_away");
                if warnings.is_due("full") {
                    warn!(
                        most = CONNECTIONS_MAX,
                        "producers are turned away: all places are taken by busy ones"
                    );
                }
                // Beyond that, connections are closed without an answer: who comes so often reads none.
                if let Ok(step) = Arc::clone(&doorstep).try_acquire_owned() {
                    connections.spawn(async move {
                        connection::turn_away(stream).await;
                        drop(step);
                    });
                }
                continue;
            };
            let connection = Connection {
                outlet: outlet.clone(),
                rules: Arc::clone(rules),
                patience: self.patience,
                seat,
                stop: stop.clone(),
            };
            connections.spawn(connection.run(stream));
        }
        connections.close();
        connections.wait().await;
    }
}
