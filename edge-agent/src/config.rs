//! One TOML file → a validated [`Config`]. Every problem is reported at once, before anything is
//! opened. `agent.toml` beside the manifest is the commented example; a test parses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::identity::{Identity, Role};
use certs::tls::{TlsError, TlsFiles};
use daemon::settings::{self, Problems, relative_to};
use daemon::{Class, Failure, logs};
use schema::DeviceId;
use serde::Deserialize;

use crate::buffer::{BufferSettings, Policies, Policy, SensorPattern};
use crate::link::LinkConfig;
use crate::session::SessionConfig;
use crate::source::host::HostConfig;
use crate::source::socket::SocketConfig;

/// MQTT over TLS, as registered.
const MQTT_PORT: u16 = 8883;

/// Where the admin endpoints listen unless told otherwise: this machine only.
const ADMIN_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Everything that an agent needs to run. Made by [`Config::load`] from a file, or by
/// [`Config::new`] in code; whoever changes a field keeps it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Broker, identity and certificates.
    pub link: LinkConfig,
    /// The buffer's file and limits.
    pub buffer: BufferSettings,
    /// Limits of the sync session.
    pub session: SessionConfig,
    /// The sources that run.
    pub sources: SourcesConfig,
    /// How far the wall clock is put off, for fault tests.
    pub clock_offset_ms: i64,
}

/// The sources that run.
#[derive(Debug, Clone, Default)]
pub struct SourcesConfig {
    /// This machine's own sensors.
    pub host: Option<HostConfig>,
    /// Readings that other programs hand over.
    pub socket: Option<SocketConfig>,
}

/// A settings file: the agent's, and what the process around it needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent.
    pub agent: Config,
    /// How to log.
    pub log: LogSettings,
    /// Where to serve `/metrics`, `/healthz`, `/readyz` and `/status`.
    pub admin: SocketAddr,
}

/// How to log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// As lines for people or JSON.
    pub format: logs::Format,
    /// Level or directives.
    pub level: String,
}

#[derive(Debug, Deserialize)]
struct Raw {
    device: Option<String>,
    mqtt: RawMqtt,
    tls: RawTls,
    buffer: RawBuffer,
    #[serde(default)]
    session: RawSession,
    #[serde(default)]
    source: RawSources,
    #[serde(default)]
    clock: RawClock,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    admin: RawAdmin,
}

#[derive(Debug, Deserialize)]
struct RawMqtt {
    address: String,
    #[serde(default = "default_keep_alive", with = "humantime_serde")]
    keep_alive: Duration,
    #[serde(default = "default_backoff_first", with = "humantime_serde")]
    backoff_first: Duration,
    #[serde(default = "default_backoff_max", with = "humantime_serde")]
    backoff_max: Duration,
}

#[derive(Debug, Deserialize)]
struct RawTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
struct RawBuffer {
    path: PathBuf,
    rows_max: Option<u64>,
    bytes_max: Option<u64>,
    #[serde(default, with = "humantime_serde")]
    linger: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    settle_linger: Option<Duration>,
    #[serde(default)]
    when_full: Policy,
    #[serde(default)]
    rule: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
struct RawRule {
    sensor: SensorPattern,
    when_full: Policy,
}

#[derive(Debug, Default, Deserialize)]
struct RawSession {
    batch_rows_max: Option<usize>,
    batch_bytes_max: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    linger: Option<Duration>,
    window_batches: Option<usize>,
    window_bytes: Option<usize>,
    history_rows_per_second: Option<u32>,
    #[serde(default, with = "humantime_serde")]
    ack_timeout_initial: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    ack_timeout_min: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    ack_timeout_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    report_interval: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
struct RawSources {
    host: Option<RawHost>,
    socket: Option<RawSocket>,
}

#[derive(Debug, Deserialize)]
struct RawHost {
    #[serde(default, with = "humantime_serde")]
    interval: Option<Duration>,
    #[serde(default)]
    per_core: bool,
}

#[derive(Debug, Deserialize)]
struct RawSocket {
    unix: Option<PathBuf>,
    tcp: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
struct RawClock {
    #[serde(default)]
    offset_ms: i64,
}

#[derive(Debug, Default, Deserialize)]
struct RawLog {
    #[serde(default)]
    format: logs::Format,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RawAdmin {
    http: Option<SocketAddr>,
}

// Half a minute: carriers forget idle connections after minutes, and a dead device should show
// before the next shift.
const fn default_keep_alive() -> Duration {
    Duration::from_secs(30)
}

// A broker that restarts is back within a second or two; a fleet must not wait in step.
const fn default_backoff_first() -> Duration {
    Duration::from_millis(500)
}

// Half a minute of jittered pause keeps ten thousand devices at some 600 attempts a second.
const fn default_backoff_max() -> Duration {
    Duration::from_secs(30)
}

impl Config {
    /// The configuration of a device whose identity is its certificate's, with defaults for all
    /// but what must be given, and no sources.
    ///
    /// # Errors
    /// A configuration [`Failure`] when a certificate file cannot be used or is no device's.
    pub fn new(
        host: impl Into<String>,
        port: u16,
        tls: TlsFiles,
        buffer: impl Into<PathBuf>,
    ) -> Result<Self, Failure> {
        let device = device_of(&tls).map_err(|reason| {
            Failure::new(Class::Configuration, "find out which device this is").because(reason)
        })?;
        Ok(Self {
            link: LinkConfig {
                host: host.into(),
                port,
                device,
                tls,
                keep_alive: default_keep_alive(),
                backoff: (default_backoff_first(), default_backoff_max()),
            },
            buffer: BufferSettings::new(buffer),
            session: SessionConfig::default(),
            sources: SourcesConfig::default(),
            clock_offset_ms: 0,
        })
    }
}

impl Settings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// A configuration [`Failure`] that names the file and lists every problem.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        Self::from_raw(settings::load(path)?, path)
    }

