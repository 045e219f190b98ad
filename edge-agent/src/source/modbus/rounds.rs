//! What is asked when, and what answers mean. Pure: time and chance come in as arguments.
//!
//! ```text
//! begin(now) ─► queue of due groups ─► next() ─► a request ─► [bus] ─► take(answer) ─► readings
//!                      ▲                                          │
//!                      └── a group parted at an illegal address ──┤
//!                      └── the same once more after silence ──────┘
//! ```
//!
//! A point that cannot be read says so with quality `bad`: its last value once more, at the moment at which it
//! failed, and then every [`BAD_EVERY`] while that lasts. A point that was never read has no value that
//! could be said; then only the source's state and the log have it.
//!
//! A device that is silent must not make those wait that share its bus: after two attempts nothing more is asked of it in
//! this round, and then one request at a time, at growing pauses, until it answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use daemon::backoff::Backoff;
use schema::{ObservedAt, Quality, Reading, Value};
use tokio::time::Instant;

use super::plan::{Group, Limits, Point, Span, Table, plan};

/// While a point cannot be read, that is said so often: as often as an unchanging sensor is heard of.
pub const BAD_EVERY: Duration = Duration::from_secs(600);

/// How often a request is sent that is not answered, or not with sense: lines lose a frame now and then.
const ATTEMPTS: u32 = 2;

/// One request on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which device.
    pub unit_id: u8,
    /// Which of its tables.
    pub table: Table,
    /// The first address.
    pub address: u16,
    /// How many registers or bits.
    pub count: u16,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// As many registers as were asked for.
    Registers(Vec<u16>),
    /// As many bits as were asked for.
    Bits(Vec<bool>),
    /// The device refused, with this code.
    Exception(u8),
    /// Nothing came in time.
    Silent,
    /// Something came that is no answer to it.
    Garbled(String),
    /// The connection ended.
    Broken(String),
    /// There is no connection.
    Unreachable(String),
}

/// What a round gave.
#[derive(Debug, Default, PartialEq)]
pub struct Yield {
    /// In the order in which they were read.
    pub readings: Vec<Reading>,
    /// Values that cannot be kept, as metrics name the reason.
    pub refused: Vec<&'static str>,
}

/// Pauses between attempts: the first, and the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The first.
    pub first: Duration,
    /// The longest.
    pub max: Duration,
}

/// When, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The one that nobody sets.
    pub monotonic: Instant,
    /// Microseconds since the Unix epoch.
    pub wall_micros: i64,
}

/// All that is known of a bus and its devices.
#[derive(Debug)]
pub struct Rounds {
    points: Vec<Point>,
    states: Vec<PointState>,
    groups: Vec<Due>,
    units: BTreeMap<u8, Pause>,
    bus: Pause,
    queue: VecDeque<Ask>,
    asked: Option<Ask>,
    missed: u64,
    found: Yield,
}

#[derive(Debug)]
struct Due {
    group: Group,
    at: Instant,
}

/// A request that waits for its turn: which group, and which attempt it will be.
#[derive(Debug, Clone, Copy)]
struct Ask {
    group: usize,
    attempt: u32,
}

/// How long something that failed is left alone.
#[derive(Debug)]
struct Pause {
    backoff: Backoff,
    until: Option<Instant>,
    reason: Arc<str>,
}

#[derive(Debug, Default)]
struct PointState {
    last: Option<Value>,
    bad: Option<Bad>,
}

#[derive(Debug)]
struct Bad {
    reason: Arc<str>,
    /// When a reading said so.
    said: Option<Instant>,
}

impl Pause {
    fn new(pauses: Pauses) -> Self {
        Self {
            backoff: Backoff::new(pauses.first, pauses.max),
            until: None,
            reason: "".into(),
        }
    }

    fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn failed(&mut self, now: Instant, reason: &Arc<str>, random: f64) {
        self.until = Some(now + self.backoff.next_delay(random));
        self.reason = Arc::clone(reason);
    }

    fn over(&mut self) {
        self.backoff.reset();
        self.until = None;
    }
}

impl Rounds {
    /// All points are due `now`.
    #[must_use]
    pub fn new(points: Vec<Point>, limits: Limits, pauses: Pauses, now: Instant) -> Self {
        let groups = plan(&points, limits);
        let units = points.iter().map(|point| point.unit_id);
        Self {
            units: units.map(|unit| (unit, Pause::new(pauses))).collect(),
            states: points.iter().map(|_| PointState::default()).collect(),
            groups: groups
                .into_iter()
                .map(|group| Due { group, at: now })
                .collect(),
            points,
            bus: Pause::new(pauses),
            queue: VecDeque::new(),
            asked: None,
            missed: 0,
            found: Yield::default(),
        }
    }

