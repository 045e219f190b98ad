//! The devices of a run: their certificates, and when each comes online.

use std::sync::Arc;
use std::time::Duration;

use certs::set::ensure_devices;
use certs::{Folder, TlsFiles};
use daemon::{Class, Failure};
use edge_agent::link::LinkConfig;
use schema::{BrokerAddress, DeviceId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::simulated::{Load, simulate};
use super::tally::Tally;

const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A fleet that is cut off comes back spread over seconds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What a fleet is made of.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) broker: BrokerAddress,
    pub(super) devices: usize,
    pub(super) prefix: String,
    pub(super) sensors: usize,
    pub(super) scan_every: Duration,
    /// Scans of a hundred that repeat the time of the one before.
    pub(super) repeats: u8,
    pub(super) buffer_rows: usize,
    pub(super) connect_every: Duration,
}

/// Devices that can start.
#[derive(Debug)]
pub(super) struct Fleet {
    plan: Plan,
    members: Vec<(DeviceId, TlsFiles)>,
}

/// Devices that have started, or will in a moment.
#[derive(Debug)]
pub(super) struct Started {
    tracker: TaskTracker,
    ramp: Duration,
}

impl Fleet {
    /// Finds or issues a certificate for each device. `progress` is called with how many are done.
    pub(super) fn prepare(
        folder: &Folder,
        plan: Plan,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, Failure> {
        let ids = (0..plan.devices)
            .map(|number| device_id(&plan.prefix, number))
            .collect::<Result<Vec<_>, _>>()?;
        let mut members = Vec::with_capacity(ids.len());
        let ensured = ensure_devices(folder, &ids, |files| {
            members.push((ids[members.len()].clone(), files));
            progress(members.len(), ids.len());
        });
        ensured.map_err(|error| {
            Failure::new(error.class(), "get certificates for the devices")
                .because(error)
                .help("give the folder of `certs init` or of `tideline up` with --certs")
        })?;
        Ok(Self { plan, members })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Starts the devices one after the other. They scan until `quiet`, and go at `stop`.
    pub(super) fn start(
        self,
        tally: &Arc<Tally>,
        quiet: &CancellationToken,
        stop: &CancellationToken,
    ) -> Started {
        let Self { plan, members } = self;
        let tracker = TaskTracker::new();
        let mut ramp = Duration::ZERO;
        for (device, tls) in members {
            let load = Load {
                link: LinkConfig {
                    keep_alive: KEEP_ALIVE,
                    backoff: BACKOFF,
                    ..LinkConfig::new(plan.broker.clone(), device, tls)
                },
                sensors: plan.sensors,
                scan_every: plan.scan_every,
                repeats: plan.repeats,
                buffer_rows: plan.buffer_rows,
                tally: Arc::clone(tally),
                quiet: quiet.clone(),
                stop: stop.clone(),
            };
            let pause = ramp;
            tracker.spawn(async move {
                tokio::select! {
                    () = sleep(pause) => simulate(load).await,
                    () = load.stop.cancelled() => {}
                }
            });
            ramp += plan.connect_every;
        }
        tracker.close();
        Started { tracker, ramp }
    }
}

impl Started {
    /// How long it takes until the last device is to connect.
    pub(super) fn ramp(&self) -> Duration {
        self.ramp
    }

    /// Waits until all devices have gone.
    pub(super) async fn ended(&self) {
        self.tracker.wait().await;
    }
}

fn device_id(prefix: &str, number: usize) -> Result<DeviceId, Failure> {
    let name = format!("{prefix}-{number:05}");
    name.parse().map_err(|error| {
        Failure::new(Class::Configuration, format!("name a device {name:?}"))
            .because(error)
            .help("choose another --prefix")
    })
}
