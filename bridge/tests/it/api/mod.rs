//! The REST API of a real bridge, over real HTTP.

mod access;
mod dead_letters;
mod export;
mod fleet;
mod http;
mod ledger;
mod readings;
mod repeated;
mod sensors;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bridge::auth::{Claims, Role, SigningKey, keys};
use bridge::config::Http;
use bridge::{Bridge, Config};
use certs::set::MachineSet;
use certs::{Folder, TlsFiles};
use daemon::{Clock, Health, Lifecycle, SystemClock};
use prometheus_client::registry::Registry;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use store::Store;
use store::location::Location;
use tempfile::TempDir;

/// A bridge that serves its API, on a file, without a broker.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) client: Client,
    lifecycle: Lifecycle,
    key: Option<SigningKey>,
    _folder: TempDir,
}

impl Served {
    /// To callers with tokens.
    pub(crate) async fn start() -> Self {
        Self::start_with(|http, folder, _| {
            http.keys = Some(folder.join("tokens"));
        })
        .await
    }

    /// To callers of this machine, without tokens.
    pub(crate) async fn start_open() -> Self {
        Self::start_with(|_, _, _| {}).await
    }

    /// With these settings; a key is made first.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Http, PathBuf, &TlsFiles)) -> Self {
        Self::start_all(None, |config, folder, server| {
            change(&mut config.http, folder, server);
        })
        .await
    }

    /// On this database, without tokens, with these settings.
    pub(crate) async fn start_on(database: Location, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_all(Some(database), |config, _, _| change(config)).await
    }

    async fn start_all(
        database: Option<Location>,
        change: impl FnOnce(&mut Config, PathBuf, &TlsFiles),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = keys::create(&folder.path().join("tokens"), now()).unwrap();
        let device = "device-1".parse().unwrap();
        let certs = Folder::new(folder.path().join("certs"));
        let set = MachineSet::ensure(&certs, &device, &["localhost".to_owned()]).unwrap();
        let file = Location::Embedded(folder.path().join("store.db"));
        let database = database.unwrap_or(file);
        // Nobody listens there: the bridge keeps trying.
        let mut config = Config::new("127.0.0.1".to_owned(), 1, set.bridge, "test", database);
        config.http.address = ([127, 0, 0, 1], 0).into();
        change(&mut config, folder.path().to_owned(), &set.server);
        let is_guarded = config.http.keys.is_some();
        let (lifecycle, health) = (Lifecycle::new(), Health::default());
        let mut registry = Registry::default();
        let running = Bridge::start(config, &lifecycle, &health, &mut registry)
            .await
            .unwrap();
        let (address, store) = (running.http_addr(), running.store());
        running.serve(Arc::new(registry), health, &lifecycle);
        let client = Client::builder().no_proxy();
        Self {
            url: format!("http://{address}"),
            address,
            store,
            client: client.build().unwrap(),
            lifecycle,
            key: is_guarded.then_some(key),
            _folder: folder,
        }
    }

    /// A token of an hour.
    pub(crate) fn token(&self, subject: &str, role: Role) -> String {
        self.sign(&Claims::new(subject.to_owned(), role, now(), 3_600))
    }

    /// A token that says this.
    pub(crate) fn sign(&self, claims: &Claims) -> String {
        self.key.as_ref().unwrap().sign(claims).unwrap()
    }

    /// A request without a token.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// A request as an administrator.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.bare(method, path);
        match self.key {
            Some(_) => request.bearer_auth(self.token("admin", Role::Admin)),
            None => request,
        }
    }

    /// What an administrator finds at a path.
    pub(crate) async fn get(&self, path: &str) -> Value {
        expect(self.request(Method::GET, path), StatusCode::OK).await
    }

    /// What an administrator's JSON is answered with.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        status: StatusCode,
    ) -> Value {
        expect(self.request(method, path).json(body), status).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

/// The JSON of an answer, which must have this status.
pub(crate) async fn expect(request: RequestBuilder, status: StatusCode) -> Value {
    let answer: Response = request.send().await.unwrap();
    let found = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

pub(crate) fn now() -> u64 {
    SystemClock::default().now_ms() / 1000
}
