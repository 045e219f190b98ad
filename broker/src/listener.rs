//! The way in: TCP, then TLS 1.3 with a client's certificate, then who that is.
//!
//! Bounds: so many handshakes at a time, the rest waits in the system's queue; each has one
//! deadline for TLS and CONNECT together.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use certs::{Serial, tls};
use daemon::{Class, Component, Failure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConnection;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Limits;
use crate::error::{Close, HandshakeFailure};
use crate::front::{self, Peer};
use crate::shared::Core;

/// A client without keep-alive is asked by TCP after so long whether it is still there, and
/// then so often, so many times.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// How long to wait when the system takes no more connections, as without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted: a fleet that comes back at once.
const BACKLOG: u32 = 4096;

/// Files that a process needs beside its connections.
const OTHER_FILES: usize = 128;

/// How long connections may take to end when the broker stops.
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// Binds the MQTT address; port 0 takes a free one.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        Failure::new(Class::Network, format!("listen for MQTT on {address}"))
            .because(error)
            .help("stop what uses the port, or choose another address under [mqtt]")
    })
}

/// Allows this process as many sockets as its limits promise, as far as the system lets it.
pub(crate) fn allow_sockets(limits: &Limits) {
    let sockets = limits.devices_max + limits.services_max + limits.handshakes_max;
    let wanted = (sockets + OTHER_FILES) as u64;
    let files = getrlimit(Resource::Nofile);
    if files.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = files.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = Rlimit {
        current: Some(current),
        ..files
    };
    if setrlimit(Resource::Nofile, raised).is_err() || current < wanted {
        info!(
            wanted,
            allowed = current,
            "fewer open files are allowed than connections"
        );
    }
}

/// Takes clients in until a stop is asked for, then waits for those inside.
pub(crate) async fn listen(
    core: Arc<Core>,
    listener: TcpListener,
    health: Component,
) -> Result<(), Failure> {
    let handshakes = Arc::new(Semaphore::new(core.limits.handshakes_max));
    let accept = async {
        loop {
            let Ok(handshaking) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let (stream, from) = next(&core, &listener, &health).await;
            let core = Arc::clone(&core);
            let tracker = core.tracker.clone();
            tracker.spawn(welcome(core, stream, from, handshaking));
        }
    };
    tokio::select! {
        () = core.stopping.cancelled() => {}
        () = accept => {}
    }
    drop(listener);
    core.seats.kick_all(Close::Stopping);
    core.tracker.close();
    if timeout(STOP_GRACE, core.tracker.wait()).await.is_err() {
        debug!("connections left behind");
    }
    Ok(())
}

/// The next connection. What the system refuses is logged, until a while without a refusal says that it is over: without
/// file descriptors each connection that waits is refused at once.
async fn next(core: &Core, listener: &TcpListener, health: &Component) -> (TcpStream, SocketAddr) {
    health.ready();
    loop {
        let mut accepted = Some(listener.accept().await);
        while let Some(Err(error)) = accepted {
            health.waiting(format!("connections cannot be accepted: {error}"));
            if core.may_log() {
                warn!(%error, "cannot accept a connection");
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
            accepted = timeout(ACCEPT_PAUSE, listener.accept()).await.ok();
        }
        health.ready();
        if let Some(Ok(accepted)) = accepted {
            return accepted;
        }
    }
}

async fn welcome(
    core: Arc<Core>,
    stream: TcpStream,
    from: SocketAddr,
    handshaking: OwnedSemaphorePermit,
) {
    let deadline = Instant::now() + core.timeouts.handshake;
    if let Err(error) = prepare(&stream) {
        debug!(%from, %error, "connection lost before its handshake");
        core.meters.handshake_failed(HandshakeFailure::Lost);
        return;
    }
    let handshake = TlsAcceptor::from(core.tls.config()).accept(stream);
    let stream = tokio::select! {
        () = core.stopping.cancelled() => return,
        shaken = timeout_at(deadline, handshake) => match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                if core.may_log() {
                    warn!(%from, %error, "TLS handshake failed");
                }
                core.meters.handshake_failed(HandshakeFailure::Tls);
                return;
            }
            Err(_) => {
                core.meters.handshake_failed(HandshakeFailure::Timeout);
                return;
            }
        },
    };
    let (_, connection) = stream.get_ref();
    match peer(connection) {
        Ok(peer) => front::serve(core, stream, peer, deadline, handshaking).await,
        Err(reason) => {
            if core.may_log() {
                warn!(%from, reason, "certificate names nobody");
            }
            core.meters.handshake_failed(HandshakeFailure::Identity);
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn peer(connection: &ServerConnection) -> Result<Peer, String> {
    let identity = tls::peer_identity(connection).map_err(|error| error.to_string())?;
    let serial = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(|leaf| X509Certificate::from_der(leaf).ok())
        .and_then(|(_, leaf)| Serial::from_der(leaf.raw_serial()).ok())
        .ok_or("the certificate has no serial number")?;
    Ok(Peer { identity, serial })
}
