//! The nodes of one database: which to use, connections to each, and leaving one that fails.
//!
//! A failed node is left at once and tried again after a growing pause; when all are down, the one
//! whose pause ends first is tried. Connections are pooled by node and purpose. A connection that
//! saw an error, or whose user went away in the middle of a statement, is closed, not returned.

use std::fmt;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::StoreError;
use super::super::location::Database;
use super::dialect::{self, Purpose};
use super::failed::Failed;

/// Connections are renewed after this time, so that load spreads again after a node returned.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// Pause before a failed node is tried again: the first, and the longest.
const NODE_PAUSE_FIRST: Duration = Duration::from_millis(100);
const NODE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Addresses of the nodes of one database, with what is needed to connect.
#[derive(Clone)]
pub struct Nodes(Vec<PgConnectOptions>);

impl Nodes {
    /// Reads one URL a node; a URL may also name several hosts, separated by commas.
    ///
    /// # Errors
    /// [`StoreError::Settings`] names the part that cannot be used.
    pub fn parse<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, StoreError> {
        let mut nodes = Vec::new();
        for url in urls {
            for url in each_host(url) {
                let options = PgConnectOptions::from_str(&url).map_err(settings)?;
                nodes.push(options.disable_statement_logging());
            }
        }
        if nodes.is_empty() {
            return Err(StoreError::Settings {
                reason: "no node is named".to_owned(),
            });
        }
        Ok(Self(nodes))
    }
}

fn settings(error: sqlx::Error) -> StoreError {
    StoreError::Settings {
        reason: error.to_string(),
    }
}

/// One URL for each host of `url`.
fn each_host(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return vec![url.to_owned()];
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    hosts
        .split(',')
        .map(|host| format!("{scheme}://{user}{host}{path}"))
        .collect()
}

impl fmt::Display for Nodes {
    /// Hosts, ports and the database's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, node) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", address(node))?;
        }
        match self.0.first().and_then(PgConnectOptions::get_database) {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn address(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// The nodes in use.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    next: AtomicUsize,
    opened: Instant,
    connect_timeout: Duration,
    statement_timeout: Duration,
}

#[derive(Debug)]
struct Node {
    address: String,
    options: PgConnectOptions,
    writers: Pool,
    readers: Pool,
    /// Milliseconds since the cluster was opened.
    down_until_ms: AtomicU64,
    failures: AtomicU32,
}

#[derive(Debug)]
struct Pool {
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    born: Instant,
}

/// A connection on loan. Dropped, it is closed; [`Lease::release`] returns it.
pub(super) struct Lease<'c> {
    pub(super) connection: PgConnection,
    born: Instant,
    node: &'c Node,
    cluster: &'c Cluster,
    pool: Option<&'c Pool>,
    _permit: Option<SemaphorePermit<'c>>,
}

impl Cluster {
    pub(super) fn new(database: &Database) -> Self {
        let nodes = database.nodes.0.iter().map(|options| Node {
            address: address(options),
            options: options.clone(),
            writers: Pool::new(database.writers_max),
            readers: Pool::new(database.readers_max),
            down_until_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
        });
        let nodes: Vec<Node> = nodes.collect();
        Self {
            // Several bridges started together do not all begin at the first node.
            next: AtomicUsize::new(rand::random_range(0..nodes.len().max(1))),
            nodes,
            opened: Instant::now(),
            connect_timeout: database.connect_timeout,
            statement_timeout: database.statement_timeout,
        }
    }

    /// The addresses, for messages.
    pub(super) fn address(&self) -> String {
        let addresses: Vec<&str> = self.nodes.iter().map(|n| n.address.as_str()).collect();
        addresses.join(",")
    }

