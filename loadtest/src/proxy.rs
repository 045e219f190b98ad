//! A TCP proxy on the loopback interface that can be told to misbehave: the flaky link.
//!
//! ```text
//! Pass ── bytes flow            Slow ── bytes flow at a rate, after a delay
//! Stall ─ bytes wait, sockets stay open      Cut ── connections are reset and refused
//! ```
//!
//! A mode holds for all connections, present and coming.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes that one direction of one connection holds at most.
const CHUNK_BYTES: usize = 8 * 1024;

/// How a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As if it were not there.
    Pass,
    /// Each chunk of up to 8 KiB waits this long.
    Slow(Duration),
    /// Nothing moves, nothing closes.
    Stall,
    /// Connections are closed, new ones too.
    Cut,
}

/// A running proxy; dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    forwarded: Arc<AtomicU64>,
    _running: DropGuard,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let token = CancellationToken::new();
        let forwarded = Arc::new(AtomicU64::new(0));
        tokio::spawn(token.clone().run_until_cancelled_owned(accept(
            listener,
            target,
            modes,
            token.clone(),
            Arc::clone(&forwarded),
        )));
        Ok(Self {
            address,
            mode,
            forwarded,
            _running: token.drop_guard(),
        })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how the link behaves, at once.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Bytes that have passed in both directions.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    modes: watch::Receiver<Mode>,
    token: CancellationToken,
    forwarded: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let connection = connect(client, target, modes.clone(), Arc::clone(&forwarded));
        tokio::spawn(token.clone().run_until_cancelled_owned(connection));
    }
}

async fn connect(
    client: TcpStream,
    target: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    forwarded: Arc<AtomicU64>,
) {
    if *modes.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let up = copy(client_read, server_write, modes.clone(), &forwarded);
    let down = copy(server_read, client_write, modes.clone(), &forwarded);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut modes: watch::Receiver<Mode>,
    forwarded: &AtomicU64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Pass | Mode::Cut => {}
            Mode::Slow(delay) => tokio::time::sleep(delay).await,
            Mode::Stall => {
                // The sender of modes lives as long as the proxy; without it we are cancelled.
                let _ = modes.wait_for(|mode| *mode != Mode::Stall).await;
            }
        }
        to.write_all(&chunk[..read]).await?;
        forwarded.fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);

    async fn echo_server() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn echo(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn each_mode_does_what_it_says() {
        let proxy = Proxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(echo(&mut stream).await.unwrap(), b'x');

        proxy.set(Mode::Slow(Duration::from_millis(1)));
        assert_eq!(echo(&mut stream).await.unwrap(), b'x');

        proxy.set(Mode::Stall);
        let stalled = timeout(Duration::from_millis(100), echo(&mut stream)).await;
        assert!(stalled.is_err(), "bytes passed a stalled link");
        proxy.set(Mode::Pass);
        assert_eq!(
            timeout(SOON, stream.read_u8()).await.unwrap().unwrap(),
            b'x'
        );

        proxy.set(Mode::Cut);
        let gone = timeout(SOON, stream.read(&mut [0])).await.unwrap();
        assert!(matches!(gone, Ok(0) | Err(_)));
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(timeout(SOON, echo(&mut refused)).await.unwrap().is_err());

        proxy.set(Mode::Pass);
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(
            timeout(SOON, echo(&mut again)).await.unwrap().unwrap(),
            b'x'
        );
        assert!(proxy.forwarded() >= 8);
    }
}
