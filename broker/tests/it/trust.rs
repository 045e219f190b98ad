//! Who gets through TLS at all, and whose certificate is taken back while the broker runs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use certs::{Role, TlsFiles};

use crate::client::Client;
use crate::raw::{self, Raw};
use crate::rig::{Fleet, Rig};

/// What openssl's own client sees; `Ok` when a broker answered its CONNECT.
pub(crate) fn openssl(
    port: u16,
    ca: &Path,
    arguments: &[&str],
    files: Option<&TlsFiles>,
) -> Result<(), String> {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-quiet", "-no_ign_eof", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("-CAfile")
        .arg(ca)
        .args(arguments);
    if let Some(files) = files {
        command
            .arg("-cert")
            .arg(&files.cert)
            .arg("-key")
            .arg(&files.key);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is not installed; run the tests through `cargo xtask test`");
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(&raw::connect(4, "press-7", 0));
    let _ = stdin.flush();
    // openssl reads on while its own input stays open.
    let output = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            use std::io::Read;
            let mut answer = [0; 4];
            let read = child.stdout.take().unwrap().read_exact(&mut answer);
            read.map(|()| answer)
        });
        reader.join().unwrap()
    });
    drop(stdin);
    let _ = child.kill();
    let errors = child.wait_with_output().unwrap().stderr;
    match output {
        Ok([0x20, 2, 0, 0]) => Ok(()),
        other => Err(format!("{other:?}: {}", String::from_utf8_lossy(&errors))),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_tls_1_3_with_a_certificate_of_ours_is_served() {
    let rig = Rig::start().await;
    let ca = rig.fleet.server().ca;
    let openssl = |arguments: &[&str], files: Option<&TlsFiles>| {
        openssl(rig.address.port(), &ca, arguments, files)
    };
    let good = rig.fleet.files("press-7", Role::Device);
    assert_eq!(openssl(&["-tls1_3"], Some(&good)), Ok(()));
    let others = Fleet::new();
    let foreign = others.files("press-7", Role::Device);
    for (arguments, files) in [
        (&["-tls1_2"][..], Some(&good)),
        (&["-tls1_3"], None),
        (&["-tls1_3"], Some(&foreign)),
    ] {
        let refused = openssl(arguments, files);
        assert!(refused.is_err(), "{arguments:?} {files:?} was served");
    }
    let name = "tideline_broker_handshake_failures_total";
    rig.await_metric(name, &["reason=\"tls\""], 3).await;
    // A client that speaks no TLS at all.
    let mut plain = tokio::net::TcpStream::connect(rig.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, &raw::connect(4, "press-7", 0))
        .await
        .unwrap();
    rig.await_metric(name, &["reason=\"tls\""], 4).await;
    // The server's own certificate is not a client's.
    let server = rig.fleet.server();
    assert!(openssl(&["-tls1_3"], Some(&server)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_device_is_disconnected_and_stays_out() {
    let fleet: &'static Fleet = Box::leak(Box::new(Fleet::new()));
    let mut rig = Rig::with(|config| {
        config.tls = fleet.server();
        config.crl = Some(fleet.crl.clone());
        config.timeouts.reload = Duration::from_millis(100);
    })
    .await;
    rig.fleet = fleet;
    let mut stolen = Raw::connect(&rig, "stolen", Role::Device).await;
    let mut good = Client::connect(&rig, "press-7", Role::Device).await;

    // A list that cannot be read changes nothing.
    let list = std::fs::read(&fleet.crl).unwrap();
    std::fs::write(&fleet.crl, "no list").unwrap();
    rig.await_metric("tideline_broker_reload_failures_total", &[], 1)
        .await;
    std::fs::write(&fleet.crl, list).unwrap();
    stolen.ping().await;

    fleet.revoke(&fleet.files("stolen", Role::Device));
    touch(&fleet.crl);
    stolen.expect_closed().await;
    let closed = "reason=\"revoked\"";
    rig.await_metric("tideline_broker_connections_closed_total", &[closed], 1)
        .await;
    good.publish("tl/v1/press-7/up/event", "still here").await;

    let mut again = Raw::open(&rig, "stolen", Role::Device).await;
    again.send(&raw::connect(4, "stolen", 0)).await;
    again.expect_closed().await;
    let name = "tideline_broker_handshake_failures_total";
    rig.await_metric(name, &["reason=\"tls\""], 1).await;
    Client::connect(&rig, "press-8", Role::Device)
        .await
        .disconnect()
        .await;
}

/// File systems may be coarse about times.
fn touch(path: &Path) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(1))
        .unwrap();
}
