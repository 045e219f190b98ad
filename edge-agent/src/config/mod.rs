//! Settings of all places → a validated [`Config`]. Every problem is reported at once, before anything is
//! opened. `agent.toml` beside the manifest is the commented example; a test parses it.

mod link;
mod raw;
mod sketch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use certs::identity::Identity;
use certs::tls::{TlsError, TlsFiles};
use daemon::logs::{Levels, LogSettings};
use daemon::settings::{Effective, Given, Problems, relative_to, settle};
use daemon::{Class, Failure};
use link::Way;
use raw::{Raw, RawAdminAlone, RawSourcesAlone};
use schema::message::CommandId;
use schema::{BrokerAddress, DeviceId};

use crate::buffer::BufferSettings;
use crate::clock::ClockSettings;
use crate::commands::work::Program;
use crate::link::{LinkConfig, LinkRules};
use crate::probes::ProbePauses;
use crate::sensors::{self, SensorRule};
use crate::session::SessionConfig;
use crate::source::{self, SourceConfig};

pub(crate) use sketch::Sketch;

/// How the variables begin that are settings.
pub const VARIABLES: &str = "TIDELINE_AGENT_";

/// The variable that names the settings file.
pub const FILE_VARIABLE: &str = "TIDELINE_AGENT_CONFIG";

/// Where the admin endpoints listen by default: on this machine only.
const ADMIN_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Everything that an agent needs to run. Made by [`Settings::load`] from a file, or by
/// [`Config::new`] in code; whoever changes a field keeps it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Broker, identity and certificates.
    pub link: LinkConfig,
    /// Quiet hours and budget.
    pub link_rules: LinkRules,
    /// The buffer's file and limits.
    pub buffer: BufferSettings,
    /// Limits of the sync session.
    pub session: SessionConfig,
    /// When what is in quarantine is offered again by itself.
    pub probes: ProbePauses,
    /// The sources that run.
    pub sources: Vec<SourceConfig>,
    /// What sensors are, as the settings say; the first rule that matches decides.
    pub sensors: Vec<SensorRule>,
    /// What commands may do.
    pub commands: CommandsConfig,
    /// How this machine's clocks are read.
    pub clock: ClockSettings,
    /// What the agent may do to its process; `None` when it runs inside another program.
    pub own_process: Option<OwnProcess>,
}

/// A process that is the agent's own.
#[derive(Debug, Clone)]
pub struct OwnProcess {
    /// Changes what it logs.
    pub levels: Levels,
    /// The command for which it was started again by [`RunningAgent::restart_wanted`].
    ///
    /// [`RunningAgent::restart_wanted`]: crate::RunningAgent::restart_wanted
    pub restarted_for: Option<CommandId>,
}

/// What commands may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandsConfig {
    /// How many may run at the same time.
    pub parallel: usize,
    /// The programs that `exec` may start, by the names that commands give.
    pub exec: BTreeMap<String, Program>,
}

impl Default for CommandsConfig {
    /// One at a time, and no programs.
    fn default() -> Self {
        Self {
            parallel: 1,
            exec: BTreeMap::new(),
        }
    }
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
    /// All that is set, and where.
    pub effective: Effective,
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
            link: LinkConfig::new(
                BrokerAddress {
                    host: host.into(),
                    port,
                },
                device,
                tls,
            ),
            link_rules: LinkRules::default(),
            buffer: BufferSettings::new(buffer),
            session: SessionConfig::default(),
            probes: ProbePauses::default(),
            sources: Vec::new(),
            sensors: Vec::new(),
            commands: CommandsConfig::default(),
            clock: ClockSettings::default(),
            own_process: None,
        })
    }
}

impl Settings {
    /// Where the settings of an agent are: a file, the folder beside it, and variables of this process.
    #[must_use]
    pub fn given(path: &Path) -> Given {
        Given::new(path, VARIABLES, &[FILE_VARIABLE])
    }

