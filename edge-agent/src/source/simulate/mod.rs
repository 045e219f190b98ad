//! The `simulate` source: sensors that are declared, not there. For trials, demonstrations and tests of what comes
//! behind: the same settings and seed give the same values, one after the other, from each start.

mod faults;
mod settings;
mod wave;

use std::sync::Arc;

use async_trait::async_trait;
use daemon::Failure;
pub use faults::{Effect, Fault, Faults};
use schema::sensor::Precision;
use schema::{ObservedAt, Reading, SensorDeclaration, SensorName, Value, ValueType};
pub use settings::SENSORS_MAX;
use tokio_util::sync::CancellationToken;
pub use wave::{Bounds, Chance, Cycle, Use, Wave};

use super::config::Section;
use super::{Due, Outlet, Source};
use crate::buffer::Append;

/// Its name as a kind.
pub(super) const KIND: &str = "simulate";

/// The settings of a simulate source.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulateConfig {
    /// What chance depends on.
    pub seed: u64,
    /// What is simulated.
    pub sensors: Vec<Simulated>,
}

/// One sensor that is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// Its name.
    pub sensor: SensorName,
    /// What it says.
    pub says: Says,
    /// What goes wrong with it.
    pub faults: Vec<Fault>,
    /// The unit of measure.
    pub unit: Option<Arc<str>>,
}

/// What a simulated sensor says.
#[derive(Debug, Clone, PartialEq)]
pub enum Says {
    /// Always the same, which is no number.
    Fixed(Value),
    /// A number.
    Wave {
        /// How it changes.
        wave: Wave,
        /// The standard deviation of what is added to it.
        noise: f64,
        /// As what.
        shape: Shape,
    },
}

/// As what a number is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A fraction, to so many decimals.
    Float(Option<u8>),
    /// The nearest whole number.
    Integer,
    /// Whether it is at least a half.
    Bool,
}

/// The `simulate` source.
#[derive(Debug)]
pub struct SimulateSource(SimulateConfig);

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    let config = settings::read(section)?;
    Some(Arc::new(SimulateSource(config)))
}

impl SimulateSource {
    /// A source that simulates as configured.
    #[must_use]
    pub const fn new(config: SimulateConfig) -> Self {
        Self(config)
    }
}

#[async_trait]
impl Source for SimulateSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        let SimulateConfig { seed, sensors } = &self.0;
        let count = sensors.len();
        let noun = if count == 1 { "sensor" } else { "sensors" };
        format!("{count} simulated {noun}, seed {seed}")
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        for simulated in &self.0.sensors {
            outlet.declare(&simulated.sensor, simulated.declaration());
        }
        let mut simulation = Simulation::new(&self.0);
        let mut polls = outlet.polls();
        while let Some(due) = polls.next(&stop).await {
            let observed_at = ObservedAt::from_millis(outlet.now_micros() / 1000);
            let append = Append::read(simulation.next(observed_at));
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
            outlet.note(outcome.clone());
            if let Some(request) = request {
                // The caller may be gone.
                let _ = request.send(outcome);
            }
        }
        Ok(())
    }
}

/// All sensors, one reading after the other.
#[derive(Debug)]
pub struct Simulation {
    sensors: Vec<Running>,
    n: u64,
}

#[derive(Debug)]
struct Running {
    simulated: Simulated,
    chance: Chance,
    faults: Faults,
    before: Option<f64>,
}

impl Simulation {
    /// From the first reading on.
    #[must_use]
    pub fn new(config: &SimulateConfig) -> Self {
        let running = |simulated: &Simulated| Running {
            chance: Chance::new(config.seed, &simulated.sensor),
            faults: Faults::new(simulated.faults.clone()),
            before: None,
            simulated: simulated.clone(),
        };
        Self {
            sensors: config.sensors.iter().map(running).collect(),
            n: 0,
        }
    }

    /// The next reading of each sensor, but of those that drop out.
    pub fn next(&mut self, observed_at: ObservedAt) -> Vec<Reading> {
        let n = self.n;
        self.n += 1;
        let readings = self.sensors.iter_mut();
        readings
            .filter_map(|running| running.next(n, observed_at))
            .collect()
    }
}

