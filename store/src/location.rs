//! Where a store is, parsed from what an operator writes; opening it.
//!
//! A URL that begins with `postgres://` or `postgresql://` is CockroachDB or PostgreSQL, anything
//! else is the path of the embedded store's file. The URL may hold a password: `Debug` and
//! `Display` never show it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::cockroach::{Cockroach, Nodes};
use super::embedded::Embedded;
use super::{Store, StoreError};

/// Where a store is.
#[derive(Clone)]
pub enum Location {
    /// One libSQL file on this machine.
    Embedded(PathBuf),
    /// CockroachDB, or PostgreSQL.
    Cockroach(Database),
}

/// How to reach and use a CockroachDB or PostgreSQL.
#[derive(Clone)]
pub struct Database {
    /// The nodes, all of one database.
    pub nodes: Nodes,
    /// Replicas of PostgreSQL, which answer queries that may be stale.
    pub replicas: Option<Nodes>,
    /// How old the answers of queries may be: of devices, readings, conflicts and dead letters.
    /// Without it they are the latest. CockroachDB then answers from the nearest copy, as it was
    /// about five seconds ago; PostgreSQL from its replicas, as long as they are fresh enough.
    pub stale_max: Option<Duration>,
    /// Most connections for writing, on each node. Two keep a database of two cores busy; more
    /// help where commits wait for a network.
    pub writers_max: u32,
    /// Most connections for queries, on each node, so that a query never waits for ingest.
    pub readers_max: u32,
    /// A statement that takes longer is cancelled by the database and tried again.
    pub statement_timeout: Duration,
    /// A connection that takes longer to make is given up.
    pub connect_timeout: Duration,
    /// How long one call is tried again before it fails.
    pub retry_budget: Duration,
}

impl Location {
    /// Reads a URL or a path.
    ///
    /// # Errors
    /// [`StoreError::Settings`] when a URL cannot be used; it says which part.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Cockroach(Database::new(Nodes::parse([text])?)));
        }
        match text.split_once("://") {
            Some((scheme, _)) => Err(StoreError::Settings {
                reason: format!("scheme {scheme}:// is none of postgres:// and postgresql://"),
            }),
            None if text.is_empty() => Err(StoreError::Settings {
                reason: "it is empty".to_owned(),
            }),
            None => Ok(Self::Embedded(text.into())),
        }
    }

    /// Opens the store: the embedded file is opened or created, a database is connected to when
    /// it is first used.
    ///
    /// # Errors
    /// [`StoreError::File`] when the file cannot be opened.
    pub async fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        match self {
            Self::Embedded(path) => Ok(Arc::new(Embedded::open(path).await?)),
            Self::Cockroach(database) => Ok(Arc::new(Cockroach::new(database))),
        }
    }
}

impl Database {
    /// With the defaults.
    #[must_use]
    pub const fn new(nodes: Nodes) -> Self {
        Self {
            nodes,
            replicas: None,
            stale_max: None,
            writers_max: 4,
            readers_max: 4,
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            retry_budget: Duration::from_secs(15),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => path.display().fmt(f),
            Self::Cockroach(database) => database.nodes.fmt(f),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.nodes, f)
    }
}
