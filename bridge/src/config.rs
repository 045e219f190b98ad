//! One TOML file → a validated [`Config`]. Every problem is reported at once, before anything is
//! opened. `bridge.toml` beside the manifest is the commented example; a test parses it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderValue;
use certs::identity::{Identity, Role};
use certs::tls::{self, TlsFiles};
use daemon::Failure;
use daemon::logs::{LogSettings, RawLog};
use daemon::settings::{Given, Problems, relative_to, settle};
use schema::BrokerAddress;
use serde::Deserialize;
use store::alerts::AlertBounds;
use store::location::{Database, Location};
use store::quota::{self, Quota, Quotas};

use crate::admit::Bounds;
use crate::auth::KeyFolder;
use crate::dispatch::{PER_SECOND, PER_SECOND_BOUNDS};
use crate::intake::BrokerConfig;
use crate::pipeline::PipelineConfig;

/// Takes the database's address out of the file, where it may hold a password.
pub const DATABASE_VARIABLE: &str = "TIDELINE_DATABASE_URL";

/// The same for the replicas' address.
pub const REPLICA_VARIABLE: &str = "TIDELINE_REPLICA_URL";

/// How the variables begin that are settings.
const VARIABLES: &str = "TIDELINE_BRIDGE_";

/// Less than CockroachDB's followers are behind would never be met; more is a report, not a query.
const STALE_MAX: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

/// What the MQTT client takes, and what finds a dead connection within the day.
const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Less is the network's own unrest; more is never noticed.
const ALERT_AFTER: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(30 * 86_400);

/// Below this a reading could be gone before anybody saw it.
const RETENTION_MIN: Duration = Duration::from_secs(3600);

/// Everything that a bridge needs to run. Made by [`Settings::load`] from a file, or in code;
/// whoever makes it keeps it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where and as whom to connect.
    pub broker: BrokerConfig,
    /// Where readings go.
    pub database: Location,
    /// Whether to bring the database's schema up to date at the start.
    pub migrate: bool,
    /// What is admitted.
    pub bounds: Bounds,
    /// How writes are put together.
    pub pipeline: PipelineConfig,
    /// How long readings, conflicts, dead letters and ended commands are kept; for ever when left
    /// out.
    pub retention: Option<Duration>,
    /// How old a gap must be before its device is asked again.
    pub gap_age: Duration,
    /// How much is kept aside of what sends garbage.
    pub quotas: Quotas,
    /// Whether this bridge keeps hours and minutes of each sensor beside its readings.
    pub rollups: bool,
    /// Commands and configurations that this bridge sends a second.
    pub commands_per_second: NonZeroU32,
    /// From when on something is an alert.
    pub alerts: AlertBounds,
    /// Where to serve the API and the admin endpoints.
    pub http: Http,
    /// By how much this machine's clock is wrong, for fault plans.
    pub clock_offset_ms: i64,
}

/// How the API is served, and to whom.
#[derive(Debug, Clone)]
pub struct Http {
    /// The address to listen on.
    pub address: SocketAddr,
    /// The chain and the key that it is served with, in TLS; in the clear when left out.
    pub tls: Option<ServerFiles>,
    /// The folder of keys that callers' tokens are checked with. Without it, requests are taken from
    /// this machine alone.
    pub keys: Option<PathBuf>,
    /// Sites whose pages may ask.
    pub cors_origins: Vec<HeaderValue>,
}

/// Files of a server that asks for no certificate of its callers.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// Its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A settings file: the bridge's, and what the process around it needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bridge.
    pub bridge: Config,
    /// How to log.
    pub log: LogSettings,
}

#[derive(Debug, Deserialize)]
struct Raw {
    mqtt: RawMqtt,
    tls: RawTls,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    admission: RawAdmission,
    #[serde(default)]
    pipeline: RawPipeline,
    #[serde(default)]
    commands: RawCommands,
    #[serde(default)]
    http: RawHttp,
    #[serde(default)]
    auth: RawAuth,
    #[serde(default)]
    alerts: RawAlerts,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Debug, Deserialize)]
struct RawMqtt {
    address: String,
    client_id: Option<String>,
    group: Option<String>,
    #[serde(default, with = "humantime_serde")]
    keep_alive: Option<Duration>,
}

#[derive(Debug, Deserialize)]
struct RawTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct RawStore {
    url: Option<String>,
    replica_url: Option<String>,
    #[serde(default, with = "humantime_serde")]
    stale_max: Option<Duration>,
    migrate: Option<bool>,
    partitions: Option<Partitions>,
    #[serde(default, with = "humantime_serde")]
    retention: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    gap_age: Option<Duration>,
    rollups: Option<bool>,
}

