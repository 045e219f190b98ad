//! What goes wrong with a simulated sensor. Pure, and the same for the same seed.

use schema::Quality;

use super::wave::{Chance, Use};

/// A fault that comes by chance, and stays for some readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// What it does.
    pub effect: Effect,
    /// How likely each reading begins it, from 0 to 1.
    pub chance: f64,
    /// How many readings it lasts.
    pub readings: u64,
}

/// What a fault does to readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Effect {
    /// There are none.
    Dropout,
    /// They are that much higher or lower.
    Spike(f64),
    /// They all have the value of the first.
    Stuck,
    /// They say so.
    Graded(Quality),
}

/// The faults of a sensor while it runs.
#[derive(Debug, Clone)]
pub struct Faults {
    faults: Vec<Fault>,
    /// Of each: until before which reading it lasts, and what it began with.
    lasting: Vec<Option<Lasting>>,
}

#[derive(Debug, Clone, Copy)]
struct Lasting {
    until: u64,
    /// The value at which it is stuck, or by which a spike goes up or down.
    value: f64,
}

impl Faults {
    /// None of them has begun.
    #[must_use]
    pub fn new(faults: Vec<Fault>) -> Self {
        Self {
            lasting: vec![None; faults.len()],
            faults,
        }
    }

    /// What becomes of the n-th value; `None` when it is dropped.
    pub fn apply(&mut self, n: u64, mut value: f64, chance: Chance) -> Option<(f64, Quality)> {
        let mut quality = Quality::Good;
        let mut dropped = false;
        let faults = self.faults.iter().zip(&mut self.lasting);
        for (place, (fault, lasting)) in (0u16..).zip(faults) {
            if lasting.is_none_or(|lasting| n >= lasting.until) {
                let begins = chance.uniform(n, Use::Fault(place)) < fault.chance;
                let up = chance.uniform(n, Use::Sign(place)) < 0.5;
                *lasting = begins.then(|| Lasting {
                    until: n.saturating_add(fault.readings),
                    value: match fault.effect {
                        Effect::Spike(size) if up => size,
                        Effect::Spike(size) => -size,
                        Effect::Dropout | Effect::Stuck | Effect::Graded(_) => value,
                    },
                });
            }
            let Some(lasting) = lasting else {
                continue;
            };
            match fault.effect {
                Effect::Dropout => dropped = true,
                Effect::Spike(_) => value += lasting.value,
                Effect::Stuck => value = lasting.value,
                Effect::Graded(grade) => quality = quality.max(grade),
            }
        }
        (!dropped).then_some((value, quality))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(effect: Effect, chance: f64, readings: u64) -> Vec<Option<(f64, Quality)>> {
        let mut faults = Faults::new(vec![Fault {
            effect,
            chance,
            readings,
        }]);
        let random = Chance::new(3, &"s".parse().unwrap());
        (0..4_000)
            .map(|n| faults.apply(n, n as f64, random))
            .collect()
    }

    #[test]
    fn faults_are_as_frequent_as_they_are_likely() {
        let count = |chance| {
            let readings = run(Effect::Dropout, chance, 1);
            readings.iter().filter(|one| one.is_none()).count()
        };
        assert_eq!(count(0.0), 0);
        assert!((300..500).contains(&count(0.1)), "{}", count(0.1));
        assert_eq!(count(1.0), 4_000);
    }

    #[test]
    fn each_fault_does_what_its_name_says() {
        let spikes = run(Effect::Spike(1e6), 0.05, 1);
        let off = |at: usize| spikes[at].unwrap().0 - at as f64;
        let (up, down) = (
            (0..4_000).filter(|at| off(*at) == 1e6).count(),
            (0..4_000).filter(|at| off(*at) == -1e6).count(),
        );
        assert!(up > 50 && down > 50, "{up} {down}");
        assert_eq!(
            (0..4_000).filter(|at| off(*at) == 0.0).count(),
            4_000 - up - down
        );

        let stuck = run(Effect::Stuck, 0.01, 10);
        let begin = (1..4_000).find(|at| stuck[*at] == stuck[at - 1]).unwrap() - 1;
        let value = stuck[begin].unwrap().0;
        assert_eq!(value, begin as f64);
        assert!((begin..begin + 10).all(|at| stuck[at].unwrap().0 == value));

        let graded = run(Effect::Graded(Quality::Bad), 0.1, 1);
        let bad = graded
            .iter()
            .flatten()
            .filter(|one| one.1 == Quality::Bad)
            .count();
        assert!((300..500).contains(&bad), "{bad}");
        assert!(
            graded
                .iter()
                .flatten()
                .enumerate()
                .all(|(n, one)| one.0 == n as f64)
        );
    }
}
