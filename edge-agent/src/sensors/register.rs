//! What is declared of each sensor, and where that is on its way: pure. What sources say, names of readings, the time
//! and the bridge's answers come in; what is to be kept and sent comes out.
//!
//! ```text
//! (nothing) ─► Changed ─► Stamped ─► Noted        each step is kept before the next is taken
//!                 ▲   ◄──────┘ │        │
//!                 │  heard of a │ later version
//!                 └─────────────┴───────┘  something else is declared
//!              Stamped ─► refused by the bridge: sent again on the next connection
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};

use schema::limits::DECLARED_SENSORS_MAX;
use schema::message::{DeclaredSensor, NotedSensor, SensorNote};
use schema::{Hlc, HlcClock, SensorDeclaration, SensorName, ValueType};

use super::SensorRule;
use crate::buffer::{DeclarationState, KeptDeclaration};

/// Names that are remembered to have no rule. With more of them all are looked up again.
const PLAIN_MAX: usize = 4096;

/// A version further ahead than this, in milliseconds, was stamped by a clock that was wrong: what follows is not stamped
/// behind it. As far as a bridge takes one.
const AHEAD_MS_MAX: u64 = 86_400_000;

/// All that is declared.
#[derive(Debug, Default)]
pub struct Register {
    rules: Vec<SensorRule>,
    sensors: HashMap<SensorName, Known>,
    /// Sensors of readings without a rule, of which nothing is declared.
    plain: HashSet<SensorName>,
    /// Whether a sensor has a type.
    has_types: bool,
    /// Whether a reading has brought a sensor that a rule speaks of.
    has_news: bool,
    /// The latest version that the bridge has said to have.
    heard: Hlc,
}

#[derive(Debug)]
struct Known {
    source: SensorDeclaration,
    declared: SensorDeclaration,
    version: Hlc,
    state: DeclarationState,
    /// Whether the disk has it so.
    is_kept: bool,
    /// Not to be sent on this connection again.
    is_refused: bool,
}

impl Known {
    fn to_be_kept(&self, sensor: &SensorName) -> KeptDeclaration {
        KeptDeclaration {
            sensor: sensor.clone(),
            source: self.source.clone(),
            declared: self.declared.clone(),
            version: self.version,
            state: self.state,
        }
    }
}

/// Whether a source has said all of this before.
fn is_said(more: &SensorDeclaration, source: &SensorDeclaration) -> bool {
    fn is_in<T: PartialEq>(more: &Option<T>, source: &Option<T>) -> bool {
        more.is_none() || more == source
    }
    is_in(&more.unit, &source.unit)
        && is_in(&more.value_type, &source.value_type)
        && is_in(&more.description, &source.description)
        && is_in(&more.min, &source.min)
        && is_in(&more.max, &source.max)
        && is_in(&more.precision, &source.precision)
        && is_in(&more.interval_ms, &source.interval_ms)
}

/// What became of a declaration by a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// It changes nothing.
    Known,
    /// It is to be kept and sent.
    Changed,
    /// There is no room for another sensor.
    Full,
}

impl Register {
    /// With the rules of the settings, and what an earlier run has kept.
    #[must_use]
    pub fn new(rules: Vec<SensorRule>, kept: Vec<KeptDeclaration>) -> Self {
        let mut register = Self {
            rules,
            ..Self::default()
        };
        for kept in kept {
            let declared = register.under_rules(&kept.sensor, &kept.source);
            let is_same = declared == kept.declared;
            let known = Known {
                source: kept.source,
                declared,
                version: kept.version,
                state: match is_same {
                    true => kept.state,
                    false => DeclarationState::Changed,
                },
                is_kept: is_same,
                is_refused: false,
            };
            register.has_types |= known.declared.value_type.is_some();
            register.sensors.insert(kept.sensor, known);
        }
        register
    }

    /// Whether a reading may have to be of a declared type, or of a sensor that a rule speaks of.
    #[must_use]
    pub fn is_typed(&self) -> bool {
        self.has_types || !self.rules.is_empty()
    }

    /// What is declared of a sensor.
    #[must_use]
    pub fn of(&self, sensor: &SensorName) -> Option<&SensorDeclaration> {
        let known = self.sensors.get(sensor)?;
        Some(&known.declared)
    }

    /// Takes what a source says of a sensor, in the place of what was said before.
    pub fn declare(&mut self, sensor: &SensorName, source: SensorDeclaration) -> Declared {
        if let Some(known) = self.sensors.get(sensor)
            && known.source == source
        {
            return Declared::Known;
        }
        let source = source.fitted();
        let declared = self.under_rules(sensor, &source);
        if let Some(known) = self.sensors.get_mut(sensor) {
            known.source = source;
            known.is_kept = false;
            if known.declared != declared {
                known.declared = declared;
                known.state = DeclarationState::Changed;
            }
        } else if declared.is_empty() {
            return Declared::Known;
        } else if !self.add(sensor, source, declared) {
            return Declared::Full;
        }
        let types = self.sensors.get(sensor);
        self.has_types |= types.is_some_and(|known| known.declared.value_type.is_some());
        Declared::Changed
    }

    /// As [`Self::declare`], but what this leaves out stays as the source has said before.
    pub fn declare_more(&mut self, sensor: &SensorName, more: SensorDeclaration) -> Declared {
        match self.sensors.get(sensor) {
            // Producers say it with each line.
            Some(known) if is_said(&more, &known.source) => Declared::Known,
            Some(known) => {
                let whole = more.or(&known.source);
                self.declare(sensor, whole)
            }
            None => self.declare(sensor, more),
        }
    }

