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
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure};
use schema::{ObservedAt, Quality, Reading, SensorName, Value};
use serde::Deserialize;
use sysinfo::{
    Components, CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, System,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::config::Section;
use super::{Due, Outlet, Source, SourceConfig, SourceName};
use crate::buffer::Append;

/// Its name as a kind.
pub const KIND: &str = "host";

/// Most readings in one scan: a machine with thousands of mounts or interfaces must not fill the
/// buffer with them.
const SCAN_READINGS_MAX: usize = 1024;

/// Between two scans, unless set. Ten seconds show a busy machine's minutes and cost a thousandth of one core.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// The shortest interval: below it processor shares mean nothing.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);

/// The `host` source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSource {
    /// Whether each processor core has a sensor of its own.
    pub per_core: bool,
}

#[derive(Debug, Deserialize)]
struct RawHost {
    #[serde(default)]
    per_core: bool,
}

/// Reads the section of a host source.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    section.interval(
        INTERVAL,
        INTERVAL_MIN..=INTERVAL_MAX,
        "must be from 200ms (below it processor shares mean nothing) to 1day",
    );
    let RawHost { per_core } = section.read()?;
    Some(Arc::new(HostSource { per_core }))
}

impl HostSource {
    /// A source named `host` that scans so often.
    #[must_use]
    pub fn every(self, interval: Duration) -> SourceConfig {
        SourceConfig {
            interval: Some(interval),
            ..SourceConfig::named(SourceName::of_kind(KIND), self)
        }
    }
}

#[async_trait]
impl Source for HostSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let cores = if self.per_core { ", each core" } else { "" };
        format!("this machine{cores}")
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let mut scanner = Scanner::new(self.per_core);
        let mut polls = outlet.polls();
        while let Some(due) = polls.next(&stop).await {
            let observed_at = ObservedAt::from_millis(outlet.now_micros() / 1000);
            let scanned = tokio::task::spawn_blocking(move || {
                let readings = scanner.scan(observed_at);
                (scanner, readings)
            });
            let (back, readings) = scanned
                .await
                .map_err(|error| Failure::new(Class::Data, "scan this machine").because(error))?;
            scanner = back;
            let append = Append::read(readings);
            let appended = async {
                match due {
                    Due::Tick => (outlet.append(append).await, None),
                    Due::Requested(request) => (outlet.append_whole(append).await, Some(request)),
                }
            };
            let (outcome, request) = tokio::select! {
                appended = appended => appended,
                () = stop.cancelled() => break,
            };
            let outcome = outcome.map(|outcome| outcome.accepted());
            // A scan that is refused is over: the next one shows how things stand then.
            outlet.note(outcome.clone());
            if let Some(request) = request {
                // The caller may be gone.
                let _ = request.send(outcome);
            }
        }
        Ok(())
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
