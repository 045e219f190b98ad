//! Other people's programs: openssl and Mosquitto read what we write, and are told what we mean.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{Role, TlsFiles, tls};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::fleet::Fleet;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; run through `cargo xtask test`"))
}

fn text(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn openssl_verifies_the_chain_the_purpose_and_the_revocation_list() {
    let fleet = Fleet::new();
    let (good, stolen) = (
        fleet.issue("press-7", Role::Device),
        fleet.issue("stolen", Role::Device),
    );
    fleet.revoke(&stolen);
    let crl = fleet.crl();
    let verify = |file: &Path, purpose: &str| {
        let arguments = [
            "verify",
            "-x509_strict",
            "-crl_check",
            "-purpose",
            purpose,
            "-CAfile",
            path(&good.ca),
            "-CRLfile",
            path(&crl),
            path(file),
        ];
        let output = run("openssl", &arguments);
        (output.status.success(), text(&output))
    };
    for (file, purpose, accepted, says) in [
        (&good.cert, "sslclient", true, "OK"),
        (&good.cert, "sslserver", false, "certificate purpose"),
        (&fleet.server.cert, "sslserver", true, "OK"),
        (
            &fleet.server.cert,
            "sslclient",
            false,
            "certificate purpose",
        ),
        (&stolen.cert, "sslclient", false, "certificate revoked"),
    ] {
        let (success, text) = verify(file, purpose);
        assert!(
            success == accepted && text.contains(says),
            "{file:?} {purpose}: {text}"
        );
    }
}

#[test]
fn openssl_shows_name_and_role() {
    let fleet = Fleet::new();
    let north = fleet.issue("north", Role::Bridge);
    let output = run(
        "openssl",
        &[
            "x509",
            "-noout",
            "-subject",
            "-nameopt",
            "RFC2253",
            "-in",
            path(&north.cert),
        ],
    );
    assert_eq!(text(&output).trim(), "subject=CN=north,OU=bridge");
}

#[test]
fn openssl_computes_the_same_pin() {
    let fleet = Fleet::new();
    let key = path(&fleet.server.key);
    let der = fleet.root().join("public.der");
    let made = run(
        "openssl",
        &[
            "pkey",
            "-in",
            key,
            "-pubout",
            "-outform",
            "DER",
            "-out",
            path(&der),
        ],
    );
    assert!(made.status.success(), "{}", text(&made));
    let digest = text(&run("openssl", &["dgst", "-sha256", "-r", path(&der)]));
    let pin = certs::Pin::of_certificate(&tls::read_certs(&fleet.server.cert).unwrap()[0]).unwrap();
    assert_eq!(digest.split(' ').next(), Some(pin.to_string().as_str()));
}

/// Connects openssl to a server of ours and returns what it printed.
async fn s_client(fleet: &Fleet, arguments: &[&str]) -> String {
    let config = tls::server_config(&fleet.server, Some(&fleet.crl())).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        match acceptor.accept(socket).await {
            Ok(stream) => format!(
                "server met {}",
                tls::peer_identity(stream.get_ref().1).unwrap()
            ),
            Err(error) => format!("server refused: {error}"),
        }
    });
    let mut all: Vec<String> = [
        "s_client",
        "-connect",
        &address,
        "-servername",
        "localhost",
        "-CAfile",
    ]
    .map(str::to_owned)
    .to_vec();
    all.push(fleet.server.ca.display().to_string());
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let printed = tokio::task::spawn_blocking(move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        text(&run("openssl", &all))
    });
    let (printed, served) = tokio::join!(printed, serving);
    format!("{}{}", printed.unwrap(), served.unwrap())
}

