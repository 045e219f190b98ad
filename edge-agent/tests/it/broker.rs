//! Mosquitto with mutual TLS in a folder of its own.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use certs::{Folder, MachineSet};
use tempfile::TempDir;

use testkit::port::free_port;

use crate::PATIENCE;

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
    child: Option<Child>,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        write_config(&folder.path().join("mosquitto.conf"), port);
        let mut broker = Self {
            port,
            folder,
            child: None,
        };
        broker.restart();
        broker
    }

    /// Starts it, with nothing remembered.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is not installed; run the tests through `cargo xtask test`");
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "mosquitto does not listen");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write_config(path: &Path, port: u16) {
    let server = &certificates().server;
    let mut file = std::fs::File::create(path).unwrap();
    // Tests may run as root, who owns the keys; Mosquitto would leave that user otherwise.
    write!(
        file,
        "user root\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
         require_certificate true\nuse_identity_as_username true\ntls_version tlsv1.3\n\
         persistence false\nmax_inflight_messages 0\nmax_queued_messages 0\n",
        server.ca.display(),
        server.cert.display(),
        server.key.display(),
    )
    .unwrap();
}
