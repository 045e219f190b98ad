//! `tideline up`: broker, bridge and an agent for this host in one process, on one folder.
//!
//! Each part runs under a lifecycle of its own, so that they stop in the direction of flow: the
//! agent drains, then the bridge commits what is left, then the broker goes. What the ledger says
//! at the end is read from the database, after everything that writes to it has stopped.

mod data_dir;
mod live;
mod summary;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use certs::Folder;
use certs::set::MachineSet;
use clap::Args;
use daemon::{Class, Failure, Health, Lifecycle, lifecycle, logs, stdout};
use edge_agent::Status;
use edge_agent::source::host::HostSource;
use prometheus_client::registry::Registry;
use schema::{DeviceId, DiscardedBy};
use store::location::Location;
use store::{EpochRecord, Store, StoreError};

use crate::session::verdict;
use data_dir::{DataDir, Endpoints};
use live::Live;
use summary::{Rows, Summary};

/// How long the agent may take to deliver what it has when `up` ends. With the parts' own stops
/// an interrupt is done within five seconds.
const DRAIN: Duration = Duration::from_millis(2_500);

/// How long each part may take to stop after that.
const GRACE: Duration = Duration::from_secs(2);

/// Runs all of Tideline on this machine.
#[derive(Debug, Args)]
#[command(
    after_help = "Stop it with Ctrl-C: it drains and says whether every reading is accounted for.\n\n\
                        Look in:  curl http://127.0.0.1:8080/api/v1/devices\n\
                        Watch:    mosquitto_sub with the observer's certificate, piped into `tideline decode`"
)]
pub struct Options {
    /// Folder for certificates, buffer and store
    #[arg(long, default_value = "tideline-data")]
    data_dir: PathBuf,
    /// Address of the REST API; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Ask callers of the API for tokens also when it is served to this machine alone
    #[arg(long)]
    require_tokens: bool,
    /// Address of the broker; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8883")]
    mqtt: SocketAddr,
    /// CockroachDB or PostgreSQL by URL, instead of a file in the data folder
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Device id of this machine; its host name when left out
    #[arg(long)]
    device: Option<DeviceId>,
    /// Time between two scans of this machine's sensors
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Stop by itself after this time, as in 20s
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    run_for: Option<Duration>,
    /// Print nothing but a summary at the end, as JSON
    #[arg(long)]
    json: bool,
    /// What to log on standard error
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
}

/// Runs until a signal, the given time, or a failure of a part.
///
/// # Errors
/// A [`Failure`] of any part.
pub fn run(options: Options) -> Result<ExitCode, Failure> {
    logs::start(logs::Format::Text, &options.log)?;
    let summary = lifecycle::runtime(None)?.block_on(serve(&options))?;
    if options.json {
        let text = serde_json::to_string(&summary)
            .map_err(|error| Failure::new(Class::Data, "print the summary").because(error))?;
        stdout::try_print(&text)?;
    } else {
        stdout::try_print(&summary.to_string())?;
    }
    Ok(verdict(summary.is_well()))
}

async fn serve(options: &Options) -> Result<Summary, Failure> {
    let data = DataDir::open(&options.data_dir)?;
    let device = match &options.device {
        Some(device) => device.clone(),
        None => device_of(sysinfo::System::host_name()),
    };
    let database = match &options.database {
        Some(url) => Location::parse(url),
        None => Ok(Location::Embedded(data.store())),
    }
    .map_err(|error| error.into_failure("use --database"))?;
    let certs = MachineSet::ensure(
        &Folder::new(data.certs()),
        &device,
        &hosts(options.mqtt.ip()),
    )?;

    let mut registry = Registry::default();
    let health = Health::default();
    let parts = Parts::default();

    let mut broker_config = broker::Config::new(options.mqtt, certs.server.clone());
    broker_config.crl = Some(certs.crl.clone());
    let broker =
        broker::Broker::start(broker_config, &parts.broker, &health, &mut registry).await?;
    let (host, port) = dial(broker.mqtt_addr);

    let mut bridge_config =
        bridge::Config::new(host.clone(), port, certs.bridge.clone(), "bridge", database);
    bridge_config.http.address = options.http;
    if options.require_tokens || !options.http.ip().is_loopback() {
        bridge_config.http.keys = Some(data.token_keys()?);
    }
    let token_keys = bridge_config.http.keys.clone();
    let bridge =
        bridge::Bridge::start(bridge_config, &parts.bridge, &health, &mut registry).await?;
    let (store, counters) = (bridge.store(), bridge.counters());
    let http = bridge.http_addr();

    let mut agent_config =
        edge_agent::Config::new(host, port, certs.device.clone(), data.buffer())?;
    // One machine, watched by a person: what arrives should show at once.
    agent_config.session.report_interval = Duration::from_secs(5);
    let host = HostSource::default().every(options.interval);
    agent_config.sources.push(host);
    let agent =
        edge_agent::Agent::start(agent_config, &parts.agent, &health, &mut registry).await?;
    bridge.serve(Arc::new(registry), health, &parts.bridge);

    let endpoints = Endpoints {
        device: &device,
        http: format!("http://{http}"),
        mqtt: broker.mqtt_addr,
        ca: &certs.observer.ca,
        observer_cert: &certs.observer.cert,
        observer_key: &certs.observer.key,
        token_keys: token_keys.as_deref(),
    };
    data.publish(&endpoints)?;
    let mut live = Live::start(options.json, &device, &endpoints);
    let ended = parts
        .until_stopped(options.run_for, || live.tell(&agent.status(), &counters()))
        .await;
    live.end();

    // In the direction of flow, whatever ended the run.
    agent.drain(DRAIN).await;
    let last_word = agent.status();
    let agent_stopped = parts.agent.finish(GRACE).await;
    let summary = match &ended {
        Ok(()) => Some(summarise(&store, &last_word).await),
        Err(_) => None,
    };
    let bridge_stopped = parts.bridge.finish(GRACE).await;
    let broker_stopped = parts.broker.finish(GRACE).await;
    data.withdraw();
    ended?;
    agent_stopped?;
    bridge_stopped?;
    broker_stopped?;
    match summary {
        Some(Ok(summary)) => Ok(summary),
        Some(Err(error)) => Err(error.into_failure("read the ledger")),
        None => Err(Failure::new(Class::Data, "summarise the run")),
    }
}

