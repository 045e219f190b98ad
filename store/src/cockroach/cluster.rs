//! The nodes of one database: which to use, connections to each, and leaving one that fails.
//!
//! A failed node is left at once and tried again after a growing pause; when all are down, the one
//! whose pause ends first is tried. Connections are pooled by node and purpose. A connection that
//! saw an error, or whose user went away in the middle of a statement, is closed, not returned.
//!
//! Queries that may be answered with what was true a moment ago go to [`super::replicas`], while
//! these are fresh enough, and else where all others go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::SemaphorePermit;

use super::super::Readers;
use super::Database;
use super::dialect::{self, Purpose};
use super::failed::Failed;
use super::node::{Idle, Node, Pool};
use super::nodes::Nodes;
use super::replicas::{self, Staleness};

/// The nodes in use.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    replicas: Vec<Node>,
    /// How old answers of queries may be that need not be the latest.
    staleness: Option<Staleness>,
    replica_reads: AtomicU64,
    next: AtomicUsize,
    eras: AtomicU64,
    opened: Instant,
    connect_timeout: Duration,
    statement_timeout: Duration,
}

/// A connection on loan. Dropped, it is closed; [`Lease::release`] returns it.
pub(super) struct Lease<'c> {
    pub(super) connection: PgConnection,
    /// The era that the connection began, if it was made to write: what is known of an earlier one may be of
    /// another database than it leads to.
    pub(super) era: u64,
    born: Instant,
    purpose: Purpose,
    node: &'c Node,
    cluster: &'c Cluster,
    pool: Option<&'c Pool>,
    _permit: Option<SemaphorePermit<'c>>,
}

impl Cluster {
    pub(super) fn new(database: &Database) -> Self {
        let nodes = |of: &Nodes| -> Vec<Node> {
            let node = |options| Node::new(options, database);
            of.0.iter().map(node).collect()
        };
        let replicas = database.replicas.as_ref().map_or_else(Vec::new, nodes);
        let nodes = nodes(&database.nodes);
        Self {
            replicas,
            staleness: database.stale_max.map(Staleness::new),
            replica_reads: AtomicU64::new(0),
            // Several bridges started together do not all begin at the first node.
            next: AtomicUsize::new(rand::random_range(0..nodes.len().max(1))),
            nodes,
            eras: AtomicU64::new(0),
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

    /// A connection to a node that is up, as far as is known, for work that waits for no user's query.
    pub(super) async fn lease(self: &Arc<Self>, purpose: Purpose) -> Result<Lease<'_>, Failed> {
        self.lease_for(purpose, Readers::Bridge).await
    }

    /// The same; a query waits only for others of the same readers.
    pub(super) async fn lease_for(
        self: &Arc<Self>,
        purpose: Purpose,
        readers: Readers,
    ) -> Result<Lease<'_>, Failed> {
        let node = |purpose| self.lease_at(self.pick(&self.nodes), purpose, readers);
        let (Purpose::ReadStale, Some(staleness)) = (purpose, &self.staleness) else {
            let purpose = match purpose {
                Purpose::ReadStale => Purpose::Read,
                other => other,
            };
            return node(purpose).await;
        };
        if self.replicas.is_empty() {
            // CockroachDB: whichever node is asked, the nearest copy answers.
            return node(purpose).await;
        }
        if let Some(lease) = self.lease_replica(staleness).await {
            self.replica_reads.fetch_add(1, Ordering::Relaxed);
            return Ok(lease);
        }
        node(Purpose::Read).await
    }

    /// Counts the connections that were made to write, and those that broke in use: behind another one there may be
    /// another database. What fails in another way says nothing of that; and whoever is left without a connection
    /// makes one, which counts: nothing is written over a connection that is younger than what is known
    /// ([`Lease::era`]).
    pub(super) fn era(&self) -> u64 {
        self.eras.load(Ordering::Acquire)
    }

    /// How many leases went to replicas.
    pub(super) fn replica_reads(&self) -> u64 {
        self.replica_reads.load(Ordering::Relaxed)
    }