    /// Reads and checks the settings that [`Self::given`] finds.
    ///
    /// # Errors
    /// A configuration [`Failure`] that names the file and lists every problem.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        Self::load_given(&Self::given(path))
    }

    /// Reads and checks settings.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_given(given: &Given) -> Result<Self, Failure> {
        let (settings, problems) = Self::examine(given);
        Self::settle(given, settings, problems)
    }

    /// What [`Self::examine`] found, when nothing is wrong with it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn settle(
        given: &Given,
        settings: Option<Self>,
        problems: Problems,
    ) -> Result<Self, Failure> {
        let settled = settle(settings, problems, &given.path);
        settled.map_err(|failure| match given.path.exists() {
            true => failure,
            false => failure.help(
                "the settings file does not exist: give its path with --config, or write one with `edge-agent init`",
            ),
        })
    }

    /// Reads settings; the problems are whatever is wrong with them.
    #[must_use]
    pub fn examine(given: &Given) -> (Option<Self>, Problems) {
        let mut problems = Problems::default();
        let raw = given.read(&mut problems);
        let settings = raw.and_then(|raw| Self::from_raw(raw, &given.path, &mut problems));
        (settings, problems)
    }

    /// Reads the sources of a settings file, whatever else is in it.
    ///
    /// # Errors
    /// As [`Self::load`], for the sections of sources and sensors alone.
    pub fn load_sources(path: &Path) -> Result<Vec<SourceConfig>, Failure> {
        Self::load_sources_given(&Self::given(path))
    }

    /// As [`Self::load_sources`], of settings of all places.
    ///
    /// # Errors
    /// As there.
    pub fn load_sources_given(given: &Given) -> Result<Vec<SourceConfig>, Failure> {
        Ok(Self::load_for_trial(given)?.0)
    }

    /// Reads the sources of settings, and what they say of sensors, whatever else is in them.
    ///
    /// # Errors
    /// As [`Self::load`], for the sections of both alone.
    pub(crate) fn load_for_trial(
        given: &Given,
    ) -> Result<(Vec<SourceConfig>, Vec<SensorRule>), Failure> {
        let mut problems = Problems::default();
        let raw: Option<RawSourcesAlone> = given.read(&mut problems);
        // What is not known here may be known elsewhere.
        problems.keep_below(&["source", "sensor"]);
        let both = raw.map(|raw| {
            let sources = source::read(raw.source, &given.path, &mut problems);
            let sensors = sensors::settings::check(raw.sensor, &mut problems);
            (sources, sensors)
        });
        settle(both, problems, &given.path)
    }

    /// Reads where the agent answers, whatever else is wrong with the settings: they may have changed since it started.
    ///
    /// # Errors
    /// As [`Self::load`], for `[admin]` alone.
    pub fn load_admin(given: &Given) -> Result<SocketAddr, Failure> {
        let mut problems = Problems::default();
        let raw: Option<RawAdminAlone> = given.read(&mut problems);
        problems.keep_below(&["admin"]);
        let admin = raw.map(|raw| raw.admin.http.unwrap_or(ADMIN_HTTP));
        settle(admin, problems, &given.path)
    }

    fn from_raw(raw: Raw, origin: &Path, problems: &mut Problems) -> Option<Self> {
        let tls = problems.need("tls", raw.tls).map(|tls| TlsFiles {
            ca: relative_to(origin, &tls.ca),
            cert: relative_to(origin, &tls.cert),
            key: relative_to(origin, &tls.key),
        });
        let mqtt = problems.need("mqtt", raw.mqtt);
        let way = mqtt.as_ref().map(|mqtt| {
            mqtt.check(problems);
            mqtt.way(problems)
        });
        let link_rules = raw.link.check(problems);
        let device = tls
            .as_ref()
            .and_then(|tls| check_device(raw.device.as_deref(), tls, problems));
        let buffer = problems.need("buffer", raw.buffer);
        let buffer = buffer.map(|buffer| buffer.check(origin, problems));
        let session = raw.session.check(problems);
        let sources = source::read(raw.source, origin, problems);
        let sensors = sensors::settings::check(raw.sensor, problems);
        let commands = raw.commands.check(origin, problems);
        let log = raw.log.or_level("info");
        problems.take("log.level", log.check());
        // Each of them noted a problem when it is missing.
        let (mqtt, tls, buffer) = (mqtt?, tls?, buffer?);
        check_apart(&sources, &buffer, &tls, problems);
        let Way {
            brokers,
            prefer_first_after,
            connect_timeout,
            proxy,
            no_proxy,
        } = way?;
        let device = device?;
        Some(Self {
            agent: Config {
                link: LinkConfig {
                    brokers,
                    prefer_first_after,
                    connect_timeout,
                    proxy,
                    no_proxy,
                    device,
                    tls,
                    keep_alive: mqtt.keep_alive,
                    backoff: (mqtt.backoff_first, mqtt.backoff_max),
                },
                link_rules,
                buffer,
                session,
                probes: ProbePauses::default(),
                sources,
                sensors,
                commands,
                clock: raw.clock.settings(origin),
                own_process: None,
            },
            log,
            admin: raw.admin.http.unwrap_or(ADMIN_HTTP),
            effective: problems.effective(),
        })
    }
}

/// The device's id: the certificate's, which the file may repeat but not change.
fn check_device(wanted: Option<&str>, tls: &TlsFiles, problems: &mut Problems) -> Option<DeviceId> {
    let wanted = wanted.and_then(|text| problems.take("device", text.parse::<DeviceId>()));
    let files = [
        ("tls.ca", &tls.ca),
        ("tls.cert", &tls.cert),
        ("tls.key", &tls.key),
    ];
    let unread = files.map(|(key, path)| problems.check_readable(key, path));
    if unread.contains(&false) {
        return None;
    }
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

/// The files of a source are none of those that the agent has for other things: whichever came first would stand in
/// the other's way.
fn check_apart(
    sources: &[SourceConfig],
    buffer: &BufferSettings,
    tls: &TlsFiles,
    problems: &mut Problems,
) {
    let files = buffer.files();
    let of_tls = [&tls.ca, &tls.cert, &tls.key];
    for source in sources {
        for (key, path) in source.source.files() {
            problems.check(
                !files.iter().chain(of_tls).any(|file| file == path),
                &format!("source.{}.{key}", source.name),
                "is a file of the buffer or of tls: a source needs a path of its own",
            );
        }
    }
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
    let identity =
        Identity::from_der(first).map_err(|error| format!("{}: {error}", tls.cert.display()))?;
    identity.device().ok_or_else(|| {
        let Identity { name, role } = identity;
        format!(
            "{} is {name}'s, whose role is {role}; an agent needs a certificate of role device",
            tls.cert.display()
        )
    })
}
