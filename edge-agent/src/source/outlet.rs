//! What a source hands its readings to: at a bounded rate, shaped, counted, into the buffer.
//!
//! A source that has no limit and no shaping pays nothing for them: its append goes to the buffer as it is.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Clock, lock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use schema::{SensorDeclaration, SensorName};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::polls::{Controls, Polls};
use super::report::Report;
use super::shape::{Fate, Shaper};
use super::verdict::{Dropped, Outcome, Place, Refusal};
use super::{SourceConfig, SourceState};
use crate::buffer::{Append, Appended, Sample};
use crate::ingest::{self, Ingest, IngestError, Refusals};
use crate::sensors::{Sensors, among};

/// The most a source may be in the middle of a poll when nothing says how long one may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most changes of a source's state that are logged in a minute.
const CHANGES_PER_MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(11);

/// The way from one source to the buffer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sink: Sink,
    report: Arc<Report>,
    limit: Option<(NonZeroU32, DefaultDirectRateLimiter)>,
    shaper: Option<Mutex<Shaper>>,
    /// Notified of each new window.
    windows: Notify,
    controls: Option<Controls>,
    timeout: Duration,
    /// How often each of its sensors is read, of a source of which nothing can change that.
    interval_ms: Option<u64>,
    refusals: Mutex<Refusals>,
    /// How often changes of its state are logged.
    changes: DefaultDirectRateLimiter,
    /// Nothing more is taken.
    closed: CancellationToken,
}

/// Where readings end.
#[derive(Debug)]
enum Sink {
    Buffer(Ingest),
    /// They are shown, and nothing is kept: `edge-agent try`.
    Shown(mpsc::Sender<Vec<Sample>>, Arc<dyn Clock>, Sensors),
}

/// Samples that were handed over and wait for their commit.
#[derive(Debug)]
pub struct Submission {
    outlet: Outlet,
    handed: Handed,
    /// Of each sample; `None` when all were handed over as they are.
    places: Option<Vec<Place>>,
    /// Names of those handed over, when it matters whether they are accepted.
    names: Vec<SensorName>,
}

#[derive(Debug)]
enum Handed {
    Nothing,
    Buffer(ingest::Handed, Waiting),
    Shown(Appended),
}

/// While it exists, the source waits for the buffer: that is no fault of the source's.
#[derive(Debug)]
struct Waiting(Outlet);

impl Waiting {
    fn begin(outlet: &Outlet) -> Self {
        outlet.0.report.handing_over(true);
        Self(outlet.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.report.handing_over(false);
    }
}

impl Outlet {
    /// The way from a source with these settings to the buffer.
    pub(crate) fn new(
        config: &SourceConfig,
        controls: Option<Controls>,
        report: Arc<Report>,
        ingest: Ingest,
    ) -> Self {
        // What windows say at the end comes when the sources are to stop already.
        let closed = CancellationToken::new();
        let ingest = ingest.closed_by(closed.clone());
        Self::to(Sink::Buffer(ingest), config, controls, report, closed)
    }

    /// Shows what would be sent.
    pub(crate) fn shown(
        config: &SourceConfig,
        report: Arc<Report>,
        samples: mpsc::Sender<Vec<Sample>>,
        clock: Arc<dyn Clock>,
        sensors: Sensors,
    ) -> Self {
        let controls = config.interval.map(Controls::fixed);
        let closed = CancellationToken::new();
        Self::to(
            Sink::Shown(samples, clock, sensors),
            config,
            controls,
            report,
            closed,
        )
    }

    fn to(
        sink: Sink,
        config: &SourceConfig,
        controls: Option<Controls>,
        report: Arc<Report>,
        closed: CancellationToken,
    ) -> Self {
        let refusals = Refusals::new(report.name.to_string());
        Self(Arc::new(Shared {
            sink,
            limit: config
                .readings_per_second_max
                .map(|most| (most, RateLimiter::direct(Quota::per_second(most)))),
            // A dead band may come while it runs, of a source that can be set.
            shaper: match controls
                .as_ref()
                .is_some_and(|controls| controls.dead_band.is_some())
            {
                true => Some(Shaper::of(config.shaping.clone())),
                false => Shaper::new(config.shaping.clone()),
            }
            .map(Mutex::new),
            windows: Notify::new(),
            interval_ms: config
                .interval
                .filter(|_| {
                    controls
                        .as_ref()
                        .is_none_or(|controls| controls.dead_band.is_none())
                })
                .and_then(|interval| u64::try_from(interval.as_millis()).ok()),
            controls,
            timeout: config.timeout.unwrap_or(TIMEOUT),
            refusals: Mutex::new(refusals),
            changes: RateLimiter::direct(Quota::per_minute(CHANGES_PER_MINUTE)),
            report,
            closed,
        }))
    }

