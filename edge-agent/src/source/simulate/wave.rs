//! What a simulated sensor says: the value of its n-th reading. Pure, and the same for the same seed.
//!
//! Chance is a hash of the seed, the sensor's name, what it is for, and n. So neither the order of the sensors nor a
//! newer library of random numbers changes what a simulation gives.

use schema::SensorName;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How a value changes with time.
#[derive(Debug, Clone, PartialEq)]
pub enum Wave {
    /// It does not.
    Constant(f64),
    /// From the middle up, down and back within a period.
    Sine(Cycle),
    /// From the lowest to the highest within a period, and anew.
    Ramp(Cycle),
    /// The highest for half of a period, the lowest for the other.
    Square(Cycle),
    /// By a step of at most `step`, up or down, from the middle on; turned back at the bounds.
    RandomWalk {
        /// Within which it stays.
        bounds: Bounds,
        /// Longest step.
        step: f64,
    },
    /// By `step` more each time, from the lowest on; beyond the highest it begins anew.
    Counter {
        /// Within which it counts.
        bounds: Bounds,
        /// By how much.
        step: f64,
    },
}

/// The lowest and the highest value, before noise and faults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// A wave that returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cycle {
    /// Between which it goes.
    pub bounds: Bounds,
    /// Readings in a period.
    pub readings: f64,
    /// Where in its period it begins, from 0 to 1.
    pub phase: f64,
}

/// Random numbers of one sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance(u64);

/// What a random number is for: each use has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A step of a random walk.
    Step,
    /// Noise; it needs two.
    Noise(u8),
    /// Whether a fault begins, by its place in the settings.
    Fault(u16),
    /// Whether a spike goes up.
    Sign(u16),
}

impl Bounds {
    fn middle(self) -> f64 {
        self.min + (self.max - self.min) / 2.0
    }

    fn at(self, share: f64) -> f64 {
        self.min + (self.max - self.min) * share
    }
}

impl Cycle {
    /// How far a period has come at the n-th reading: from 0 up to but not including 1.
    fn share(self, n: u64) -> f64 {
        // The remainder first: n / readings loses what is small beside a large n.
        let within = (n as f64 % self.readings) / self.readings;
        (within + self.phase).rem_euclid(1.0)
    }
}

impl Chance {
    /// Those of a sensor.
    #[must_use]
    pub fn new(seed: u64, sensor: &SensorName) -> Self {
        Self(xxh3_64_with_seed(sensor.as_str().as_bytes(), seed))
    }