    /// When the next round begins.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.groups.iter().map(|due| due.at).min()
    }

    /// Begins a round: what is due by now waits for its turn. A round that was missed is left out.
    pub fn begin(&mut self, now: Instant) {
        for (group, due) in self.groups.iter_mut().enumerate() {
            let Some(late) = now.checked_duration_since(due.at) else {
                continue;
            };
            self.queue.push_back(Ask { group, attempt: 1 });
            let interval = due.group.interval().max(Duration::from_millis(1));
            let missed = late.as_nanos() / interval.as_nanos();
            let missed = u32::try_from(missed).unwrap_or(u32::MAX);
            self.missed += u64::from(missed);
            due.at += interval.saturating_mul(missed.saturating_add(1));
        }
    }

    /// The next request of the round; `None` when it is over.
    pub fn next(&mut self, now: Moment) -> Option<Request> {
        while let Some(ask) = self.queue.pop_front() {
            let group = &self.groups[ask.group].group;
            let paused = [Some(&self.bus), self.units.get(&group.unit_id())];
            let paused = paused
                .into_iter()
                .flatten()
                .find(|pause| pause.lasts(now.monotonic))
                .map(|pause| Arc::clone(&pause.reason));
            if let Some(reason) = paused {
                self.fail(ask.group, &reason, now);
                continue;
            }
            let request = Request {
                unit_id: group.unit_id(),
                table: group.table(),
                address: group.address(),
                count: group.count(),
            };
            self.asked = Some(ask);
            return Some(request);
        }
        None
    }

    /// Takes what came of the request that [`Self::next`] gave last. `random` is uniform in `0.0..1.0`.
    pub fn take(&mut self, answer: Answer, now: Moment, random: f64) {
        let Some(ask) = self.asked.take() else {
            return;
        };
        let unit_id = self.groups[ask.group].group.unit_id();
        if !matches!(answer, Answer::Unreachable(_)) {
            self.bus.over();
        }
        match answer {
            Answer::Registers(registers) => {
                self.answered(unit_id);
                self.read(ask.group, now, |point, at| match point.encoding {
                    Some(encoding) => encoding
                        .decode(registers.get(at..).unwrap_or_default())
                        .map_err(|error| (error.label(), error.to_string())),
                    None => Err(("malformed", "registers came for a bit".to_owned())),
                });
            }
            Answer::Bits(bits) => {
                self.answered(unit_id);
                self.read(ask.group, now, |_, at| match bits.get(at) {
                    Some(bit) => Ok(Value::Bool(*bit)),
                    None => Err((
                        "malformed",
                        "fewer bits came than were asked for".to_owned(),
                    )),
                });
            }
            Answer::Exception(code) => self.refused(ask, code, now, random),
            Answer::Silent => {
                let reason = format!("unit {unit_id} does not answer");
                self.again_or(ask, |rounds| {
                    rounds.silent(ask, &reason.into(), now, random);
                });
            }
            Answer::Garbled(reason) | Answer::Broken(reason) => {
                self.again_or(ask, |rounds| rounds.fail(ask.group, &reason.into(), now));
            }
            Answer::Unreachable(reason) => {
                let reason = reason.into();
                self.bus.failed(now.monotonic, &reason, random);
                self.fail(ask.group, &reason, now);
            }
        }
    }

    /// What was read since the last call.
    pub fn found(&mut self) -> Yield {
        std::mem::take(&mut self.found)
    }

    /// Rounds that were left out since the last call, because those before them took too long.
    pub fn missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// What is wrong at present: how many points are bad, and the first of them with its reason.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let bad = || {
            let states = self.points.iter().zip(&self.states);
            states.filter_map(|(point, state)| Some((point, state.bad.as_ref()?)))
        };
        let (point, first) = bad().next()?;
        let (count, all) = (bad().count(), self.points.len());
        let Point {
            sensor,
            table,
            address,
            unit_id,
            ..
        } = point;
        let reason = &first.reason;
        Some(format!(
            "{count} of {all} points are bad; {sensor} (unit {unit_id}, {table} {address}): {reason}"
        ))
    }

    fn answered(&mut self, unit_id: u8) {
        if let Some(unit) = self.units.get_mut(&unit_id) {
            unit.over();
        }
    }

    /// The request once more, or what its last failure means.
    fn again_or(&mut self, ask: Ask, failed: impl FnOnce(&mut Self)) {
        if ask.attempt < ATTEMPTS {
            let attempt = ask.attempt + 1;
            self.queue.push_front(Ask { attempt, ..ask });
        } else {
            failed(self);
        }
    }

    /// A device is left alone for a while.
    fn silent(&mut self, ask: Ask, reason: &Arc<str>, now: Moment, random: f64) {
        let unit_id = self.groups[ask.group].group.unit_id();
        if let Some(unit) = self.units.get_mut(&unit_id) {
            unit.failed(now.monotonic, reason, random);
        }
        self.fail(ask.group, reason, now);
    }

    fn refused(&mut self, ask: Ask, code: u8, now: Moment, random: f64) {
        let reason: Arc<str> = format!("exception {code}: {}", meaning(code)).into();
        match code {
            // A gateway speaks for a device that does not answer it.
            0x0A | 0x0B => return self.silent(ask, &reason, now, random),
            // One register of many that the device does not have, or more than it gives at once.
            0x02 | 0x03 => {
                let Due { group, at } = &self.groups[ask.group];
                if let Some((low, high)) = group.split() {
                    let at = *at;
                    self.groups[ask.group] = Due { group: low, at };
                    self.groups.push(Due { group: high, at });
                    for group in [self.groups.len() - 1, ask.group] {
                        self.queue.push_front(Ask { group, attempt: 1 });
                    }
                    return;
                }
            }
            _ => {}
        }
        let unit_id = self.groups[ask.group].group.unit_id();
        self.answered(unit_id);
        self.fail(ask.group, &reason, now);
    }

    /// Takes each point's value out of an answer; `value` is given where it begins there.
    fn read(
        &mut self,
        group: usize,
        now: Moment,
        value: impl Fn(&Point, usize) -> Result<Value, (&'static str, String)>,
    ) {
        let first = self.groups[group].group.address();
        let spans: Vec<Span> = self.groups[group].group.spans().to_vec();
        for span in spans {
            let place = usize::from(span.address() - first);
            for at in span.points() {
                match value(&self.points[*at], place) {
                    Ok(value) => self.good(*at, value, now),
                    Err((label, reason)) => {
                        self.found.refused.push(label);
                        self.bad(*at, &reason.into(), now);
                    }
                }
            }
        }
    }

    fn fail(&mut self, group: usize, reason: &Arc<str>, now: Moment) {
        let points: Vec<usize> = self.groups[group].group.points().collect();
        for at in points {
            self.bad(at, reason, now);
        }
    }

    fn good(&mut self, at: usize, value: Value, now: Moment) {
        let state = &mut self.states[at];
        state.last = Some(value.clone());
        state.bad = None;
        self.say(at, value, Quality::Good, now);
    }

    fn bad(&mut self, at: usize, reason: &Arc<str>, now: Moment) {
        let PointState { last, bad } = &mut self.states[at];
        let mut said = bad.take().and_then(|bad| bad.said);
        let is_due = said.is_none_or(|said| now.monotonic.duration_since(said) >= BAD_EVERY);
        let value = last.clone().filter(|_| is_due);
        if value.is_some() {
            said = Some(now.monotonic);
        }
        let reason = Arc::clone(reason);
        *bad = Some(Bad { reason, said });
        if let Some(value) = value {
            self.say(at, value, Quality::Bad, now);
        }
    }

    fn say(&mut self, at: usize, value: Value, quality: Quality, now: Moment) {
        self.found.readings.push(Reading {
            sensor: self.points[at].sensor.clone(),
            observed_at: ObservedAt::from_millis(now.wall_micros.div_euclid(1000)),
            value,
            quality,
        });
    }
}

/// What the protocol's exceptions mean, and where to look.
const fn meaning(code: u8) -> &'static str {
    match code {
        0x01 => "illegal function: the device does not have this table",
        0x02 => "illegal data address: the device does not have this register",
        0x03 => "illegal data value: the device does not give this register, or not with this type",
        0x04 => "the device failed to read it",
        0x05 => "the device needs more time",
        0x06 => "the device is busy",
        0x08 => "the device's memory is damaged",
        0x0A => "the gateway has no path to this unit",
        0x0B => "the unit does not answer the gateway",
        _ => "the device's manual says what this means",
    }
}

#[cfg(test)]
mod tests;
