//! One simulated device at work: scans, session, link.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use certs::tls::floor::FlooredClock;
use daemon::{Clock, SystemClock};
use edge_agent::link::{Link, LinkConfig, LinkHandle, LinkMeters, LinkState, Uplink};
use edge_agent::session::{Input, SessionConfig};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use schema::message::Downlink;
use schema::stamp::{LastStamp, Stamps};
use schema::{Balance, Channel, Epoch, ObservedAt, Quality, Reading, SensorName, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::tally::Tally;
use crate::device::{Breach, Device, Output};

/// What one device does.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) link: LinkConfig,
    pub(super) sensors: usize,
    pub(super) scan_every: Duration,
    /// Scans of a hundred that repeat the time of the one before.
    pub(super) repeats: u8,
    pub(super) buffer_rows: usize,
    pub(super) tally: Arc<Tally>,
    /// No more scans; what is pending goes out.
    pub(super) quiet: CancellationToken,
    /// Away.
    pub(super) stop: CancellationToken,
}

/// Sensors whose values wander as those of slow machines do: in steps, on a grid.
#[derive(Debug)]
struct Sensors {
    names: Vec<SensorName>,
    steps: Vec<i32>,
    rng: SmallRng,
    /// Scans of a hundred that repeat the time of the one before.
    repeats: u8,
    /// Each other scan has a time of its own, however late the one before was.
    stamps: Stamps,
    observed_at: Option<ObservedAt>,
    last_scan: LastStamp,
}

/// A device and its way out.
struct Simulated {
    device: Device,
    link: LinkHandle,
    uplink: Option<Uplink>,
    tally: Arc<Tally>,
    counted: Balance,
    was_up: bool,
    origin: Instant,
    out: Vec<Output>,
}

/// Runs a device until it is stopped, or broke a rule of its own, which the tally counts.
pub(super) async fn simulate(load: Load) {
    let tally = Arc::clone(&load.tally);
    let name = load.link.device.clone();
    if let Err(breach) = run(load).await {
        tally.failed(format!("{name}: {breach}"));
    }
}

async fn run(load: Load) -> Result<(), Breach> {
    let epoch = Epoch::from_random(rand::random());
    let mut sensors = Sensors::new(load.sensors, load.repeats);
    let phase = load.scan_every.mul_f64(sensors.rng.random());
    let name = load.link.device.clone();
    let clock = Arc::new(FlooredClock::of_system());
    let (_, begun) = watch::channel(epoch);
    let (link, handle) = Link::new(load.link, begun, clock, LinkMeters::default());
    let linked = tokio::spawn(link.run());
    let mut simulated = Simulated {
        device: Device::new(name, epoch, SessionConfig::default(), load.buffer_rows),
        link: handle,
        uplink: None,
        tally: load.tally,
        counted: Balance::default(),
        was_up: false,
        origin: Instant::now(),
        out: Vec::new(),
    };
    let mut next_scan = simulated.origin + phase;
    let mut quiet = false;
    loop {
        let timer = simulated.device.next_wakeup();
        let timer = timer.map(|after| simulated.origin + after);
        tokio::select! {
            biased;
            () = load.stop.cancelled() => break,
            Ok(()) = simulated.link.state.changed() => simulated.link_changed()?,
            Some(downlink) = simulated.link.downlinks.recv() => simulated.heard(&downlink)?,
            () = load.quiet.cancelled(), if !quiet => {
                quiet = true;
                simulated.input(Input::Flush(true))?;
            }
            () = sleep_until(timer.unwrap_or(next_scan)), if timer.is_some() => {
                simulated.input(Input::Timer)?;
            }
            () = sleep_until(next_scan), if !quiet => {
                simulated.scan(&mut sensors)?;
                next_scan = after(next_scan, load.scan_every, Instant::now());
            }
        }
    }
    simulated.link.stop.cancel();
    // Ends within the link's own bound for farewells.
    let _ = linked.await;
    Ok(())
}

impl Simulated {
    fn link_changed(&mut self) -> Result<(), Breach> {
        let state = self.link.state.borrow_and_update().clone();
        match state {
            LinkState::Up(uplink) => {
                self.uplink = Some(uplink);
                self.tally.came_up(!self.was_up);
                self.was_up = true;
                self.input(Input::Connected)
            }
            LinkState::Down(error) => {
                if self.uplink.take().is_some() {
                    self.tally.went_down();
                }
                if let Some(error) = error {
                    self.tally.failed(error.to_string());
                }
                self.input(Input::Disconnected)
            }
        }
    }

    fn heard(&mut self, downlink: &Downlink) -> Result<(), Breach> {
        let wall_ms = SystemClock::default().now_ms();
        let now = self.origin.elapsed();
        self.device.hear(downlink, now, wall_ms, &mut self.out)?;
        self.carry_out();
        Ok(())
    }