    fn from_raw(raw: Raw, origin: &Path) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let tls = TlsFiles {
            ca: relative_to(origin, &raw.tls.ca),
            cert: relative_to(origin, &raw.tls.cert),
            key: relative_to(origin, &raw.tls.key),
        };
        let address = problems.take("mqtt.address", parse_address(&raw.mqtt.address));
        check_mqtt(&raw.mqtt, &mut problems);
        let device = check_device(raw.device.as_deref(), &tls, &mut problems);
        let buffer = raw.buffer.check(origin, &mut problems);
        let session = raw.session.check(&mut problems);
        let sources = raw.source.check(origin, &mut problems);
        problems.into_result(origin)?;
        let (Some((host, port)), Some(device)) = (address, device) else {
            // Each of them noted a problem when it is missing.
            return Err(Failure::new(
                Class::Configuration,
                format!("accept settings {}", origin.display()),
            ));
        };
        Ok(Self {
            agent: Config {
                link: LinkConfig {
                    host,
                    port,
                    device,
                    tls,
                    keep_alive: raw.mqtt.keep_alive,
                    backoff: (raw.mqtt.backoff_first, raw.mqtt.backoff_max),
                },
                buffer,
                session,
                sources,
                clock_offset_ms: raw.clock.offset_ms,
            },
            log: LogSettings {
                format: raw.log.format,
                level: raw.log.level.unwrap_or_else(|| "info".to_owned()),
            },
            admin: raw.admin.http.unwrap_or(ADMIN_HTTP),
        })
    }
}

/// `host:port` or `host`.
fn parse_address(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        None => (text, MQTT_PORT),
        Some((host, port)) => {
            let port = port
                .parse()
                .map_err(|_| format!("has no port number after its colon: {text:?}"))?;
            (host, port)
        }
    };
    if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
        return Err(format!("is no HOST:PORT: {text:?}"));
    }
    if host.contains(':') {
        // rumqttc builds HOST:PORT without brackets.
        return Err(format!(
            "is an IPv6 address, which the MQTT client cannot take; give a host name: {text:?}"
        ));
    }
    Ok((host.to_owned(), port))
}

fn check_mqtt(raw: &RawMqtt, problems: &mut Problems) {
    let seconds = raw.keep_alive.as_secs();
    problems.check(
        raw.keep_alive.subsec_nanos() == 0 && (5..=3600).contains(&seconds),
        "mqtt.keep_alive",
        "must be whole seconds from 5 to 3600",
    );
    problems.check(
        raw.backoff_first >= Duration::from_millis(10) && raw.backoff_first <= raw.backoff_max,
        "mqtt.backoff_first",
        "must be at least 10ms and at most mqtt.backoff_max",
    );
    problems.check(
        raw.backoff_max <= Duration::from_secs(600),
        "mqtt.backoff_max",
        "must be at most 10m",
    );
}

/// The device's id: the certificate's, which the file may repeat but not change.
fn check_device(wanted: Option<&str>, tls: &TlsFiles, problems: &mut Problems) -> Option<DeviceId> {
    let wanted = wanted.and_then(|text| problems.take("device", text.parse::<DeviceId>()));
    if let Err(error) = certs::tls::client_config(tls) {
        problems.add(key_of(&error, tls), error.to_string());
        return None;
    }
    let device = problems.take("tls.cert", device_of(tls))?;
    if let Some(wanted) = wanted
        && wanted != device
    {
        problems.add(
            "device",
            format!("is {wanted}, but the certificate is {device}'s: they must be equal"),
        );
    }
    Some(device)
}

