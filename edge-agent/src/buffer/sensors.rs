//! The dictionary of sensor names: a row holds a number, a name stands once. What is remembered of each
//! sensor to stamp its readings stands with its name, and so has the same bound.

use std::collections::HashMap;

use schema::stamp::{LastStamp, Stamps};
use schema::{ObservedAt, SensorName};

use super::policy::{Policies, Wanted};
use super::row::{SENSORS_MAX, SensorId};

/// Names and their numbers.
#[derive(Debug, Default)]
pub(super) struct Sensors {
    ids: HashMap<SensorName, SensorId>,
    names: HashMap<SensorId, SensorName>,
    last: SensorId,
    stamps: Stamps,
    last_stamps: HashMap<SensorId, LastStamp>,
    /// What the rules say, once a sensor was asked about.
    wanted: HashMap<SensorId, Wanted>,
}

impl Sensors {
    /// The dictionary of a file; `None` when two entries contradict each other.
    pub(super) fn restore(entries: Vec<(SensorId, SensorName)>) -> Option<Self> {
        let mut sensors = Self::default();
        for (id, name) in entries {
            sensors.last = sensors.last.max(id);
            let is_twice = sensors.ids.insert(name.clone(), id).is_some()
                | sensors.names.insert(id, name).is_some();
            if is_twice {
                return None;
            }
        }
        Some(sensors)
    }

    pub(super) fn name(&self, id: SensorId) -> Option<&SensorName> {
        self.names.get(&id)
    }

    pub(super) fn id(&self, name: &SensorName) -> Option<SensorId> {
        self.ids.get(name).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.names.len() >= SENSORS_MAX
    }

    /// Gives a new name its number.
    pub(super) fn add(&mut self, name: &SensorName) -> SensorId {
        self.last += 1;
        self.ids.insert(name.clone(), self.last);
        self.names.insert(self.last, name.clone());
        self.last
    }

    /// Forgets a name, whose number is not given again until a restart.
    pub(super) fn remove(&mut self, id: SensorId) -> Option<SensorName> {
        let name = self.names.remove(&id)?;
        if let Some(last) = self.last_stamps.remove(&id) {
            self.stamps.forget(last);
        }
        self.wanted.remove(&id);
        self.ids.remove(&name);
        Some(name)
    }

    /// What the rules say of a sensor, without looking at its name again.
    pub(super) fn wanted(&mut self, id: SensorId, policies: &Policies) -> Wanted {
        if let Some(wanted) = self.wanted.get(&id) {
            return *wanted;
        }
        let Some(name) = self.names.get(&id) else {
            return Wanted::default();
        };
        let wanted = policies.wanted(name);
        self.wanted.insert(id, wanted);
        wanted
    }

    /// The rules are others from now on.
    pub(super) fn forget_wanted(&mut self) {
        self.wanted.clear();
    }

    /// Takes back that a name was forgotten.
    pub(super) fn remember(&mut self, id: SensorId, name: SensorName) {
        self.ids.insert(name.clone(), id);
        self.names.insert(id, name);
    }

    /// Begins to stamp behind what an earlier run may have stamped.
    pub(super) fn stamp_behind(&mut self, floor: ObservedAt, now_micros: i64) {
        self.stamps = Stamps::behind(floor, now_micros);
    }

    /// The time of a reading that was read at `read`: no other reading of its sensor has it.
    pub(super) fn stamp(&mut self, id: SensorId, read: ObservedAt) -> ObservedAt {
        let last = self.last_stamps.entry(id).or_default();
        self.stamps.stamp(last, read.micros())
    }

    /// The time of a reading whose producer gave it.
    pub(super) fn given(&mut self, id: SensorId, at: ObservedAt) -> ObservedAt {
        self.last_stamps.entry(id).or_default().given(at);
        at
    }

    /// The numbers.
    pub(super) fn all_ids(&self) -> impl Iterator<Item = SensorId> + '_ {
        self.names.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_until_it_is_removed() {
        let mut sensors = Sensors::default();
        let cpu: SensorName = "cpu".parse().unwrap();
        let id = sensors.add(&cpu);
        assert_eq!(sensors.id(&cpu), Some(id));
        assert_eq!(sensors.name(id), Some(&cpu));
        sensors.remove(id);
        assert_eq!(sensors.id(&cpu), None);
        assert_ne!(sensors.add(&cpu), id);
    }

    #[test]
    fn entries_that_contradict_each_other_are_no_dictionary() {
        let name = |text: &str| text.parse::<SensorName>().unwrap();
        assert!(Sensors::restore(vec![(1, name("a")), (2, name("b"))]).is_some());
        assert!(Sensors::restore(vec![(1, name("a")), (2, name("a"))]).is_none());
        assert!(Sensors::restore(vec![(1, name("a")), (1, name("b"))]).is_none());
    }
}
