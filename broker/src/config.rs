//! One TOML file → validated [`Settings`]. Every problem is reported at once, before anything is
//! opened. `broker-config/broker.toml` is the commented example; a test parses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::TlsFiles;
use daemon::Failure;
use daemon::logs::{LogSettings, RawLog};
use daemon::settings::{Given, Problems, parse_noting, relative_to, settle};
use schema::limits::PAYLOAD_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// MQTT over TLS, as registered, on every address.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8883);

/// Where the admin endpoints listen unless told otherwise: this machine only.
const ADMIN_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// What rumqttd logs is of its own inside; what matters of it the front counts and logs itself.
pub const LOG_LEVEL: &str = "info,rumqttd=off";

/// How the variables begin that are settings, and the one that names the settings file.
const VARIABLES: &str = "TIDELINE_BROKER_";
const FILE_VARIABLE: &str = "TIDELINE_BROKER_CONFIG";

/// Most routers: each is a thread.
const ROUTERS_MAX: usize = 64;

/// Most services: a router's queue must have room for the events of all their links.
const SERVICES_MAX: usize = 200;

/// Everything that a broker needs to run. Made by [`Settings::load`] from a file, or by
/// [`Config::new`] in code; whoever changes a field keeps it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where MQTT listens.
    pub address: SocketAddr,
    /// The broker's certificate, and the authority of its clients'.
    pub tls: TlsFiles,
    /// The authority's revocation list. Read again when it changes.
    pub crl: Option<PathBuf>,
    /// The routers behind the front.
    pub routers: Routers,
    /// Bounds.
    pub limits: Limits,
    /// Patience.
    pub timeouts: Timeouts,
}

/// The routers behind the front.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default)]
pub struct Routers {
    /// How many there are. Devices spread over them by a hash, and the bridges of a group share
    /// them; 16 let a few bridges share evenly.
    pub count: usize,
    /// Bytes of messages that they remember together, read or not, for subscribers that are
    /// behind. Beyond it the oldest are dropped, and devices send them again. 32 MiB are 10,000
    /// devices' messages of 500 bytes for more than six seconds, and take about twice that.
    pub backlog_bytes: usize,
}

/// Bounds of what clients may use.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default)]
pub struct Limits {
    /// Devices connected at a time.
    pub devices_max: usize,
    /// Bridges and observers connected at a time; a flood of devices leaves them their place.
    pub services_max: usize,
    /// Clients at a time that have not shown yet who they are; the rest waits in the system's
    /// queue. Each takes some 20 KB, for as long as a handshake may last.
    pub handshakes_max: usize,
    /// Packets a second of one device, in bursts of as many. One that sends more is read more slowly.
    pub device_packets_per_second: NonZeroU32,
    /// Packets a second of one bridge or observer: acknowledgements for a whole fleet.
    pub service_packets_per_second: NonZeroU32,
    /// QoS 1 messages that a service has not acknowledged: a bridge acknowledges when its
    /// database has committed, and 2,000 are a fifth of a second at 10,000 messages a second.
    pub service_in_flight_max: u16,
    /// Bytes of retained messages.
    pub retained_bytes_max: usize,
}

/// How long the broker waits.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(default)]
pub struct Timeouts {
    /// For TLS and CONNECT together.
    #[serde(with = "humantime_serde")]
    pub handshake: Duration,
    /// For a client to take anything of what is sent to it.
    #[serde(with = "humantime_serde")]
    pub stall: Duration,
    /// Between looks at the TLS files and the revocation list.
    #[serde(with = "humantime_serde")]
    pub reload: Duration,
}

