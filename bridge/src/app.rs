//! The bridge put together: store, broker, data path and API; how it starts, drains and stops.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::{Clock, Failure, Health, Lifecycle, SystemClock, admin};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api;
use crate::api::Changes;
use crate::config::Config;
use crate::dispatch::{self, Bell, Dispatch};
use crate::ingest::{Counters, Ingest};
use crate::intake::{Broker, inbox};
use crate::metrics::{IngestMeters, IntakeMeters, StoreCollector};
use crate::store::Store;
use crate::upkeep::Upkeep;

/// How long what is in hand may take to reach the database when the bridge stops. What does not
/// make it is sent again by its devices.
const DRAIN: Duration = Duration::from_secs(3);

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
    retention: Option<Duration>,
    bell: Bell,
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
        let listener = admin::bind(config.http).await?;
        let http_addr = listener.local_addr().map_err(|error| {
            Failure::new(daemon::Class::Network, "read the HTTP address").because(error)
        })?;
        let store = open(&config).await?;
        let drops_by_itself = store
            .set_retention(config.retention)
            .await
            .map_err(|error| error.into_failure("tell the database how long to keep readings"))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let counters = Arc::new(Mutex::new(Counters::default()));
        let meters = IngestMeters::register(registry);
        registry.register_collector(Box::new(StoreCollector(Arc::clone(&store))));
        let (bell, rung) = dispatch::bell();
        let (outbox, inbox) = inbox();
        // The broker goes last: acknowledgements of the final commit travel through it.
        let leave = CancellationToken::new();
        let (broker, connection) = Broker::connect(
            config.broker,
            Arc::clone(&clock),
            outbox,
            IntakeMeters::register(registry),
            health.component("bridge-broker"),
            leave.clone(),
        );
        let ingest = Ingest {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            broker: broker.clone(),
            messages: inbox,
            bounds: config.bounds,
            pipeline: config.pipeline,
            meters: meters.clone(),
            health: health.component("bridge-database"),
            counters: Arc::clone(&counters),
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
            clock: Arc::clone(&clock),
            broker: broker.clone(),
            meters: meters.clone(),
            rung,
            stop: lifecycle.token(),
        };
        lifecycle.spawn("commands", dispatch.run());
        let upkeep = Upkeep {
            store: Arc::clone(&store),
            clock,
            broker,
            meters,
            gap_age: config.gap_age,
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
            retention: config.retention,
            bell,
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
        let changes = Changes {
            are_local: self.http_addr.ip().is_loopback(),
            bell: self.bell,
        };
        let router =
            api::router(self.store, self.retention, changes).merge(admin::router(registry, health));
        lifecycle.spawn(
            "http",
            admin::serve(self.listener, router, lifecycle.clone()),
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
    Ok(store)
}
