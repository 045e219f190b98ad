//! Stands between tests and their PostgreSQL, hands everything on, and notes what bridges say to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use daemon::{Class, Failure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::wire::{Listener, Said};

/// By what name the store starts its connections. Tests that look at a database beside it have none.
const STORE: &str = "tideline-bridge";

/// What was said, each once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Recording {
    pub(super) parses: BTreeSet<(String, Vec<u32>)>,
    pub(super) queries: BTreeSet<String>,
    /// Names and values with which connections started.
    pub(super) startups: BTreeSet<(String, String)>,
}

/// Proxies, one before each server. Dropped, they end.
#[derive(Debug)]
pub(crate) struct Recorder {
    runtime: Runtime,
    recording: Arc<Mutex<Recording>>,
}

impl Recorder {
    pub(crate) fn new() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        Ok(Self {
            runtime: runtime.map_err(failed)?,
            recording: Arc::default(),
        })
    }

    /// Where the server of this URL is then, as `postgres://user@host:port/database`.
    pub(crate) fn before(&self, url: &str) -> Result<String, Failure> {
        let not_read = || {
            failed(io::Error::other(format!(
                "{url} has no user, host or database"
            )))
        };
        let (before, rest) = url.split_once('@').ok_or_else(not_read)?;
        let (host, database) = rest.split_once('/').ok_or_else(not_read)?;
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (recording, host) = (Arc::clone(&self.recording), host.to_owned());
        self.runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (recording, host) = (Arc::clone(&recording), host.clone());
                // Either end that goes takes the other one along.
                tokio::spawn(async move { forward(client, &host, &recording).await });
            }
        });
        Ok(format!("{before}@{address}/{database}"))
    }

    /// What was said until now.
    pub(crate) fn recording(&self) -> Recording {
        let recording = self.recording.lock();
        recording.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Class::Network, "listen to what tests say to PostgreSQL").because(error)
}

async fn forward(
    mut client: TcpStream,
    host: &str,
    recording: &Mutex<Recording>,
) -> io::Result<()> {
    let mut server = TcpStream::connect(host).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut listener = Listener::default();
    let mut is_store = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let bytes = &asked[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                for said in listener.hear(bytes) {
                    if let Said::Startup(parameters) = &said {
                        is_store = is_of_the_store(parameters);
                    }
                    if is_store {
                        let mut all = recording.lock().unwrap_or_else(PoisonError::into_inner);
                        all.add(said);
                    }
                }
                server.write_all(bytes).await?;
            }
            read = server.read(&mut answered) => {
                let bytes = &answered[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                client.write_all(bytes).await?;
            }
        }
    }
}

fn is_of_the_store(parameters: &BTreeMap<String, String>) -> bool {
    parameters
        .get("application_name")
        .is_some_and(|name| name == STORE)
}

impl Recording {
    pub(super) fn add(&mut self, said: Said) {
        match said {
            Said::Startup(parameters) => self.startups.extend(parameters),
            Said::Parse(sql, types) => drop(self.parses.insert((sql, types))),
            Said::Query(sql) => drop(self.queries.insert(sql)),
        }
    }

    /// Every text that was said.
    pub(super) fn texts(&self) -> BTreeSet<&str> {
        let parses = self.parses.iter().map(|(sql, _)| sql.as_str());
        parses
            .chain(self.queries.iter().map(String::as_str))
            .collect()
    }
}