    /// A connection to a node that is up, as far as is known.
    pub(super) async fn lease(&self, purpose: Purpose) -> Result<Lease<'_>, Failed> {
        let node = self.pick();
        let (pool, permit) = match node.pool(purpose) {
            Some(pool) => (Some(pool), Some(pool.permit(self, node).await?)),
            None => (None, None),
        };
        let idle = pool.and_then(Pool::take);
        let Idle { connection, born } = match idle {
            Some(idle) => idle,
            None => self.connect(node, purpose).await?,
        };
        Ok(Lease {
            connection,
            born,
            node,
            cluster: self,
            pool,
            _permit: permit,
        })
    }

    async fn connect(&self, node: &Node, purpose: Purpose) -> Result<Idle, Failed> {
        let options = dialect::options(node.options.clone(), purpose, self.statement_timeout);
        let connect = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            dialect::set_up(&mut connection, purpose).await?;
            Ok(connection)
        };
        let connected = tokio::time::timeout(self.connect_timeout, connect)
            .await
            .unwrap_or_else(|_| Err(timed_out("no answer within the connect time-out")));
        match connected {
            Ok(connection) => Ok(Idle {
                connection,
                born: Instant::now(),
            }),
            Err(error) => Err(self.failed(node, error)),
        }
    }

    /// Round robin over the nodes that are not known to be down.
    fn pick(&self) -> &Node {
        let now_ms = self.now_ms();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let candidates = (0..self.nodes.len()).map(|i| &self.nodes[(start + i) % self.nodes.len()]);
        // The first that is up; else the one whose pause ends first.
        candidates
            .min_by_key(|node| {
                let until = node.down_until_ms.load(Ordering::Relaxed);
                if until <= now_ms { 0 } else { until }
            })
            .unwrap_or(&self.nodes[0])
    }

    fn failed(&self, node: &Node, error: sqlx::Error) -> Failed {
        let failed = Failed::new(&node.address, error);
        if failed.is_about_the_node() {
            let failures = node.failures.fetch_add(1, Ordering::Relaxed);
            let doubled = NODE_PAUSE_FIRST.saturating_mul(1 << failures.min(16));
            let pause = u64::try_from(doubled.min(NODE_PAUSE_MAX).as_millis()).unwrap_or(u64::MAX);
            let until = self.now_ms().saturating_add(pause);
            node.down_until_ms.store(until, Ordering::Relaxed);
            // What the others hold is likely dead as well.
            node.writers.clear();
            node.readers.clear();
        }
        failed
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Closes idle connections, and refuses new ones.
    pub(super) async fn close(&self) {
        for pool in self.nodes.iter().flat_map(|n| [&n.writers, &n.readers]) {
            pool.permits.close();
            for idle in pool.clear() {
                // A courtesy: the server notices a closed socket as well.
                let _ = idle.connection.close().await;
            }
        }
    }
}

impl Node {
    fn pool(&self, purpose: Purpose) -> Option<&Pool> {
        match purpose {
            Purpose::Write => Some(&self.writers),
            Purpose::Read => Some(&self.readers),
            Purpose::Migrate => None,
        }
    }
}

impl Pool {
    fn new(connections_max: u32) -> Self {
        Self {
            permits: Semaphore::new(connections_max.max(1) as usize),
            idle: Mutex::default(),
        }
    }

    async fn permit(&self, cluster: &Cluster, node: &Node) -> Result<SemaphorePermit<'_>, Failed> {
        // Connections come back within a statement's time, or the node is in trouble.
        let wait = cluster.statement_timeout + cluster.connect_timeout;
        match tokio::time::timeout(wait, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Failed::new(&node.address, sqlx::Error::PoolClosed)),
            Err(_) => Err(Failed::new(&node.address, sqlx::Error::PoolTimedOut)),
        }
    }

    fn take(&self) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.born.elapsed() < CONNECTION_AGE_MAX {
                return Some(connection);
            }
        }
        None
    }

    fn clear(&self) -> Vec<Idle> {
        std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lease<'_> {
    fn release(self) {
        self.node.failures.store(0, Ordering::Relaxed);
        self.node.down_until_ms.store(0, Ordering::Relaxed);
        if let Some(pool) = self.pool {
            let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(Idle {
                connection: self.connection,
                born: self.born,
            });
        }
    }

    /// Ends an attempt. The connection is returned when it went well or when the database itself
    /// refused the statement, and closed otherwise.
    pub(super) fn end<T>(
        self,
        done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failed> {
        let error = match done {
            Ok(Ok(value)) => {
                self.release();
                return Ok(value);
            }
            Ok(Err(error)) => error,
            Err(_) => timed_out("no answer within the statement time-out"),
        };
        let failed = self.cluster.failed(self.node, error);
        if !failed.is_about_the_node() && !failed.is_connection_suspect() {
            self.release();
        }
        Err(failed)
    }
}

fn timed_out(what: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_several_hosts_is_several_nodes() {
        let nodes = Nodes::parse([
            "postgres://root:secret@a:26257,b:26258/fleet?sslmode=disable",
            "postgres://c/fleet",
        ])
        .unwrap();
        assert_eq!(nodes.to_string(), "a:26257,b:26258,c:5432/fleet");
        assert!(!format!("{nodes:?}").contains("secret"));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password() {
        for url in [
            "postgres://u:secret@h:port/db",
            "postgres://u:secret@[::1/db",
        ] {
            let error = Nodes::parse([url]).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_failed_node_is_left_until_its_pause_ends() {
        let nodes = Nodes::parse(["postgres://u@127.0.0.1:1,127.0.0.1:2/d"]).unwrap();
        let cluster = Cluster::new(&Database::new(nodes));
        let down = cluster.failed(&cluster.nodes[0], timed_out("test"));
        assert!(down.is_about_the_node());
        for _ in 0..4 {
            assert_eq!(cluster.pick().address, "127.0.0.1:2");
        }
    }
}
