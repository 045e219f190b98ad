//! The rules that we ship for Mosquitto, tried with Mosquitto: `broker-config/mosquitto.conf`
//! and `mosquitto.acl`. Only paths, port and user differ from what is shipped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use certs::Role;
use tempfile::TempDir;

use crate::outsiders::{output, program, spawn};
use crate::rig::{Fleet, PATIENCE};
use crate::trust::openssl;

struct Mosquitto {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../broker-config")
        .join(name)
}

/// Puts a value in the place of a setting's, which must be there.
fn set(text: &mut String, key: &str, value: &str) {
    let mut found = 0;
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            if line.split(' ').next() == Some(key) {
                found += 1;
                format!("{key} {value}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    assert_eq!(found, 1, "{key} stands {found} times in mosquitto.conf");
    *text = lines.join("\n");
}

fn start(fleet: &Fleet) -> Mosquitto {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut text = std::fs::read_to_string(shipped("mosquitto.conf")).unwrap();
    let server = fleet.server();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    set(&mut text, "listener", &format!("{port} 127.0.0.1"));
    set(&mut text, "cafile", &path(&server.ca));
    set(&mut text, "certfile", &path(&server.cert));
    set(&mut text, "keyfile", &path(&server.key));
    set(&mut text, "crlfile", &path(&fleet.crl));
    set(&mut text, "acl_file", &path(&shipped("mosquitto.acl")));
    // Tests may run as root, who owns the keys; Mosquitto would leave that user otherwise.
    text.push_str("\nuser root\n");
    let config = folder.path().join("mosquitto.conf");
    std::fs::write(&config, text).unwrap();
    let child = Command::new("mosquitto")
        .arg("-c")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is not installed; run the tests through `cargo xtask test`");
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "mosquitto does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Mosquitto {
        child,
        port,
        _folder: folder,
    }
}

/// Whether what `from` publishes on `topic` reaches `to`, who subscribes to `filter`.
fn arrives(
    broker: &Mosquitto,
    fleet: &Fleet,
    (from, from_role, topic): (&str, Role, &str),
    (to, to_role, filter): (&str, Role, &str),
) -> bool {
    let files = fleet.files(to, to_role);
    let mut sub = spawn(
        program("mosquitto_sub", broker.port, &files)
            .args(["-i", to, "-q", "1", "-C", "1", "-W", "3", "-t", filter]),
    );
    // Published again and again, because only the subscriber knows when it has subscribed.
    let files = fleet.files(from, from_role);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let publish = output(
            program("mosquitto_pub", broker.port, &files)
                .args(["-i", from, "-q", "1", "-m", "x", "-t", topic]),
        );
        let done = sub.try_wait().unwrap();
        if done.is_some() || !publish.status.success() || Instant::now() > deadline {
            let arrived = done.is_some_and(|status| status.success());
            let _ = sub.kill();
            let _ = sub.wait();
            return arrived;
        }
    }
}

#[test]
fn the_shipped_rules_say_what_ours_say() {
    use Role::{Bridge, Device, Observer};
    let fleet = Fleet::new();
    let broker = start(&fleet);
    let telemetry = "tl/v1/press-7/up/telemetry";
    let config = "tl/v1/press-7/down/config";
    let up = "tl/v1/+/up/#";
    let shared = "$share/bridges/tl/v1/+/up/#";
    let down = "tl/v1/press-7/down/#";
    for (from, to, expected) in [
        (("press-7", Device, telemetry), ("bridge", Bridge, up), true),
        (
            ("press-7", Device, telemetry),
            ("bridge", Bridge, shared),
            true,
        ),
        (
            ("press-7", Device, telemetry),
            ("observer", Observer, "#"),
            true,
        ),
        (("bridge", Bridge, config), ("press-7", Device, down), true),
        (("bridge", Bridge, config), ("press-8", Device, down), false),
        (
            ("press-8", Device, telemetry),
            ("bridge", Bridge, up),
            false,
        ),
        (
            ("press-8", Device, config),
            ("press-7", Device, down),
            false,
        ),
        (
            ("observer", Observer, config),
            ("press-7", Device, down),
            false,
        ),
        (
            ("bridge", Bridge, telemetry),
            ("observer", Observer, up),
            false,
        ),
        (
            ("press-7", Device, telemetry),
            ("press-8", Device, up),
            false,
        ),
    ] {
        assert_eq!(
            arrives(&broker, &fleet, from, to),
            expected,
            "{from:?} to {to:?}"
        );
    }
}

#[test]
fn mosquitto_too_wants_tls_1_3_and_a_certificate() {
    let fleet = Fleet::new();
    let broker = start(&fleet);
    let device = fleet.files("press-7", Role::Device);
    let foreign = Fleet::new();
    let stranger = foreign.files("press-7", Role::Device);
    let serves = |arguments: &[&str], files| openssl(broker.port, &device.ca, arguments, files);
    assert_eq!(serves(&["-tls1_3"], Some(&device)), Ok(()));
    assert!(serves(&["-tls1_2"], Some(&device)).is_err());
    assert!(serves(&["-tls1_3"], Some(&stranger)).is_err());
    assert!(serves(&["-tls1_3"], None).is_err());
}