    /// The agent's wall clock, microseconds since the Unix epoch.
    #[must_use]
    pub fn now_micros(&self) -> i64 {
        match &self.0.sink {
            Sink::Buffer(ingest) => ingest.now_micros(),
            Sink::Shown(_, clock, _) => clock.now_micros(),
        }
    }

    /// How long one request of the source's may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// The polls of a source with an interval; of one without, a single one.
    #[must_use]
    pub fn polls(&self) -> Polls {
        let once = || Controls::fixed(Duration::from_secs(u64::from(u32::MAX)));
        let controls = self.0.controls.clone().unwrap_or_else(once);
        Polls::new(&controls, self.0.timeout, Arc::clone(&self.0.report))
    }

    /// Hands samples over, in one commit: `Ok` comes after it. Of each, the outcome has a verdict.
    ///
    /// # Errors
    /// [`IngestError`]: nothing of it is on disk; its `fault` says whether to try again.
    pub async fn append(&self, append: impl Into<Append>) -> Result<Outcome, IngestError> {
        self.submit(append.into()).await.done().await
    }

    /// As [`Self::append`], for what its sender keeps until then: what is above the rate waits for its turn.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_in_turn(&self, append: Append) -> Result<Outcome, IngestError> {
        self.hand_over(append, false, true).await.done().await
    }

