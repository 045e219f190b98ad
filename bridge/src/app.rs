//! The bridge put together: store, broker, data path and API; how it starts, drains and stops.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderValue;
use daemon::{Class, Failure, Health, Lifecycle, admin, http, lock};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use store::{FleetBooks, Readers, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::alert::{AlertMeters, Alerts};
use crate::audit::{self, Audit};
use crate::auth::{AuthMeters, KeyFolder};
use crate::config::{Config, Http};
use crate::direct::{Direct, direct};
use crate::dispatch::{self, Dispatch, DispatchMeters, Notifications, Notifier, Rate};
use crate::http::{Api, Guard, Host, Retention};
use crate::ingest::{AckPublisher, Counters, Ingest, IngestMeters, Persistence, Sides};
use crate::intake::{Broker, IntakeMeters, inbox};
use crate::rollups::{RollupMeters, Rollups};
use crate::store_collector::StoreCollector;
use crate::timekeeper::{self, Timekeeper};
use crate::upkeep::{Upkeep, UpkeepMeters};
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
pub struct RunningBridge {
    door: Door,
    store: Arc<dyn Store>,
    counters: Arc<Mutex<Counters>>,
    retention: Retention,
    notifier: Notifier,
    guard: Guard,
    broker: Broker,
    database: String,
    direct: Direct,
}

/// Where the API is served, and to whom; nobody is let in yet.
#[derive(Debug)]
struct Door {
    address: SocketAddr,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    cors_origins: Vec<HeaderValue>,
}

/// What the tasks of a bridge are started with.
struct Parts<'a> {
    config: Config,
    store: Arc<dyn Store>,
    retention: Retention,
    books: Arc<tokio::sync::Mutex<FleetBooks>>,
    lifecycle: &'a Lifecycle,
    health: &'a Health,
    registry: &'a mut Registry,
}

/// The ends of the data path that others hold.
struct DataPath {
    broker: Broker,
    acks: AckPublisher,
    direct: Direct,
    counters: Arc<Mutex<Counters>>,
}

impl Bridge {
    /// Opens the database, brings its schema up to date, and connects to the broker. The API is
    /// bound, and served once [`RunningBridge::serve`] is called with the metrics of the process.
    ///
    /// # Errors
    /// A [`Failure`] when the database or the HTTP address cannot be had. A broker that cannot be
    /// reached is none: the bridge keeps trying.
    pub async fn start(
        config: Config,
        lifecycle: &Lifecycle,
        health: &Health,
        registry: &mut Registry,
    ) -> Result<RunningBridge, Failure> {
        certs::tls::install_crypto_provider();
        let (door, keys) = Door::open(config.http.clone()).await?;
        let store = open(&config).await?;
        let retention = set_bounds(&*store, &config).await?;
        let collector = StoreCollector(Arc::clone(&store));
        registry.register_collector(Box::new(collector));
        let mut parts = Parts {
            config,
            store,
            retention,
            books: Arc::default(),
            lifecycle,
            health,
            registry,
        };
        parts.keep_time();
        let audit = parts.audit();
        let watch = parts.watch_database();
        parts.look_for_alerts(&watch);
        let meters = AuthMeters::register(parts.registry);
        let guard = Guard::new(keys, parts.read_by(Readers::Access), audit, meters);
        let (notifier, notifications) = dispatch::notifier();
        let path = parts.carry(watch, notifier.clone());
        parts.dispatch(path.broker.clone(), notifications);
        parts.keep_up(path.acks);
        parts.roll_up();
        info!(http = %door.address, "bridge started");
        Ok(RunningBridge {
            door,
            counters: path.counters,
            retention,
            notifier,
            guard,
            broker: path.broker,
            database: parts.config.database.to_string(),
            direct: path.direct,
            store: parts.store,
        })
    }
}

impl Door {
    /// Binds the address, and opens the keys that callers' tokens are checked with.
    async fn open(settings: Http) -> Result<(Self, Option<KeyFolder>), Failure> {
        let Http {
            address,
            tls,
            keys,
            cors_origins,
        } = settings;
        let keys = keys.map(KeyFolder::open).transpose().map_err(|error| {
            Failure::new(Class::Configuration, "read the keys of tokens").because(error)
        })?;
        let tls =
            tls.map(|files| certs::tls::server_config_without_client_auth(&files.cert, &files.key));
        let tls = tls.transpose()?.map(Arc::new);
        let listener = http::bind(address).await?;
        let address = listener.local_addr().map_err(|error| {
            Failure::new(Class::Network, "read the HTTP address").because(error)
        })?;
        let door = Self {
            address,
            listener,
            tls,
            cors_origins,
        };
        Ok((door, keys))
    }
}

