//! A seed becomes a plan: which commands are asked for, and what breaks when.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::chance::{Odds, up_to};
use super::super::plan::TROUBLE;

/// How far a device's clock may be from the bridges', in milliseconds. What a loss of memory
/// forgets is bounded by a margin of ten minutes: clocks that differ by more may break it.
const DRIFT_MAX_MS: i64 = 5 * 60 * 1000;

/// Commands of a burst: more than a device holds.
const BURST: usize = 80;

/// What a seed decides before the run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) devices: Vec<DevicePlan>,
    pub(super) bridges: usize,
    pub(super) odds: Odds,
    /// Probability that the disk refuses a write, having made it or not.
    pub(super) disk_refusal: f64,
    /// Probability that a write takes long.
    pub(super) disk_slow: f64,
    /// Probability that a commit succeeds and its answer is lost.
    pub(super) commit_unknown: f64,
    pub(super) commands: Vec<PlannedCommand>,
    pub(super) incidents: Vec<(Duration, Incident)>,
}

/// A device at the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct DevicePlan {
    pub(super) parallel: usize,
    pub(super) clock_offset_ms: i64,
}

/// A command that somebody will ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedCommand {
    pub(super) at: Duration,
    pub(super) device: usize,
    pub(super) ttl: Duration,
    pub(super) priority: u8,
    /// When it is withdrawn.
    pub(super) withdrawn_at: Option<Duration>,
}

/// Something that breaks at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Incident {
    DeviceCrash {
        device: usize,
        down: Duration,
        /// The buffer's file is damaged, and what it knew of commands is lost.
        loses_memory: bool,
    },
    BridgeCrash {
        bridge: usize,
        down: Duration,
    },
    BrokerCrash {
        down: Duration,
    },
    Partition {
        device: usize,
        down: Duration,
    },
    StoreOutage {
        down: Duration,
    },
    ClockJump {
        device: usize,
        to_ms: i64,
    },
}

impl Plan {
    /// Draws the plan of a seed; the same seed gives the same plan.
    pub(super) fn draw(seed: u64) -> (Self, SmallRng) {
        // Not the dice of the readings.
        let mut rng = SmallRng::seed_from_u64(!seed);
        let devices: Vec<DevicePlan> = (0..rng.random_range(1..=2))
            .map(|_| DevicePlan {
                parallel: rng.random_range(1..=3),
                clock_offset_ms: offset(&mut rng),
            })
            .collect();
        let bridges = rng.random_range(1..=2);
        let odds = Odds::draw(&mut rng);
        let mut commands: Vec<PlannedCommand> = (0..rng.random_range(1..25))
            .map(|_| PlannedCommand::draw(&mut rng, devices.len()))
            .collect();
        if rng.random_bool(0.05) {
            let first = PlannedCommand::draw(&mut rng, devices.len());
            commands.extend((0..BURST).map(|_| first));
        }
        let incidents = (0..rng.random_range(0..10))
            .map(|_| {
                let at = TROUBLE.mul_f64(rng.random());
                (at, Incident::draw(&mut rng, devices.len(), bridges))
            })
            .collect();
        let plan = Self {
            devices,
            bridges,
            odds,
            disk_refusal: up_to(&mut rng, 0.2),
            disk_slow: up_to(&mut rng, 0.2),
            commit_unknown: up_to(&mut rng, 0.3),
            commands,
            incidents,
        };
        (plan, rng)
    }
}

impl PlannedCommand {
    fn draw(rng: &mut SmallRng, devices: usize) -> Self {
        let at = TROUBLE.mul_f64(rng.random());
        let ttl_ms = match rng.random_range(0..4) {
            0 => rng.random_range(100..5_000),
            1 => rng.random_range(5_000..60_000),
            // Longer than a clock jumps.
            _ => 3_600_000,
        };
        Self {
            at,
            device: rng.random_range(0..devices),
            ttl: Duration::from_millis(ttl_ms),
            priority: rng.random_range(0..3),
            withdrawn_at: rng
                .random_bool(0.25)
                .then(|| at + Duration::from_millis(rng.random_range(0..10_000))),
        }
    }
}

impl Incident {
    fn draw(rng: &mut SmallRng, devices: usize, bridges: usize) -> Self {
        let device = rng.random_range(0..devices);
        let down = Duration::from_millis(rng.random_range(10..15_000));
        match rng.random_range(0..9) {
            0..=2 => Self::DeviceCrash {
                device,
                down,
                loses_memory: rng.random_bool(0.2),
            },
            3 | 4 => Self::BridgeCrash {
                bridge: rng.random_range(0..bridges),
                down,
            },
            5 => Self::BrokerCrash { down },
            6 => Self::Partition { device, down },
            7 => Self::StoreOutage { down },
            _ => Self::ClockJump {
                device,
                to_ms: offset(rng),
            },
        }
    }
}

fn offset(rng: &mut SmallRng) -> i64 {
    match rng.random_bool(0.5) {
        true => rng.random_range(-DRIFT_MAX_MS..=DRIFT_MAX_MS),
        false => 0,
    }
}