impl Running {
    fn next(&mut self, n: u64, observed_at: ObservedAt) -> Option<Reading> {
        let (value, quality) = match &self.simulated.says {
            Says::Fixed(value) => {
                let (_, quality) = self.faults.apply(n, 0.0, self.chance)?;
                (value.clone(), quality)
            }
            Says::Wave { wave, noise, shape } => {
                let pure = wave.value(n, self.before, self.chance);
                self.before = Some(pure);
                let noisy = match *noise {
                    0.0 => pure,
                    noise => pure + noise * self.chance.normal(n),
                };
                let (number, quality) = self.faults.apply(n, noisy, self.chance)?;
                (shape.of(number), quality)
            }
        };
        Some(Reading {
            sensor: self.simulated.sensor.clone(),
            observed_at,
            value,
            quality,
        })
    }
}

impl Simulated {
    /// What the settings say of it.
    fn declaration(&self) -> SensorDeclaration {
        let (value_type, precision) = match &self.says {
            Says::Fixed(value) => (ValueType::of(value), None),
            Says::Wave { shape, .. } => match shape {
                Shape::Float(decimals) => (ValueType::Float, decimals.map(Precision::Decimals)),
                Shape::Integer => (ValueType::Integer, None),
                Shape::Bool => (ValueType::Boolean, None),
            },
        };
        SensorDeclaration {
            unit: self.unit.as_deref().map(str::to_owned),
            value_type: Some(value_type),
            precision,
            ..SensorDeclaration::default()
        }
    }
}

impl Shape {
    fn of(self, number: f64) -> Value {
        match self {
            Self::Float(None) => Value::F64(number),
            Self::Float(Some(decimals)) => Value::F64(rounded(number, decimals)),
            // Saturates beyond what a whole number holds.
            Self::Integer => Value::I64(number.round() as i64),
            Self::Bool => Value::Bool(number >= 0.5),
        }
    }
}

/// The double nearest to a number of so many decimals.
fn rounded(number: f64, decimals: u8) -> f64 {
    let text = format!("{number:.*}", usize::from(decimals));
    text.parse().unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Quality;

    fn config(seed: u64) -> SimulateConfig {
        let bounds = Bounds {
            min: 0.0,
            max: 10.0,
        };
        let wave = |name: &str, wave, shape| Simulated {
            sensor: name.parse().unwrap(),
            says: Says::Wave {
                wave,
                noise: 0.3,
                shape,
            },
            faults: vec![
                Fault {
                    effect: Effect::Dropout,
                    chance: 0.1,
                    readings: 2,
                },
                Fault {
                    effect: Effect::Graded(Quality::Uncertain),
                    chance: 0.1,
                    readings: 1,
                },
            ],
            unit: None,
        };
        SimulateConfig {
            seed,
            sensors: vec![
                wave(
                    "a",
                    Wave::RandomWalk { bounds, step: 1.0 },
                    Shape::Float(Some(2)),
                ),
                wave("b", Wave::Counter { bounds, step: 1.0 }, Shape::Integer),
                Simulated {
                    sensor: "c".parse().unwrap(),
                    says: Says::Fixed(Value::Text("on".into())),
                    faults: Vec::new(),
                    unit: None,
                },
            ],
        }
    }

    fn first(config: &SimulateConfig, rounds: i64) -> Vec<Reading> {
        let mut simulation = Simulation::new(config);
        (0..rounds)
            .flat_map(|at| simulation.next(ObservedAt::from_millis(at)))
            .collect()
    }

    #[test]
    fn a_seed_decides_all_and_sensors_do_not_depend_on_each_other() {
        let readings = first(&config(1), 200);
        assert_eq!(first(&config(1), 200), readings);
        assert_ne!(first(&config(2), 200), readings);
        let mut fewer = config(1);
        fewer.sensors.remove(1);
        let of_a = |all: &[Reading]| -> Vec<Reading> {
            let of_a = all.iter().filter(|one| one.sensor.as_str() == "a");
            of_a.cloned().collect()
        };
        assert_eq!(of_a(&first(&fewer, 200)), of_a(&readings));
        assert!((100..200).contains(&of_a(&readings).len()), "some drop out");
    }

    #[test]
    fn each_shape_is_kept() {
        for (shape, number, value) in [
            (Shape::Float(None), 1.25, Value::F64(1.25)),
            (Shape::Float(Some(1)), 0.30000000000000004, Value::F64(0.3)),
            (Shape::Float(Some(0)), 2.6, Value::F64(3.0)),
            (Shape::Integer, 2.5, Value::I64(3)),
            (Shape::Integer, 1e300, Value::I64(i64::MAX)),
            (Shape::Bool, 0.49, Value::Bool(false)),
            (Shape::Bool, 0.5, Value::Bool(true)),
        ] {
            assert_eq!(shape.of(number), value);
        }
    }
}
