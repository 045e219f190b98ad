//! Where a store is, parsed from what an operator writes; opening it.
//!
//! A URL that begins with `postgres://` or `postgresql://` is CockroachDB or PostgreSQL, anything
//! else is the path of the embedded store's file. The URL may hold a password: `Debug` and
//! `Display` never show it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use super::cockroach::Database;
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
