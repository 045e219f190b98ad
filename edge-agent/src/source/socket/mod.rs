//! A local socket on which other programs of this machine hand over readings, one JSON object a
//! line, and get an answer to each: whether it was accepted.
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
mod habit;
mod place;
mod seats;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use connection::Connection;
pub use connection::Patience;
use daemon::{Class, Failure};
use place::{Bound, Standing};
use schema::TimestampUnit;
use seats::{CONNECTIONS_MAX, Seats};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Source;
use crate::ingest::Ingest;
use crate::place::check_folder_of;
use crate::repeat::Repeats;

/// A warning about producers that find no place, this often while it lasts.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The settings of a socket source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Where producers connect.
    pub address: SocketAddress,
    /// In what a number for `observed_at` counts.
    pub timestamp_unit: TimestampUnit,
}

/// Where producers connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address; port 0 takes a free one.
    Tcp(SocketAddr),
}

impl SocketConfig {
    /// A socket at this address, all else as it is unless set.
    #[must_use]
    pub const fn at(address: SocketAddress) -> Self {
        Self {
            address,
            timestamp_unit: TimestampUnit::Millis,
        }
    }

    /// A Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::at(SocketAddress::Unix(path.into()))
    }

    /// Checks whether a source could listen there, and returns what stands there now. Changes nothing.
    ///
    /// # Errors
    /// A [`Failure`] that names the address.
    pub async fn check(&self) -> Result<String, Failure> {
        // A check beside an agent that runs finds its socket.
        let in_use = || format!("{self} (a program listens there now)");
        let unusable = |error| self.unusable(error);
        let path = match &self.address {
            SocketAddress::Unix(path) => path,
            SocketAddress::Tcp(address) => {
                return match TcpListener::bind(address).await {
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

    fn unusable(&self, error: io::Error) -> Failure {
        Failure::new(Class::Network, format!("listen for readings on {self}"))
            .because(error)
            .help("choose another [source.socket] address, or see to what stands there")
    }
}

impl fmt::Display for SocketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            SocketAddress::Unix(path) => path.display().fmt(f),
            SocketAddress::Tcp(address) => address.fmt(f),
        }
    }
}

/// The `socket` source.
#[derive(Debug)]
pub struct SocketSource {
    listener: Listener,
    unit: TimestampUnit,
    patience: Patience,
}

#[derive(Debug)]
enum Listener {
    Unix(Bound),
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl SocketSource {
    /// Begins to listen. A socket that a killed agent left behind is replaced, and nothing else.
    ///
    /// # Errors
    /// A [`Failure`] that names the address.
    pub async fn bind(config: &SocketConfig) -> Result<Self, Failure> {
        let listener = match &config.address {
            SocketAddress::Unix(path) => place::bind(path).await.map(Listener::Unix),
            SocketAddress::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        };
        Ok(Self {
            listener: listener.map_err(|error| config.unusable(error))?,
            unit: config.timestamp_unit,
            patience: Patience::default(),
        })
    }

    /// Waits for producers as long as this.
    #[must_use]
    pub const fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The address of a TCP listener.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Unix(_) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl Listener {
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
    fn name(&self) -> &'static str {
        "socket source"
    }

    async fn run(self: Box<Self>, ingest: Ingest, stop: CancellationToken) -> Result<(), Failure> {
        let seats = Seats::default();
        // Producers that are being turned away.
        let doorstep = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        let mut warnings = Repeats::new(WARN_EVERY);
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted,
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
                ingest.producer_closed("turned_away");
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
                ingest: ingest.clone(),
                unit: self.unit,
                patience: self.patience,
                seat,
                stop: stop.clone(),
            };
            connections.spawn(connection.run(stream));
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}