    /// A connection to a replica that is fresh enough, if there is one.
    async fn lease_replica(self: &Arc<Self>, staleness: &Staleness) -> Option<Lease<'_>> {
        let replica = self.pick(&self.replicas);
        let now_ms = self.now_ms();
        if replica.is_down(now_ms) {
            return None;
        }
        // A replica that cannot be reached is no error of the query's.
        let lease = self.lease_at(replica, Purpose::ReadStale, Readers::Bridge);
        let mut lease = lease.await.ok()?;
        if !replica.freshness.is_doubtful(staleness, now_ms) {
            return Some(lease);
        }
        if staleness.is_beat_due(now_ms) {
            // Nobody waits for it: a primary that is down must not delay what a replica can tell.
            tokio::spawn(Arc::clone(self).beat());
        }
        let look = replicas::age(&mut lease.connection);
        let looked = tokio::time::timeout(self.connect_timeout, look).await;
        match looked {
            Ok(Ok(age)) => replica.freshness.saw(age, staleness, self.now_ms()),
            failed => {
                let _ = lease.end(failed).await;
                return None;
            }
        }
        if replica.freshness.holds(self.now_ms()) {
            return Some(lease);
        }
        lease.release();
        None
    }

    async fn beat(self: Arc<Self>) {
        // Another bridge beats at this very moment, or the primary is down: the replicas tell.
        let lease = self.lease_at(self.pick(&self.nodes), Purpose::Write, Readers::Bridge);
        let Ok(mut lease) = lease.await else {
            return;
        };
        let beat = lease.connection.execute(replicas::BEAT);
        let done = tokio::time::timeout(self.statement_timeout, beat).await;
        let _ = lease.end(done).await;
    }

    async fn lease_at<'c>(
        &'c self,
        node: &'c Node,
        purpose: Purpose,
        readers: Readers,
    ) -> Result<Lease<'c>, Failed> {
        // Connections come back within a statement's time, or the node is in trouble.
        let wait = self.statement_timeout + self.connect_timeout;
        let (pool, permit) = match node.pool(purpose, readers) {
            Some(pool) => (Some(pool), Some(pool.permit(node, wait).await?)),
            None => (None, None),
        };
        let idle = pool.and_then(Pool::take);
        let Idle {
            connection,
            born,
            era,
        } = match idle {
            Some(idle) => idle,
            None => self.connect(node, purpose).await?,
        };
        Ok(Lease {
            connection,
            era,
            born,
            purpose,
            node,
            cluster: self,
            pool,
            _permit: permit,
        })
    }

    async fn connect(&self, node: &Node, purpose: Purpose) -> Result<Idle, Failed> {
        let connect = dialect::connect(&node.options, purpose, self.statement_timeout);
        let connected = tokio::time::timeout(self.connect_timeout, connect)
            .await
            .unwrap_or_else(|_| Err(timed_out("no answer within the connect time-out")));
        match connected {
            Ok(connection) => {
                let era = match purpose {
                    Purpose::Write => self.eras.fetch_add(1, Ordering::AcqRel) + 1,
                    _ => 0,
                };
                Ok(Idle {
                    connection,
                    born: Instant::now(),
                    era,
                })
            }
            Err(error) => Err(self.failed(node, error)),
        }
    }

    /// Round robin over the nodes that are not known to be down.
    fn pick<'c>(&self, nodes: &'c [Node]) -> &'c Node {
        let now_ms = self.now_ms();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let candidates = (0..nodes.len()).map(|i| &nodes[(start + i) % nodes.len()]);
        // The first that is up; else the one whose pause ends first.
        candidates
            .min_by_key(|node| {
                let until = node.down_until_ms();
                if until <= now_ms { 0 } else { until }
            })
            .unwrap_or(&nodes[0])
    }

    fn failed(&self, node: &Node, error: sqlx::Error) -> Failed {
        let failed = Failed::new(&node.address, error);
        if failed.is_about_the_node() {
            node.failed(self.now_ms());
        }
        failed
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Closes idle connections, and refuses new ones.
    pub(super) async fn close(&self) {
        let nodes = self.nodes.iter().chain(&self.replicas);
        for pool in nodes.flat_map(Node::pools) {
            for idle in pool.close() {
                // A courtesy: the server notices a closed socket as well.
                let _ = idle.connection.close().await;
            }
        }
    }
}