/// One step of the start each: a task, or what belongs together. The order is that of [`Bridge::start`].
impl Parts<'_> {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    fn read_by(&self, readers: Readers) -> Arc<dyn Store> {
        self.store().read_by(readers)
    }

    fn keep_time(&self) {
        let timekeeper = Timekeeper {
            store: self.store(),
            health: self.health.component("bridge-clock"),
            stop: self.lifecycle.token(),
        };
        self.lifecycle.spawn("clock", timekeeper.run());
    }

    fn audit(&mut self) -> Audit {
        let stop = self.lifecycle.token();
        let (audit, writer) = audit::audit(self.store(), stop, self.registry);
        self.lifecycle.spawn("audit", writer.run());
        audit
    }

    fn watch_database(&self) -> DatabaseWatch {
        let watch = DatabaseWatch::new(self.health.component("bridge-database"));
        self.lifecycle.spawn(
            "database-watch",
            watch.clone().run(self.store(), self.lifecycle.token()),
        );
        watch
    }

    fn look_for_alerts(&mut self, watch: &DatabaseWatch) {
        let alerts = Alerts {
            store: self.read_by(Readers::Upkeep),
            watch: watch.clone(),
            bounds: self.config.alerts,
            books: Arc::clone(&self.books),
            meters: AlertMeters::register(self.registry),
            stop: self.lifecycle.token(),
        };
        self.lifecycle.spawn("alerts", alerts.run());
    }

    /// The data path: from the broker, and from callers over HTTP, into the database.
    fn carry(&mut self, watch: DatabaseWatch, notifier: Notifier) -> DataPath {
        let counters = Arc::new(Mutex::new(Counters::default()));
        let (outbox, inbox) = inbox();
        let sides = Sides::new(self.registry);
        // The broker goes last: acknowledgements of the final commit travel through it.
        let leave = CancellationToken::new();
        let (broker, connection) = Broker::connect(
            self.config.broker.clone(),
            outbox,
            sides.clone(),
            IntakeMeters::register(self.registry),
            self.health.component("bridge-broker"),
            leave.clone(),
        );
        let clock = self.store.clock();
        sides.answer_through(broker.clone(), clock.clone());
        let acks = AckPublisher::register(broker.clone(), clock.clone(), self.registry);
        let (direct, requests) = direct(self.config.bounds, clock.clone(), self.registry);
        let ingest = Ingest {
            store: self.store(),
            broker: broker.clone(),
            messages: inbox,
            sides,
            direct: requests,
            bounds: self.config.bounds,
            pipeline: self.config.pipeline,
            acks: acks.clone(),
            meters: IngestMeters::register(self.registry),
            persistence: Persistence::register(watch, self.registry),
            counters: Arc::clone(&counters),
            notifier,
            drain: self.lifecycle.token(),
        };
        self.ingest(ingest, leave);
        self.lifecycle.spawn("broker-link", async move {
            connection.run().await;
            Ok(())
        });
        DataPath {
            broker,
            acks,
            direct,
            counters,
        }
    }

    /// Runs until what is in hand is written, or [`DRAIN`] is over; then the broker's connection and the database go.
    fn ingest(&self, ingest: Ingest, leave: CancellationToken) {
        let closing = self.store();
        let stopping = self.lifecycle.clone();
        self.lifecycle.spawn("ingest", async move {
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
    }

    fn dispatch(&mut self, broker: Broker, notifications: Notifications) {
        let dispatch = Dispatch {
            sender: dispatch::Sender {
                store: self.store(),
                broker,
                meters: DispatchMeters::register(self.registry),
                rate: Rate::new(self.config.commands_per_second),
            },
            notifications,
            stop: self.lifecycle.token(),
        };
        self.lifecycle.spawn("commands", dispatch.run());
    }

    fn keep_up(&mut self, acks: AckPublisher) {
        let keep = self.retention.keep;
        let upkeep = Upkeep {
            store: self.read_by(Readers::Upkeep),
            acks,
            books: Arc::clone(&self.books),
            meters: UpkeepMeters::register(self.registry),
            gap_age: self.config.gap_age,
            keep,
            retention: keep.filter(|_| self.retention.is_counted),
            stop: self.lifecycle.token(),
        };
        self.lifecycle.spawn("upkeep", upkeep.run());
    }

    fn roll_up(&mut self) {
        let meters = RollupMeters::register(self.registry);
        if !self.config.rollups {
            return;
        }
        let rollups = Rollups {
            store: self.read_by(Readers::Upkeep),
            meters,
            stop: self.lifecycle.token(),
        };
        self.lifecycle.spawn("rollups", rollups.run());
    }
}

impl RunningBridge {
    /// Where the API is served.
    #[must_use]
    pub const fn http_addr(&self) -> SocketAddr {
        self.door.address
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// A function that returns what the bridge has done so far.
    pub fn counters(&self) -> impl Fn() -> Counters + Send + Sync + 'static {
        let counters = Arc::clone(&self.counters);
        move || *lock(&counters)
    }

    /// Serves the API with the admin endpoints of the whole process, until the lifecycle stops.
    pub fn serve(self, registry: Arc<Registry>, health: Health, lifecycle: &Lifecycle) {
        let api = Api {
            store: self.store.read_by(Readers::Api),
            retention: self.retention,
            notifier: self.notifier,
            direct: self.direct,
            guard: self.guard,
            host: Host {
                broker: self.broker,
                database: self.database,
                health: health.clone(),
            },
            cors_origins: self.door.cors_origins,
        };
        let router = api.router().merge(admin::router(registry, health));
        lifecycle.spawn(
            "http",
            http::serve(self.door.listener, router, self.door.tls, lifecycle.clone()),
        );
    }
}

/// Tells the database how long to keep readings and how much aside, and how long a device may be silent.
async fn set_bounds(store: &dyn Store, config: &Config) -> Result<Retention, Failure> {
    let drops_by_itself = store
        .set_retention(config.retention)
        .await
        .map_err(|error| error.into_failure("tell the database how long to keep readings"))?;
    store.set_offline_after(config.alerts.offline_after);
    store.set_quotas(config.quotas);
    if config.alerts.offline_after < SILENCE_EXPECTED {
        warn!(
            offline_after = ?config.alerts.offline_after,
            "idle devices report once a minute unless set otherwise: they will be shown offline now and then"
        );
    }
    Ok(Retention {
        keep: config.retention,
        is_counted: !drops_by_itself,
    })
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
