//! Mosquitto with mutual TLS in a folder of its own.

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use certs::{Folder, MachineSet};
use tempfile::TempDir;

use testkit::mosquitto;
use testkit::port::free_port;
use testkit::process::Guard;

pub(crate) const DEVICE: &str = "press-7";

/// Certificates that all tests share.
pub(crate) fn certificates() -> &'static MachineSet {
    static SET: OnceLock<(TempDir, MachineSet)> = OnceLock::new();
    &SET.get_or_init(make_certificates).1
}

/// Certificates of another authority, with the same names.
pub(crate) fn foreign_certificates() -> &'static MachineSet {
    static SET: OnceLock<(TempDir, MachineSet)> = OnceLock::new();
    &SET.get_or_init(make_certificates).1
}

fn make_certificates() -> (TempDir, MachineSet) {
    let folder = tempfile::tempdir().unwrap();
    let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let set = MachineSet::ensure(
        &Folder::new(folder.path()),
        &DEVICE.parse().unwrap(),
        &hosts,
    )
    .unwrap();
    (folder, set)
}

/// A broker process; killed when dropped.
pub(crate) struct Broker {
    pub(crate) port: u16,
    folder: TempDir,
    running: Option<Guard>,
}

impl Broker {
    pub(crate) fn start() -> Self {
        Self::start_on("127.0.0.1")
    }

    /// Starts one that listens at this address.
    pub(crate) fn start_on(address: &str) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        write_config(&folder.path().join("mosquitto.conf"), address, port);
        let mut broker = Self {
            port,
            folder,
            running: None,
        };
        broker.restart();
        broker
    }

    /// Starts it, with nothing remembered.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let settings = self.folder.path().join("mosquitto.conf");
        self.running = Some(mosquitto::start(&settings, self.port));
    }

    pub(crate) fn kill(&mut self) {
        self.running = None;
    }
}

fn write_config(path: &Path, address: &str, port: u16) {
    let server = &certificates().server;
    let mut file = std::fs::File::create(path).unwrap();
    // Tests may run as root, who owns the keys; Mosquitto would leave that user otherwise.
    write!(
        file,
        "user root\nlistener {port} {address}\ncafile {}\ncertfile {}\nkeyfile {}\n\
         require_certificate true\nuse_identity_as_username true\ntls_version tlsv1.3\n\
         persistence false\nmax_inflight_messages 0\nmax_queued_messages 0\n",
        server.ca.display(),
        server.cert.display(),
        server.key.display(),
    )
    .unwrap();
}
