//! The `mqtt` source: messages of a broker beside this machine: zigbee2mqtt, Tasmota, a PLC's own.
//!
//! ```text
//! broker ──► poll (never waits) ──► queue, bounded ──► keep: payload ─► buffer ─► PUBACK
//! ```
//!
//! A message of QoS 1 is acknowledged when its readings are on disk, or when nothing of it can be taken; until then the
//! broker keeps it, also while the agent is down (a session of its own, `client_id`). So a kill at any moment loses none; one between commit
//! and acknowledgement has it come again, and then it is another reading unless it has a time of its own.
//!
//! [`topic`] names sensors, [`payload`] picks values, `redelivery` knows what was kept: all pure. `connection` is the
//! only file here that names rumqttc.

mod connection;
pub mod payload;
mod redelivery;
mod topic;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use certs::tls::TlsFiles;
use daemon::{Class, Failure};
use schema::{BrokerAddress, TimestampUnit};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use self::payload::{Kind, Pick, Picks, VALUES_MAX};
use self::redelivery::Redelivery;
use self::topic::{Filter, Template};
use super::format::{Format, LineRules};
use super::{Outlet, Section, Source};

pub(super) const KIND: &str = "mqtt";

/// The ports of MQTT without and with TLS.
const PORT: u16 = 1883;
const PORT_TLS: u16 = 8883;

/// Most filters of one source: each is tried for each message.
const TAKES_MAX: usize = 64;

/// Largest payload that is read, by default and at most.
const PAYLOAD_BYTES: usize = 256 * 1024;
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// Longest client id: what every broker takes, and more.
const CLIENT_ID_BYTES_MAX: usize = 64;

/// How long connecting and subscribing may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of a source of this kind.
#[derive(Debug)]
pub struct MqttSource {
    address: BrokerAddress,
    client_id: String,
    login: Option<Login>,
    tls: Option<Tls>,
    timeout: Duration,
    payload_bytes_max: usize,
    takes: Vec<Take>,
    redelivery: Mutex<Redelivery>,
}

