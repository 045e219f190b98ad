//! Composition root: routers, shards, the listener, and what watches the TLS files.
//!
//! Stop: the listener closes and every connection with it, then the shards' tasks end. Router
//! threads sleep on until the process ends; rumqttd gives them no stop.

use std::net::SocketAddr;
use std::sync::Arc;

use daemon::{Class, Component, Failure, Health, Lifecycle};
use prometheus_client::registry::Registry;
use tracing::info;

use crate::config::{Config, Limits};
use crate::listener;
use crate::meters::ConnectionMeters;
use crate::pulse::Pulse;
use crate::reload::Tls;
use crate::retained::RetainedRoom;
use crate::router::{Gone, Router, RouterLimits};
use crate::shard::{Shard, ShardMeters, Workers};
use crate::shared::Core;

/// Links of one router: two of its shard, one that asks whether it is well, and of each service one, one that leaves while shards
/// change hands, and one whose going the router has not yet noticed.
const fn links_max(limits: &Limits) -> usize {
    3 + 3 * limits.services_max
}

/// The broker.
#[derive(Debug)]
pub struct Broker;

/// A broker that runs.
#[derive(Debug, Clone, Copy)]
pub struct RunningBroker {
    /// Where MQTT listens, with the port that was chosen.
    pub mqtt_addr: SocketAddr,
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
    ) -> Result<RunningBroker, Failure> {
        let listening = health.component("broker-listener");
        let routers_health = health.component("broker-routers");
        let Config {
            address,
            tls,
            crl,
            routers,
            limits,
            timeouts,
        } = config;
        let tls = Arc::new(Tls::read(tls, crl, registry)?);
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
            ShardMeters::register(registry),
            routers_health,
        );
        let (workers, pulse) = opened.await?;
        let stopping = lifecycle.token();
        let core = Arc::new(Core::new(
            workers.iter().map(Workers::shard).collect(),
            Arc::clone(&tls),
            ConnectionMeters::register(registry),
            (limits, timeouts),
            stopping.clone(),
        ));
        for workers in workers {
            lifecycle.spawn("broker-shard", workers.run(stopping.clone()));
        }
        let seats = Arc::clone(&core.seats);
        let watch = tls.watch(timeouts.reload, seats, stopping);
        lifecycle.spawn("broker-tls-files", watch);
        lifecycle.spawn("broker-pulse", pulse.run(lifecycle.token()));
        lifecycle.spawn(
            "broker-listener",
            listener::listen(core, listener, listening),
        );
        info!(%mqtt_addr, routers = routers.count, "MQTT over TLS 1.3");
        Ok(RunningBroker { mqtt_addr })
    }
}

async fn open_shards(
    count: usize,
    limits: RouterLimits,
    room: Arc<RetainedRoom>,
    meters: ShardMeters,
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
