//! What is on this machine. Everything is looked at briefly: a port that does not answer costs half a second, and all are
//! asked at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::identity::Identity as Named;
use schema::DeviceId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::place;

/// A broker of this machine's own things.
pub(super) const MQTT: &str = "127.0.0.1:1883";

/// Where a fleet's broker listens that runs on the same machine, as `tideline up` has it.
const FLEET: &str = "localhost:8883";

/// How long a port is waited for.
const PORT: Duration = Duration::from_millis(500);

/// Most of an answer that is looked at.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// Most files of a folder that are looked at.
const FILES_MAX: usize = 1024;

/// Where exporters listen by custom, and what they are of.
const EXPORTERS: [(u16, &str); 12] = [
    (9100, "node"),
    (9256, "process"),
    (9187, "postgres"),
    (9104, "mysql"),
    (9121, "redis"),
    (9113, "nginx"),
    (9117, "apache"),
    (9216, "mongodb"),
    (9273, "telegraf"),
    (9323, "docker"),
    (9633, "smartctl"),
    (8080, "cadvisor"),
];

/// A program's metrics.
#[derive(Debug, Clone)]
pub(super) struct Exporter {
    pub(super) name: &'static str,
    pub(super) url: String,
}

/// A certificate with its key, and the authority's beside them.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) device: DeviceId,
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) identities: Vec<Identity>,
    /// Where certificates were looked for.
    pub(super) looked: Vec<PathBuf>,
    pub(super) serial: Vec<PathBuf>,
    pub(super) has_mqtt: bool,
    pub(super) exporters: Vec<Exporter>,
    /// The fleet's broker, where one seems to be here.
    pub(super) broker: Option<String>,
}

/// Looks for all of it.
pub(super) async fn find(config: &Path, certs: Option<&Path>) -> Found {
    let looked = folders(config, certs);
    let identities = looked
        .iter()
        .flat_map(|folder| identities(folder))
        .collect();
    let (has_mqtt, broker, exporters) = tokio::join!(mqtt(MQTT), fleet(), exporters());
    Found {
        identities,
        looked,
        serial: serial(Path::new("/dev"), Path::new("/sys/class/tty")),
        has_mqtt: cfg!(feature = "mqtt") && has_mqtt,
        exporters,
        broker,
    }
}

fn folders(config: &Path, certs: Option<&Path>) -> Vec<PathBuf> {
    if let Some(certs) = certs {
        return vec![certs.to_owned()];
    }
    let beside = place::folder_of(config);
    let mut all = vec![beside.to_owned(), beside.join("certs")];
    for usual in ["/etc/tideline", "/etc/tideline/certs"] {
        if !all.iter().any(|one| one == Path::new(usual)) {
            all.push(usual.into());
        }
    }
    all
}

/// The devices whose certificates are in a folder, or in `device` below it, with an authority's.
fn identities(folder: &Path) -> Vec<Identity> {
    let ca = folder.join("ca.pem");
    if !ca.is_file() {
        return Vec::new();
    }
    let mut all = Vec::new();
    for folder in [folder.to_owned(), folder.join("device")] {
        let mut certs = names(&folder);
        certs.retain(|path| path.extension().is_some_and(|ending| ending == "pem"));
        for cert in certs {
            let key = cert.with_extension("key");
            if key.is_file()
                && let Some(device) = device_of(&cert)
            {
                let ca = ca.clone();
                all.push(Identity {
                    device,
                    ca,
                    cert,
                    key,
                });
            }
        }
    }
    all
}

fn device_of(cert: &Path) -> Option<DeviceId> {
    // A file of this name that is no certificate is somebody else's.
    let certs = certs::tls::read_certs(cert).ok()?;
    Named::from_der(certs.first()?).ok()?.device()
}

/// What a folder holds, in the order of its names; nothing where it cannot be read.
fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<PathBuf> = entries
        .take(FILES_MAX)
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    names.sort();
    names
}

/// Serial lines, by names that stay where there are such. A port of the board counts where the kernel knows its chip.
fn serial(devices: &Path, classes: &Path) -> Vec<PathBuf> {
    let mut lines = names(&devices.join("serial/by-id"));
    let known: Vec<PathBuf> = lines
        .iter()
        .filter_map(|line| line.canonicalize().ok())
        .collect();
    for path in names(devices) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let is_on_board = || {
            let kind = fs::read_to_string(classes.join(name).join("type"));
            kind.is_ok_and(|kind| kind.trim() != "0")
        };
        let is_line = ["ttyUSB", "ttyACM", "ttyAMA"]
            .iter()
            .any(|begin| name.starts_with(begin))
            || name.starts_with("ttyS") && is_on_board();
        let is_known = path.canonicalize().is_ok_and(|real| known.contains(&real));
        if is_line && !is_known {
            lines.push(path);
        }
    }
    lines
}

