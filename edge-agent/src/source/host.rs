//! This machine's own sensors, through sysinfo: one scan is one append.
//!
//! Names follow Prometheus: base units at the end, ratios from 0 to 1.
//!
//! ```text
//! host/cpu/busy_ratio             host/memory/{total,available,used}_bytes
//! host/cpu/N/busy_ratio           host/swap/{total,used}_bytes
//! host/load/{1m,5m,15m}           host/disk/MOUNT/{total,available}_bytes
//! host/uptime_seconds             host/network/INTERFACE/{receive,transmit}_bytes_per_second
//! host/temperature/LABEL/celsius     (LABEL/2 for a second one of that name)
//! ```

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure};
use schema::{ObservedAt, Quality, Reading, SensorName, Value};
use sysinfo::{
    Components, CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, System,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Source;
use super::dead_band::DeadBand;
use crate::buffer::Append;
use crate::ingest::{Ingest, IngestError, Refusals};

/// Most readings in one scan: a machine with thousands of mounts or interfaces must not fill the
/// buffer with them.
const SCAN_READINGS_MAX: usize = 1024;

/// How the machine is watched.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    /// Between two scans. Ten seconds show a busy machine's minutes and cost a thousandth of one
    /// core.
    pub interval: Duration,
    /// Whether each processor core has a sensor of its own.
    pub per_core: bool,
    /// By how much a reading must differ from the last accepted one of its sensor to be taken;
    /// `None` takes all. One width for all sensors suits ratios and temperatures; zero leaves out
    /// what has not changed at all.
    pub dead_band: Option<f64>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            per_core: false,
            dead_band: None,
        }
    }
}

/// Requests for a scan that may wait.
pub(crate) const SCANS_QUEUE: usize = 8;

/// A request for a scan now; answered with how many of its readings were accepted, or why none was.
pub(crate) type ScanRequest = oneshot::Sender<Result<u64, IngestError>>;

/// The settings of a host source that change while it runs, and the requests for scans.
#[derive(Debug)]
pub(crate) struct HostControls {
    pub(crate) interval: watch::Receiver<Duration>,
    pub(crate) dead_band: watch::Receiver<Option<f64>>,
    pub(crate) scans: mpsc::Receiver<ScanRequest>,
}

/// The `host` source.
#[derive(Debug)]
pub struct HostSource {
    config: HostConfig,
    controls: Option<HostControls>,
}

const NAME: &str = "host source";

/// Why a scan is due.
enum Due {
    Tick,
    /// It was requested; each of its readings is taken.
    Requested(ScanRequest),
}

impl HostSource {
    /// A source that scans as configured.
    #[must_use]
    pub const fn new(config: HostConfig) -> Self {
        Self {
            config,
            controls: None,
        }
    }

    /// Follows these controls instead of the configuration.
    #[must_use]
    pub(crate) fn following(mut self, controls: HostControls) -> Self {
        self.controls = Some(controls);
        self
    }
}

/// Waits for a change; for ever when the sender is gone.
async fn changed(interval: &mut watch::Receiver<Duration>) -> Duration {
    if interval.changed().await.is_ok() {
        return *interval.borrow_and_update();
    }
    std::future::pending().await
}

