//! One TOML file → a validated [`Config`]. Every problem is reported at once, before anything is
//! opened. `agent.toml` beside the manifest is the commented example; a test parses it.

mod raw;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use certs::identity::Identity;
use certs::tls::{TlsError, TlsFiles};
use daemon::logs::{Levels, LogSettings};
use daemon::settings::{self, Problems, relative_to};
use daemon::{Class, Failure};
use raw::{Raw, RawSourcesAlone, default_backoff_first, default_backoff_max, default_keep_alive};
use schema::message::CommandId;
use schema::{BrokerAddress, DeviceId};

use crate::buffer::BufferSettings;
use crate::clock::ClockSettings;
use crate::commands::work::Program;
use crate::link::LinkConfig;
use crate::probes::ProbePauses;
use crate::sensors::{self, SensorRule};
use crate::session::SessionConfig;
use crate::source::{self, SourceConfig};

/// Where the admin endpoints listen by default: on this machine only.
const ADMIN_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Everything that an agent needs to run. Made by [`Settings::load`] from a file, or by
/// [`Config::new`] in code; whoever changes a field keeps it valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Broker, identity and certificates.
    pub link: LinkConfig,
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
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// A configuration [`Failure`] that names the file and lists every problem.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let raw = settings::load_noting(path, &mut problems)?;
        Self::from_raw(raw, path, problems)
    }

    /// Reads the sources of a settings file, whatever else is in it.
    ///
    /// # Errors
    /// As [`Self::load`], for the sections of sources and sensors alone.
    pub fn load_sources(path: &Path) -> Result<Vec<SourceConfig>, Failure> {
        Ok(Self::load_for_trial(path)?.0)
    }

    /// Reads the sources of a settings file, and what it says of sensors, whatever else is in it.
    ///
    /// # Errors
    /// As [`Self::load`], for the sections of sources alone.
    pub(crate) fn load_for_trial(
        path: &Path,
    ) -> Result<(Vec<SourceConfig>, Vec<SensorRule>), Failure> {
        // What is not known here may be known elsewhere.
        let raw: RawSourcesAlone = settings::load_noting(path, &mut Problems::default())?;
        let mut problems = Problems::default();
        let sources = source::read(raw.source, path, &mut problems);
        let sensors = sensors::settings::check(raw.sensor, &mut problems);
        problems.into_result(path)?;
        Ok((sources, sensors))
    }

    fn from_raw(raw: Raw, origin: &Path, mut problems: Problems) -> Result<Self, Failure> {
        let tls = TlsFiles {
            ca: relative_to(origin, &raw.tls.ca),
            cert: relative_to(origin, &raw.tls.cert),
            key: relative_to(origin, &raw.tls.key),
        };
        let address = raw.mqtt.check(&mut problems);
        let device = check_device(raw.device.as_deref(), &tls, &mut problems);
        let buffer = raw.buffer.check(origin, &mut problems);
        let session = raw.session.check(&mut problems);
        let sources = source::read(raw.source, origin, &mut problems);
        let sensors = sensors::settings::check(raw.sensor, &mut problems);
        let commands = raw.commands.check(origin, &mut problems);
        check_apart(&sources, &buffer, &tls, &mut problems);
        problems.into_result(origin)?;
        let (Some(BrokerAddress { host, port }), Some(device)) = (address, device) else {
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
                probes: ProbePauses::default(),
                sources,
                sensors,
                commands,
                clock: raw.clock.settings(origin),
                own_process: None,
            },
            log: raw.log.or_level("info"),
            admin: raw.admin.http.unwrap_or(ADMIN_HTTP),
        })
    }
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
