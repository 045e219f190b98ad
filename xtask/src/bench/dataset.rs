//! Sensor data files: first line `interval_seconds,name:type,…` (f, i, b or t), then one row a
//! scan; an empty cell is no reading. And how an agent would have stamped them.

use std::path::Path;

use daemon::{Class, Failure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use schema::{Batch, Epoch, ObservedAt, Quality, Row, SensorName, Value};

/// A file's readings, scan by scan.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) name: String,
    interval_ms: i64,
    sensors: Vec<SensorName>,
    scans: Vec<Vec<Option<Value>>>,
}

impl Dataset {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(
                Class::Configuration,
                format!("read data {}", path.display()),
            )
            .because(error)
            .help("give --data the path of a file in the format of docs/benchmarks.md")
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|reason| {
            Failure::new(
                Class::Configuration,
                format!("understand data {}", path.display()),
            )
            .because(reason)
        })
    }

    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let mut head = lines.next().ok_or("it is empty")?.split(',');
        let interval: f64 = head
            .next()
            .unwrap_or_default()
            .parse()
            .map_err(|_| "line 1 does not begin with an interval in seconds")?;
        let mut sensors = Vec::new();
        let mut kinds = Vec::new();
        for column in head {
            let (sensor, kind) = column
                .rsplit_once(':')
                .ok_or_else(|| format!("column {column:?} is not of the form name:type"))?;
            sensors.push(
                sensor
                    .parse()
                    .map_err(|error| format!("column {column:?}: {error}"))?,
            );
            kinds.push(kind);
        }
        let mut scans = Vec::new();
        for (number, line) in lines.enumerate() {
            let cells: Vec<&str> = line.split(',').collect();
            if cells.len() != kinds.len() {
                return Err(format!(
                    "line {} has {} cells instead of {}",
                    number + 2,
                    cells.len(),
                    kinds.len()
                ));
            }
            let scan = cells
                .iter()
                .zip(&kinds)
                .map(|(cell, kind)| value(cell, kind))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|reason| format!("line {}: {reason}", number + 2))?;
            scans.push(scan);
        }
        if sensors.is_empty() || scans.is_empty() {
            return Err("it has no sensors or no rows".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            interval_ms: (interval * 1000.0) as i64,
            sensors,
            scans,
        })
    }

    /// A machine with eight sensors, one scan a second: for when no file is at hand.
    pub(crate) fn generated() -> Self {
        let mut rng = SmallRng::seed_from_u64(1);
        let names = [
            "temperature",
            "pressure",
            "flow",
            "current",
            "vibration",
            "speed",
            "count",
            "on",
        ];
        let mut levels = [65.0, 2.5, 40.0, 12.0, 0.7];
        let (mut speed, mut count) = (1450i64, 0i64);
        let scans = (0..2_000)
            .map(|scan| {
                let mut values: Vec<Option<Value>> = levels
                    .iter_mut()
                    .map(|level| {
                        *level += rng.random_range(-0.5..0.5);
                        Some(Value::F64((*level * 100.0_f64).round() / 100.0))
                    })
                    .collect();
                speed += rng.random_range(-3..=3);
                count += rng.random_range(0..3);
                values.push(Some(Value::I64(speed)));
                values.push(Some(Value::I64(count)));
                values.push(Some(Value::Bool(scan % 300 < 280)));
                values
            })
            .collect();
        Self {
            name: "generated".to_owned(),
            interval_ms: 1000,
            sensors: names
                .iter()
                .map(|name| {
                    format!("plant1/pump3/{name}")
                        .parse()
                        .expect("a fixed name is one")
                })
                .collect(),
            scans,
        }
    }

    /// Seven sensors whose values were f32 and passed through text and sums on the way: each is a
    /// short decimal rounded to f32, and then up to two units in the last place of f64 beside it.
    pub(crate) fn noisy_singles() -> Self {
        let mut rng = SmallRng::seed_from_u64(3);
        // Name, where it starts, how far a scan may take it, decimals.
        let sensors = [
            ("voltage", 231.4, 0.6, 1),
            ("current", 5.09, 0.2, 2),
            ("active_kw", 1.117, 0.05, 3),
            ("frequency", 50.0, 0.02, 2),
            ("temperature", 41.6, 0.1, 1),
            ("humidity", 38.2, 0.3, 1),
            ("pressure", 1013.2, 0.2, 1),
        ];
        let mut levels = sensors.map(|(_, level, ..)| level);
        let scans = (0..2_000)
            .map(|_| {
                sensors
                    .iter()
                    .zip(&mut levels)
                    .map(|((_, _, step, decimals), level)| {
                        *level += rng.random_range(-step..*step);
                        let power = 10f64.powi(*decimals);
                        let single = f64::from(((*level * power).round() / power) as f32);
                        let ulps = rng.random_range(-2..=2i64);
                        let bits = single.to_bits().wrapping_add_signed(ulps);
                        Some(Value::F64(f64::from_bits(bits)))
                    })
                    .collect()
            })
            .collect();
        Self {
            name: "noisy_singles".to_owned(),
            interval_ms: 10_000,
            sensors: sensors
                .iter()
                .map(|(name, ..)| {
                    format!("plant1/meter4/{name}")
                        .parse()
                        .expect("a fixed name is one")
                })
                .collect(),
            scans,
        }
    }

    /// The readings in batches of `rows`, stamped as an agent does: on a grid of ± 3 ms, each
    /// sensor of a scan 0 to 1.5 ms after the one before, its clock 0 to 0.9 ms later, all in
    /// whole milliseconds; three in a thousand are uncertain. A last batch that is not full is
    /// left out.
    pub(crate) fn batches(&self, rows: usize) -> Vec<Batch> {
        let mut rng = SmallRng::seed_from_u64(7);
        let epoch = Epoch::from_random(rng.random());
        let start_us = 1_700_000_000_000_000i64;
        let mut all = Vec::new();
        let mut clock = schema::HlcClock::default();
        for (number, scan) in self.scans.iter().enumerate() {
            let grid = start_us + number as i64 * self.interval_ms * 1000;
            let mut at_us = grid + rng.random_range(-3_000..=3_000);
            for (sensor, value) in scan.iter().enumerate() {
                at_us += rng.random_range(0..=1_500);
                let Some(value) = value else { continue };
                let tick_us = at_us + rng.random_range(0..=900);
                all.push(Row {
                    sensor: sensor as u16,
                    observed_at: ObservedAt::from_millis(at_us / 1000),
                    hlc: clock.tick(tick_us.unsigned_abs() / 1000),
                    seq: all.len() as u64 + 1,
                    quality: if rng.random_bool(0.003) {
                        Quality::Uncertain
                    } else {
                        Quality::Good
                    },
                    value: value.clone(),
                });
            }
        }
        all.chunks_exact(rows)
            .map(|rows| Batch {
                epoch,
                sensors: self.sensors.clone(),
                rows: rows.to_vec(),
            })
            .collect()
    }
}