fn ticks_every(pause: Duration) -> Interval {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// The source while it runs.
struct Scans {
    ingest: Ingest,
    scanner: Scanner,
    band: DeadBand,
    refusals: Refusals,
}

#[async_trait]
impl Source for HostSource {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(self: Box<Self>, ingest: Ingest, stop: CancellationToken) -> Result<(), Failure> {
        let Self { config, controls } = *self;
        // Without controls the configuration holds for good.
        let mut controls = controls.unwrap_or_else(|| HostControls {
            interval: watch::channel(config.interval).1,
            dead_band: watch::channel(config.dead_band).1,
            scans: mpsc::channel(1).1,
        });
        let mut ticks = ticks_every(*controls.interval.borrow_and_update());
        let mut scans = Scans {
            ingest,
            scanner: Scanner::new(config.per_core),
            band: DeadBand::default(),
            refusals: Refusals::new(NAME),
        };
        loop {
            let due = tokio::select! {
                _ = ticks.tick() => Due::Tick,
                Some(request) = controls.scans.recv() => Due::Requested(request),
                // The first tick comes at once: the effect of a change shows.
                pause = changed(&mut controls.interval) => {
                    ticks = ticks_every(pause);
                    continue;
                }
                () = stop.cancelled() => return Ok(()),
            };
            let dead_band = match due {
                Due::Tick => *controls.dead_band.borrow(),
                Due::Requested(_) => None,
            };
            let outcome;
            (scans, outcome) = scans.scan(dead_band, &stop).await?;
            match (outcome, due) {
                (None, _) => return Ok(()),
                (Some(outcome), Due::Requested(request)) => {
                    scans.refusals.note(outcome.clone());
                    // The caller may be gone.
                    let _ = request.send(outcome);
                }
                // A scan that is refused is over: the next one shows how things stand then.
                (Some(outcome), Due::Tick) => scans.refusals.note(outcome),
            }
        }
    }
}

impl Scans {
    /// Scans, and hands over what is news; answers how many were accepted, or nothing when stopped.
    async fn scan(
        mut self,
        dead_band: Option<f64>,
        stop: &CancellationToken,
    ) -> Result<(Self, Option<Result<u64, IngestError>>), Failure> {
        let observed_at = ObservedAt::from_millis(self.ingest.now_micros() / 1000);
        let mut scanner = self.scanner;
        let (back, mut readings) = tokio::task::spawn_blocking(move || {
            let readings = scanner.scan(observed_at);
            (scanner, readings)
        })
        .await
        .map_err(|error| Failure::new(Class::Data, "scan this machine").because(error))?;
        self.scanner = back;
        if let Some(width) = dead_band {
            readings.retain(|reading| self.band.is_news(reading, width));
        }
        if readings.is_empty() {
            return Ok((self, Some(Ok(0))));
        }
        let appended = tokio::select! {
            appended = self.ingest.append(Append::read(readings.clone())) => appended,
            () = stop.cancelled() => return Ok((self, None)),
        };
        let outcome = appended.map(|appended| {
            let refused = |at| appended.refused.iter().any(|(refused, _)| *refused == at);
            for (at, reading) in readings.iter().enumerate() {
                if !refused(at) {
                    self.band.accepted(reading);
                }
            }
            appended.range.map_or(0, |range| range.count())
        });
        Ok((self, Some(outcome)))
    }
}

/// Keeps what rates are computed from.
struct Scanner {
    system: System,
    disks: Disks,
    networks: Networks,
    components: Components,
    per_core: bool,
    networks_at: Option<Instant>,
    /// CPU shares are known from the second scan on.
    cpu_known: bool,
}

impl Scanner {
    fn new(per_core: bool) -> Self {
        Self {
            system: System::new(),
            disks: Disks::new(),
            networks: Networks::new(),
            components: Components::new(),
            per_core,
            networks_at: None,
            cpu_known: false,
        }
    }

    fn scan(&mut self, observed_at: ObservedAt) -> Vec<Reading> {
        let mut scan = Scan {
            observed_at,
            readings: Vec::with_capacity(32),
        };
        self.cpu(&mut scan);
        self.memory(&mut scan);
        self.disks(&mut scan);
        self.networks(&mut scan);
        self.temperatures(&mut scan);
        scan.readings
    }

    fn cpu(&mut self, scan: &mut Scan) {
        self.system
            .refresh_cpu_specifics(CpuRefreshKind::nothing().with_cpu_usage());
        if self.cpu_known {
            scan.ratio("host/cpu/busy_ratio", self.system.global_cpu_usage());
            if self.per_core {
                for (number, core) in self.system.cpus().iter().enumerate() {
                    scan.ratio(&format!("host/cpu/{number}/busy_ratio"), core.cpu_usage());
                }
            }
        }
        self.cpu_known = true;
        let load = System::load_average();
        scan.number("host/load/1m", load.one);
        scan.number("host/load/5m", load.five);
        scan.number("host/load/15m", load.fifteen);
        scan.count("host/uptime_seconds", System::uptime());
    }

    fn memory(&mut self, scan: &mut Scan) {
        let system = &mut self.system;
        system.refresh_memory_specifics(MemoryRefreshKind::everything());
        scan.count("host/memory/total_bytes", system.total_memory());
        scan.count("host/memory/available_bytes", system.available_memory());
        scan.count("host/memory/used_bytes", system.used_memory());
        if system.total_swap() > 0 {
            scan.count("host/swap/total_bytes", system.total_swap());
            scan.count("host/swap/used_bytes", system.used_swap());
        }
    }

    fn disks(&mut self, scan: &mut Scan) {
        self.disks
            .refresh_specifics(true, DiskRefreshKind::nothing().with_storage());
        let mut seen: Vec<&std::path::Path> = Vec::new();
        for disk in self.disks.list() {
            let mount = disk.mount_point();
            // A mount point may be listed twice, one mount hiding the other.
            if seen.contains(&mount) || disk.total_space() == 0 {
                continue;
            }
            seen.push(mount);
            let mount = mount.display();
            scan.count(
                &format!("host/disk/{mount}/total_bytes"),
                disk.total_space(),
            );
            scan.count(
                &format!("host/disk/{mount}/available_bytes"),
                disk.available_space(),
            );
        }
    }

    fn networks(&mut self, scan: &mut Scan) {
        self.networks.refresh(true);
        let now = Instant::now();
        let Some(before) = self.networks_at.replace(now) else {
            return;
        };
        let seconds = (now - before).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        // A map: sorted, so that scans look alike and encode well.
        let mut interfaces: Vec<_> = self.networks.list().iter().collect();
        interfaces.sort_by_key(|(name, _)| *name);
        for (name, data) in interfaces {
            let name = format!("host/network/{name}");
            // Whole bytes: what the clock adds behind the point is noise, and costs bytes.
            let received = (data.received() as f64 / seconds).round();
            let transmitted = (data.transmitted() as f64 / seconds).round();
            scan.number(&format!("{name}/receive_bytes_per_second"), received);
            scan.number(&format!("{name}/transmit_bytes_per_second"), transmitted);
        }
    }

    fn temperatures(&mut self, scan: &mut Scan) {
        self.components.refresh(true);
        // By the kernel's name of each, so that numbers stay with their sensors.
        let mut components: Vec<_> = self.components.list().iter().collect();
        components.sort_by_key(|component| component.id());
        let mut names = Names::default();
        for component in components {
            let name = names.one_of_its_own(component.label());
            if let Some(celsius) = component.temperature() {
                let celsius = (f64::from(celsius) * 1000.0).round() / 1000.0;
                scan.number(&format!("host/temperature/{name}/celsius"), celsius);
            }
        }
    }
}

/// Names of one scan. Two sensors of one name, as the disks or processors of one make have them, would
/// be one row: the second is `LABEL/2`.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn one_of_its_own(&mut self, label: &str) -> String {
        let count = self.0.entry(label.to_owned()).or_default();
        *count += 1;
        match *count {
            1 => label.to_owned(),
            count => format!("{label}/{count}"),
        }
    }
}

