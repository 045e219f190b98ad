//! A database of its own for each test: a file, or one on the server that the environment names.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use store::Store;
use store::location::Location;
use tempfile::TempDir;

use crate::proxy::Proxy;

/// A fresh database.
#[derive(Debug, Clone)]
pub struct Fixture {
    location: Location,
    /// The URL, when it is one.
    pub url: Option<String>,
    /// Whether [`Self::open`] brings the schema up to date.
    pub migrates: bool,
}

impl Fixture {
    /// A migrated store; several may be open at once.
    pub async fn open(&self) -> Arc<dyn Store> {
        let store = self.open_unmigrated().await;
        if self.migrates {
            store.migrate().await.unwrap();
        }
        store
    }

    /// The same, as it is.
    pub fn unmigrated(&self) -> Self {
        Self {
            migrates: false,
            ..self.clone()
        }
    }

    /// The store as it is, without its schema brought up to date.
    pub async fn open_unmigrated(&self) -> Arc<dyn Store> {
        self.location.open().await.unwrap()
    }

    /// Where an embedded store's file is.
    pub fn file(&self) -> &Path {
        match &self.location {
            Location::Embedded(path) => path,
            _ => panic!("a server has no file"),
        }
    }

    /// A connection to the server, beside the store.
    pub async fn connection(&self) -> PgConnection {
        let url = self.url.as_ref().unwrap();
        PgConnection::connect(url).await.unwrap()
    }

    /// What a query finds in its first column, beside the store.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let mut found = Vec::new();
        if let Location::Embedded(path) = &self.location {
            let file = libsql::Builder::new_local(path).build().await.unwrap();
            let mut rows = file.connect().unwrap().query(sql, ()).await.unwrap();
            while let Some(row) = rows.next().await.unwrap() {
                found.push(row.get(0).unwrap());
            }
            return found;
        }
        let query = AssertSqlSafe(sql.to_owned());
        let rows = self.connection().await.fetch_all(query).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Runs SQL beside the store.
    pub async fn sql(&self, sql: &str) {
        if let Location::Embedded(path) = &self.location {
            let file = libsql::Builder::new_local(path).build().await.unwrap();
            file.connect().unwrap().execute_batch(sql).await.unwrap();
            return;
        }
        self.connection()
            .await
            .execute(AssertSqlSafe(sql.to_owned()))
            .await
            .unwrap();
    }
}

/// Runs a test on a fresh file.
pub fn embedded<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("bridge.db");
    let fixture = Fixture {
        location: Location::Embedded(path),
        url: None,
        migrates: true,
    };
    runtime().block_on(test(fixture));
}

/// The PostgreSQL that tests may make databases on.
///
/// # Panics
///
/// When `TIDELINE_TEST_POSTGRES_URL` is missing: a test does not pass without its server.
#[must_use]
pub fn postgres_url() -> String {
    std::env::var("TIDELINE_TEST_POSTGRES_URL").expect(
        "TIDELINE_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`, \
         which starts a PostgreSQL",
    )
}

/// Runs a test on a fresh database of [`postgres_url`].
pub fn postgres<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    postgres_with("", test);
}

/// Without a cluster to test against there is nothing to run: none can be had on most machines.
pub fn cockroach<F: Future<Output = ()> + Send + 'static>(test: fn(Fixture) -> F) {
    if let Ok(admin) = std::env::var("TIDELINE_TEST_COCKROACH_URL") {
        on_server(&admin, "", test);
    }
}

/// A PostgreSQL database that is made with these options.
pub fn postgres_with<F: Future<Output = ()> + Send + 'static>(
    options: &'static str,
    test: fn(Fixture) -> F,
) {
    on_server(&postgres_url(), options, test);
}

fn on_server<F: Future<Output = ()> + Send + 'static>(
    admin: &str,
    options: &'static str,
    test: fn(Fixture) -> F,
) {
    let name = format!("tideline_test_{:016x}", rand::random::<u64>());
    runtime().block_on(async {
        let mut connection = PgConnection::connect(admin).await.unwrap();
        let create = format!("CREATE DATABASE {name} {options}");
        connection.execute(AssertSqlSafe(create)).await.unwrap();
        let url = with_database(admin, &name);
        let fixture = Fixture {
            location: Location::parse(&url).unwrap(),
            url: Some(url),
            migrates: true,
        };
        let result = tokio::spawn(test(fixture)).await;
        // PostgreSQL: connections that a failed test left open must not keep the database.
        let drop_it = format!("DROP DATABASE {name} WITH (FORCE)");
        if connection.execute(AssertSqlSafe(drop_it)).await.is_err() {
            let drop_it = format!("DROP DATABASE {name} CASCADE");
            connection.execute(AssertSqlSafe(drop_it)).await.unwrap();
        }
        if let Err(error) = result {
            std::panic::resume_unwind(error.into_panic());
        }
    });
}

/// The admin's URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let (url, query) = match url.split_once('?') {
        Some((url, query)) => (url, format!("?{query}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = url.split_once("://").unwrap();
    let authority = rest.split('/').next().unwrap();
    format!("{scheme}://{authority}/{name}{query}")
}

/// A runtime as a bridge has it, with two threads.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Splits `scheme://user@host:port/database` at its host.
pub fn around_host(url: &str) -> (String, String, String) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, database) = rest.split_once('/').unwrap();
    let (user, host) = authority.rsplit_once('@').unwrap();
    (
        format!("{scheme}://{user}@"),
        host.to_owned(),
        format!("/{database}"),
    )
}

/// A proxy before the server of this address, and where the database is then.
pub async fn behind_proxy(url: &str) -> (Proxy, Location) {
    let (user, host, database) = around_host(url);
    let proxy = Proxy::start(host).await;
    let behind = Location::parse(&format!("{user}{}{database}", proxy.address)).unwrap();
    (proxy, behind)
}

/// Makes a test of each named function for each database. A binary that has contracts says `#![deny(dead_code)]`, so that
/// a function which is written and not named does not build.
#[macro_export]
macro_rules! contract {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] $(#[$meta])* fn $name() { $crate::database::embedded(super::$name); })+
        }
        mod postgres {
            $(#[test] $(#[$meta])* fn $name() { $crate::database::postgres(super::$name); })+
        }
        mod cockroach {
            $(#[test] $(#[$meta])* fn $name() { $crate::database::cockroach(super::$name); })+
        }
    };
}

/// Makes a test of each named function for each database server: for what a file has no need of.
#[macro_export]
macro_rules! servers {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[test] fn $name() { $crate::database::postgres(super::$name); })+
        }
        mod cockroach {
            $(#[test] fn $name() { $crate::database::cockroach(super::$name); })+
        }
    };
}
