//! The bridge put together: store, broker, data path and API; how it starts, drains and stops.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use daemon::{Class, Failure, Health, Lifecycle, admin, http};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::alert::Alerts;
use crate::api::{Api, Guard, Host, Retention};
use crate::audit;
use crate::auth::KeyFolder;
use crate::config::{Config, Http};
use crate::direct::{Direct, direct};
use crate::dispatch::{self, Bell, Dispatch, Rate};
use crate::ingest::{Counters, Ingest, Sides};
use crate::intake::{Broker, inbox};
use crate::metrics::{ApiMeters, IngestMeters, IntakeMeters, LedgerMeters, StoreCollector};
use crate::timekeeper::{self, Timekeeper};
use crate::upkeep::Upkeep;
use crate::watch::DatabaseWatch;

/// How long what is in hand may take to reach the database when the bridge stops. What does not
/// make it is sent again by its devices.
const DRAIN: Duration = Duration::from_secs(3);

/// How long an idle device with default settings may be silent: two reports and a half.
const SILENCE_EXPECTED: Duration = Duration::from_secs(150);

/// Starts bridges.
#[derive(Debug)]
pub struct Bridge;

/// A bridge that runs. Dropping it changes nothing: the lifecycle stops it.
#[derive(Debug)]
pub struct Running {
    http_addr: SocketAddr,
    listener: TcpListener,
    store: Arc<dyn Store>,
    counters: Arc<Mutex<Counters>>,
    retention: Retention,
    bell: Bell,
    guard: Guard,
    broker: Broker,
    database: String,
    tls: Option<Arc<ServerConfig>>,
    cors_origins: Vec<HeaderValue>,
    direct: Direct,
}

impl Bridge {
    /// Opens the database, brings its schema up to date, and connects to the broker. The API is
    /// bound, and served once [`Running::serve`] is called with the metrics of the process.
    ///
    /// # Errors
    /// A [`Failure`] when the database or the HTTP address cannot be had. A broker that cannot be
    /// reached is none: the bridge keeps trying.
    pub async fn start(
        config: Config,
        lifecycle: &Lifecycle,
        health: &Health,
        registry: &mut Registry,
    ) -> Result<Running, Failure> {
        certs::tls::install_crypto_provider();
        let Http {
            address,
            tls,
            keys,
            cors_origins,
        } = config.http.clone();
        let keys = keys.map(KeyFolder::open).transpose().map_err(|error| {
            Failure::new(Class::Configuration, "read the keys of tokens").because(error)
        })?;
        let tls =
            tls.map(|files| certs::tls::server_config_without_client_auth(&files.cert, &files.key));
        let tls = tls.transpose()?.map(Arc::new);
        let listener = http::bind(address).await?;
        let http_addr = listener.local_addr().map_err(|error| {
            Failure::new(Class::Network, "read the HTTP address").because(error)
        })?;
        let store = open(&config).await?;
        let drops_by_itself = store
            .set_retention(config.retention)
            .await
            .map_err(|error| error.into_failure("tell the database how long to keep readings"))?;
        store.set_offline_after(config.alerts.offline_after);
        if config.alerts.offline_after < SILENCE_EXPECTED {
            warn!(
                offline_after = ?config.alerts.offline_after,
                "idle devices report once a minute unless set otherwise: they will be shown offline now and then"
            );
        }
        let clock = store.clock().clone();
        let timekeeper = Timekeeper {
            store: Arc::clone(&store),
            health: health.component("bridge-clock"),
            stop: lifecycle.token(),
        };
        lifecycle.spawn("clock", timekeeper.run());
        let counters = Arc::new(Mutex::new(Counters::default()));
        let meters = IngestMeters::register(registry);
        registry.register_collector(Box::new(StoreCollector(Arc::clone(&store))));
        let api_meters = ApiMeters::register(registry);
        let (audit, writer) = audit::audit(
            Arc::clone(&store),
            lifecycle.token(),
            api_meters.audit_lost.clone(),
        );
        lifecycle.spawn("audit", writer.run());
        let watch = DatabaseWatch::new(health.component("bridge-database"));
        lifecycle.spawn(
            "database-watch",
            watch.clone().run(Arc::clone(&store), lifecycle.token()),
        );
        let alerts = Alerts {
            store: Arc::clone(&store),
            watch: watch.clone(),
            clock: clock.clone(),
            bounds: config.alerts,
            firing: api_meters.alerts_firing.clone(),
            ledger: LedgerMeters::register(registry),
            stop: lifecycle.token(),
        };
        lifecycle.spawn("alerts", alerts.run());
        let guard = Guard::new(keys, Arc::clone(&store), audit, api_meters);
        let (bell, rung) = dispatch::bell();
        let (outbox, inbox) = inbox();
        let sides = Sides::new(meters.overflows.clone());
        // The broker goes last: acknowledgements of the final commit travel through it.
        let leave = CancellationToken::new();
        let (broker, connection) = Broker::connect(
            config.broker,
            outbox,
            sides.clone(),
            IntakeMeters::register(registry),
            health.component("bridge-broker"),
            leave.clone(),
        );
        sides.answer_through(broker.clone(), clock.clone());
        let (direct, asked) = direct(config.bounds, clock.clone(), meters.clone());
        let ingest = Ingest {
            store: Arc::clone(&store),
            clock: clock.clone(),
            broker: broker.clone(),
            messages: inbox,
            sides,
            direct: asked,
            bounds: config.bounds,
            pipeline: config.pipeline,
            meters: meters.clone(),
            watch,
            counters: Arc::clone(&counters),
            commits: Arc::default(),
            bell: bell.clone(),
            drain: lifecycle.token(),
        };
        let closing = Arc::clone(&store);
        let stopping = lifecycle.clone();
        lifecycle.spawn("ingest", async move {
            let draining = async {
                stopping.stopping().await;
                tokio::time::sleep(DRAIN).await;
            };
            let outcome = tokio::select! {
                outcome = ingest.run() => outcome,
                // The database does not take it now: the devices still have it.
                () = draining => Ok(()),
            };
            leave.cancel();
            closing.close().await;
            outcome
        });
        lifecycle.spawn("broker-link", async move {
            connection.run().await;
            Ok(())
        });
        let dispatch = Dispatch {
            store: Arc::clone(&store),
            clock: clock.clone(),
            broker: broker.clone(),
            meters: meters.clone(),
            rung,
            rate: Rate::new(config.commands_per_second),
            stop: lifecycle.token(),
        };
        lifecycle.spawn("commands", dispatch.run());
        let said = broker.clone();
        let upkeep = Upkeep {
            store: Arc::clone(&store),
            clock,
            broker,
            meters,
            gap_age: config.gap_age,
            keep: config.retention,
            retention: config.retention.filter(|_| !drops_by_itself),
            stop: lifecycle.token(),
        };
        lifecycle.spawn("upkeep", upkeep.run());
        info!(http = %http_addr, "bridge started");
        Ok(Running {
            http_addr,
            listener,
            store,
            counters,
            retention: Retention {
                keep: config.retention,
                is_counted: !drops_by_itself,
            },
            bell,
            guard,
            broker: said,
            database: config.database.to_string(),
            tls,
            cors_origins,
            direct,
        })
    }
}

