//! Composition root: routers, shards, the listener, and what watches the TLS files.
//!
//! Stop: the listener closes and every connection with it, then the shards' tasks end. Router
//! threads sleep on until the process ends; rumqttd gives them no stop.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use certs::{Identity, Role};
use daemon::{Class, Component, Failure, Health, Lifecycle};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{Config, Limits, Timeouts};
use crate::error::Refusal;
use crate::listener;
use crate::meters::Meters;
use crate::pulse::Pulse;
use crate::reload::Tls;
use crate::retained::RetainedRoom;
use crate::router::{Gone, Router, RouterLimits};
use crate::seats::Seats;
use crate::shard::{Shard, Workers, shard_of};
use crate::shares::Shares;
use crate::wills::Will;

/// Links of one router: two of its shard, one that asks whether it is well, and of each service one, one that leaves while shards
/// change hands, and one whose going the router has not yet noticed.
const fn links_max(limits: &Limits) -> usize {
    3 + 3 * limits.services_max
}

/// Warnings a second about clients that misbehave; the rest is counted only.
const WARNINGS_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).expect("a constant above zero");

/// How long a will may wait for a shard that is full.
const WILL_PATIENCE: Duration = Duration::from_secs(5);

/// The broker.
#[derive(Debug)]
pub struct Broker;

/// A broker that runs.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Where MQTT listens, with the port that was chosen.
    pub mqtt_addr: SocketAddr,
}

/// What all connections share.
pub(crate) struct Core {
    pub(crate) shards: Arc<[Arc<Shard>]>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) shares: Shares,
    pub(crate) tls: Arc<Tls>,
    pub(crate) meters: Meters,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) stopping: CancellationToken,
    /// Connections and lanes.
    pub(crate) tracker: TaskTracker,
    devices: Arc<Semaphore>,
    services: Arc<Semaphore>,
    numbers: AtomicU64,
    warnings: DefaultDirectRateLimiter,
}

impl Broker {
    /// Starts a broker under a lifecycle. It serves when this returns.
    ///
    /// # Errors
    /// A [`Failure`] that names the file that cannot be used or the address that is taken.
    pub async fn start(
        config: Config,
        lifecycle: &Lifecycle,
        health: &Health,
        registry: &mut Registry,
    ) -> Result<Running, Failure> {
        let listening = health.component("broker-listener");
        let routers_health = health.component("broker-routers");
        let meters = Meters::register(registry);
        let Config {
            address,
            tls,
            crl,
            routers,
            limits,
            timeouts,
        } = config;
        let tls = Arc::new(Tls::read(tls, crl)?);
        listener::allow_sockets(&limits);
        let listener = listener::bind(address)?;
        let mqtt_addr = listener.local_addr().map_err(|error| {
            Failure::new(Class::Network, format!("listen for MQTT on {address}")).because(error)
        })?;
        let router_limits = RouterLimits {
            links_max: links_max(&limits),
            backlog_bytes: routers.backlog_bytes / routers.count.max(1),
        };
        let room = Arc::new(RetainedRoom::new(limits.retained_bytes_max));
        let opened = open_shards(
            routers.count,
            router_limits,
            room,
            meters.clone(),
            routers_health,
        );
        let (workers, pulse) = opened.await?;
        let stopping = lifecycle.token();
        let core = Arc::new(Core {
            shards: workers.iter().map(Workers::shard).collect(),
            seats: Arc::default(),
            shares: Shares::new(routers.count),
            tls: Arc::clone(&tls),
            meters: meters.clone(),
            limits,
            timeouts,
            stopping: stopping.clone(),
            tracker: TaskTracker::new(),
            devices: Arc::new(Semaphore::new(limits.devices_max)),
            services: Arc::new(Semaphore::new(limits.services_max)),
            numbers: AtomicU64::new(1),
            warnings: RateLimiter::direct(Quota::per_second(WARNINGS_PER_SECOND)),
        });
        for workers in workers {
            lifecycle.spawn("broker-shard", workers.run(stopping.clone()));
        }
        let seats = Arc::clone(&core.seats);
        let watch = tls.watch(timeouts.reload, seats, meters, stopping);
        lifecycle.spawn("broker-tls-files", watch);
        lifecycle.spawn("broker-pulse", pulse.run(lifecycle.token()));
        lifecycle.spawn(
            "broker-listener",
            listener::listen(core, listener, listening),
        );
        info!(%mqtt_addr, routers = routers.count, "MQTT over TLS 1.3");
        Ok(Running { mqtt_addr })
    }
}

async fn open_shards(
    count: usize,
    limits: RouterLimits,
    room: Arc<RetainedRoom>,
    meters: Meters,
    health: Component,
) -> Result<(Vec<Workers>, Pulse), Failure> {
    let open = move || -> Result<(Vec<Workers>, Pulse), Gone> {
        let routers: Vec<Arc<Router>> = (0..count).map(|at| Router::spawn(at, limits)).collect();
        let pulse = Pulse::open(&routers, health)?;
        let opened = routers
            .into_iter()
            .map(|router| Shard::open(router, Arc::clone(&room), meters.clone()));
        Ok((opened.collect::<Result<_, _>>()?, pulse))
    };
    let failure = || Failure::new(Class::Overload, "start the routers");
    tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| failure().because(error))?
        .map_err(|gone| failure().because(gone))
}

impl Core {
    /// A number that no connection had before.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A place for another connection of a role, if there is one.
    pub(crate) fn room(&self, role: Role) -> Option<OwnedSemaphorePermit> {
        let room = match role {
            Role::Device => &self.devices,
            Role::Bridge | Role::Observer | Role::Server => &self.services,
        };
        Arc::clone(room).try_acquire_owned().ok()
    }

    /// Whether another warning about a client may be logged.
    pub(crate) fn may_log(&self) -> bool {
        self.warnings.check().is_ok()
    }

    /// Counts a refusal, and logs what came of it unless there are too many.
    pub(crate) fn note_refusal(
        &self,
        identity: &Identity,
        refusal: Refusal,
        outcome: &'static str,
    ) {
        self.meters.refused(refusal);
        if self.may_log() {
            let Identity { name, role } = identity;
            warn!(%name, %role, reason = %refusal, "{outcome}");
        }
    }

    /// Publishes the will of a client that went without a goodbye.
    pub(crate) async fn leave_will(&self, will: Will) {
        let submission = will.submission();
        let shard = shard_of(submission.topic.device.as_str(), self.shards.len());
        let accepted = self.shards[shard].accept(submission);
        if let Ok(Ok(())) = tokio::time::timeout(WILL_PATIENCE, accepted).await {
            self.meters.wills.inc();
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}