    /// Whether what is handed over is shown to somebody and kept nowhere.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        matches!(self.0.sink, Sink::Shown(..))
    }

    /// As [`Self::append`], for what somebody requested: no dead band and no window leaves anything out.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_whole(&self, append: impl Into<Append>) -> Result<Outcome, IngestError> {
        self.hand_over(append.into(), true, false)
            .await
            .done()
            .await
    }

    /// Hands samples over as [`Self::append`] does, and returns when they wait for their commit, behind what was
    /// handed over before. So a source may read on meanwhile.
    pub async fn submit(&self, append: Append) -> Submission {
        self.hand_over(append, false, false).await
    }

    /// The source reads again, or still, whether or not that brings readings.
    pub fn working(&self) {
        let report = &self.0.report;
        let before = report.running();
        if before.is_some_and(|before| before != SourceState::Starting) && self.may_log() {
            info!(source = %report.name, "source reads again");
        }
    }

    /// Whether a change of the source's state is worth a line of the log: one that fails and reads by turns fills none.
    fn may_log(&self) -> bool {
        self.0.changes.check().is_ok()
    }

    /// The source could not read this time, and tries again by itself. Logged once per change.
    pub fn failed(&self, error: &dyn std::fmt::Display) {
        let error = error.to_string();
        let report = &self.0.report;
        let is_news = report.failing(error.clone(), self.now_micros() / 1000);
        if is_news && self.may_log() {
            warn!(source = %report.name, error, "source cannot read");
        } else {
            debug!(source = %report.name, error, "source cannot read");
        }
    }

    /// Some of what the source reads cannot be read, and the rest is handed over: it is failing, whatever is accepted of it,
    /// until there is no such error any more. Logged once per change.
    pub fn failing_in_part(&self, error: Option<&dyn std::fmt::Display>) {
        self.0.report.in_part(error.is_some());
        match error {
            Some(error) => self.failed(error),
            None => self.working(),
        }
    }

    /// Says what a sensor is, by the name that the source gives it, in the place of what the source said before. Of a
    /// sensor that does not change there is nothing to do; a source says it again only when it may have.
    pub fn declare(&self, sensor: &SensorName, declaration: SensorDeclaration) {
        self.say(sensor, declaration, Sensors::declare);
    }

    /// As [`Self::declare`], but what this leaves out stays as it was.
    pub fn declare_more(&self, sensor: &SensorName, declaration: SensorDeclaration) {
        self.say(sensor, declaration, Sensors::declare_more);
    }

    fn say(
        &self,
        sensor: &SensorName,
        mut declaration: SensorDeclaration,
        say: impl Fn(&Sensors, &SensorName, SensorDeclaration),
    ) {
        let shared = &self.0;
        declaration.interval_ms = declaration.interval_ms.or(shared.interval_ms);
        let sensors = match &shared.sink {
            Sink::Buffer(ingest) => ingest.sensors(),
            Sink::Shown(_, _, sensors) => sensors,
        };
        let declared = match &shared.shaper {
            Some(shaper) => lock(shaper).declared(sensor, declaration),
            None => Some((sensor.clone(), declaration)),
        };
        if let Some((sensor, declaration)) = declared {
            say(sensors, &sensor, declaration);
        }
    }

    /// Counts readings that the source refused by itself.
    pub fn refused(&self, reason: &'static str, readings: u64) {
        self.0.report.refused(readings);
        if let Sink::Buffer(ingest) = &self.0.sink {
            ingest.refused(reason, readings);
        }
    }

    /// How far this source had read when it last handed over with a [`crate::buffer::Position`] under this name.
    ///
    /// # Errors
    /// [`IngestError`]: the buffer cannot be read.
    pub async fn position(&self, source: &str) -> Result<Option<Vec<u8>>, IngestError> {
        match &self.0.sink {
            Sink::Buffer(ingest) => ingest.position(source).await,
            Sink::Shown(..) => Ok(None),
        }
    }

    /// Counts a producer whose connection the agent ends.
    pub(crate) fn producer_closed(&self, reason: &'static str) {
        if let Sink::Buffer(ingest) = &self.0.sink {
            ingest.producer_closed(reason);
        }
    }

    /// Notes a thread that does not come back from what it was asked for, by what that is; or that it did.
    pub fn left_behind(&self, what: &str, is_left: bool) {
        self.0.report.left_behind(what, is_left);
    }

    pub(super) fn report(&self) -> &Report {
        &self.0.report
    }

    async fn hand_over(&self, append: Append, whole: bool, waits: bool) -> Submission {
        let shared = &self.0;
        if shared.limit.is_none() && shared.shaper.is_none() {
            return self.submit_shaped(append, None, Vec::new()).await;
        }
        let Append {
            samples,
            hold,
            can_hold_back,
            position,
        } = append;
        let count = samples.len();
        // A source that knows how far it has read waits for its turn: nothing of it is left out.
        let is_paced = waits || position.is_some();
        if let Some((_, limiter)) = &shared.limit
            && is_paced
        {
            let _waiting = Waiting::begin(self);
            for _ in 0..count {
                limiter.until_ready().await;
            }
        }
        let mut places = Vec::with_capacity(count);
        let mut out = Vec::with_capacity(count);
        let mut names = Vec::new();
        let (mut by_rate, mut by_shaping, mut out_of_range, mut misnamed) = (0, 0, 0, 0);
        {
            let mut shaper = shared.shaper.as_ref().map(lock);
            if let Some(shaper) = &mut shaper
                && let Some(controls) = &shared.controls
                && let Some(dead_band) = &controls.dead_band
            {
                shaper.set_dead_band(*dead_band.borrow());
            }
            let earliest = shaper.as_ref().and_then(|shaper| shaper.next_wakeup());
            let now = Instant::now();
            for sample in samples {
                if let Some((most, limiter)) = &shared.limit
                    && !is_paced
                    && limiter.check().is_err()
                {
                    by_rate += 1;
                    places.push(Place::Refused(Refusal::Rate(*most)));
                    continue;
                }
                let Some(shaper) = &mut shaper else {
                    places.push(Place::Handed(out.len()));
                    out.push(sample);
                    continue;
                };
                let place = match shaper.take(sample, now, whole, &mut out) {
                    Fate::Passed => Place::Handed(out.len() - 1),
                    Fate::Unwanted => Place::Dropped(Dropped::Unwanted),
                    Fate::NoNews => Place::Dropped(Dropped::DeadBand),
                    Fate::Aggregated => Place::Dropped(Dropped::Aggregated),
                    Fate::OutOfRange(range) => {
                        out_of_range += 1;
                        Place::Refused(Refusal::OutOfRange(range))
                    }
                    Fate::BadName(reason) => {
                        misnamed += 1;
                        Place::Refused(Refusal::Name(reason))
                    }
                };
                by_shaping += u64::from(matches!(place, Place::Dropped(_)));
                places.push(place);
            }
            if let Some(shaper) = &shaper {
                if shaper.compares() {
                    names = out
                        .iter()
                        .map(|one: &Sample| one.reading.sensor.clone())
                        .collect();
                }
                if shaper.next_wakeup() != earliest {
                    shared.windows.notify_one();
                }
            }
        }
        shared.report.dropped_by_rate(by_rate);
        shared.report.dropped_by_shaping(by_shaping);
        for (reason, count) in [
            ("out_of_range", out_of_range),
            ("bad_sensor_name", misnamed),
        ] {
            if count > 0 {
                self.refused(reason, count);
            }
        }
        if let (Sink::Buffer(ingest), 1..) = (&shared.sink, by_rate) {
            ingest.refused("rate", by_rate);
        }
        let append = Append {
            samples: out,
            hold,
            can_hold_back,
            position,
        };
        self.submit_shaped(append, Some(places), names).await
    }

    async fn submit_shaped(
        &self,
        append: Append,
        places: Option<Vec<Place>>,
        names: Vec<SensorName>,
    ) -> Submission {
        let handed = if append.samples.is_empty() && append.position.is_none() {
            Handed::Nothing
        } else {
            match &self.0.sink {
                Sink::Buffer(ingest) => {
                    let waiting = Waiting::begin(self);
                    Handed::Buffer(ingest.submit(append).await, waiting)
                }
                Sink::Shown(shown, _, sensors) => {
                    let mut samples = append.samples;
                    let mistyped = sensors.admit(&mut samples);
                    let appended = Appended::shown(samples.len() as u64);
                    // Nobody looks any more: the source is stopped next.
                    let _ = shown.send(samples).await;
                    Handed::Shown(Appended {
                        refused: among(mistyped, Vec::new()),
                        ..appended
                    })
                }
            }
        };
        Submission {
            outlet: self.clone(),
            handed,
            places,
            names,
        }
    }

    /// Waits until a window ends, and hands over what it says; for ever when there is none.
    pub(super) async fn window(&self) {
        let shared = &self.0;
        let Some(shaper) = &shared.shaper else {
            return std::future::pending().await;
        };
        loop {
            let changed = shared.windows.notified();
            let next = lock(shaper).next_wakeup();
            match next {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => break,
                },
            }
        }
    }

    /// Hands over what windows say that are over; all of them at the end.
    pub(super) async fn end_windows(&self, all: bool) {
        let Some(shaper) = &self.0.shaper else {
            return;
        };
        let mut samples = Vec::new();
        let names = {
            let mut shaper = lock(shaper);
            if all {
                shaper.finish(&mut samples);
            } else {
                shaper.wake(Instant::now(), &mut samples);
            }
            samples
                .iter()
                .map(|one: &Sample| one.reading.sensor.clone())
                .collect()
        };
        if samples.is_empty() {
            return;
        }
        for chunk in chunks(samples) {
            let append = Append {
                samples: chunk,
                ..Append::default()
            };
            let submission = self.submit_shaped(append, None, Vec::clone(&names)).await;
            let outcome = submission.done().await;
            lock(&self.0.refusals).note(outcome);
        }
    }

    /// Takes nothing more: whatever of the source is left behind.
    pub(super) fn close(&self) {
        self.0.closed.cancel();
    }

    /// Counts what became of an append, and logs once per change that its readings are refused.
    pub(crate) fn note<T>(&self, outcome: Result<T, IngestError>) {
        lock(&self.0.refusals).note(outcome);
    }
}

