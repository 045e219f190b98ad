//! What is done to readings between a source and the buffer: dropped, judged, aggregated, left out, renamed. Pure:
//! samples and the time in, samples and the next wake-up out.
//!
//! ```text
//! sample ─► first rule whose pattern matches its name ─► drop ─► range ─► window ─► dead band ─► new name ─► out
//! ```
//!
//! A dead band compares with what was sent last, not with what was seen last, so that a slow drift shows as soon as
//! it has left the band; a sensor that stays within it is still sent at least every `heartbeat`, so that a constant
//! sensor can be told from a dead one. A window takes what was observed in it, whenever it comes; it ends at its end, or
//! with a reading of another window. Nothing is ever invented: without readings there is neither heartbeat nor aggregate.
//!
//! What is in an open window is in memory alone. A reading counts in its window once the append that brought it is committed: until
//! then its source may hand it over again, as while the disk is full, and the window waits for it.

mod rename;
mod rule;
mod window;

use std::collections::HashMap;
use std::time::Duration;

use schema::{ObservedAt, Quality, SensorDeclaration, SensorName, Value, ValueType};
use tokio::time::Instant;

use crate::buffer::Sample;
pub use rename::{Rename, RenameError};
pub use rule::{Aggregate, Outside, Range, Rule, Shaping, Window as WindowRule};
use window::Window;

/// Longest time between two readings of a sensor that stays within its dead band, unless set.
pub const HEARTBEAT: Duration = Duration::from_secs(600);

/// Most sensors that are remembered. What comes of others is neither compared nor aggregated, but taken.
const SENSORS_MAX: usize = 4_096;

/// What became of one sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fate {
    /// It is the last of those that came out.
    Passed,
    /// A rule drops its sensor.
    Unwanted,
    /// It is within the dead band.
    NoNews,
    /// It is in a window, whose aggregate comes later.
    Aggregated,
    /// It is outside of the range.
    OutOfRange(Range),
    /// Its new name is none.
    BadName(String),
}

/// The stage of one source.
#[derive(Debug)]
pub(crate) struct Shaper {
    shaping: Shaping,
    /// By the name that the source gives.
    sensors: HashMap<SensorName, Known>,
    /// No window ends before.
    earliest: Option<Instant>,
}

/// One sensor.
#[derive(Debug)]
struct Known {
    /// The rule that applies, by its place.
    rule: Option<usize>,
    name: Result<SensorName, String>,
    sent: Option<(Value, Quality, ObservedAt)>,
    /// The last one is open; those before it wait for the commit of what they hold.
    windows: Vec<Window>,
}

impl Shaper {
    /// `None` when the settings change nothing.
    pub(crate) fn new(shaping: Shaping) -> Option<Self> {
        (!shaping.is_plain()).then(|| Self::of(shaping))
    }

    /// As [`Self::new`], also for settings that change nothing yet.
    pub(crate) fn of(shaping: Shaping) -> Self {
        Self {
            shaping,
            sensors: HashMap::new(),
            earliest: None,
        }
    }

    /// Takes the width of the dead band of sensors whose rule has none.
    pub(crate) fn set_dead_band(&mut self, dead_band: Option<f64>) {
        self.shaping.dead_band = dead_band;
    }

    /// Shapes one sample of an append; what is to be sent now is pushed to `out`. One that a window takes in is held there
    /// until [`Self::confirm`], and what ended by it is pushed. With `whole`, which somebody requested, windows
    /// and dead bands leave nothing out.
    pub(crate) fn take_of(
        &mut self,
        append: u64,
        mut sample: Sample,
        now: Instant,
        whole: bool,
        out: &mut Vec<Sample>,
    ) -> Fate {
        if !self.sensors.contains_key(&sample.reading.sensor) {
            self.make_room(sample.reading.observed_at);
            let known = Known::new(&self.shaping, &sample.reading.sensor);
            if self.sensors.len() >= SENSORS_MAX {
                return known.pass_unknown(&self.shaping, sample, out);
            }
            self.sensors.insert(sample.reading.sensor.clone(), known);
        }
        let Self {
            shaping,
            sensors,
            earliest,
        } = self;
        // Inserted above.
        let Some(known) = sensors.get_mut(&sample.reading.sensor) else {
            return Fate::Unwanted;
        };
        let rule = known.rule.and_then(|at| shaping.rules.get(at));
        if let Some(fate) = judge(rule, &mut sample) {
            return fate;
        }
        if let Err(reason) = &known.name {
            return Fate::BadName(reason.clone());
        }
        if let (Some(rule), false) = (rule.and_then(|rule| rule.window), whole) {
            let windows = &mut known.windows;
            let at = windows
                .iter()
                .position(|window| window.holds(&sample, rule));
            let at = at.unwrap_or_else(|| {
                windows.iter_mut().for_each(|window| window.is_over = true);
                windows.push(Window::begin(&sample, rule, now));
                windows.len() - 1
            });
            if let Some(window) = windows.get_mut(at) {
                window.hold(append, sample);
                if !window.is_over {
                    *earliest = Some(earliest.map_or(window.ends_at, |at| at.min(window.ends_at)));
                }
            }
            known.end_settled(shaping, out);
            return Fate::Aggregated;
        }
        match known.send(shaping, sample, whole, out) {
            true => Fate::Passed,
            false => Fate::NoNews,
        }
    }

