//! A seed becomes a plan: how large the fleet is, how bad the world, and what breaks when.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::chance::{Odds, up_to};

/// For how long things break; afterwards everything must settle.
pub(super) const TROUBLE: Duration = Duration::from_secs(60);

/// A kind of fault, as the report counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A message did not arrive.
    Loss,
    /// A message arrived twice.
    Duplication,
    /// A message was overtaken by a later one.
    Reordering,
    /// A message took long.
    Delay,
    /// An agent could not reach the broker for a while.
    Partition,
    /// An agent was killed and restarted.
    AgentCrash,
    /// A bridge was killed and restarted.
    BridgeCrash,
    /// The bridges were too old to read anything, and refused all of it.
    BlindBridges,
    /// The broker was killed, with all its memory.
    BrokerCrash,
    /// The database refused for a while.
    StoreOutage,
    /// A commit succeeded, and its answer was lost.
    CommitUnknown,
    /// An agent's wall clock jumped by up to an hour.
    ClockJump,
    /// An agent's wall clock jumped by years, or back to 1970.
    ClockLeap,
    /// An agent was killed before it had heard what time it is.
    UntimedCrash,
    /// The database refused everything, for reasons of its own, for a while.
    StoreRefusal,
    /// The database refused some rows for a while.
    RowRefusal,
    /// An older copy of a buffer was put back.
    Restore,
    /// The disk that was taken out was put back in place of its copy.
    Swap,
    /// A reading was refused, and set aside by its device.
    Quarantine,
    /// A person had readings in quarantine offered again.
    Requeue,
    /// A person gave up readings in quarantine.
    Discard,
    /// A quarantine was full, and its oldest readings were given up.
    Overflow,
    /// Old rows were removed, as retention does.
    Expiry,
    /// A payload was overwritten on its way.
    Garbage,
    /// A reading that no reader can read, not even alone.
    Poison,
    /// A source gave a time again: two versions of one key.
    Rewrite,
    /// A source produced a value that no store can hold.
    BadValue,
    /// A buffer was full and dropped its oldest rows.
    Eviction,
    /// A device's disk refused a write, made or not.
    DiskRefusal,
    /// A device lost its buffer's file, with its memory of commands.
    MemoryLoss,
}

/// How often each fault was injected.
pub type Faults = BTreeMap<Fault, u64>;

/// What a seed decides before the run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) agents: usize,
    pub(super) bridges: usize,
    /// Rows that a buffer holds.
    pub(super) buffer_rows: usize,
    /// Time between two scans of a source.
    pub(super) scan_interval: Duration,
    /// Sensors in a scan.
    pub(super) sensors: usize,
    pub(super) odds: Odds,
    /// Probability of other faults.
    pub(super) garbage: f64,
    pub(super) bad_value: f64,
    pub(super) poison: f64,
    pub(super) rewrite: f64,
    pub(super) commit_unknown: f64,
    /// What breaks, and when.
    pub(super) incidents: Vec<(Duration, Incident)>,
}

/// Something that breaks at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Incident {
    AgentCrash {
        agent: usize,
    },
    BridgeCrash {
        bridge: usize,
        down: Duration,
    },
    BrokerCrash {
        down: Duration,
    },
    Partition {
        agent: usize,
        down: Duration,
    },
    StoreOutage {
        down: Duration,
    },
    BlindBridges {
        down: Duration,
    },
    ClockJump {
        agent: usize,
        to_ms: i64,
    },
    ClockLeap {
        agent: usize,
        to_ms: i64,
        reboot: bool,
    },
    StoreRefusal {
        down: Duration,
    },
    RowRefusal {
        down: Duration,
        divisor: u64,
    },
    Copy {
        agent: usize,
    },
    Restore {
        agent: usize,
    },
    Swap {
        agent: usize,
    },
    Requeue {
        agent: usize,
    },
    Discard {
        agent: usize,
    },
    Expiry {
        age: Duration,
    },
}

impl Plan {
    /// Draws the plan of a seed; the same seed gives the same plan.
    pub(super) fn draw(seed: u64) -> (Self, SmallRng) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let agents = rng.random_range(1..=3);
        let bridges = rng.random_range(1..=2);
        let odds = Odds::draw(&mut rng);
        let mut chance = |max| up_to(&mut rng, max);
        let garbage = chance(0.05);
        let bad_value = chance(0.05);
        let poison = chance(0.01);
        let rewrite = chance(0.3);
        let commit_unknown = chance(0.3);
        let mut incidents: Vec<(Duration, Incident)> = (0..rng.random_range(0..10))
            .map(|_| {
                let at = TROUBLE.mul_f64(rng.random());
                (at, Incident::draw(&mut rng, agents, bridges))
            })
            .collect();
        // A copy is made for its day: mostly it is put back, and sometimes exchanged again.
        for agent in 0..agents {
            if rng.random_bool(0.3) {
                let copied = TROUBLE.mul_f64(rng.random_range(0.0..0.5));
                let put_back = copied + TROUBLE.mul_f64(rng.random_range(0.0..0.4));
                incidents.push((copied, Incident::Copy { agent }));
                incidents.push((put_back, Incident::Restore { agent }));
            }
        }
        let plan = Self {
            agents,
            bridges,
            buffer_rows: if rng.random_bool(0.3) {
                rng.random_range(20..200)
            } else {
                100_000
            },
            scan_interval: Duration::from_millis(rng.random_range(100..3_000)),
            sensors: rng.random_range(1..6),
            odds,
            garbage,
            bad_value,
            poison,
            rewrite,
            commit_unknown,
            incidents,
        };
        (plan, rng)
    }
}

impl Incident {
    fn draw(rng: &mut SmallRng, agents: usize, bridges: usize) -> Self {
        let agent = rng.random_range(0..agents);
        let down = Duration::from_millis(rng.random_range(100..20_000));
        match rng.random_range(0..15) {
            0 => Self::AgentCrash { agent },
            1 => Self::BridgeCrash {
                bridge: rng.random_range(0..bridges),
                down,
            },
            2 => Self::BrokerCrash { down },
            3 => Self::Partition { agent, down },
            4 => Self::StoreOutage { down },
            5 => Self::BlindBridges { down },
            6 => Self::StoreRefusal { down },
            7 => Self::RowRefusal {
                down,
                divisor: rng.random_range(2..6),
            },
            8 => Self::Swap { agent },
            9 => Self::Requeue { agent },
            10 => Self::Discard { agent },
            11 => Self::Expiry {
                age: Duration::from_secs(rng.random_range(1..60)),
            },
            12 | 13 => Self::ClockLeap {
                agent,
                to_ms: leap(rng),
                reboot: rng.random_bool(0.7),
            },
            _ => Self::ClockJump {
                agent,
                to_ms: rng.random_range(-3_600_000..3_600_000),
            },
        }
    }
}

/// A wrong clock: to 1970, or years away in either direction; sometimes right again.
fn leap(rng: &mut SmallRng) -> i64 {
    const DAY_MS: i64 = 86_400_000;
    match rng.random_range(0..4) {
        0 => -1_800_000_000_000,
        1 => 0,
        2 => DAY_MS * rng.random_range(-30 * 365..0),
        _ => DAY_MS * rng.random_range(0..30 * 365),
    }
}
