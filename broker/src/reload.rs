//! TLS files, watched while the broker runs: a new certificate serves the next handshake, a new
//! revocation list also ends the connections of those on it.
//!
//! Files that cannot be used change nothing but a counter and the log: the broker goes on with
//! what it has. They are looked at by size and time, so a list that is replaced by renaming, as
//! `certs revoke` does, is seen whole.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use certs::revocation::Revocations;
use certs::{Serial, TlsFiles, tls};
use daemon::{Class, Failure, registered};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::seats::Seats;

/// What the next handshake is done with.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    crl: Option<PathBuf>,
    current: RwLock<Current>,
    failures: Counter,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    revoked: HashSet<Serial>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look(Vec<Option<(SystemTime, u64)>>);

impl Tls {
    /// Reads the files for the first time; registers its metric.
    pub(crate) fn read(
        files: TlsFiles,
        crl: Option<PathBuf>,
        registry: &mut Registry,
    ) -> Result<Self, Failure> {
        let current = read(&files, crl.as_deref())?;
        Ok(Self {
            files,
            crl,
            current: RwLock::new(current),
            failures: registered(
                registry,
                "tideline_broker_reload_failures",
                "Changed certificates or revocation lists that could not be used",
            ),
        })
    }

    /// The configuration of the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }

    /// Whether a certificate is on the revocation list.
    pub(crate) fn is_revoked(&self, serial: &Serial) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.revoked.contains(serial)
    }

    /// Looks at the files every so often until a stop is asked for.
    pub(crate) async fn watch(
        self: Arc<Self>,
        every: Duration,
        seats: Arc<Seats>,
        stopping: CancellationToken,
    ) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = self.look();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let look = self.look();
            if look == known {
                continue;
            }
            match read(&self.files, self.crl.as_deref()) {
                Ok(current) => {
                    info!(revoked = current.revoked.len(), "TLS files read again");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                    seats.kick_revoked(|serial| self.is_revoked(serial));
                }
                Err(failure) => {
                    self.failures.inc();
                    warn!(%failure, "changed TLS files cannot be used, going on with the old ones");
                }
            }
            known = look;
        }
    }

    fn look(&self) -> Look {
        let TlsFiles { ca, cert, key } = &self.files;
        let files = [Some(ca), Some(cert), Some(key), self.crl.as_ref()];
        let look = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        Look(files.into_iter().map(|path| path.and_then(look)).collect())
    }
}

fn read(files: &TlsFiles, crl: Option<&Path>) -> Result<Current, Failure> {
    let config = Arc::new(tls::server_config(files, crl)?);
    let mut revoked = HashSet::new();
    if let Some(path) = crl {
        let list = Revocations::read(path).map_err(|error| {
            let what = format!("read revocation list {}", path.display());
            Failure::new(Class::Configuration, what)
                .because(error)
                .help("give the crl.pem that lies beside the ca.pem")
        })?;
        revoked.extend(list.revoked.into_iter().map(|(serial, _)| serial));
    }
    Ok(Current { config, revoked })
}
