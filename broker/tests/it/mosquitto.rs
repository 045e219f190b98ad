//! The rules that we ship for Mosquitto, tried with Mosquitto: `broker-config/mosquitto.conf`
//! and `mosquitto.acl`. Only paths, port and user differ from what is shipped.

use std::time::{Duration, Instant};

use certs::{Role, TlsFiles};
use tempfile::TempDir;
use testkit::mosquitto::start_shipped;
use testkit::port::free_port;
use testkit::process::Guard;

use crate::outsiders::{output, program, spawn};
use crate::rig::Fleet;
use crate::trust::openssl;

struct Mosquitto {
    _running: Guard,
    port: u16,
    _folder: TempDir,
}

fn start(fleet: &Fleet) -> Mosquitto {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let TlsFiles { ca, cert, key } = &fleet.server();
    Mosquitto {
        _running: start_shipped(folder.path(), port, [ca, cert, key, &fleet.crl]),
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