/// One lifecycle for each part.
#[derive(Debug, Default)]
struct Parts {
    agent: Lifecycle,
    bridge: Lifecycle,
    broker: Lifecycle,
}

impl Parts {
    /// Runs until a signal, the given time, or the end of a part; calls `tell` every second.
    async fn until_stopped(
        &self,
        run_for: Option<Duration>,
        mut tell: impl FnMut(),
    ) -> Result<(), Failure> {
        let time_is_up = async {
            match run_for {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let telling = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                tell();
            }
        };
        tokio::select! {
            outcome = lifecycle::signalled() => outcome,
            () = time_is_up => Ok(()),
            () = telling => Ok(()),
            () = self.agent.stopping() => self.agent.finish(GRACE).await,
            () = self.bridge.stopping() => self.bridge.finish(GRACE).await,
            () = self.broker.stopping() => self.broker.finish(GRACE).await,
        }
    }
}

/// What both ends say, once the agent is gone. The database knows the fleet by the devices' last
/// reports; this agent's own last word is newer, and takes the place of its report.
async fn summarise(store: &Arc<dyn Store>, agent: &Status) -> Result<Summary, StoreError> {
    let fleet = store.fleet_ledger().await?;
    let ledger = store.ledger(&agent.device).await?;
    let record = ledger
        .epochs
        .iter()
        .find(|record| record.epoch == agent.epoch);
    let reported = record.map(EpochRecord::settle).unwrap_or_default();
    let own = record
        .map(|record| record.ledger.clone())
        .unwrap_or_default();
    let own = own.settle(agent.current.accepted, agent.current.held());
    let mut balance = fleet.balance;
    // In place of the report's; of what is pending there may be less by now.
    let replaced = |all: u64, reported: u64, own: u64| (all + own).saturating_sub(reported);
    let (old, new) = (reported.balance, own.balance);
    balance.accepted = replaced(balance.accepted, old.accepted, new.accepted);
    balance.pending = replaced(balance.pending, old.pending, new.pending);
    let unaccounted = fleet.unaccounted.saturating_sub(reported.unaccounted) + own.unaccounted;
    let mut summary = Summary::new(balance, fleet.devices.max(1), unaccounted);
    summary.rows = Rows {
        rows: balance
            .committed
            .saturating_sub(fleet.superseded + fleet.expired),
        superseded: fleet.superseded,
        expired: fleet.expired,
    };
    for (reason, readings) in fleet.quarantined {
        summary.exceptions.quarantine(reason.as_str(), readings);
    }
    for (by, readings) in fleet.discarded {
        let by = by.map_or("older_agent", DiscardedBy::as_str);
        summary.exceptions.discard(by, readings);
    }
    Ok(summary)
}

/// The host name as a device id: what does not fit becomes a hyphen.
fn device_of(host: Option<String>) -> DeviceId {
    let name: String = host
        .unwrap_or_default()
        .chars()
        .take(schema::limits::DEVICE_ID_CHARS_MAX)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => c,
            _ => '-',
        })
        .collect();
    name.parse()
        .unwrap_or_else(|_| "this-host".parse().expect("a fixed name is an identity"))
}

/// The names that the broker's certificate must hold.
fn hosts(mqtt: IpAddr) -> Vec<String> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if !mqtt.is_unspecified() && !mqtt.is_loopback() {
        hosts.push(mqtt.to_string());
    }
    if let Some(name) = sysinfo::System::host_name()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
        && !hosts.contains(&name)
    {
        hosts.push(name);
    }
    hosts
}

/// How to reach an address that is listened on.
fn dial(listening: SocketAddr) -> (String, u16) {
    let host = if listening.ip().is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        listening.ip().to_string()
    };
    (host, listening.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_device_id() {
        let id = |name: &str| device_of(Some(name.to_owned())).to_string();
        assert_eq!(id("press-7.plant"), "press-7.plant");
        assert_eq!(id("büro pc"), "b-ro-pc");
        assert_eq!(id(""), "this-host");
        assert_eq!(id(&"x".repeat(99)).len(), 64);
        assert_eq!(device_of(None).as_str(), "this-host");
    }

    #[test]
    fn an_address_for_all_is_dialled_on_the_loopback() {
        let dialled = |text: &str| dial(text.parse().unwrap());
        assert_eq!(dialled("0.0.0.0:8883"), ("127.0.0.1".to_owned(), 8883));
        assert_eq!(dialled("127.0.0.1:1"), ("127.0.0.1".to_owned(), 1));
    }
}
