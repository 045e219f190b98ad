//! HTTP as every process serves it: connections, headers and stops are bounded, TLS if so
//! configured, and each request knows from where it came.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower::ServiceExt;
use tracing::debug;

use crate::failure::{Class, Failure};
use crate::lifecycle::Lifecycle;

/// Connections at a time; more wait in the listener's own queue.
const CONNECTIONS_MAX: usize = 1_024;

/// How long a handshake, or the head of a request, may take, and an idle connection stay.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of a request's head, which also bounds its target.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Pause after an accept that failed: for lack of descriptors, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Binds an HTTP address; port 0 takes a free one.
///
/// # Errors
/// A network [`Failure`] that names the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(Class::Network, format!("listen for HTTP on {address}"))
            .because(error)
            .help("choose a free address of this machine, or port 0 for any free port")
    })
}

/// Serves `router` until the lifecycle stops; requests in hand are answered first. With `tls`, in
/// TLS alone. Handlers find the caller's address as [`ConnectInfo`].
///
/// # Errors
/// None now: a connection's errors end that connection.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    lifecycle: Lifecycle,
) -> Result<(), Failure> {
    let acceptor = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = lifecycle.stopping() => break,
        };
        let Some((socket, from, place)) = accepted else {
            sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let (router, acceptor, watcher) = (router.clone(), acceptor.clone(), graceful.watcher());
        tokio::spawn(async move {
            match acceptor {
                None => answer(socket, from, router, watcher).await,
                Some(acceptor) => match timeout(HEAD_TIMEOUT, acceptor.accept(socket)).await {
                    Ok(Ok(socket)) => answer(socket, from, router, watcher).await,
                    Ok(Err(error)) => debug!(%from, %error, "a TLS handshake failed"),
                    Err(_) => debug!(%from, "a TLS handshake took too long"),
                },
            }
            drop(place);
        });
    }
    // Whoever stops the process bounds how long this may take.
    graceful.shutdown().await;
    Ok(())
}

/// Whether what a request calls its host by, with a port or without, is a name of this machine: a
/// page in a browser, whose own name was pointed here, calls it by another one.
#[must_use]
pub fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<Accepted> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, from)) => {
            // Answers are small: they are not held back.
            let _ = socket.set_nodelay(true);
            Some((socket, from, place))
        }
        Err(error) => {
            debug!(%error, "a connection was not accepted");
            None
        }
    }
}

/// Answers the requests of one connection.
async fn answer<S>(socket: S, from: SocketAddr, router: Router, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(from));
        router.clone().oneshot(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    if let Err(error) = watcher.watch(connection).await {
        debug!(%from, %error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_told_from_others() {
        for ours in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:8080",
        ] {
            assert!(names_this_machine(ours), "{ours}");
        }
        for other in [
            "example.com",
            "localhost.example.com:8080",
            "10.0.0.1",
            "",
            "127.0.0.1.x:1",
        ] {
            assert!(!names_this_machine(other), "{other}");
        }
    }
}