    /// What windows hold of these sensors from an append is taken for good, or comes again. What ended by it is pushed.
    pub(crate) fn confirm(
        &mut self,
        append: u64,
        sensors: &[SensorName],
        is_taken: bool,
        out: &mut Vec<Sample>,
    ) {
        for sensor in sensors {
            if let Some(known) = self.sensors.get_mut(sensor) {
                let aggregate = known.aggregate(&self.shaping);
                for window in &mut known.windows {
                    window.confirm(append, is_taken, aggregate);
                }
                known.windows.retain(|window| !window.is_empty());
                known.end_settled(&self.shaping, out);
            }
        }
    }

    /// A sensor under its new name, and what its readings are once they are shaped; `None` when there will be none.
    pub(crate) fn declared(
        &self,
        sensor: &SensorName,
        mut declaration: SensorDeclaration,
    ) -> Option<(SensorName, SensorDeclaration)> {
        let known = Known::new(&self.shaping, sensor);
        let rule = known.rule.and_then(|at| self.shaping.rules.get(at));
        if rule.is_some_and(|rule| rule.drop) {
            return None;
        }
        if rule
            .and_then(|rule| rule.dead_band)
            .or(self.shaping.dead_band)
            .is_some()
        {
            declaration.interval_ms = None;
        }
        if let Some(window) = rule.and_then(|rule| rule.window) {
            // The mean of whole numbers is none.
            if window.aggregate == Aggregate::Mean
                && declaration.value_type == Some(ValueType::Integer)
            {
                declaration.value_type = Some(ValueType::Float);
                declaration.precision = None;
            }
            declaration.interval_ms = u64::try_from(window.length.as_millis()).ok();
        }
        Some((known.name.ok()?, declaration))
    }

    /// Ends the windows that are over.
    pub(crate) fn wake(&mut self, now: Instant, out: &mut Vec<Sample>) {
        if self.earliest.is_some_and(|at| at <= now) {
            self.end_windows(Some(now), out);
        }
    }

    /// When to call [`Self::wake`].
    pub(crate) const fn next_wakeup(&self) -> Option<Instant> {
        self.earliest
    }

    /// Ends all windows.
    pub(crate) fn finish(&mut self, out: &mut Vec<Sample>) {
        self.end_windows(None, out);
    }

    /// A sample that came out was not accepted: the next one of its sensor is news. By the name that it was sent with.
    pub(crate) fn not_accepted(&mut self, sent_as: &SensorName) {
        let is_it = |known: &&mut Known| known.name.as_ref() == Ok(sent_as);
        for known in self.sensors.values_mut().filter(is_it) {
            known.sent = None;
        }
    }

    /// Whether any rule has windows.
    pub(crate) fn has_windows(&self) -> bool {
        self.shaping.rules.iter().any(|rule| rule.window.is_some())
    }

    /// Whether anything compares with what was sent.
    pub(crate) fn compares(&self) -> bool {
        let of_rule = |rule: &Rule| rule.dead_band.is_some();
        self.shaping.dead_band.is_some() || self.shaping.rules.iter().any(of_rule)
    }

    fn end_windows(&mut self, now: Option<Instant>, out: &mut Vec<Sample>) {
        self.earliest = None;
        for known in self.sensors.values_mut() {
            let Some(now) = now else {
                known.end_all(&self.shaping, out);
                continue;
            };
            for window in &mut known.windows {
                window.is_over |= window.ends_at <= now;
                if !window.is_over {
                    let ends_at = window.ends_at;
                    self.earliest = Some(self.earliest.map_or(ends_at, |at| at.min(ends_at)));
                }
            }
            known.end_settled(&self.shaping, out);
        }
    }

    /// Forgets sensors that came and went, when there is no room for another.
    fn make_room(&mut self, now: ObservedAt) {
        if self.sensors.len() < SENSORS_MAX {
            return;
        }
        let shaping = &self.shaping;
        self.sensors.retain(|_, known| {
            let is_recent = |(_, _, at): &(Value, Quality, ObservedAt)| {
                now.micros().saturating_sub(at.micros()) < micros(known.heartbeat(shaping))
            };
            !known.windows.is_empty() || known.sent.as_ref().is_some_and(is_recent)
        });
    }
}

impl Known {
    fn new(shaping: &Shaping, sensor: &SensorName) -> Self {
        let rule = shaping
            .rules
            .iter()
            .position(|rule| rule.sensor.matches(sensor.as_str()));
        let new_name = rule
            .and_then(|at| shaping.rules.get(at))
            .and_then(|rule| Some((rule, rule.rename.as_ref()?)));
        let name = match (new_name, shaping.prefix.as_str()) {
            (None, "") => Ok(sensor.clone()),
            (None, prefix) => named(&format!("{prefix}{sensor}")),
            (Some((rule, rename)), prefix) => {
                let renamed = rename.apply(&rule.sensor, sensor.as_str());
                named(&format!("{prefix}{renamed}"))
            }
        };
        Self {
            rule,
            name,
            sent: None,
            windows: Vec::new(),
        }
    }