/// The readings of one scan, stamped alike.
struct Scan {
    observed_at: ObservedAt,
    readings: Vec<Reading>,
}

impl Scan {
    fn count(&mut self, sensor: &str, count: u64) {
        self.push(sensor, Value::I64(i64::try_from(count).unwrap_or(i64::MAX)));
    }

    fn number(&mut self, sensor: &str, number: f64) {
        self.push(sensor, Value::F64(number));
    }

    /// Per cent with the digits that sysinfo measured, as a ratio.
    fn ratio(&mut self, sensor: &str, percent: f32) {
        let ratio = (f64::from(percent) * 100.0).round() / 10_000.0;
        self.push(sensor, Value::F64(ratio));
    }

    fn push(&mut self, sensor: &str, value: Value) {
        if self.readings.len() == SCAN_READINGS_MAX {
            return;
        }
        // Mount points and labels come from the machine: those that make no name, and
        // temperatures that are not known, are left out.
        let sensor: SensorName = match sensor.parse() {
            Ok(sensor) => sensor,
            Err(error) => {
                debug!(%error, "sensor of this machine left out");
                return;
            }
        };
        if value.validate().is_err() || self.readings.iter().any(|known| known.sensor == sensor) {
            return;
        }
        self.readings.push(Reading {
            sensor,
            observed_at: self.observed_at,
            value,
            quality: Quality::Good,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_names_each_sensor_once_and_holds_only_valid_values() {
        let mut scanner = Scanner::new(true);
        let at = ObservedAt::from_millis(1_700_000_000_000);
        scanner.scan(at);
        let readings = scanner.scan(at);
        let mut names: Vec<&str> = readings.iter().map(|r| r.sensor.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for needed in [
            "host/cpu/busy_ratio",
            "host/memory/used_bytes",
            "host/load/1m",
        ] {
            assert!(names.contains(&needed), "{needed} is missing in {names:?}");
        }
        for reading in &readings {
            assert!(reading.value.validate().is_ok());
            assert_eq!(reading.observed_at, at);
        }
    }

    #[test]
    fn sensors_of_one_name_are_numbered() {
        let mut names = Names::default();
        let found = ["a", "b", "a", "a"].map(|label| names.one_of_its_own(label));
        assert_eq!(found, ["a", "b", "a/2", "a/3"]);
    }

    #[test]
    fn a_scan_is_bounded() {
        let mut scan = Scan {
            observed_at: ObservedAt::default(),
            readings: Vec::new(),
        };
        for n in 0..SCAN_READINGS_MAX + 10 {
            scan.count(&format!("sensor/{n}"), 1);
        }
        scan.number("nan", f64::NAN);
        assert_eq!(scan.readings.len(), SCAN_READINGS_MAX);
    }
}
