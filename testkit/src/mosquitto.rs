//! Mosquitto and its clients: what is not ours.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::Guard;
use crate::wait::blocking;

/// A file of `broker-config/`.
fn shipped(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker-config");
    folder.join(name)
}

/// Runs on these settings; returns when it listens on this port.
pub fn start(settings: &Path, port: u16) -> Guard {
    start_at(settings, Ipv4Addr::LOCALHOST.into(), port)
}

/// The same, listening at another address.
pub fn start_at(settings: &Path, address: IpAddr, port: u16) -> Guard {
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(settings).stdin(Stdio::null());
    let running = Guard::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    blocking::until_ok("Mosquitto listens", || TcpStream::connect((address, port)));
    running
}

/// Runs as we ship it, but for port, user, and the paths of authority, certificate, key and revocations.
pub fn start_shipped(folder: &Path, port: u16, [ca, cert, key, crl]: [&Path; 4]) -> Guard {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut text = std::fs::read_to_string(shipped("mosquitto.conf")).unwrap();
    for (name, value) in [
        ("listener", format!("{port} 127.0.0.1")),
        ("cafile", path(ca)),
        ("certfile", path(cert)),
        ("keyfile", path(key)),
        ("crlfile", path(crl)),
        ("acl_file", path(&shipped("mosquitto.acl"))),
    ] {
        let is_meant = |line: &&str| line.split(' ').next() == Some(name);
        let lines: Vec<&str> = text.lines().filter(is_meant).collect();
        let [line] = lines[..] else {
            panic!("{name} stands {} times in mosquitto.conf", lines.len());
        };
        text = text.replace(&format!("\n{line}\n"), &format!("\n{name} {value}\n"));
    }
    // Tests may run as root, who owns the keys; Mosquitto would leave that user otherwise.
    text.push_str("\nuser root\n");
    let settings = folder.join("mosquitto.conf");
    std::fs::write(&settings, text).unwrap();
    start(&settings, port)
}

/// One of its clients, with the authority, certificate and key of somebody.
pub fn client(program: &str, port: u16, [ca, cert, key]: [&Path; 3]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command.arg("--cafile").arg(ca);
    command.arg("--cert").arg(cert);
    command.arg("--key").arg(key);
    command
}