fn value(cell: &str, kind: &str) -> Result<Option<Value>, String> {
    if cell.is_empty() {
        return Ok(None);
    }
    let bad = || format!("{cell:?} is no value of type {kind:?}");
    let value = match kind {
        "f" => Value::F64(cell.parse().map_err(|_| bad())?),
        // Whole numbers may be written with a fraction of zero.
        "i" => Value::I64(
            cell.parse()
                .or_else(|_| cell.parse::<f64>().map(|number| number as i64))
                .map_err(|_| bad())?,
        ),
        "b" => match cell {
            "1" | "true" => Value::Bool(true),
            "0" | "false" => Value::Bool(false),
            _ => return Err(bad()),
        },
        "t" => Value::Text(cell.into()),
        other => return Err(format!("type {other:?} is unknown, use f, i, b or t")),
    };
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_stamped_batches() {
        let data = Dataset::parse("x", "60,a:f,b:i,c:t\n1.5,,on\n2.5,7,off\n").unwrap();
        let batches = data.batches(5);
        assert_eq!(batches.len(), 1);
        let rows = &batches[0].rows;
        assert_eq!(rows[0].value, Value::F64(1.5));
        assert_eq!(rows[1].sensor, 2);
        assert!(rows.iter().all(|row| row.observed_at.micros() % 1000 == 0));
        let step = rows[2].observed_at.millis() - rows[0].observed_at.millis();
        assert!((59_990..60_010).contains(&step), "{step} ms");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, part) in [
            ("", "empty"),
            ("x,a:f\n", "line 1"),
            ("1,a\n", "name:type"),
            ("1,a:q\n1\n", "unknown"),
            ("1,a:f\n1\nz\n", "line 3"),
            ("1,a:f\n1,2\n", "2 cells"),
        ] {
            let error = Dataset::parse("x", text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
