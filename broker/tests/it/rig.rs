//! A broker of the test's own, in this process, and certificates that all tests share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use broker::{Broker, Config};
use certs::authority::{Authority, default_name};
use certs::{Folder, Identity, Overwrite, Role, TlsFiles};
use daemon::{Health, Lifecycle};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use testkit::wait::until_ok;

/// Certificates of one authority.
pub(crate) struct Fleet {
    _folder: TempDir,
    authority: Mutex<Authority>,
    server: TlsFiles,
    pub(crate) crl: PathBuf,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Folder::new(folder.path());
        let authority = Authority::init(place.clone(), &default_name(), Overwrite::Refuse).unwrap();
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let server = authority
            .issue(
                &identity("broker", Role::Server),
                &hosts,
                30,
                Overwrite::Refuse,
            )
            .unwrap();
        Self {
            _folder: folder,
            authority: Mutex::new(authority),
            server,
            crl: place.crl_file(),
        }
    }

    /// The authority that most tests use.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Fleet> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    pub(crate) fn server(&self) -> TlsFiles {
        self.server.clone()
    }

    /// The files of an identity, issued when first asked for.
    pub(crate) fn files(&self, name: &str, role: Role) -> TlsFiles {
        let authority = self.authority.lock().unwrap();
        let identity = identity(name, role);
        let files = authority.folder().files_of(&identity);
        if files.cert.exists() {
            return files;
        }
        authority
            .issue(&identity, &[], 30, Overwrite::Refuse)
            .unwrap()
    }

    pub(crate) fn revoke(&self, files: &TlsFiles) {
        let certificate = certs::certificate::Certificate::read(&files.cert).unwrap();
        let authority = self.authority.lock().unwrap();
        authority.revoke(&[certificate.serial]).unwrap();
    }
}

pub(crate) fn identity(name: &str, role: Role) -> Identity {
    Identity {
        name: name.parse().unwrap(),
        role,
    }
}

/// A broker; stopped when dropped.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) fleet: &'static Fleet,
    pub(crate) health: Health,
    lifecycle: Lifecycle,
    registry: Arc<Registry>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A broker whose settings differ from those of most tests: four routers, little backlog.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let fleet = Fleet::shared();
        let mut config = Config::new("127.0.0.1:0".parse().unwrap(), fleet.server());
        config.routers.count = 4;
        config.routers.backlog_bytes = 8 * 1024 * 1024;
        change(&mut config);
        let (lifecycle, health) = (Lifecycle::new(), Health::default());
        let mut registry = Registry::default();
        let running = Broker::start(config, &lifecycle, &health, &mut registry)
            .await
            .unwrap();
        Self {
            address: running.mqtt_addr,
            fleet,
            health,
            lifecycle,
            registry: Arc::new(registry),
        }
    }

    pub(crate) async fn stop(&self) {
        self.lifecycle.finish(Duration::from_secs(2)).await.unwrap();
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The sum of a metric over all series whose line holds every one of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .filter(|line| {
                let series = line.split(['{', ' ']).next();
                series == Some(name) && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn await_metric(&self, name: &str, labels: &[&str], expected: u64) {
        until_ok(
            &format!("{name} {labels:?} is {expected}"),
            async || match self.metric(name, labels) {
                found if found == expected => Ok(()),
                found => Err(found),
            },
        )
        .await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}
