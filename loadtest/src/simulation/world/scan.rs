//! What devices measure: scans, with values and readings that no store may have.

use std::time::Duration;

use rand::RngExt;
use schema::{ObservedAt, Quality, Reading, Value};

use super::super::Violation;
use super::super::plan::{Fault, TROUBLE};
use super::{Event, World};

/// Time between two scans once the trouble is over.
const CALM_INTERVAL: Duration = Duration::from_secs(10);

impl World {
    /// A source hands over one scan.
    pub(super) fn scan(&mut self, agent: usize) -> Result<(), Violation> {
        // A few good readings go on to come: a reading that cannot be read is given up only once
        // the bridge has read others that were sent later.
        let calm = self.now >= TROUBLE;
        let pause = if calm {
            CALM_INTERVAL
        } else {
            self.plan.scan_interval
        };
        self.at(self.now + pause, Event::Scan { agent });
        let wall_ms = self.wall_ms(agent);
        let rewrites = self
            .chance
            .trouble(self.now, self.plan.rewrite, Fault::Rewrite);
        if !rewrites {
            self.observed_ms[agent] = self.agents[agent].time_ms(self.now, wall_ms);
        }
        let observed_at = ObservedAt::from_millis(self.observed_ms[agent] as i64);
        let mut bad = Vec::new();
        let readings: Vec<Reading> = (0..self.plan.sensors)
            .map(|sensor| {
                let is_bad = !calm && self.chance.rng.random_bool(self.plan.bad_value);
                bad.push(is_bad);
                let value = match (is_bad, sensor % 3) {
                    (true, _) => Value::F64(f64::NAN),
                    (false, 0) => {
                        Value::F64(f64::from(self.chance.rng.random_range(0..500)) / 10.0)
                    }
                    (false, 1) => Value::I64(self.chance.rng.random_range(-5..5)),
                    (false, _) => Value::Bool(self.chance.rng.random()),
                };
                Reading {
                    sensor: format!("s{sensor}").parse().expect("a fixed name is one"),
                    observed_at,
                    value,
                    quality: Quality::Good,
                }
            })
            .collect();
        let mut out = Vec::new();
        let now = self.now;
        let range = self.agents[agent]
            .append(readings.clone(), wall_ms, now, &mut out)
            .map_err(Violation::Breach)?;
        let Some(range) = range else {
            return Ok(());
        };
        let device = self.agents[agent].id.clone();
        // Whoever trusts its clock is wrong when that is.
        let is_known = !rewrites && !self.agents[agent].trusts_clock();
        let taken_ms = is_known.then(|| self.bridge_wall_micros() / 1000);
        for ((row, reading), is_bad) in (range.first()..=range.last()).zip(readings).zip(bad) {
            let Some((epoch, seq)) = self.agents[agent].buffer.name_of(row) else {
                continue;
            };
            let is_poison = !calm && self.chance.rng.random_bool(self.plan.poison);
            if is_poison {
                self.chance.count(Fault::Poison);
                self.poison.insert((device.clone(), epoch, seq));
            }
            if is_bad {
                self.chance.count(Fault::BadValue);
            }
            self.accepted += 1;
            self.oracle.accepted(
                &device,
                (epoch, seq),
                &reading,
                is_bad || is_poison,
                taken_ms,
            )?;
        }
        self.send(agent, out)?;
        self.set_timer(agent);
        Ok(())
    }
}
