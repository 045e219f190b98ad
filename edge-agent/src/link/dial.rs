//! From a broker's address to a TLS connection, directly or through a proxy. What a name resolves to is tried as RFC 8305 has it:
//! addresses of both families take turns, the next begins when the one before fails or is silent for a quarter second, and the first
//! that answers wins. One that answered and was of no use comes last the next time.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use schema::BrokerAddress;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Link;
use super::counted::Counted;
use super::error::{LinkError, tls_reason};
use super::proxy::{ProxyFailure, on_the_way};

/// Before the next address is tried beside one that is silent (RFC 8305, section 8).
const STAGGER: Duration = Duration::from_millis(250);

/// Most addresses of one name that are tried.
const RECORDS_MAX: usize = 16;

/// A connection to a broker, TLS established.
pub(super) type Stream = Box<TlsStream<Counted<TcpStream>>>;

/// Addresses that took a connection and led nowhere. Bounded.
#[derive(Debug, Clone, Default)]
pub(super) struct Useless(Arc<Mutex<VecDeque<SocketAddr>>>);

impl Useless {
    /// It led nowhere.
    pub(super) fn add(&self, address: SocketAddr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| *other != address);
        known.push_back(address);
        if known.len() > RECORDS_MAX {
            known.pop_front();
        }
    }

    /// It works.
    pub(super) fn remove(&self, address: SocketAddr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| *other != address);
    }

    /// The order in which addresses are tried.
    fn order(&self, found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order = interleaved(found);
        // Stable: what failed longest ago comes first among them.
        order.sort_by_key(|address| {
            known
                .iter()
                .position(|other| other == address)
                .map_or(0, |at| at + 1)
        });
        order
    }
}

/// A connection, and the address at its other end: the broker's, or the proxy's.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) stream: Stream,
    pub(super) peer: SocketAddr,
}

impl Link {
    /// Connects to a broker. Bounded by the caller.
    pub(super) async fn dial(&self, broker: &BrokerAddress) -> Result<Dialed, LinkError> {
        let tls = certs::tls::client_config_floored(&self.config.tls, &self.clock)?;
        let unreachable = |source: io::Error| LinkError::Unreachable {
            address: broker.to_string(),
            source: source.into(),
        };
        let name = ServerName::try_from(broker.host.clone())
            .map_err(|error| unreachable(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let proxy = on_the_way(self.config.proxy.as_ref(), &self.config.no_proxy, broker);
        let first = proxy.map_or(broker, |proxy| &proxy.address);
        let through = |failure| LinkError::Proxy {
            proxy: first.to_string(),
            address: broker.to_string(),
            failure,
        };
        let socket = match connect(first, &self.useless).await {
            Ok(socket) => socket,
            Err(error) if proxy.is_some() => return Err(through(ProxyFailure::Unreachable(error))),
            Err(error) => return Err(unreachable(error)),
        };
        let peer = socket.peer_addr().map_err(unreachable)?;
        // Until somebody says that it was of use.
        self.useless.add(peer);
        socket.set_nodelay(true).map_err(unreachable)?;
        let mut socket = Counted::new(socket, self.meters.traffic.clone());
        if let Some(proxy) = proxy {
            proxy.connect(&mut socket, broker).await.map_err(through)?;
        }
        let connected = TlsConnector::from(Arc::new(tls)).connect(name, socket);
        let stream = connected.await.map_err(|error| match tls_reason(&error) {
            Some(reason) => LinkError::Tls {
                address: broker.to_string(),
                reason,
            },
            None => unreachable(error),
        })?;
        Ok(Dialed {
            stream: Box::new(stream),
            peer,
        })
    }
}

/// A connection to whichever address of the host answers first.
async fn connect(host: &BrokerAddress, useless: &Useless) -> io::Result<TcpStream> {
    let found = lookup_host((host.host.as_str(), host.port)).await?;
    race(useless.order(found), STAGGER).await
}

/// Connects to the first of these that answers.
async fn race(addresses: Vec<SocketAddr>, stagger: Duration) -> io::Result<TcpStream> {
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut waiting = VecDeque::from(addresses);
    let mut attempts = JoinSet::new();
    loop {
        match waiting.pop_front() {
            Some(address) => {
                attempts.spawn(TcpStream::connect(address));
            }
            None if attempts.is_empty() => return Err(error),
            None => {}
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(failed)) => error = failed,
                Err(gone) => error = io::Error::other(gone),
            },
            () = sleep(stagger), if !waiting.is_empty() => {}
        }
    }
}

/// Families take turns, beginning with that of the first, each in the order of the resolver.
fn interleaved(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = found.take(RECORDS_MAX).collect();
    // Some resolvers name an address once for each protocol.
    let mut seen = Vec::new();
    found.retain(|address| {
        let is_new = !seen.contains(address);
        seen.push(*address);
        is_new
    });
    let is_first = found.first().map(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) = found
        .into_iter()
        .partition(|address| Some(matches!(address.ip(), IpAddr::V4(_))) == is_first);
    let mut order = Vec::new();
    while !(first.is_empty() && second.is_empty()) {
        order.extend(first.pop_front());
        order.extend(second.pop_front());
    }
    order
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::{Instant, timeout};

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_what_failed_comes_last() {
        let found = addresses(&["[::1]:1", "[::2]:1", "[::1]:1", "1.0.0.1:1", "[::3]:1"]);
        let order = addresses(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]);
        let useless = Useless::default();
        assert_eq!(useless.order(found.clone().into_iter()), order);
        useless.add(order[0]);
        useless.add(order[2]);
        let failed_last = addresses(&["1.0.0.1:1", "[::3]:1", "[::1]:1", "[::2]:1"]);
        assert_eq!(useless.order(found.clone().into_iter()), failed_last);
        useless.remove(order[2]);
        useless.remove(order[0]);
        assert_eq!(useless.order(found.into_iter()), order);
        for port in 1..100 {
            useless.add(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        }
        assert_eq!(useless.0.lock().unwrap().len(), RECORDS_MAX);
    }

    /// Takes no connection: its queue is full.
    async fn black_hole() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(Ok(taken)) =
            timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            filling.push(taken);
            assert!(filling.len() < 100, "the queue is never full");
        }
        (address, filling, listener)
    }

    #[tokio::test]
    async fn neither_a_refusal_nor_silence_of_the_first_stops_the_second() {
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = refused.local_addr().unwrap();
        drop(refused);
        let (hole, _filling, _held) = black_hole().await;
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = good.local_addr().unwrap();
        for first in [vec![dead], vec![hole], vec![hole, dead], vec![dead, hole]] {
            let all = first.iter().copied().chain([alive]).collect();
            let begun = Instant::now();
            let socket = race(all, STAGGER).await.unwrap();
            assert_eq!(socket.peer_addr().unwrap(), alive);
            assert!(begun.elapsed() < Duration::from_secs(3), "{first:?}");
        }
        assert!(race(vec![dead], STAGGER).await.is_err());
        assert!(race(Vec::new(), STAGGER).await.is_err());
    }
}