/// Whether a PostgreSQL keeps readings by month.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Partitions {
    #[default]
    Month,
    Off,
}

#[derive(Debug, Default, Deserialize)]
struct RawAdmission {
    #[serde(default, with = "humantime_serde")]
    past_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    future_max: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
struct RawPipeline {
    write_rows: Option<usize>,
    writes_max: Option<usize>,
    rows_max: Option<usize>,
    bytes_max: Option<usize>,
    #[serde(default, with = "humantime_serde")]
    linger: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
struct RawCommands {
    per_second: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
struct RawHttp {
    address: Option<SocketAddr>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default)]
    cors_origins: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RawAlerts {
    #[serde(default, with = "humantime_serde")]
    offline_after: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    skew_max: Option<Duration>,
}

/// How much is kept aside: rows and bytes of each device, and of all.
#[derive(Debug, Default, Deserialize)]
struct RawLimits {
    dead_letters_per_device: Option<u64>,
    dead_letter_bytes_per_device: Option<u64>,
    dead_letters: Option<u64>,
    dead_letter_bytes: Option<u64>,
    conflicts_per_device: Option<u64>,
    conflict_bytes_per_device: Option<u64>,
    conflicts: Option<u64>,
    conflict_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct RawAuth {
    keys: Option<PathBuf>,
}

impl Config {
    /// A bridge with defaults for all that need not be said. The client id is made unique, so
    /// that several bridges may share one certificate.
    #[must_use]
    pub fn new(host: String, port: u16, tls: TlsFiles, name: &str, database: Location) -> Self {
        Self {
            broker: BrokerConfig {
                host,
                port,
                tls,
                client_id: format!("{name}-{:08x}", rand::random::<u32>()),
                group: "bridges".to_owned(),
                // A bridge that hangs must lose its share of the devices soon.
                keep_alive: Duration::from_secs(10),
                backoff: (Duration::from_millis(200), Duration::from_secs(10)),
            },
            database,
            migrate: true,
            bounds: Bounds::default(),
            pipeline: PipelineConfig::default(),
            retention: None,
            gap_age: Duration::from_secs(180),
            quotas: Quotas::default(),
            rollups: true,
            commands_per_second: PER_SECOND,
            clock_offset_ms: 0,
            alerts: AlertBounds::default(),
            http: Http::local(),
        }
    }
}

impl Http {
    /// The default: to this machine alone.
    #[must_use]
    pub fn local() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            keys: None,
            cors_origins: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads a settings file.
    ///
    /// # Errors
    /// A configuration [`Failure`] that lists every problem.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let given = Given::new(path, VARIABLES, &[]);
        let Some(mut raw) = given.read::<Raw>(&mut problems) else {
            return settle(None, problems, path);
        };
        for (variable, setting) in [
            (DATABASE_VARIABLE, &mut raw.store.url),
            (REPLICA_VARIABLE, &mut raw.store.replica_url),
        ] {
            *setting = std::env::var(variable).ok().or(setting.take());
        }
        Self::validate(raw, path, problems)
    }