    fn scan(&mut self, sensors: &mut Sensors) -> Result<(), Breach> {
        let wall_micros = SystemClock::default().now_micros();
        let wall_ms = wall_micros.unsigned_abs() / 1000;
        let readings = sensors.read(wall_micros);
        let now = self.origin.elapsed();
        self.device.append(readings, wall_ms, now, &mut self.out)?;
        self.carry_out();
        Ok(())
    }

    fn input(&mut self, input: Input<'_>) -> Result<(), Breach> {
        let wall_ms = SystemClock::default().now_ms();
        let now = self.origin.elapsed();
        self.device.input(input, now, wall_ms, &mut self.out)?;
        self.carry_out();
        Ok(())
    }

    fn carry_out(&mut self) {
        let uplink = self.uplink.as_ref();
        // What the link does not take is lost, and sent again when its time has run out.
        let publish = |channel, payload| {
            let _ = uplink.map(|uplink| uplink.publish(channel, payload));
        };
        for output in self.out.drain(..) {
            match output {
                Output::Telemetry { payload, .. } => publish(Channel::Telemetry, payload),
                Output::Event(payload) => publish(Channel::Event, payload),
                Output::Sent {
                    bytes,
                    retransmission,
                } => {
                    let tally = &self.tally;
                    tally.batches.fetch_add(1, Relaxed);
                    tally.bytes.fetch_add(bytes as u64, Relaxed);
                    let again = u64::from(retransmission);
                    tally.retransmissions.fetch_add(again, Relaxed);
                }
                Output::Completed(latency) => self.tally.completed(latency),
            }
        }
        let now = self.device.buffer.balance();
        self.tally.moved(self.counted, now);
        self.counted = now;
    }
}

impl Sensors {
    fn new(count: usize, repeats: u8) -> Self {
        let name = |number| {
            format!("sensor-{number:03}")
                .parse()
                .expect("a fixed name is a sensor's")
        };
        Self {
            names: (0..count).map(name).collect(),
            steps: vec![0; count],
            rng: SmallRng::from_rng(&mut rand::rng()),
            repeats,
            stamps: Stamps::default(),
            observed_at: None,
            last_scan: LastStamp::default(),
        }
    }

    fn read(&mut self, wall_micros: i64) -> Vec<Reading> {
        let repeated = self
            .observed_at
            .filter(|_| self.rng.random_range(0..100) < self.repeats);
        let observed_at =
            repeated.unwrap_or_else(|| self.stamps.stamp(&mut self.last_scan, wall_micros));
        self.observed_at = Some(observed_at);
        let Self {
            names, steps, rng, ..
        } = self;
        names
            .iter()
            .zip(steps)
            .map(|(sensor, step)| {
                *step += rng.random_range(-2..=2);
                Reading {
                    sensor: sensor.clone(),
                    observed_at,
                    value: Value::F64(20.0 + f64::from(*step) / 10.0),
                    quality: Quality::Good,
                }
            })
            .collect()
    }
}

/// When the next scan is due. Those that were missed in a pause of the whole process are not made up
/// for, and the others keep their beat.
fn after(due: Instant, every: Duration, now: Instant) -> Instant {
    let next = due + every;
    if next > now || every.is_zero() {
        return next.max(now);
    }
    let missed = (now - next).as_nanos() / every.as_nanos() + 1;
    next + every * u32::try_from(missed).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scans_of_one_moment_have_each_their_time() {
        let mut sensors = Sensors::new(3, 0);
        let mut keys = HashSet::new();
        // Late, twice at once, and once more after the clock was set back.
        for micros in [5_000_000, 5_000_000, 5_000_400, 4_999_000, 6_000_000] {
            for reading in sensors.read(1_790_000_000_000_000 + micros) {
                assert!(keys.insert((reading.sensor, reading.observed_at)));
            }
        }
        assert_eq!(keys.len(), 15);
    }

    #[test]
    fn as_many_scans_repeat_a_time_as_were_asked_for() {
        for (repeats, expected) in [(0, 1_000..=1_000), (50, 400..=600), (100, 1..=1)] {
            let mut sensors = Sensors::new(1, repeats);
            let times: HashSet<_> = (0..1_000)
                .map(|scan| sensors.read(1_790_000_000_000_000 + scan * 1_000_000)[0].observed_at)
                .collect();
            assert!(
                expected.contains(&times.len()),
                "{repeats}: {}",
                times.len()
            );
        }
    }

    #[test]
    fn a_late_scan_is_not_followed_by_another_at_once() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let every = Duration::from_millis(1_000);
        for (now, next) in [(0, 1_000), (999, 1_000), (1_000, 2_000), (3_500, 4_000)] {
            assert_eq!(after(at(0), every, at(now)), at(next), "{now}");
        }
        assert_eq!(after(at(0), Duration::ZERO, at(7)), at(7));
    }
}