impl Lease<'_> {
    fn release(self) {
        self.node.answered();
        if let Some(pool) = self.pool {
            pool.put(Idle {
                connection: self.connection,
                born: self.born,
                era: self.era,
            });
        }
    }

    /// Returns the connection when nothing is left open on it. A transaction that was dropped is rolled back only when its
    /// connection is used next, and would hold until then what it has locked.
    async fn give_back(mut self) {
        if self.connection.should_flush() {
            let rolled_back = self.connection.flush();
            let limit = self.cluster.connect_timeout;
            if !matches!(tokio::time::timeout(limit, rolled_back).await, Ok(Ok(()))) {
                return;
            }
        }
        self.release();
    }

    /// Ends an attempt. The connection is returned when it went well or when the database itself
    /// refused the statement, and closed otherwise.
    pub(super) async fn end<T>(
        self,
        done: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T, Failed> {
        let failed = match done {
            Ok(Ok(value)) => {
                self.give_back().await;
                return Ok(value);
            }
            Ok(Err(error)) => {
                let failed = self.cluster.failed(self.node, error);
                if matches!(self.purpose, Purpose::Write) && failed.is_about_the_node() {
                    self.cluster.eras.fetch_add(1, Ordering::AcqRel);
                }
                failed
            }
            Err(_) => {
                let error = timed_out("no answer within the statement time-out");
                self.cluster.failed(self.node, error)
            }
        };
        if !failed.is_about_the_node() && !failed.is_connection_suspect() {
            self.give_back().await;
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

    #[tokio::test]
    async fn a_failed_node_is_left_until_its_pause_ends() {
        let nodes = Nodes::parse(["postgres://u@127.0.0.1:1,127.0.0.1:2/d"]).unwrap();
        let cluster = Cluster::new(&Database::new(nodes));
        let down = cluster.failed(&cluster.nodes[0], timed_out("test"));
        assert!(down.is_about_the_node());
        for _ in 0..4 {
            assert_eq!(cluster.pick(&cluster.nodes).address, "127.0.0.1:2");
        }
    }

    /// A cluster of the one node that a fixture has.
    fn of(fixture: &testkit::database::Fixture) -> Arc<Cluster> {
        let nodes = Nodes::parse([fixture.url.as_deref().unwrap()]).unwrap();
        let mut database = Database::new(nodes);
        database.statement_timeout = Duration::from_millis(200);
        Arc::new(Cluster::new(&database))
    }

    /// Asks for a number on a connection of its own or of the pool.
    async fn ask(
        cluster: &Arc<Cluster>,
        purpose: Purpose,
        sql: &'static str,
    ) -> Result<i32, Failed> {
        let mut lease = cluster.lease(purpose).await?;
        let answer = async {
            let row = lease.connection.fetch_one(sql).await?;
            sqlx::Row::try_get::<i32, _>(&row, 0)
        };
        let answer = tokio::time::timeout(Duration::from_secs(30), answer).await;
        lease.end(answer).await
    }

    const PID: &str = "SELECT pg_backend_pid()";

    #[test]
    fn an_era_ends_with_a_connection_that_writes_and_with_nothing_else() {
        testkit::database::postgres(|fixture| async move {
            let cluster = of(&fixture);
            let kill = async |pid: i32| {
                fixture
                    .sql(&format!("SELECT pg_terminate_backend({pid}, 10000)"))
                    .await;
            };
            assert_eq!(cluster.era(), 0);
            let writer = ask(&cluster, Purpose::Write, PID).await.unwrap();
            assert_eq!(cluster.era(), 1, "a connection that writes was made");

            ask(&cluster, Purpose::Read, PID).await.unwrap();
            ask(&cluster, Purpose::Probe, PID).await.unwrap();
            // Answered, and of no use; refused; and ended for its time.
            for (purpose, sql) in [
                (Purpose::Read, "SELECT 'no number'"),
                (Purpose::Read, "SELECT pg_sleep(9)"),
                (Purpose::Write, "SELECT pg_sleep(9)"),
                (Purpose::Write, "SELECT 1/0"),
            ] {
                ask(&cluster, purpose, sql).await.unwrap_err();
            }
            assert_eq!(ask(&cluster, Purpose::Write, PID).await.unwrap(), writer);
            assert_eq!(cluster.era(), 1, "the connection is the same");
            let reader = ask(&cluster, Purpose::Read, PID).await.unwrap();
            kill(reader).await;
            ask(&cluster, Purpose::Read, PID).await.unwrap_err();
            assert_eq!(cluster.era(), 1, "it was a reader's");

            let writer = ask(&cluster, Purpose::Write, PID).await.unwrap();
            assert_eq!(cluster.era(), 2, "another one was made");
            kill(writer).await;
            ask(&cluster, Purpose::Write, PID).await.unwrap_err();
            assert_eq!(cluster.era(), 3, "it broke");
            ask(&cluster, Purpose::Write, PID).await.unwrap();
            assert_eq!(cluster.era(), 4);
            // Each is closed, and another one is made before anything is written.
            let lease = cluster.lease(Purpose::Write).await.unwrap();
            let silent = tokio::time::timeout(Duration::ZERO, std::future::pending());
            lease.end::<()>(silent.await).await.unwrap_err();
            assert_eq!(cluster.era(), 4, "nobody has heard anything");
            ask(&cluster, Purpose::Write, "SELECT 'no number'")
                .await
                .unwrap_err();
            let era = cluster.era();
            assert_eq!(era, 5, "another one was made, and its answer was of no use");
        });
    }

    #[tokio::test]
    async fn a_connection_that_is_not_made_ends_no_era() {
        let nodes = Nodes::parse(["postgres://u@127.0.0.1:1/d"]).unwrap();
        let cluster = Arc::new(Cluster::new(&Database::new(nodes)));
        ask(&cluster, Purpose::Write, PID).await.unwrap_err();
        assert_eq!(cluster.era(), 0);
    }

    /// One row that makes its statement wait must not cost all others their connections.
    #[test]
    fn a_node_that_ends_a_slow_statement_is_there() {
        testkit::database::postgres(|fixture| async move {
            let cluster = of(&fixture);
            let writer = ask(&cluster, Purpose::Write, PID).await.unwrap();
            let slow = ask(&cluster, Purpose::Write, "SELECT pg_sleep(9)");
            let slow = slow.await.unwrap_err();
            assert!(slow.is_too_slow() && !slow.is_about_the_node());
            assert!(!cluster.nodes[0].is_down(cluster.now_ms()));
            assert_eq!(ask(&cluster, Purpose::Write, PID).await.unwrap(), writer);
        });
    }
}