#[tokio::test]
async fn openssl_connects_with_a_certificate_over_tls_1_3_alone() {
    let fleet = Fleet::new();
    let device = fleet.issue("press-7", Role::Device);
    let own = ["-cert", path(&device.cert), "-key", path(&device.key)];

    let printed = s_client(&fleet, &own).await;
    for says in [
        "TLSv1.3",
        "Verify return code: 0 (ok)",
        "server met device press-7",
    ] {
        assert!(printed.contains(says), "{says} in {printed}");
    }
    let printed = s_client(&fleet, &[own.as_slice(), &["-tls1_2"]].concat()).await;
    for says in ["protocol version", "server refused"] {
        assert!(printed.contains(says), "{says} in {printed}");
    }
    let printed = s_client(&fleet, &[]).await;
    assert!(
        printed.contains("server refused: peer sent no certificates"),
        "{printed}"
    );
}

/// A Mosquitto that knows its clients by certificate; ended when dropped.
struct Mosquitto {
    child: Child,
    port: u16,
}

impl Mosquitto {
    fn start(fleet: &Fleet) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (root, TlsFiles { ca, cert, key }) = (fleet.root(), &fleet.server);
        let acl = root.join("acl");
        // As in broker-config: services by name, devices by pattern.
        fs::write(&acl, "user north\ntopic readwrite tl/v1/#\n\npattern write tl/v1/%u/up/#\npattern read tl/v1/%u/down/#\n").unwrap();
        let config = root.join("mosquitto.conf");
        let text = format!(
            "user root\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\ncrlfile {}\n\
             tls_version tlsv1.3\nrequire_certificate true\nuse_identity_as_username true\nacl_file {}\n",
            ca.display(),
            cert.display(),
            key.display(),
            fleet.crl().display(),
            acl.display(),
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("mosquitto")
            .args(["-c", path(&config)])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("mosquitto: {error}; run through `cargo xtask test`"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let mut said = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut said)
                    .unwrap();
                panic!("mosquitto did not start: {said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port }
    }

    fn client(&self, program: &str, files: &TlsFiles) -> Command {
        let mut command = Command::new(program);
        command.args(["-h", "localhost", "-p", &self.port.to_string(), "-q", "1"]);
        command.args([
            "--cafile",
            path(&files.ca),
            "--cert",
            path(&files.cert),
            "--key",
            path(&files.key),
        ]);
        command
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn mosquitto_knows_devices_and_services_by_their_names() {
    let fleet = Fleet::new();
    let bridge = fleet.issue("north", Role::Bridge);
    let device = fleet.issue("press-7", Role::Device);
    let stolen = fleet.issue("stolen", Role::Device);
    fleet.revoke(&stolen);
    let mosquitto = Mosquitto::start(&fleet);
    let publish = |files: &TlsFiles, topic: &str| {
        let mut command = mosquitto.client("mosquitto_pub", files);
        // Retained, so that nobody has to wait for a subscription.
        let output = command
            .args(["-r", "-t", topic, "-m", topic])
            .output()
            .unwrap();
        (output.status.success(), text(&output))
    };
    assert!(publish(&device, "tl/v1/press-7/up/event").0);
    // Mosquitto says nothing of what a client may not publish: the reader below will not see it.
    publish(&device, "tl/v1/other/up/event");
    assert!(publish(&bridge, "tl/v1/press-7/down/config").0);
    let (accepted, said) = publish(&stolen, "tl/v1/stolen/up/event");
    assert!(!accepted, "{said}");

    let mut reader = mosquitto.client("mosquitto_sub", &bridge);
    let seen = reader
        .args(["-t", "tl/v1/#", "-C", "2", "-W", "10"])
        .output()
        .unwrap();
    let mut topics: Vec<&str> = std::str::from_utf8(&seen.stdout).unwrap().lines().collect();
    topics.sort_unstable();
    assert_eq!(
        topics,
        ["tl/v1/press-7/down/config", "tl/v1/press-7/up/event"]
    );

    let mut reader = mosquitto.client("mosquitto_sub", &bridge);
    let seen = reader
        .args(["-t", "tl/v1/other/#", "-C", "1", "-W", "1"])
        .output()
        .unwrap();
    assert!(seen.stdout.is_empty(), "{seen:?}");
}