    /// Uniform from 0 up to but not including 1.
    #[must_use]
    pub fn uniform(self, n: u64, purpose: Use) -> f64 {
        let [kind, place] = match purpose {
            Use::Step => [0, 0],
            Use::Noise(which) => [1, which.into()],
            Use::Fault(place) => [2, place],
            Use::Sign(place) => [3, place],
        };
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes[8..10].copy_from_slice(&kind.to_le_bytes());
        bytes[10..].copy_from_slice(&place.to_le_bytes());
        // As many bits as a double has.
        (xxh3_64_with_seed(&bytes, self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Around 0, with a standard deviation of 1.
    #[must_use]
    pub fn normal(self, n: u64) -> f64 {
        // Box and Muller. 1 − uniform is never 0, of which there is no logarithm.
        let distance = (-2.0 * (1.0 - self.uniform(n, Use::Noise(0))).ln()).sqrt();
        distance * (std::f64::consts::TAU * self.uniform(n, Use::Noise(1))).cos()
    }
}

impl Wave {
    /// The n-th value, from 0; `before` is the one before it, which a random walk goes on from.
    #[must_use]
    pub fn value(&self, n: u64, before: Option<f64>, chance: Chance) -> f64 {
        match *self {
            Self::Constant(value) => value,
            Self::Sine(cycle) => {
                let angle = std::f64::consts::TAU * cycle.share(n);
                cycle.bounds.at(0.5 + angle.sin() / 2.0)
            }
            Self::Ramp(cycle) => cycle.bounds.at(cycle.share(n)),
            Self::Square(cycle) if cycle.share(n) < 0.5 => cycle.bounds.max,
            Self::Square(cycle) => cycle.bounds.min,
            Self::RandomWalk { bounds, step } => {
                let Some(before) = before else {
                    return bounds.middle();
                };
                let moved = before + (2.0 * chance.uniform(n, Use::Step) - 1.0) * step;
                let turned = if moved > bounds.max {
                    2.0 * bounds.max - moved
                } else if moved < bounds.min {
                    2.0 * bounds.min - moved
                } else {
                    moved
                };
                // A step may be longer than the bounds are apart.
                turned.clamp(bounds.min, bounds.max)
            }
            Self::Counter { bounds, step } => {
                let counts = ((bounds.max - bounds.min) / step).floor() + 1.0;
                bounds.min + (n as f64 % counts) * step
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chance() -> Chance {
        Chance::new(7, &"s".parse().unwrap())
    }

    fn cycle(readings: f64, phase: f64) -> Cycle {
        Cycle {
            bounds: Bounds {
                min: 10.0,
                max: 20.0,
            },
            readings,
            phase,
        }
    }

    fn values(wave: &Wave, count: u64) -> Vec<f64> {
        let mut before = None;
        let next = |n| {
            before = Some(wave.value(n, before, chance()));
            before
        };
        (0..count).filter_map(next).collect()
    }

    #[test]
    fn each_wave_has_its_shape() {
        let rounded = |wave| -> Vec<f64> {
            let values = values(&wave, 5);
            values.iter().map(|one| (one * 1e9).round() / 1e9).collect()
        };
        assert_eq!(rounded(Wave::Constant(3.5)), [3.5; 5]);
        assert_eq!(
            rounded(Wave::Sine(cycle(4.0, 0.0))),
            [15.0, 20.0, 15.0, 10.0, 15.0]
        );
        assert_eq!(rounded(Wave::Sine(cycle(4.0, 0.25)))[..2], [20.0, 15.0]);
        assert_eq!(
            rounded(Wave::Ramp(cycle(4.0, 0.0))),
            [10.0, 12.5, 15.0, 17.5, 10.0]
        );
        assert_eq!(
            rounded(Wave::Square(cycle(4.0, 0.0))),
            [20.0, 20.0, 10.0, 10.0, 20.0]
        );
        let counter = |max| Wave::Counter {
            bounds: Bounds { min: 1.0, max },
            step: 2.0,
        };
        assert_eq!(rounded(counter(6.0)), [1.0, 3.0, 5.0, 1.0, 3.0]);
        assert_eq!(rounded(counter(7.0)), [1.0, 3.0, 5.0, 7.0, 1.0]);
        assert_eq!(rounded(counter(1.0)), [1.0; 5]);
    }

    #[test]
    fn a_random_walk_keeps_to_its_bounds_and_its_steps() {
        let bounds = Bounds { min: 0.0, max: 5.0 };
        for step in [0.5, 20.0] {
            let walk = values(&Wave::RandomWalk { bounds, step }, 2_000);
            assert_eq!(walk[0], 2.5);
            assert!(walk.iter().all(|one| (0.0..=5.0).contains(one)));
            assert!(walk.windows(2).all(|two| (two[1] - two[0]).abs() <= step));
            let (low, high) = (
                walk.iter().any(|one| *one < 1.0),
                walk.iter().any(|one| *one > 4.0),
            );
            assert!(low && high);
        }
    }

    #[test]
    fn noise_is_normal() {
        let draws: Vec<f64> = (0..20_000).map(|n| chance().normal(n)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / 20_000.0;
        let within = draws.iter().filter(|one| one.abs() < 1.0).count();
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
        assert!((13_300..14_000).contains(&within), "{within}");
    }

    #[test]
    fn chance_is_pinned() {
        // What a seed gives is part of what tests and demonstrations rely on.
        assert_eq!(chance().uniform(0, Use::Step), 0.521_887_916_201_889_1);
    }

    proptest! {
        #[test]
        fn all_values_are_finite_and_within_bounds(
            n in any::<u64>(), min in -1e9..1e9f64, width in 0.0..1e9f64,
            readings in 0.01..1e9f64, phase in 0.0..1.0f64, step in 1e-3..1e6f64, seed in any::<u64>(),
        ) {
            let bounds = Bounds { min, max: min + width };
            let cycle = Cycle { bounds, readings, phase };
            let chance = Chance::new(seed, &"s".parse().unwrap());
            for wave in [
                Wave::Sine(cycle), Wave::Ramp(cycle), Wave::Square(cycle),
                Wave::RandomWalk { bounds, step }, Wave::Counter { bounds, step },
            ] {
                let value = wave.value(n, Some(bounds.middle()), chance);
                let slack = 1e-6 * (1.0 + min.abs() + width);
                prop_assert!(value >= bounds.min - slack && value <= bounds.max + slack, "{:?} {}", wave, value);
            }
        }
    }
}