impl Running {
    /// Where the API is served.
    #[must_use]
    pub const fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// A handle that tells what the bridge has done so far.
    pub fn counters(&self) -> impl Fn() -> Counters + Send + Sync + 'static {
        let counters = Arc::clone(&self.counters);
        move || *counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the API with the admin endpoints of the whole process, until the lifecycle stops.
    pub fn serve(self, registry: Arc<Registry>, health: Health, lifecycle: &Lifecycle) {
        let api = Api {
            store: self.store,
            retention: self.retention,
            bell: self.bell,
            direct: self.direct,
            guard: self.guard,
            host: Host {
                broker: self.broker,
                database: self.database,
                health: health.clone(),
            },
            cors_origins: self.cors_origins,
        };
        let router = api.router().merge(admin::router(registry, health));
        lifecycle.spawn(
            "http",
            http::serve(self.listener, router, self.tls, lifecycle.clone()),
        );
    }
}

/// Opens the database, and migrates it if so configured.
async fn open(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    let what = || format!("open the database {}", config.database);
    let store = config
        .database
        .open()
        .await
        .map_err(|error| error.into_failure(what()))?;
    if config.migrate {
        let applied = store.migrate().await.map_err(|error| {
            error.into_failure(format!("migrate the database {}", config.database))
        })?;
        for migration in applied {
            info!(
                version = migration.version,
                migration.description, "migrated"
            );
        }
    }
    store
        .check()
        .await
        .map_err(|error| error.into_failure(what()))?;
    store.clock().set_machine_offset_ms(config.clock_offset_ms);
    timekeeper::first(&*store)
        .await
        .map_err(|error| error.into_failure(what()))?;
    Ok(store)
}
