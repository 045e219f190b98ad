//! What can be read of a settings file that as a whole cannot be used: for commands that look for what is wrong.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use certs::tls::TlsFiles;
use daemon::settings::{Given, Problems, relative_to, settle};
use daemon::{Class, Failure};
use schema::BrokerAddress;
use serde_json::Value;

use super::link::proxy;
use super::{ADMIN_HTTP, Settings};
use crate::link::Proxy;

/// What of the settings could be read.
#[derive(Debug, Clone)]
pub(crate) struct Sketch {
    pub(crate) brokers: Vec<BrokerAddress>,
    /// On the way to them, but for those that it is not asked for.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) no_proxy: String,
    /// Authority, certificate and key, where all three are named.
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) buffer: Option<PathBuf>,
    pub(crate) admin: SocketAddr,
}

impl Sketch {
    /// What a whole file says.
    pub(crate) fn of(settings: &Settings) -> Self {
        let link = &settings.agent.link;
        Self {
            brokers: link.brokers.clone(),
            proxy: link.proxy.clone(),
            no_proxy: link.no_proxy.clone(),
            tls: Some(link.tls.clone()),
            buffer: Some(settings.agent.buffer.path.clone()),
            admin: settings.admin,
        }
    }

    /// What can be read of a file.
    ///
    /// # Errors
    /// A configuration [`Failure`] when it cannot be read or is no TOML.
    pub(crate) fn read(given: &Given) -> Result<Self, Failure> {
        let mut problems = Problems::default();
        let path = &given.path;
        let Some(all) = given.read::<Value>(&mut problems) else {
            return settle(None, problems, path);
        };
        let text = |pointer: &str| all.pointer(pointer).and_then(Value::as_str);
        let file = |pointer: &str| Some(relative_to(path, Path::new(text(pointer)?)));
        let listed = all.pointer("/mqtt/addresses").and_then(Value::as_array);
        let listed = listed.into_iter().flatten().filter_map(Value::as_str);
        let addresses = text("/mqtt/address").into_iter().chain(listed);
        let (proxy, no_proxy) = proxy(text("/mqtt/proxy"), &mut problems);
        let tls = || {
            Some(TlsFiles {
                ca: file("/tls/ca")?,
                cert: file("/tls/cert")?,
                key: file("/tls/key")?,
            })
        };
        Ok(Self {
            brokers: addresses.filter_map(|text| text.parse().ok()).collect(),
            proxy,
            no_proxy,
            tls: tls(),
            buffer: file("/buffer/path"),
            admin: text("/admin/http")
                .and_then(|text| text.parse().ok())
                .unwrap_or(ADMIN_HTTP),
        })
    }
}

impl Settings {
    /// The buffer's file, also of settings that cannot be used otherwise: as when a certificate is missing.
    ///
    /// # Errors
    /// As [`Self::load`], where it is not named.
    pub fn buffer_path(given: &Given) -> Result<PathBuf, Failure> {
        let failure = match Self::load_given(given) {
            Ok(settings) => return Ok(settings.agent.buffer.path),
            Err(failure) if failure.class() == Class::Configuration => failure,
            Err(failure) => return Err(failure),
        };
        let sketch = Sketch::read(given).ok();
        sketch.and_then(|sketch| sketch.buffer).ok_or(failure)
    }
}