    /// The type of which a sensor's readings have to be. One that a rule speaks of is declared by its first reading.
    pub fn type_of(&mut self, sensor: &SensorName) -> Option<ValueType> {
        if let Some(known) = self.sensors.get(sensor) {
            return known.declared.value_type;
        }
        if self.rules.is_empty() || self.plain.contains(sensor) {
            return None;
        }
        let source = SensorDeclaration::default();
        let declared = self.under_rules(sensor, &source);
        let value_type = declared.value_type;
        if declared.is_empty() {
            if self.plain.len() >= PLAIN_MAX {
                self.plain.clear();
            }
            self.plain.insert(sensor.clone());
        } else {
            // Without room it is of its type all the same.
            self.has_news |= self.add(sensor, source, declared);
        }
        value_type
    }

    /// Whether readings have brought new sensors since this was asked last.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// What the disk does not have yet.
    #[must_use]
    pub fn unkept(&self) -> Vec<KeptDeclaration> {
        let all = self.sensors.iter();
        all.filter(|(_, known)| !known.is_kept)
            .map(|(sensor, known)| known.to_be_kept(sensor))
            .collect()
    }

    /// All, as the disk is to have it.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<KeptDeclaration> {
        let all = self.sensors.iter();
        all.map(|(sensor, known)| known.to_be_kept(sensor))
            .collect()
    }

    /// The disk has these.
    pub fn kept(&mut self, kept: &[KeptDeclaration]) {
        for kept in kept {
            if let Some(known) = self.sensors.get_mut(&kept.sensor) {
                known.is_kept = known.source == kept.source
                    && known.declared == kept.declared
                    && known.version == kept.version
                    && known.state == kept.state;
            }
        }
    }

    /// Gives what has changed its version, at a time that is known: later than all that was sent before.
    pub fn stamp(&mut self, now_ms: u64) {
        let sane = |version: &Hlc| version.millis() <= now_ms.saturating_add(AHEAD_MS_MAX);
        let versions = self.sensors.values().map(|known| known.version);
        let last = versions.chain([self.heard]).filter(sane).max();
        let mut clock = HlcClock::resume(last.unwrap_or_default());
        let changed = |known: &&mut Known| known.state == DeclarationState::Changed;
        for known in self.sensors.values_mut().filter(changed) {
            known.version = clock.tick(now_ms);
            known.state = DeclarationState::Stamped;
            known.is_kept = false;
        }
    }

    /// What is to be sent, beside what waits for an answer: of that which the disk has, the first by name.
    #[must_use]
    pub fn due(&self, waiting: &BTreeSet<SensorName>, most: usize) -> Vec<DeclaredSensor> {
        let mut due: Vec<(&SensorName, &Known)> = self
            .sensors
            .iter()
            .filter(|(sensor, known)| {
                let is_to_be_sent = known.state == DeclarationState::Stamped;
                is_to_be_sent && known.is_kept && !known.is_refused && !waiting.contains(*sensor)
            })
            .collect();
        due.sort_unstable_by_key(|(sensor, _)| *sensor);
        due.truncate(most);
        due.into_iter()
            .map(|(sensor, known)| DeclaredSensor {
                sensor: sensor.clone(),
                version: known.version,
                declaration: known.declared.clone(),
            })
            .collect()
    }

    /// Takes an answer of the bridge; returns whether it refused something for want of room.
    pub fn note(&mut self, notes: &[NotedSensor]) -> bool {
        let mut is_full = false;
        for NotedSensor {
            sensor,
            version,
            note,
        } in notes
        {
            let Some(known) = self.sensors.get_mut(sensor) else {
                continue;
            };
            // What was answered may have changed since.
            if known.state != DeclarationState::Stamped || *version < known.version {
                continue;
            }
            match note {
                SensorNote::Kept if *version == known.version => {
                    known.state = DeclarationState::Noted;
                    known.is_kept = false;
                }
                // The database has a later one than this device knows: of a file that was lost, or of a clone.
                SensorNote::Kept => {
                    self.heard = self.heard.max(*version);
                    known.state = DeclarationState::Changed;
                    known.is_kept = false;
                }
                SensorNote::Full => {
                    known.is_refused = true;
                    is_full = true;
                }
                // Stamped by a clock that was ahead.
                SensorNote::TooNew => {
                    known.state = DeclarationState::Changed;
                    known.is_kept = false;
                }
            }
        }
        is_full
    }

    /// Whether the bridge has what is declared of a sensor now.
    pub(super) fn is_noted(&self, sensor: &SensorName) -> bool {
        let known = self.sensors.get(sensor);
        known.is_some_and(|known| known.state == DeclarationState::Noted)
    }

    /// Whether anything waits for a version, or for the bridge.
    #[must_use]
    pub fn waits(&self) -> bool {
        let waits = |known: &Known| known.state != DeclarationState::Noted && !known.is_refused;
        self.sensors.values().any(waits)
    }

    /// A connection is new: what another refused may be taken.
    pub fn connected(&mut self) {
        for known in self.sensors.values_mut() {
            known.is_refused = false;
        }
    }

    fn under_rules(&self, sensor: &SensorName, source: &SensorDeclaration) -> SensorDeclaration {
        let name = sensor.as_str();
        let rule = self.rules.iter().find(|rule| rule.sensor.matches(name));
        match rule {
            Some(rule) => rule.declaration.clone().or(source),
            None => source.clone(),
        }
    }

    fn add(
        &mut self,
        sensor: &SensorName,
        source: SensorDeclaration,
        declared: SensorDeclaration,
    ) -> bool {
        if self.sensors.len() >= DECLARED_SENSORS_MAX {
            return false;
        }
        self.plain.remove(sensor);
        let known = Known {
            source,
            declared,
            version: Hlc::default(),
            state: DeclarationState::Changed,
            is_kept: false,
            is_refused: false,
        };
        self.sensors.insert(sensor.clone(), known);
        true
    }
}
