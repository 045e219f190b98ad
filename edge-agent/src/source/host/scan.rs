//! One scan of this machine.

use std::path::PathBuf;

use schema::{ObservedAt, Quality, Reading, SensorName, Value};
use sysinfo::{
    Components, CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, System,
};
use tokio::time::Instant;
use tracing::debug;

use super::mounts::Mounts;
use super::names::{self, Names};

/// Most readings in one scan: a machine with thousands of mounts or interfaces must not fill the
/// buffer with them.
const SCAN_READINGS_MAX: usize = 1024;

/// Keeps what rates are computed from.
pub(super) struct Scanner {
    system: System,
    disks: Disks,
    networks: Networks,
    components: Components,
    mounts: Mounts,
    per_core: bool,
    networks_at: Option<Instant>,
    /// CPU shares are known from the second scan on.
    cpu_known: bool,
}

impl Scanner {
    pub(super) fn new(per_core: bool, mounts: Mounts) -> Self {
        Self {
            system: System::new(),
            disks: Disks::new(),
            networks: Networks::new(),
            components: Components::new(),
            mounts,
            per_core,
            networks_at: None,
            cpu_known: false,
        }
    }

    /// Reads everything once. Takes longer than it needs only by the time-outs of mounts that newly hang.
    pub(super) fn scan(&mut self, observed_at: ObservedAt) -> Vec<Reading> {
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

    /// Mount points that were skipped in the last scan, because they do not answer.
    pub(super) fn hanging(&self) -> Vec<PathBuf> {
        self.mounts.hanging()
    }

    fn disks(&mut self, scan: &mut Scan) {
        // Their list alone: nothing of it asks a file system.
        self.disks
            .refresh_specifics(true, DiskRefreshKind::nothing());
        let mut mounts: Vec<PathBuf> = Vec::new();
        for disk in self.disks.list() {
            // A mount point may be listed twice, one mount hiding the other.
            if !mounts.iter().any(|known| known == disk.mount_point()) {
                mounts.push(disk.mount_point().to_owned());
            }
        }
        for (mount, space) in self.mounts.ask(mounts) {
            let mount = mount.display();
            if space.total > 0 {
                scan.count(&format!("host/disk/{mount}/total_bytes"), space.total);
                scan.count(
                    &format!("host/disk/{mount}/available_bytes"),
                    space.available,
                );
            }
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
        let mut components: Vec<_> = self.components.list().iter().collect();
        components.sort_by_cached_key(|component| component.id().map(names::place_of));
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
    use std::time::Duration;

    use super::*;
    use crate::source::host::mounts::Probe;

    #[test]
    fn a_scan_names_each_sensor_once_and_holds_only_valid_values() {
        let mut scanner = Scanner::new(true, Mounts::new(Probe::default(), Duration::from_secs(1)));
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
