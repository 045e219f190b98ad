//! The life of the thread: opens the file, reports what was found in it, serves requests, and closes.

use std::sync::Arc;

use daemon::Clock;
use schema::{Epoch, ObservedAt, RangeSet};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::health::LOOK_IDLE;
use super::{Request, WARN_EVERY, Writer};
use crate::buffer::age::Looked;
use crate::buffer::deferred::Deferred;
use crate::buffer::epochs::Run;
use crate::buffer::error::BufferError;
use crate::buffer::eviction::Sweep;
use crate::buffer::load::Anchor;
use crate::buffer::open;
use crate::buffer::quarantine::Quarantine;
use crate::buffer::recovery::Recovery;
use crate::buffer::settings::BufferSettings;
use crate::buffer::shows::Shows;
use crate::buffer::starts::Starts;
use crate::clock::core::StartClock;
use crate::repeat::Repeats;

/// The farthest that a stamp may be from its scan's time, in microseconds.
const STAMP_LEAD_MICROS: u64 = schema::stamp::BACK_MAX.as_micros() as u64;

/// What the thread found when it opened the file.
#[derive(Debug)]
pub(in crate::buffer) struct Found {
    pub(in crate::buffer) epoch: Epoch,
    pub(in crate::buffer) last_row: u64,
    pub(in crate::buffer) pending: RangeSet,
    pub(in crate::buffer) runs: Vec<Run>,
    pub(in crate::buffer) starts: Starts,
    pub(in crate::buffer) bridge_protocol: u16,
    pub(in crate::buffer) recovery: Option<Recovery>,
}

/// Runs until [`Request::Close`], or until no handle is left.
pub(in crate::buffer) fn run(
    settings: BufferSettings,
    (clock, start): (Arc<dyn Clock>, Option<StartClock>),
    mut queue: mpsc::Receiver<Request>,
    shows: Shows,
    opened: oneshot::Sender<Result<Found, BufferError>>,
) {
    // libSQL's calls are async in name only; the runtime is there for the queue and its timer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = BufferError::file("starting a thread for", settings.path, error);
            let _ = opened.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let found = match open::open(&settings, clock.as_ref(), start).await {
            Ok(found) => found,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        let epochs = &found.state.epochs;
        let quarantine = Quarantine::restore(found.state.offered.as_ref());
        let answer = Found {
            epoch: epochs.current().account.epoch(),
            last_row: epochs.last_row(),
            pending: epochs.pending(),
            runs: epochs.runs().collect(),
            starts: epochs.starts(),
            bridge_protocol: quarantine.protocol(),
            recovery: found.recovery,
        };
        let mut state = found.state;
        if let Some(start) = start {
            state.epochs.begin_clock(start);
        }
        if let Some(anchor) = state.anchor {
            let floor = latest_stamp(anchor);
            state.sensors.stamp_behind(floor, clock.now_micros());
        }
        let consolidates = settings.policies.consolidates();
        let last_row = state.epochs.last_row();
        state.keep_due |= state.keep.track(consolidates, last_row);
        let deferred = Deferred::leftover(std::mem::take(&mut state.leftover));
        let mut writer = Writer {
            sweep: Sweep::new(settings.rows_max),
            settings,
            clock,
            file: found.file,
            state,
            waiting: Vec::new(),
            waiting_rows: 0,
            append_by: None,
            settle_by: (!deferred.is_empty()).then(Instant::now),
            deferred,
            quarantine,
            warnings: Repeats::new(WARN_EVERY),
            losses: Repeats::new(WARN_EVERY),
            not_put_back: Repeats::new(WARN_EVERY),
            shows,
            reserve: found.reserve,
            place: found.place,
            trouble: None,
            is_undeletable: false,
            warned_at: None,
            // What was found in it may wait for long before the file is used.
            probe_at: Some(Instant::now() + LOOK_IDLE),
            unreadable: RangeSet::new(),
            began: Instant::now(),
            looked: Looked::default(),
            age_by: None,
            filling: false,
        };
        writer.rank_found().await;
        writer.age_soon();
        // What an earlier run was to offer.
        writer.offer_next().await;
        writer.publish_progress();
        writer.note_odd(0, "set_aside").await;
        if opened.send(Ok(answer)).is_ok() {
            writer.serve(&mut queue).await;
        }
        writer.finish().await;
        // Not by closing it alone: a process that is just being started shares the open file for
        // a moment, and with it the lock.
        let _ = found.lock.unlock();
    });
}

/// The latest time that an earlier run may have stamped a reading with, judged by its last row: its scan's
/// time or its own, and a microsecond more for each reading of the same millisecond, which the clock's
/// counter counts.
fn latest_stamp(Anchor { key, .. }: Anchor) -> ObservedAt {
    let scanned = ObservedAt::from_millis(i64::try_from(key.hlc.millis()).unwrap_or(i64::MAX));
    // A time that its producer gave is no stamp.
    let is_stamp = key.observed_at.micros().abs_diff(scanned.micros()) <= STAMP_LEAD_MICROS;
    let latest = match is_stamp {
        true => scanned.max(key.observed_at),
        false => scanned,
    };
    let counter = i64::from(key.hlc.counter());
    ObservedAt::from_micros(latest.micros().saturating_add(counter))
}