    fn aggregate(&self, shaping: &Shaping) -> Aggregate {
        let rule = self.rule.and_then(|at| shaping.rules.get(at));
        rule.and_then(|rule| rule.window)
            .map_or(Aggregate::Last, |window| window.aggregate)
    }

    /// Sends what the windows say that are over and wait for nothing.
    fn end_settled(&mut self, shaping: &Shaping, out: &mut Vec<Sample>) {
        let is_ended = |window: &Window| window.is_over && window.is_settled();
        while let Some(at) = self.windows.iter().position(is_ended) {
            self.end(at, shaping, out);
        }
    }

    fn end_all(&mut self, shaping: &Shaping, out: &mut Vec<Sample>) {
        while !self.windows.is_empty() {
            self.end(0, shaping, out);
        }
    }

    fn end(&mut self, at: usize, shaping: &Shaping, out: &mut Vec<Sample>) {
        let ended = self.windows.remove(at).end(self.aggregate(shaping));
        if let Some(said) = ended {
            self.send(shaping, said, false, out);
        }
    }

    /// As [`Self::send`] does, without a memory.
    fn pass_unknown(self, shaping: &Shaping, mut sample: Sample, out: &mut Vec<Sample>) -> Fate {
        let rule = self.rule.and_then(|at| shaping.rules.get(at));
        if let Some(fate) = judge(rule, &mut sample) {
            return fate;
        }
        match self.name {
            Err(reason) => Fate::BadName(reason),
            Ok(name) => {
                sample.reading.sensor = name;
                out.push(sample);
                Fate::Passed
            }
        }
    }

    /// Sends a sample under its name, unless it is no news; returns whether it was sent.
    fn send(
        &mut self,
        shaping: &Shaping,
        mut sample: Sample,
        whole: bool,
        out: &mut Vec<Sample>,
    ) -> bool {
        let Ok(name) = &self.name else {
            return false;
        };
        let width = self
            .rule
            .and_then(|at| shaping.rules.get(at)?.dead_band)
            .or(shaping.dead_band);
        let reading = &sample.reading;
        if let (Some(width), Some((last, quality, at)), false) = (width, &self.sent, whole) {
            // A clock that was set back counts as a long silence.
            let silence = reading.observed_at.micros().saturating_sub(at.micros());
            let is_recent = (0..micros(self.heartbeat(shaping))).contains(&silence);
            // A value that turns bad, or good again, is news whatever it is.
            let is_alike = *quality == reading.quality && !differs(last, &reading.value, width);
            if is_recent && is_alike {
                return false;
            }
        }
        if width.is_some() {
            self.sent = Some((reading.value.clone(), reading.quality, reading.observed_at));
        }
        sample.reading.sensor = name.clone();
        out.push(sample);
        true
    }

    fn heartbeat(&self, shaping: &Shaping) -> Duration {
        self.rule
            .and_then(|at| shaping.rules.get(at)?.heartbeat)
            .unwrap_or(shaping.heartbeat)
    }
}

/// What a rule makes of a sample by itself: nothing, a worse quality, or its end.
fn judge(rule: Option<&Rule>, sample: &mut Sample) -> Option<Fate> {
    let rule = rule?;
    if rule.drop {
        return Some(Fate::Unwanted);
    }
    let range = rule.range?;
    if range.holds(&sample.reading.value) {
        return None;
    }
    let quality = match range.outside {
        Outside::Refuse => return Some(Fate::OutOfRange(range)),
        Outside::Bad => Quality::Bad,
        Outside::Uncertain => Quality::Uncertain,
    };
    sample.reading.quality = worse(sample.reading.quality, quality);
    None
}

/// The one that is trusted less.
fn worse(one: Quality, other: Quality) -> Quality {
    match (one, other) {
        (Quality::Bad, _) | (_, Quality::Bad) => Quality::Bad,
        (Quality::Uncertain, _) | (_, Quality::Uncertain) => Quality::Uncertain,
        (Quality::Good, Quality::Good) => Quality::Good,
    }
}

fn named(text: &str) -> Result<SensorName, String> {
    text.parse()
        .map_err(|error: schema::id::IdError| error.to_string())
}

/// Whether two values are further apart than `width`. Those of other kinds than numbers differ when
/// they are not equal.
fn differs(last: &Value, new: &Value, width: f64) -> bool {
    match (last, new) {
        (Value::F64(last), Value::F64(new)) => (new - last).abs() > width,
        // Exact beyond what a double can hold.
        (Value::I64(last), Value::I64(new)) => new.abs_diff(*last) as f64 > width,
        // Many producers write 20 between 19.5 and 20.5.
        (Value::F64(number), Value::I64(whole)) | (Value::I64(whole), Value::F64(number)) => {
            (number - *whole as f64).abs() > width
        }
        _ => last != new,
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