/// The setting that names the file at fault.
fn key_of(error: &TlsError, tls: &TlsFiles) -> &'static str {
    match error {
        TlsError::Read { path, .. }
        | TlsError::Empty { path, .. }
        | TlsError::Unusable { path, .. }
            if *path == tls.ca =>
        {
            "tls.ca"
        }
        TlsError::Read { path, .. }
        | TlsError::Empty { path, .. }
        | TlsError::Unusable { path, .. }
            if *path == tls.key =>
        {
            "tls.key"
        }
        TlsError::KeyMismatch { .. } => "tls.key",
        TlsError::Read { .. }
        | TlsError::Empty { .. }
        | TlsError::Unusable { .. }
        | TlsError::ForeignList { .. } => "tls.cert",
    }
}

/// Whose certificate it is; the reason when it is no device's.
fn device_of(tls: &TlsFiles) -> Result<DeviceId, String> {
    let certificates = certs::tls::read_certs(&tls.cert).map_err(|error| error.to_string())?;
    let first = certificates
        .first()
        .ok_or_else(|| format!("{} holds no certificate", tls.cert.display()))?;
    let Identity { name, role } =
        Identity::from_der(first).map_err(|error| format!("{}: {error}", tls.cert.display()))?;
    match role {
        Role::Device => Ok(name),
        Role::Bridge | Role::Observer | Role::Server => Err(format!(
            "{} is {name}'s, whose role is {role}; an agent needs a certificate of role device",
            tls.cert.display()
        )),
    }
}

impl RawBuffer {
    fn check(self, origin: &Path, problems: &mut Problems) -> BufferSettings {
        let default = BufferSettings::new(relative_to(origin, &self.path));
        let rules = self
            .rule
            .into_iter()
            .map(|rule| (rule.sensor, rule.when_full))
            .collect();
        let settings = BufferSettings {
            path: default.path,
            rows_max: self.rows_max.unwrap_or(default.rows_max),
            bytes_max: self.bytes_max.unwrap_or(default.bytes_max),
            linger: self.linger.unwrap_or(default.linger),
            settle_linger: self.settle_linger.unwrap_or(default.settle_linger),
            policies: Policies::new(self.when_full, rules),
        };
        // The message names the setting.
        problems.take("buffer", settings.validate());
        settings
    }
}

impl RawSession {
    fn check(self, problems: &mut Problems) -> SessionConfig {
        let default = SessionConfig::default();
        let batch_bytes_max = self.batch_bytes_max.unwrap_or(default.batch_bytes_max);
        let config = SessionConfig {
            batch_rows_max: self.batch_rows_max.unwrap_or(default.batch_rows_max),
            batch_bytes_max,
            linger: self.linger.unwrap_or(default.linger),
            window_batches: self.window_batches.unwrap_or(default.window_batches),
            window_bytes: self
                .window_bytes
                .unwrap_or(default.window_bytes.max(batch_bytes_max)),
            history_rows_per_second: self
                .history_rows_per_second
                .unwrap_or(default.history_rows_per_second),
            timeout_initial: self.ack_timeout_initial.unwrap_or(default.timeout_initial),
            timeout_min: self.ack_timeout_min.unwrap_or(default.timeout_min),
            timeout_max: self.ack_timeout_max.unwrap_or(default.timeout_max),
            report_interval: self.report_interval.unwrap_or(default.report_interval),
        };
        for (key, reason) in config.problems() {
            problems.add(format!("session.{key}"), reason);
        }
        config
    }
}

impl RawSources {
    fn check(self, origin: &Path, problems: &mut Problems) -> SourcesConfig {
        let host = self.host.map(|raw| {
            let default = HostConfig::default();
            let interval = raw.interval.unwrap_or(default.interval);
            problems.check(
                interval >= Duration::from_millis(200) && interval <= Duration::from_secs(86_400),
                "source.host.interval",
                "must be from 200ms (below it processor shares mean nothing) to 1day",
            );
            HostConfig {
                interval,
                per_core: raw.per_core,
            }
        });
        let socket = self.socket.and_then(|raw| match (raw.unix, raw.tcp) {
            (Some(path), None) => Some(SocketConfig::Unix(relative_to(origin, &path))),
            (None, Some(address)) if address.ip().is_loopback() => Some(SocketConfig::Tcp(address)),
            (None, Some(_)) => {
                problems.add(
                    "source.socket.tcp",
                    "must be a loopback address: producers are not authenticated",
                );
                None
            }
            (None, None) | (Some(_), Some(_)) => {
                problems.add("source.socket", "needs either unix or tcp");
                None
            }
        });
        SourcesConfig { host, socket }
    }
}
