//! What a source hands its readings to: at a bounded rate, shaped, counted, into the buffer.
//!
//! A source that has no limit and no shaping pays nothing for them: its append goes to the buffer as it is.

mod submission;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Clock, Fault, lock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use schema::{SensorDeclaration, SensorName};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::polls::{Controls, Polls};
use super::report::Report;
use super::said::Said;
use super::shape::{Fate, Shaper};
use super::verdict::{Dropped, Outcome, Place, Refusal};
use super::{SourceConfig, SourceState};
use crate::buffer::{Append, Appended, ReadingError, Sample};
use crate::ingest::{Ingest, IngestError, Refusals};
use crate::sensors::{Sensors, among};
pub use submission::Submission;
use submission::{Handed, Windowed};

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
    /// Notified of each new window, and of what one says.
    windows: Notify,
    /// What windows said and the buffer does not have yet.
    said: Mutex<Said>,
    /// Appends so far of which a window took something in.
    appends: AtomicU64,
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
            said: Mutex::default(),
            appends: AtomicU64::new(0),
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
        self.tell(sensor, declaration, Sensors::declare);
    }

    /// As [`Self::declare`], but what this leaves out stays as it was.
    pub fn declare_more(&self, sensor: &SensorName, declaration: SensorDeclaration) {
        self.tell(sensor, declaration, Sensors::declare_more);
    }

    fn tell(
        &self,
        sensor: &SensorName,
        mut declaration: SensorDeclaration,
        tell: impl Fn(&Sensors, &SensorName, SensorDeclaration),
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
            tell(sensors, &sensor, declaration);
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
            return self.submit_shaped(append, None, Vec::new(), None).await;
        }
        let Append {
            samples,
            hold,
            can_hold_back,
            position,
            is_again,
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
        let mut said = Vec::new();
        let number = shared.appends.fetch_add(1, Ordering::Relaxed);
        let mut windowed = Vec::new();
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
                let handed = out.len();
                let sensor = shaper.has_windows().then(|| sample.reading.sensor.clone());
                let fate = shaper.take_of(number, sample, now, whole, &mut out);
                if fate == Fate::Aggregated {
                    // What another window said goes its own way: this append may have to come again.
                    said.extend(out.drain(handed..));
                    windowed.extend(sensor);
                }
                let place = match fate {
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
        if !said.is_empty() {
            self.say(said);
        }
        windowed.sort_unstable();
        windowed.dedup();
        let windowed = (!windowed.is_empty()).then(|| Windowed {
            outlet: self.clone(),
            append: number,
            sensors: windowed,
            is_taken: false,
        });
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
            is_again,
        };
        self.submit_shaped(append, Some(places), names, windowed)
            .await
    }

    async fn submit_shaped(
        &self,
        append: Append,
        places: Option<Vec<Place>>,
        names: Vec<SensorName>,
        mut windowed: Option<Windowed>,
    ) -> Submission {
        let has_position = append.position.is_some();
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
        // From here on it is committed, whether or not its source waits for that.
        if let Some(windowed) = &mut windowed {
            windowed.is_taken = true;
        }
        Submission {
            outlet: self.clone(),
            handed,
            places,
            names,
            windowed,
            has_position,
        }
    }

    /// Waits until a window ends, or what one said may be handed over again, and hands over what it says; for ever when there is none.
    pub(super) async fn window(&self) {
        let shared = &self.0;
        let Some(shaper) = &shared.shaper else {
            return std::future::pending().await;
        };
        loop {
            let changed = shared.windows.notified();
            let next = lock(shaper).next_wakeup();
            let again = lock(&shared.said).due(Instant::now());
            match next.into_iter().chain(again).min() {
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
        let mut ended = Vec::new();
        {
            let mut shaper = lock(shaper);
            if all {
                shaper.finish(&mut ended);
            } else {
                shaper.wake(Instant::now(), &mut ended);
            }
        }
        self.say(ended);
        loop {
            let next = lock(&self.0.said).take(Instant::now(), all);
            let Some((samples, is_again)) = next else {
                return;
            };
            let append = Append {
                samples: samples.clone(),
                // At the end, what finds no room is accepted and evicted, so that it is accounted for.
                can_hold_back: !all,
                is_again,
                ..Append::default()
            };
            let submission = self.submit_shaped(append, None, Vec::new(), None).await;
            let outcome = submission.done().await;
            let left = match &outcome {
                Ok(outcome) => {
                    let full = |at: usize| {
                        let mut refused = outcome.appended.refused.iter();
                        refused.any(|(of, error)| *of == at && *error == ReadingError::BufferFull)
                    };
                    let samples = samples.into_iter().enumerate();
                    samples
                        .filter(|(at, _)| full(*at))
                        .map(|(_, sample)| sample)
                        .collect()
                }
                Err(error) if error.fault() == Fault::Retry && !all => samples,
                Err(_) => Vec::new(),
            };
            lock(&self.0.refusals).note(outcome);
            lock(&self.0.said).put_back(left, Instant::now());
        }
    }

    /// Hands over what windows said, when their task comes to it. What is too much is lost, and counted.
    fn say(&self, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        let lost = lock(&self.0.said).add(samples);
        if lost > 0 {
            self.refused("windows_full", lost);
        }
        self.0.windows.notify_one();
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