/// Whether a broker answers without TLS: MQTT 3.1.1, as nobody, with a clean session.
async fn mqtt(address: &str) -> bool {
    const CONNECT: &[u8] = &[
        0x10, 25, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 10, 0, 13, b't', b'i', b'd', b'e', b'l',
        b'i', b'n', b'e', b'-', b'i', b'n', b'i', b't',
    ];
    let asking = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(CONNECT).await.ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.ok()?;
        // CONNACK, of whatever outcome: one that wants a password is a broker, too.
        Some(answer[0] == 0x20 && answer[1] == 2)
    };
    timeout(PORT, asking).await.ok().flatten().unwrap_or(false)
}

async fn fleet() -> Option<String> {
    let connected = timeout(PORT, TcpStream::connect(FLEET)).await;
    matches!(connected, Ok(Ok(_))).then(|| FLEET.to_owned())
}

async fn exporters() -> Vec<Exporter> {
    if !cfg!(feature = "prometheus") {
        return Vec::new();
    }
    let mut asking = tokio::task::JoinSet::new();
    for (port, name) in EXPORTERS {
        asking.spawn(async move {
            let found = timeout(PORT * 2, is_exporter(port)).await;
            found.is_ok_and(|is| is == Some(true)).then(|| Exporter {
                name,
                url: format!("http://127.0.0.1:{port}/metrics"),
            })
        });
    }
    let mut found: Vec<Exporter> = asking.join_all().await.into_iter().flatten().collect();
    found.sort_by(|one, other| one.name.cmp(other.name));
    found
}

/// Whether metrics are served there, and none of ours.
async fn is_exporter(port: u16) -> Option<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = "GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: text/plain\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let mut limited = stream.take(ANSWER_BYTES_MAX);
    limited.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let is_good = answer
        .lines()
        .next()
        .is_some_and(|line| line.contains(" 200"));
    let has_types = answer.lines().any(|line| line.starts_with("# TYPE "));
    Some(is_good && has_types && !answer.contains("\n# TYPE tideline_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_lines_are_named_once_and_by_names_that_stay() {
        let root = tempfile::tempdir().unwrap();
        let (devices, classes) = (root.path().join("dev"), root.path().join("class"));
        fs::create_dir_all(devices.join("serial/by-id")).unwrap();
        for name in [
            "ttyUSB0", "ttyUSB1", "ttyACM0", "ttyS0", "ttyS1", "tty0", "null",
        ] {
            fs::write(devices.join(name), "").unwrap();
        }
        let by_id = devices.join("serial/by-id/usb-FTDI-if00");
        std::os::unix::fs::symlink("../../ttyUSB1", &by_id).unwrap();
        for (name, kind) in [("ttyS0", "4\n"), ("ttyS1", "0\n")] {
            fs::create_dir_all(classes.join(name)).unwrap();
            fs::write(classes.join(name).join("type"), kind).unwrap();
        }
        let found = serial(&devices, &classes);
        let expected = [
            by_id,
            devices.join("ttyACM0"),
            devices.join("ttyS0"),
            devices.join("ttyUSB0"),
        ];
        assert_eq!(found, expected);
        assert!(serial(&root.path().join("none"), &classes).is_empty());
    }

    /// A server that answers each caller with this, after it has read something.
    async fn server(answer: &'static [u8]) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 512]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_broker_is_what_answers_as_one() {
        for (answer, is) in [
            (&[0x20, 2, 0, 0][..], true),
            // It wants a password.
            (&[0x20, 2, 0, 5][..], true),
            (&[0x20, 3, 0, 0][..], false),
            (&[0x20, 2][..], false),
            (&b"SSH-2.0"[..], false),
            (&[][..], false),
        ] {
            let address = server(answer).await.to_string();
            assert_eq!(mqtt(&address).await, is, "{answer:?}");
        }
        assert!(!mqtt("127.0.0.1:1").await);
    }

    #[tokio::test]
    async fn an_exporter_is_what_serves_metrics_of_others() {
        for (answer, is) in [
            ("HTTP/1.0 200 OK\r\n\r\n# TYPE up gauge\nup 1\n", true),
            (
                "HTTP/1.0 404 Not Found\r\n\r\n# TYPE up gauge\nup 1\n",
                false,
            ),
            ("HTTP/1.0 200 OK\r\n\r\n<html>", false),
            (
                "HTTP/1.0 200 OK\r\n\r\n# HELP a\n# TYPE tideline_agent_up gauge\n",
                false,
            ),
            ("", false),
        ] {
            let port = server(answer.as_bytes()).await.port();
            assert_eq!(is_exporter(port).await, Some(is), "{answer}");
        }
        assert_eq!(is_exporter(1).await, None);
    }

    #[test]
    fn certificates_are_looked_for_where_they_are_by_custom() {
        let all = folders(Path::new("agent.toml"), None);
        let expected = [".", "./certs", "/etc/tideline", "/etc/tideline/certs"];
        assert_eq!(all, expected.map(PathBuf::from));
        let all = folders(Path::new("/etc/tideline/agent.toml"), None);
        assert_eq!(all.len(), 2, "{all:?}");
        let given = folders(Path::new("agent.toml"), Some(Path::new("here")));
        assert_eq!(given, [PathBuf::from("here")]);
        assert!(identities(Path::new("/nowhere")).is_empty());
    }
}