/// A settings file: the broker's, and what the process around it needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker.
    pub broker: Config,
    /// How to log.
    pub log: LogSettings,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`.
    pub admin: SocketAddr,
}

impl Default for Routers {
    fn default() -> Self {
        Self {
            count: 16,
            backlog_bytes: 32 * 1024 * 1024,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        const fn per_second(number: u32) -> NonZeroU32 {
            NonZeroU32::new(number).expect("a constant above zero")
        }
        Self {
            devices_max: 20_000,
            services_max: 64,
            handshakes_max: 1_024,
            device_packets_per_second: per_second(500),
            service_packets_per_second: per_second(100_000),
            service_in_flight_max: 2_000,
            retained_bytes_max: 64 * 1024 * 1024,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            reload: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    admin: RawAdmin,
    #[serde(default)]
    mqtt: RawMqtt,
    tls: RawTls,
    #[serde(default)]
    routers: Routers,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    timeouts: Timeouts,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct RawAdmin {
    http: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct RawMqtt {
    address: SocketAddr,
}

#[derive(Debug, Deserialize)]
struct RawTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    crl: Option<PathBuf>,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { http: ADMIN_HTTP }
    }
}

impl Default for RawMqtt {
    fn default() -> Self {
        Self { address: ADDRESS }
    }
}

impl Config {
    /// A broker with defaults.
    #[must_use]
    pub fn new(address: SocketAddr, tls: TlsFiles) -> Self {
        Self {
            address,
            tls,
            crl: None,
            routers: Routers::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Reads the broker's part of a settings file.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load(path: &Path) -> Result<Self, Failure> {
        Ok(Settings::load(path)?.broker)
    }

    fn check(&self, problems: &mut Problems) {
        let Self {
            routers,
            limits,
            timeouts,
            ..
        } = self;
        let within = |number: usize, least: usize, most: usize| (least..=most).contains(&number);
        problems.check(
            within(routers.count, 1, ROUTERS_MAX),
            "routers.count",
            format!("must be 1 to {ROUTERS_MAX}"),
        );
        let least = routers.count.saturating_mul(PAYLOAD_BYTES_MAX);
        problems.check(
            routers.backlog_bytes >= least,
            "routers.backlog_bytes",
            format!("must be at least {least}: one of the largest messages for each router"),
        );
        problems.check(
            within(limits.devices_max, 1, 1_000_000),
            "limits.devices_max",
            "must be 1 to 1000000",
        );
        problems.check(
            within(limits.services_max, 1, SERVICES_MAX),
            "limits.services_max",
            format!("must be 1 to {SERVICES_MAX}"),
        );
        problems.check(
            within(limits.handshakes_max, 1, 65_536),
            "limits.handshakes_max",
            "must be 1 to 65536",
        );
        problems.check(
            limits.service_in_flight_max > 0,
            "limits.service_in_flight_max",
            "must be at least 1",
        );
        let patience = [
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.stall", timeouts.stall),
            ("timeouts.reload", timeouts.reload),
        ];
        for (key, duration) in patience {
            let sound =
                duration >= Duration::from_millis(100) && duration <= Duration::from_secs(3600);
            problems.check(sound, key, "must be 100ms to 1h");
        }
    }
}

impl Settings {
    /// Reads a settings file, the folder `conf.d` beside it and variables `TIDELINE_BROKER_…` over it, and checks that
    /// its TLS files can be used.
    ///
    /// # Errors
    /// A configuration [`Failure`] that names the file, and each key that is wrong.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let raw = Given::new(path, VARIABLES, &[FILE_VARIABLE]).read(&mut problems);
        let settings = raw.map(|raw| Self::from_raw(raw, path, &mut problems));
        let Some(settings) = settings.filter(|_| problems.is_empty()) else {
            return settle(None, problems, path);
        };
        let broker = &settings.broker;
        let files = [
            ("tls.ca", Some(&broker.tls.ca)),
            ("tls.cert", Some(&broker.tls.cert)),
            ("tls.key", Some(&broker.tls.key)),
            ("tls.crl", broker.crl.as_ref()),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                problems.check_readable(key, file);
            }
        }
        problems.into_result(path)?;
        certs::tls::server_config(&broker.tls, broker.crl.as_deref())?;
        Ok(settings)
    }

    /// Parses settings from text; relative paths start at the folder of `origin`. The files that
    /// they name are not looked at.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, origin: &Path) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let raw = parse_noting(text, origin, &mut problems);
        let settings = raw.map(|raw| Self::from_raw(raw, origin, &mut problems));
        settle(settings, problems, origin)
    }

    fn from_raw(raw: Raw, origin: &Path, problems: &mut Problems) -> Self {
        let at = |path: &PathBuf| relative_to(origin, path);
        let broker = Config {
            address: raw.mqtt.address,
            tls: TlsFiles {
                ca: at(&raw.tls.ca),
                cert: at(&raw.tls.cert),
                key: at(&raw.tls.key),
            },
            crl: raw.tls.crl.as_ref().map(at),
            routers: raw.routers,
            limits: raw.limits,
            timeouts: raw.timeouts,
        };
        broker.check(problems);
        Self {
            broker,
            log: raw.log.or_level(LOG_LEVEL),
            admin: raw.admin.http,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Result<Settings, Failure> {
        let tls = "[tls]\nca = 'ca.pem'\ncert = 'server.pem'\nkey = '/etc/server.key'\n";
        Settings::parse(
            &format!("{tls}{more}"),
            Path::new("/etc/tideline/broker.toml"),
        )
    }

    #[test]
    fn paths_start_at_the_file() {
        let broker = parse("crl = 'crl.pem'").unwrap().broker;
        assert_eq!(broker.tls.ca, Path::new("/etc/tideline/ca.pem"));
        assert_eq!(broker.tls.key, Path::new("/etc/server.key"));
        assert_eq!(
            broker.crl.as_deref(),
            Some(Path::new("/etc/tideline/crl.pem"))
        );
    }

    #[test]
    fn all_problems_are_named_together() {
        let failure = parse(
            "[routers]\ncount = 0\n[limits]\nservices_max = 201\nservice_in_flight_max = 0\n\
             [timeouts]\nstall = '2h'",
        )
        .unwrap_err();
        let text = failure.to_string();
        for key in [
            "routers.count",
            "limits.services_max",
            "limits.service_in_flight_max",
            "timeouts.stall",
            "/etc/tideline/broker.toml",
        ] {
            assert!(text.contains(key), "{key} not in {text}");
        }
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn limits_hold_at_their_ends() {
        for (count, fits) in [(0, false), (1, true), (64, true), (65, false)] {
            assert_eq!(
                parse(&format!("[routers]\ncount = {count}")).is_ok(),
                fits,
                "{count}"
            );
        }
        let least = 16 * PAYLOAD_BYTES_MAX;
        for (bytes, fits) in [(least - 1, false), (least, true), (least + 1, true)] {
            let text = format!("[routers]\nbacklog_bytes = {bytes}");
            assert_eq!(parse(&text).is_ok(), fits, "{bytes}");
        }
        assert!(parse("[limits]\ndevice_packets_per_second = 0").is_err());
        assert!(parse("[mqtt]\naddress = 'somewhere'").is_err());
        assert!(parse("[mqtt]\nadress = '127.0.0.1:1'").is_err());
    }

    #[test]
    fn the_shipped_example_is_accepted_and_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../broker-config/broker.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let shipped = Settings::parse(&text, &path).unwrap();
        let plain = parse("crl = 'crl.pem'").unwrap();
        let facts = |settings: &Settings| {
            let Config {
                address,
                routers,
                limits,
                timeouts,
                ..
            } = &settings.broker;
            format!(
                "{address} {routers:?} {limits:?} {timeouts:?} {:?}",
                settings.log
            )
        };
        assert_eq!(facts(&shipped), facts(&plain));
        assert!(shipped.broker.crl.is_some());
    }
}
