//! How a cluster is reached and used.

use std::fmt;
use std::time::Duration;

use super::Nodes;

/// How to reach and use a CockroachDB or PostgreSQL.
#[derive(Clone)]
pub struct Database {
    /// The nodes, all of one database.
    pub nodes: Nodes,
    /// Replicas of PostgreSQL, which answer queries that may be stale.
    pub replicas: Option<Nodes>,
    /// How old the answers of queries may be: of devices, readings, conflicts and dead letters.
    /// Without it they are the latest. CockroachDB then answers from the nearest copy, as it was
    /// about five seconds ago, so that no less can be asked of it; PostgreSQL from its replicas, as long as they are
    /// fresh enough. Tables that were made since are read as they are now.
    pub stale_max: Option<Duration>,
    /// Whether a PostgreSQL keeps readings by month: a plain table becomes a partitioned one when the schema is brought up
    /// to date. Without it a plain table stays one, and a partitioned one stays that.
    pub partitions: bool,
    /// Most connections for writing, on each node. Two keep a database of two cores busy; more
    /// help where commits wait for a network.
    pub writers_max: u32,
    /// Most connections for queries, on each node: of callers, and as many of the bridge itself. No query waits for ingest.
    pub readers_max: u32,
    /// A statement that takes longer is cancelled by the database and tried again.
    pub statement_timeout: Duration,
    /// A connection that takes longer to make is given up.
    pub connect_timeout: Duration,
    /// How long one call is tried again before it fails.
    pub retry_budget: Duration,
}

impl Database {
    /// With the defaults.
    #[must_use]
    pub const fn new(nodes: Nodes) -> Self {
        Self {
            nodes,
            replicas: None,
            stale_max: None,
            partitions: true,
            writers_max: 4,
            readers_max: 4,
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            retry_budget: Duration::from_secs(15),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.nodes, f)
    }
}