    fn validate(raw: Raw, origin: &Path, mut problems: Problems) -> Result<Self, Failure> {
        let file = |path: &Path| relative_to(origin, path);
        let tls = TlsFiles {
            ca: file(&raw.tls.ca),
            cert: file(&raw.tls.cert),
            key: file(&raw.tls.key),
        };
        // Reading the identity reads the certificate.
        for (key, path) in [("tls.ca", &tls.ca), ("tls.key", &tls.key)] {
            problems.check_readable(key, path);
        }
        let name = match tls::read_certs(&tls.cert).map(|chain| Identity::from_der(&chain[0])) {
            Ok(Ok(identity)) if identity.role == Role::Bridge => Some(identity.name),
            Ok(Ok(identity)) => {
                let role = identity.role;
                problems.add(
                    "tls.cert",
                    format!("is a certificate of role {role}, not bridge"),
                );
                None
            }
            Ok(Err(error)) => {
                problems.add("tls.cert", error.to_string());
                None
            }
            Err(error) => {
                problems.add("tls.cert", error.to_string());
                None
            }
        };
        let address = problems.take("mqtt.address", raw.mqtt.address.parse::<BrokerAddress>());
        let database = database(&raw.store, origin, &mut problems);
        let bounded = |problems: &mut Problems, key: &str, holds: bool, reason: &str| {
            problems.check(holds, key, reason.to_owned());
        };
        let defaults = PipelineConfig::default();
        let pipeline = PipelineConfig {
            write_rows: raw.pipeline.write_rows.unwrap_or(defaults.write_rows),
            linger: raw.pipeline.linger.unwrap_or(defaults.linger),
            writes_max: raw.pipeline.writes_max.unwrap_or(defaults.writes_max),
            rows_max: raw.pipeline.rows_max.unwrap_or(defaults.rows_max),
            bytes_max: raw.pipeline.bytes_max.unwrap_or(defaults.bytes_max),
        };
        let p = &mut problems;
        let writes = (1..=64).contains(&pipeline.writes_max);
        bounded(p, "pipeline.writes_max", writes, "must be from 1 to 64");
        let rows = (1..=100_000).contains(&pipeline.write_rows);
        bounded(p, "pipeline.write_rows", rows, "must be from 1 to 100000");
        let held = pipeline.rows_max >= pipeline.write_rows;
        bounded(
            p,
            "pipeline.rows_max",
            held,
            "must be at least pipeline.write_rows",
        );
        let bytes = pipeline.bytes_max >= 64 * 1024;
        bounded(p, "pipeline.bytes_max", bytes, "must be at least 65536");
        let linger = pipeline.linger <= Duration::from_secs(1);
        bounded(p, "pipeline.linger", linger, "must be at most 1s");
        let group = raw.mqtt.group.unwrap_or_else(|| "bridges".to_owned());
        let is_plain = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let plain = "must be of A-Z a-z 0-9 . _ -";
        bounded(p, "mqtt.group", is_plain(&group), plain);
        let client_id = raw.mqtt.client_id.as_deref().is_none_or(is_plain);
        bounded(p, "mqtt.client_id", client_id, plain);
        let retention = raw.store.retention;
        let kept = retention.is_none_or(|kept| kept >= RETENTION_MIN);
        bounded(p, "store.retention", kept, "must be at least 1h");
        let keep_alive = raw
            .mqtt
            .keep_alive
            .is_none_or(|keep_alive| KEEP_ALIVE.contains(&keep_alive));
        bounded(p, "mqtt.keep_alive", keep_alive, "must be from 1s to 1h");
        let per_second = raw.commands.per_second.unwrap_or(PER_SECOND.get());
        let is_rate = PER_SECOND_BOUNDS.contains(&per_second);
        bounded(p, "commands.per_second", is_rate, "must be from 1 to 10000");
        for (key, value) in [
            ("alerts.offline_after", raw.alerts.offline_after),
            ("alerts.skew_max", raw.alerts.skew_max),
        ] {
            let is_sound = value.is_none_or(|value| ALERT_AFTER.contains(&value));
            problems.check(is_sound, key, "must be from 10s to 30days");
        }
        let quotas = quotas(&raw.limits, &mut problems);
        let http = http(&raw.http, &raw.auth, origin, &mut problems);
        let (Some(name), Some(address), Some(database)) = (name, address, database) else {
            problems.into_result(origin)?;
            unreachable!("what is missing was noted as a problem");
        };
        problems.into_result(origin)?;
        let mut bridge = Config::new(address.host, address.port, tls, name.as_str(), database);
        bridge.broker.group = group;
        if let Some(client_id) = raw.mqtt.client_id {
            bridge.broker.client_id = client_id;
        }
        if let Some(keep_alive) = raw.mqtt.keep_alive {
            bridge.broker.keep_alive = keep_alive;
        }
        bridge.pipeline = pipeline;
        bridge.migrate = raw.store.migrate.unwrap_or(true);
        bridge.retention = raw.store.retention;
        bridge.gap_age = raw.store.gap_age.unwrap_or(bridge.gap_age);
        bridge.quotas = quotas;
        bridge.rollups = raw.store.rollups.unwrap_or(bridge.rollups);
        bridge.bounds.past_max = raw.admission.past_max.unwrap_or(bridge.bounds.past_max);
        bridge.bounds.future_max = raw.admission.future_max.unwrap_or(bridge.bounds.future_max);
        bridge.commands_per_second = NonZeroU32::new(per_second).unwrap_or(PER_SECOND);
        let alerts = &mut bridge.alerts;
        alerts.offline_after = raw.alerts.offline_after.unwrap_or(alerts.offline_after);
        alerts.skew_max = raw.alerts.skew_max.unwrap_or(alerts.skew_max);
        bridge.http = http;
        Ok(Self {
            bridge,
            log: raw.log.or_level("info"),
        })
    }
}

/// How the API is served: whoever is not on this machine needs a token.
fn http(raw: &RawHttp, auth: &RawAuth, origin: &Path, problems: &mut Problems) -> Http {
    let mut http = Http::local();
    http.address = raw.address.unwrap_or(http.address);
    http.keys = auth.keys.as_deref().map(|keys| relative_to(origin, keys));
    let is_guarded = http.keys.is_some() || http.address.ip().is_loopback();
    let reason = "is not of this machine alone: let [auth] keys name a folder of keys, which \
                  `tideline token key --keys FOLDER` makes";
    problems.check(is_guarded, "http.address", reason);
    if let Some(keys) = &http.keys {
        problems.take("auth.keys", KeyFolder::open(keys));
    }
    match (&raw.cert, &raw.key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            let (cert, key) = (relative_to(origin, cert), relative_to(origin, key));
            problems.check_readable("http.cert", &cert);
            problems.check_readable("http.key", &key);
            http.tls = Some(ServerFiles { cert, key });
        }
        _ => problems.add("http.cert", "and http.key go together"),
    }
    for text in &raw.cors_origins {
        let is_origin = text.split_once("://").is_some_and(|(scheme, rest)| {
            matches!(scheme, "http" | "https") && !rest.is_empty() && !rest.contains(['/', '*'])
        });
        match HeaderValue::from_str(text) {
            Ok(value) if is_origin => http.cors_origins.push(value),
            _ => problems.add(
                "http.cors_origins",
                format!("{text:?} is no origin, as in https://fleet.example.com"),
            ),
        }
    }
    http
}

/// 0 keeps nothing. What a device may have is a part of what all may.
fn quotas(raw: &RawLimits, problems: &mut Problems) -> Quotas {
    let defaults = Quotas::default();
    let of = |rows: Option<u64>, bytes: Option<u64>, default: Quota| Quota {
        rows: rows.unwrap_or(default.rows),
        bytes: bytes.unwrap_or(default.bytes),
    };
    let letters = quota::Bounds {
        device: of(
            raw.dead_letters_per_device,
            raw.dead_letter_bytes_per_device,
            defaults.dead_letters.device,
        ),
        all: of(
            raw.dead_letters,
            raw.dead_letter_bytes,
            defaults.dead_letters.all,
        ),
    };
    let losers = quota::Bounds {
        device: of(
            raw.conflicts_per_device,
            raw.conflict_bytes_per_device,
            defaults.conflicts.device,
        ),
        all: of(raw.conflicts, raw.conflict_bytes, defaults.conflicts.all),
    };
    for (key, device, all) in [
        ("dead_letters", letters.device.rows, letters.all.rows),
        ("dead_letter_bytes", letters.device.bytes, letters.all.bytes),
        ("conflicts", losers.device.rows, losers.all.rows),
        ("conflict_bytes", losers.device.bytes, losers.all.bytes),
    ] {
        let reason = format!("must be at least limits.{key}_per_device, which is {device}");
        problems.check(device <= all, &format!("limits.{key}"), reason);
    }
    Quotas {
        dead_letters: letters,
        conflicts: losers,
    }
}

fn database(raw: &RawStore, origin: &Path, problems: &mut Problems) -> Option<Location> {
    let Some(text) = &raw.url else {
        problems.add(
            "store.url",
            format!("is missing; set it here or in {DATABASE_VARIABLE}"),
        );
        return None;
    };
    let text = if text.contains("://") {
        text.clone()
    } else {
        relative_to(origin, Path::new(text)).display().to_string()
    };
    match Location::parse(&text) {
        Ok(Location::Cockroach(mut database)) => {
            stale_reads(raw, &mut database, problems);
            database.partitions = raw.partitions.unwrap_or_default() == Partitions::Month;
            Some(Location::Cockroach(database))
        }
        Ok(file) => {
            let alone = raw.replica_url.is_none() && raw.stale_max.is_none();
            let reason = "and store.stale_max are of use with a database by URL only";
            problems.check(alone, "store.replica_url", reason);
            Some(file)
        }
        Err(error) => {
            problems.add("store.url", format!("{error}; {}", error.help()));
            None
        }
    }
}

/// Where queries go that may be a little old, and how old.
fn stale_reads(raw: &RawStore, database: &mut Database, problems: &mut Problems) {
    database.stale_max = raw.stale_max;
    let bounded = raw.stale_max.is_none_or(|max| STALE_MAX.contains(&max));
    problems.check(bounded, "store.stale_max", "must be from 5s to 1h");
    let Some(url) = &raw.replica_url else {
        return;
    };
    let bound = raw.stale_max.is_some();
    let reason = "needs store.stale_max: how old its answers may be";
    problems.check(bound, "store.replica_url", reason);
    match Location::parse(url) {
        Ok(Location::Cockroach(replica)) => database.replicas = Some(replica.nodes),
        Ok(Location::Embedded(_)) => problems.add("store.replica_url", "is no URL of a PostgreSQL"),
        Err(error) => problems.add("store.replica_url", format!("{error}; {}", error.help())),
    }
}