/// A user and a password, which is never shown.
#[derive(Clone)]
struct Login {
    user: String,
    password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// How the broker is known, and this client to it.
#[derive(Debug, Clone)]
enum Tls {
    /// The broker's authority.
    Server(PathBuf),
    /// And a certificate of this client's.
    Mutual(TlsFiles),
}

/// What is taken of the messages of one filter.
#[derive(Debug, Clone)]
struct Take {
    filter: Filter,
    is_at_least_once: bool,
    sensor: Template,
    kind: Kind,
    picks: Picks,
    rules: LineRules,
    takes_retained: bool,
}

#[derive(Debug, Deserialize)]
struct Raw {
    address: String,
    client_id: Option<String>,
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<RawTls>,
    payload_bytes_max: Option<usize>,
    take: Vec<RawTake>,
}

#[derive(Debug, Deserialize)]
struct RawTls {
    ca: PathBuf,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct RawTake {
    filter: String,
    sensor: Option<String>,
    #[serde(default)]
    payload: Kind,
    #[serde(default)]
    values: BTreeMap<String, String>,
    time: Option<String>,
    timestamp_unit: Option<TimestampUnit>,
    #[serde(default)]
    tags_ignored: Vec<String>,
    #[serde(default)]
    whole_numbers: bool,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    retained: Retained,
    #[serde(default = "at_least_once")]
    qos: u8,
}

/// What becomes of messages that the broker had kept for whoever comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Retained {
    /// They are passed over: nobody says how old they are.
    #[default]
    Ignore,
    Take,
}

const fn at_least_once() -> u8 {
    1
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let timeout = section.timeout(
        TIMEOUT,
        Duration::from_secs(1)..=Duration::from_secs(60),
        "must be from 1s to 1m",
    );
    let raw: Raw = section.read()?;
    let tls = raw.tls.map(|raw| check_tls(raw, section));
    let port = if tls.is_some() { PORT_TLS } else { PORT };
    let address = BrokerAddress::with_default_port(&raw.address, port);
    let address = section.take("address", address);
    let login = check_login(raw.user, raw.password, raw.password_file, section);
    let client_id = raw.client_id.unwrap_or_else(|| own_client_id(section));
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace();
    let is_sound =
        (1..=CLIENT_ID_BYTES_MAX).contains(&client_id.len()) && client_id.chars().all(is_plain);
    let reason = format!(
        "must have 1 to {CLIENT_ID_BYTES_MAX} bytes, and neither spaces nor control characters"
    );
    section.check(is_sound, "client_id", reason);
    let payload_bytes_max = raw.payload_bytes_max.unwrap_or(PAYLOAD_BYTES);
    let reason = format!("must be from 1 to {PAYLOAD_BYTES_MAX}");
    let bounded = (1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes_max);
    section.check(bounded, "payload_bytes_max", reason);
    let count = raw.take.len();
    let reason = format!(
        "must have 1 to {TAKES_MAX} entries, [[source.{}.take]]",
        section.name
    );
    section.check((1..=TAKES_MAX).contains(&count), "take", reason);
    let takes: Vec<Option<Take>> = raw
        .take
        .into_iter()
        .enumerate()
        .map(|(at, raw)| raw.check(&format!("take[{at}]"), section))
        .collect();
    Some(Arc::new(MqttSource {
        address: address?,
        client_id,
        login,
        tls,
        timeout,
        payload_bytes_max,
        takes: takes.into_iter().collect::<Option<_>>()?,
        redelivery: Mutex::default(),
    }))
}

fn check_tls(raw: RawTls, section: &mut Section<'_>) -> Tls {
    let ca = section.path(&raw.ca);
    match (raw.cert, raw.key) {
        (Some(cert), Some(key)) => Tls::Mutual(TlsFiles {
            ca,
            cert: section.path(&cert),
            key: section.path(&key),
        }),
        (None, None) => Tls::Server(ca),
        (Some(_), None) | (None, Some(_)) => {
            section.problem("tls", "needs both cert and key, or neither");
            Tls::Server(ca)
        }
    }
}

fn check_login(
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    section: &mut Section<'_>,
) -> Option<Login> {
    let password = match (password, password_file) {
        (Some(_), Some(_)) => {
            section.problem(
                "password",
                "stands beside password_file: one of them is enough",
            );
            None
        }
        (password, None) => password,
        (None, Some(file)) => {
            let file = section.path(&file);
            let read = std::fs::read_to_string(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()));
            let text = section.take("password_file", read)?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let bounded = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= 65_535);
    section.check(
        bounded(&user) && bounded(&password),
        "user",
        "and password must have at most 65535 bytes",
    );
    match (user, password) {
        (Some(user), password) => Some(Login {
            user,
            password: password.unwrap_or_default(),
        }),
        (None, None) => None,
        (None, Some(_)) => {
            section.problem("password", "needs a user beside it");
            None
        }
    }
}

/// The same at each start, and another's on no other machine: a broker lets go of one of two that have the same.
fn own_client_id(section: &Section<'_>) -> String {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let host = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    let folder = section.path("".as_ref());
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let whole = [&machine[..], &host, folder.as_os_str().as_encoded_bytes()].concat();
    format!("tideline-{}-{:08x}", section.name, xxh3_64(&whole) as u32)
}

impl RawTake {
    fn check(self, key: &str, section: &mut Section<'_>) -> Option<Take> {
        let of = |part: &str| format!("{key}.{part}");
        let filter: Option<Filter> = section.take(&of("filter"), self.filter.parse());
        let sensor = match &self.sensor {
            None => Some(Template::of_topic()),
            Some(text) => section.take(&of("sensor"), text.parse::<Template>()),
        };
        if let (Some(filter), Some(sensor)) = (&filter, &sensor) {
            let (levels, may_have_more) = filter.levels();
            let needed = sensor.level_max();
            section.check(
                needed <= levels || may_have_more,
                &of("sensor"),
                format!("names level {needed}, and topics of the filter have {levels}"),
            );
        }
        section.check(self.qos <= 1, &of("qos"), "must be 0 or 1");
        let is_json = matches!(self.payload, Kind::Json | Kind::Auto);
        section.check(
            is_json || self.values.is_empty() && self.time.is_none(),
            &of("values"),
            "and time are for payload = \"json\"",
        );
        let bounded = self.values.len() <= VALUES_MAX;
        section.check(
            bounded,
            &of("values"),
            format!("has more than {VALUES_MAX} values"),
        );
        let pointers = self.values.values().chain(&self.time);
        for pointer in pointers {
            section.check(
                payload::is_pointer(pointer),
                &of("values"),
                format!("has {pointer:?}, which is no JSON pointer: /key, /list/0, with ~1 for / and ~0 for ~"),
            );
        }
        let values = self.values.into_iter();
        Some(Take {
            filter: filter?,
            is_at_least_once: self.qos == 1,
            sensor: sensor?,
            kind: self.payload,
            picks: Picks {
                values: values
                    .map(|(name, pointer)| Pick { name, pointer })
                    .collect(),
                time: self.time,
                whole_numbers: self.whole_numbers,
            },
            rules: LineRules::check(self.format, self.timestamp_unit, self.tags_ignored, section),
            takes_retained: self.retained == Retained::Take,
        })
    }
}

#[async_trait]
impl Source for MqttSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let filters: Vec<&str> = self.takes.iter().map(|take| take.filter.as_str()).collect();
        format!(
            "takes {} of the broker {}",
            filters.join(", "),
            self.address
        )
    }

    async fn check(&self) -> Result<String, Failure> {
        self.client_config()?;
        Ok(self.describe())
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        connection::run(&self, &outlet, &stop).await
    }
}

impl MqttSource {
    /// How TLS is spoken, if it is.
    fn client_config(&self) -> Result<Option<rustls::ClientConfig>, Failure> {
        let config = match &self.tls {
            None => return Ok(None),
            Some(Tls::Server(ca)) => certs::tls::client_config_without_certificate(ca),
            Some(Tls::Mutual(files)) => certs::tls::client_config(files),
        };
        config.map(Some).map_err(|error| {
            let what = format!("speak TLS with the broker {}", self.address);
            Failure::new(Class::Configuration, what).because(error)
        })
    }
}
