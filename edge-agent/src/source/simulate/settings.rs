//! The settings of a `simulate` source as they are written, and their checks.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use schema::{Quality, SensorName, Value};
use serde::Deserialize;

use super::{Bounds, Cycle, Effect, Fault, Says, Shape, SimulateConfig, Simulated, Wave};
use crate::source::config::Section;
use crate::source::format::is_unit;

/// Most sensors of one source: what one append to the buffer takes.
pub const SENSORS_MAX: usize = crate::ingest::APPEND_READINGS_MAX;

/// Most faults of one sensor.
const FAULTS_MAX: usize = 16;

const INTERVAL: Duration = Duration::from_secs(1);
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// Beyond what any quantity is; sums of two stay finite.
const NUMBER_MAX: f64 = 1e18;

/// As many decimals as a double of ordinary size has.
const DECIMALS_MAX: u8 = 15;

#[derive(Debug, Deserialize)]
struct RawSimulate {
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    sensor: Vec<RawSensor>,
}

#[derive(Debug, Deserialize)]
struct RawSensor {
    sensor: String,
    wave: RawWave,
    value: Option<Value>,
    min: Option<f64>,
    max: Option<f64>,
    #[serde(default, with = "humantime_serde")]
    period: Option<Duration>,
    phase: Option<f64>,
    step: Option<f64>,
    noise: Option<f64>,
    #[serde(rename = "type")]
    shape: Option<RawShape>,
    decimals: Option<u8>,
    unit: Option<String>,
    #[serde(default)]
    fault: Vec<RawFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawWave {
    Constant,
    Sine,
    Ramp,
    Square,
    RandomWalk,
    Counter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawShape {
    Float,
    Integer,
    Bool,
}

#[derive(Debug, Deserialize)]
struct RawFault {
    kind: RawEffect,
    chance: f64,
    readings: Option<u64>,
    size: Option<f64>,
    quality: Option<Quality>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawEffect {
    Dropout,
    Spike,
    Stuck,
    Quality,
}

/// Notes problems with one sensor.
struct Checks<'a, 'b> {
    sensor: usize,
    section: &'a mut Section<'b>,
}

impl Checks<'_, '_> {
    fn check(&mut self, holds: bool, key: &str, reason: &str) {
        let sensor = self.sensor;
        self.section
            .check(holds, &format!("sensor[{sensor}].{key}"), reason);
    }
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<SimulateConfig> {
    let interval = section.interval(INTERVAL, INTERVALS, "must be from 1ms to 1day");
    let RawSimulate { seed, sensor } = section.read()?;
    section.check(
        (1..=SENSORS_MAX).contains(&sensor.len()),
        "sensor",
        format!("must stand at least once and at most {SENSORS_MAX} times"),
    );
    let mut names = BTreeSet::new();
    let mut sensors = Vec::new();
    for (place, raw) in sensor.into_iter().take(SENSORS_MAX).enumerate() {
        let mut checks = Checks {
            sensor: place,
            section,
        };
        if let Some(simulated) = raw.check(interval, &mut checks) {
            let is_new = names.insert(simulated.sensor.clone());
            checks.check(is_new, "sensor", "is the name of another one");
            sensors.push(simulated);
        }
    }
    Some(SimulateConfig { seed, sensors })
}

impl RawSensor {
    fn check(self, interval: Duration, checks: &mut Checks<'_, '_>) -> Option<Simulated> {
        let sensor = self.sensor.parse::<SensorName>();
        if let Err(error) = &sensor {
            checks.check(false, "sensor", &error.to_string());
        }
        checks.check(
            self.unit.as_deref().is_none_or(is_unit),
            "unit",
            "must have 1 to 64 characters, none of them a control character",
        );
        self.check_keys(checks);
        let says = self.says(interval, checks);
        let is_number = matches!(says, Some(Says::Wave { .. }));
        checks.check(
            self.fault.len() <= FAULTS_MAX,
            "fault",
            "must stand at most 16 times",
        );
        let faults = self.fault.into_iter().enumerate();
        let faults = faults.map(|(place, raw)| raw.check(place, is_number, checks));
        let faults: Vec<Fault> = faults.collect();
        Some(Simulated {
            sensor: sensor.ok()?,
            says: says?,
            faults,
            unit: self.unit.map(Into::into),
        })
    }

    /// Each key must mean something for its wave.
    fn check_keys(&self, checks: &mut Checks<'_, '_>) {
        use RawWave::{Constant, Counter, Ramp, RandomWalk, Sine, Square};
        let is_cycle = matches!(self.wave, Sine | Ramp | Square);
        let is_stepped = matches!(self.wave, RandomWalk | Counter);
        for (key, is_set, suits) in [
            ("value", self.value.is_some(), self.wave == Constant),
            ("min", self.min.is_some(), is_cycle || is_stepped),
            ("max", self.max.is_some(), is_cycle || is_stepped),
            ("period", self.period.is_some(), is_cycle),
            ("phase", self.phase.is_some(), is_cycle),
            ("step", self.step.is_some(), is_stepped),
        ] {
            checks.check(!is_set || suits, key, "does not go with this wave");
        }
        for (key, number, min) in [
            ("min", self.min, -NUMBER_MAX),
            ("max", self.max, -NUMBER_MAX),
            ("noise", self.noise, 0.0),
        ] {
            let is_bounded = number.is_none_or(|number| (min..=NUMBER_MAX).contains(&number));
            let reason = match min {
                0.0 => "must be from 0 to 1e18",
                _ => "must be from -1e18 to 1e18",
            };
            checks.check(is_bounded, key, reason);
        }
        checks.check(
            self.phase.is_none_or(|phase| (0.0..1.0).contains(&phase)),
            "phase",
            "must be from 0 up to but not including 1",
        );
        checks.check(
            self.decimals
                .is_none_or(|decimals| decimals <= DECIMALS_MAX),
            "decimals",
            "must be from 0 to 15",
        );
        let is_float = self.shape.is_none_or(|shape| shape == RawShape::Float);
        checks.check(
            self.decimals.is_none() || is_float,
            "decimals",
            "goes with the type float",
        );
    }

    fn says(&self, interval: Duration, checks: &mut Checks<'_, '_>) -> Option<Says> {
        if let Some(value @ (Value::Text(_) | Value::Bool(_))) = &self.value {
            for (key, is_set) in [
                ("noise", self.noise.is_some()),
                ("type", self.shape.is_some()),
                ("decimals", self.decimals.is_some()),
            ] {
                checks.check(!is_set, key, "goes with numbers");
            }
            if let Err(error) = value.validate() {
                checks.check(false, "value", &error.to_string());
            }
            return Some(Says::Fixed(value.clone()));
        }
        let wave = self.wave(interval, checks)?;
        // A whole number that is meant so is written so.
        let default = match (&self.value, self.wave) {
            (Some(Value::I64(_)), _) | (None, RawWave::Counter) => RawShape::Integer,
            _ => RawShape::Float,
        };
        let shape = match self.shape.unwrap_or(default) {
            RawShape::Float => Shape::Float(self.decimals),
            RawShape::Integer => Shape::Integer,
            RawShape::Bool => Shape::Bool,
        };
        Some(Says::Wave {
            wave,
            noise: self.noise.unwrap_or(0.0),
            shape,
        })
    }

    fn wave(&self, interval: Duration, checks: &mut Checks<'_, '_>) -> Option<Wave> {
        let counts = self.wave == RawWave::Counter;
        let bounds = Bounds {
            min: self.min.unwrap_or(0.0),
            // Beyond this whole numbers are no doubles any more.
            max: self
                .max
                .unwrap_or(if counts { (1u64 << 53) as f64 } else { 1.0 }),
        };
        checks.check(bounds.min <= bounds.max, "max", "must be at least min");
        match self.wave {
            RawWave::Constant => {
                let number = match self.value {
                    Some(Value::F64(number)) => Some(number),
                    Some(Value::I64(number)) => Some(number as f64),
                    _ => None,
                };
                let number = number.filter(|number| number.abs() <= NUMBER_MAX);
                checks.check(
                    number.is_some(),
                    "value",
                    "must be a number from -1e18 to 1e18, true, false or a text",
                );
                Some(Wave::Constant(number?))
            }
            RawWave::Sine | RawWave::Ramp | RawWave::Square => {
                let period = self.period.filter(|period| !period.is_zero());
                checks.check(period.is_some(), "period", "must say how long a period is");
                let cycle = Cycle {
                    bounds,
                    readings: period?.as_secs_f64() / interval.as_secs_f64().max(1e-9),
                    phase: self.phase.unwrap_or(0.0),
                };
                Some(match self.wave {
                    RawWave::Sine => Wave::Sine(cycle),
                    RawWave::Ramp => Wave::Ramp(cycle),
                    _ => Wave::Square(cycle),
                })
            }
            RawWave::RandomWalk | RawWave::Counter => {
                let step = self.step.or(counts.then_some(1.0));
                let step = step.filter(|step| *step > 0.0 && *step <= NUMBER_MAX);
                checks.check(step.is_some(), "step", "must be above 0 and at most 1e18");
                let step = step?;
                Some(if counts {
                    Wave::Counter { bounds, step }
                } else {
                    Wave::RandomWalk { bounds, step }
                })
            }
        }
    }
}

impl RawFault {
    fn check(self, place: usize, is_number: bool, checks: &mut Checks<'_, '_>) -> Fault {
        let mut check = |holds: bool, key: &str, reason: &str| {
            checks.check(holds, &format!("fault[{place}].{key}"), reason);
        };
        check(
            (0.0..=1.0).contains(&self.chance),
            "chance",
            "must be from 0 to 1",
        );
        let readings = self.readings.unwrap_or(1);
        check(readings > 0, "readings", "must be at least 1");
        let needs = |kind| self.kind == kind;
        check(
            self.size.is_some() == needs(RawEffect::Spike)
                && self.size.is_none_or(|size| size.abs() <= NUMBER_MAX),
            "size",
            "goes with a spike, which needs it: from -1e18 to 1e18",
        );
        check(
            self.quality.is_some() == needs(RawEffect::Quality),
            "quality",
            "goes with the kind quality, which needs it: uncertain or bad",
        );
        let is_for_numbers = matches!(self.kind, RawEffect::Spike | RawEffect::Stuck);
        check(
            is_number || !is_for_numbers,
            "kind",
            "goes with numbers alone",
        );
        let effect = match self.kind {
            RawEffect::Dropout => Effect::Dropout,
            RawEffect::Spike => Effect::Spike(self.size.unwrap_or_default()),
            RawEffect::Stuck => Effect::Stuck,
            RawEffect::Quality => Effect::Graded(self.quality.unwrap_or_default()),
        };
        Fault {
            effect,
            chance: self.chance,
            readings,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::source::trial::{check_problems, source};

    fn with(sensor: &str) -> String {
        format!(
            "[source.demo]\nkind = \"simulate\"\nseed = 7\n[[source.demo.sensor]]\nsensor = \"s\"\n{sensor}\n"
        )
    }

    fn understood(sensor: &str, part: &str) {
        let found = source(&with(sensor)).unwrap();
        assert!(found.contains(part), "{part}: {found}");
    }

    fn refused(sensor: &str, problem: &str) {
        check_problems(
            &with(sensor),
            &[&format!("source.demo.sensor[0].{problem}")],
        );
    }

    #[test]
    fn each_wave_is_understood() {
        understood(
            "wave = \"constant\"\nvalue = 2.5",
            "wave: Constant(2.5), noise: 0.0, shape: Float(None)",
        );
        understood(
            "wave = \"constant\"\nvalue = 2",
            "wave: Constant(2.0), noise: 0.0, shape: Integer",
        );
        understood("wave = \"constant\"\nvalue = true", "Fixed(Bool(true))");
        understood("wave = \"constant\"\nvalue = \"on\"", "Fixed(Text(\"on\"))");
        understood(
            "wave = \"sine\"\nperiod = \"1m\"\nmin = -1\nmax = 1\nphase = 0.25\nnoise = 0.1\ndecimals = 2",
            "Sine(Cycle { bounds: Bounds { min: -1.0, max: 1.0 }, readings: 60.0, phase: 0.25 }), noise: 0.1, \
             shape: Float(Some(2))",
        );
        understood("wave = \"ramp\"\nperiod = \"1m\"", "Ramp(");
        understood(
            "wave = \"square\"\nperiod = \"1m\"\ntype = \"bool\"",
            "shape: Bool",
        );
        understood(
            "wave = \"random-walk\"\nstep = 0.5\nmax = 9",
            "RandomWalk { bounds",
        );
        understood(
            "wave = \"counter\"",
            "step: 1.0 }, noise: 0.0, shape: Integer",
        );
    }

    #[test]
    fn each_fault_is_understood() {
        let fault = |text: &str| {
            format!("wave = \"counter\"\n[[source.demo.sensor.fault]]\n{text}\nchance = 0.5")
        };
        understood(
            &fault("kind = \"dropout\"\nreadings = 3"),
            "effect: Dropout, chance: 0.5, readings: 3",
        );
        understood(
            &fault("kind = \"spike\"\nsize = 9.0"),
            "effect: Spike(9.0), chance: 0.5, readings: 1",
        );
        understood(&fault("kind = \"stuck\""), "effect: Stuck");
        understood(
            &fault("kind = \"quality\"\nquality = \"bad\""),
            "effect: Graded(Bad)",
        );
        let size = "fault[0].size goes with a spike, which needs it: from -1e18 to 1e18";
        refused(&fault("kind = \"spike\""), size);
        refused(&fault("kind = \"stuck\"\nsize = 1.0"), size);
        let quality =
            "fault[0].quality goes with the kind quality, which needs it: uncertain or bad";
        refused(&fault("kind = \"quality\""), quality);
        refused(
            &fault("kind = \"stuck\"\nreadings = 0"),
            "fault[0].readings must be at least 1",
        );
        let chance = |chance: &str| fault("kind = \"stuck\"").replace("0.5", chance);
        for good in ["0.0", "1.0"] {
            source(&with(&chance(good))).unwrap();
        }
        for bad in ["-0.1", "1.1", "nan"] {
            refused(&chance(bad), "fault[0].chance must be from 0 to 1");
        }
        let fixed = fault("kind = \"stuck\"").replace("\"counter\"", "\"constant\"\nvalue = \"x\"");
        refused(&fixed, "fault[0].kind goes with numbers alone");
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (sensor, problem) in [
            (
                "wave = \"constant\"",
                "value must be a number from -1e18 to 1e18, true, false or a text",
            ),
            (
                "wave = \"constant\"\nvalue = 1e19",
                "value must be a number from -1e18 to 1e18, true, false or a text",
            ),
            ("wave = \"sine\"", "period must say how long a period is"),
            (
                "wave = \"sine\"\nperiod = \"0s\"",
                "period must say how long a period is",
            ),
            (
                "wave = \"random-walk\"",
                "step must be above 0 and at most 1e18",
            ),
            (
                "wave = \"counter\"\nstep = 0",
                "step must be above 0 and at most 1e18",
            ),
            (
                "wave = \"counter\"\nmin = 2\nmax = 1",
                "max must be at least min",
            ),
            (
                "wave = \"counter\"\nmax = 2e18",
                "max must be from -1e18 to 1e18",
            ),
            (
                "wave = \"counter\"\nnoise = -1.0",
                "noise must be from 0 to 1e18",
            ),
            (
                "wave = \"counter\"\nphase = 0.5",
                "phase does not go with this wave",
            ),
            (
                "wave = \"ramp\"\nperiod = \"1s\"\nphase = 1.0",
                "phase must be from 0 up to but not including 1",
            ),
            (
                "wave = \"ramp\"\nperiod = \"1s\"\ndecimals = 16",
                "decimals must be from 0 to 15",
            ),
            (
                "wave = \"counter\"\ntype = \"integer\"\ndecimals = 1",
                "decimals goes with the type float",
            ),
            (
                "wave = \"constant\"\nvalue = true\nnoise = 1.0",
                "noise goes with numbers",
            ),
            (
                "wave = \"counter\"\nunit = \"\"",
                "unit must have 1 to 64 characters, none of them a control character",
            ),
        ] {
            refused(sensor, problem);
        }
        source(&with("wave = \"ramp\"\nperiod = \"1s\"\ndecimals = 15")).unwrap();
        let problem = "source.demo.sensor must stand at least once and at most 4096 times";
        check_problems("[source.demo]\nkind = \"simulate\"", &[problem]);
        let twice =
            with("wave = \"counter\"\n[[source.demo.sensor]]\nsensor = \"s\"\nwave = \"counter\"");
        check_problems(
            &twice,
            &["source.demo.sensor[1].sensor is the name of another one"],
        );
    }

    #[test]
    fn faults_are_bounded() {
        let fault = "[[source.demo.sensor.fault]]\nkind = \"stuck\"\nchance = 0.1\n";
        let sensor = |count| format!("wave = \"counter\"\n{}", fault.repeat(count));
        for count in [15, 16] {
            source(&with(&sensor(count))).unwrap();
        }
        refused(&sensor(17), "fault must stand at most 16 times");
    }
}
