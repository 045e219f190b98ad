//! docker-compose.yml as types. A key that is not known here is an error, so that a misspelt one
//! is found; whoever needs another key of the Compose specification adds it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compose {
    #[serde(rename = "x-tideline")]
    _ours: Option<IgnoredAny>,
    pub(crate) services: BTreeMap<String, Service>,
    #[serde(default)]
    pub(crate) volumes: BTreeMap<String, Option<IgnoredAny>>,
}

/// One service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) image: Option<String>,
    pub(crate) build: Option<String>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) ports: Vec<String>,
    #[serde(default)]
    pub(crate) volumes: Vec<String>,
    #[serde(default)]
    pub(crate) depends_on: BTreeMap<String, Dependency>,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) restart: Option<String>,
    #[serde(default)]
    pub(crate) networks: BTreeMap<String, Network>,
    #[serde(rename = "network_mode")]
    _network_mode: Option<IgnoredAny>,
    #[serde(rename = "read_only")]
    _read_only: Option<IgnoredAny>,
    #[serde(rename = "tmpfs")]
    _tmpfs: Option<IgnoredAny>,
    #[serde(rename = "cap_drop")]
    _cap_drop: Option<IgnoredAny>,
    #[serde(rename = "security_opt")]
    _security_opt: Option<IgnoredAny>,
    #[serde(rename = "stop_grace_period")]
    _stop_grace_period: Option<IgnoredAny>,
}

/// What a service waits for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dependency {
    pub(crate) condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Condition {
    #[serde(rename = "service_started")]
    Started,
    #[serde(rename = "service_healthy")]
    Healthy,
    #[serde(rename = "service_completed_successfully")]
    Completed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Healthcheck {
    #[serde(default)]
    pub(crate) test: Vec<String>,
    #[serde(default)]
    pub(crate) disable: bool,
    #[serde(rename = "interval")]
    _interval: Option<IgnoredAny>,
    #[serde(rename = "timeout")]
    _timeout: Option<IgnoredAny>,
    #[serde(rename = "retries")]
    _retries: Option<IgnoredAny>,
    #[serde(rename = "start_period")]
    _start_period: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
}

/// A file, folder or volume inside a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mount {
    /// Where in the container. First, so that a folder sorts before what lies in it.
    pub(crate) target: PathBuf,
    pub(crate) source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// By name.
    Volume(String),
    /// A path from the repository's root.
    Repository(PathBuf),
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    /// On the host.
    pub(crate) host: u16,
    /// In the container.
    pub(crate) container: u16,
}

/// Reads the repository's file.
pub(crate) fn read() -> Compose {
    serde_saphyr::from_str(&super::text("docker-compose.yml"))
        .unwrap_or_else(|error| panic!("docker-compose.yml: {error}"))
}

impl Service {
    /// Whether the image is built from this repository.
    pub(crate) fn is_ours(&self) -> bool {
        self.build.is_some()
    }

    /// What is mounted, outer folders first.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mut mounts: Vec<Mount> = self.volumes.iter().map(|text| mount(text)).collect();
        mounts.sort();
        mounts
    }

    /// The published ports.
    pub(crate) fn published(&self) -> Vec<Published> {
        self.ports.iter().map(|text| published(text)).collect()
    }
}

/// `SOURCE:TARGET[:ro]`
fn mount(text: &str) -> Mount {
    let mut parts = text.split(':');
    let (Some(source), Some(target), mode, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        panic!("volume {text:?} is not SOURCE:TARGET[:ro]");
    };
    assert!(
        matches!(mode, None | Some("ro")),
        "volume {text:?} has a mode that is not `ro`"
    );
    let source = match source.strip_prefix("./") {
        Some(path) => Source::Repository(PathBuf::from(path)),
        None => {
            assert!(
                !source.contains('/'),
                "volume {text:?} leads out of the repository"
            );
            Source::Volume(source.to_owned())
        }
    };
    Mount {
        target: PathBuf::from(target),
        source,
    }
}

/// `[ADDRESS:]HOST:CONTAINER`
fn published(text: &str) -> Published {
    let mut parts = text.rsplit(':').map(|part| part.parse().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(container), Some(host)) => Published { host, container },
        _ => panic!("port {text:?} is not [ADDRESS:]HOST:CONTAINER"),
    }
}