/// In parts that an append takes.
fn chunks(mut samples: Vec<Sample>) -> Vec<Vec<Sample>> {
    let mut chunks = Vec::new();
    while samples.len() > ingest::APPEND_READINGS_MAX {
        let rest = samples.split_off(ingest::APPEND_READINGS_MAX);
        chunks.push(std::mem::replace(&mut samples, rest));
    }
    chunks.push(samples);
    chunks
}

impl Submission {
    /// Waits for the commit.
    ///
    /// # Errors
    /// As [`Outlet::append`].
    pub async fn done(self) -> Result<Outcome, IngestError> {
        let Self {
            outlet,
            handed,
            places,
            names,
        } = self;
        let shared = &outlet.0;
        let (outcome, readings) = match handed {
            Handed::Nothing => (Ok(Appended::default()), 0),
            Handed::Shown(appended) => (Ok(appended), 0),
            Handed::Buffer(handed, _waiting) => {
                let readings = handed.readings();
                (handed.done().await, readings)
            }
        };
        let forget = |name: &SensorName| {
            if let Some(shaper) = &shared.shaper {
                lock(shaper).not_accepted(name);
            }
        };
        match outcome {
            Ok(appended) => {
                let accepted = appended.range.map_or(0, |range| range.count());
                shared.report.accepted(accepted, outlet.now_micros() / 1000);
                shared.report.refused(appended.refused.len() as u64);
                let refused = appended.refused.iter();
                refused
                    .filter_map(|(at, _)| names.get(*at))
                    .for_each(forget);
                outlet.working();
                Ok(Outcome { appended, places })
            }
            Err(error) => {
                shared.report.refused(readings);
                names.iter().for_each(forget);
                Err(error)
            }
        }
    }
}
