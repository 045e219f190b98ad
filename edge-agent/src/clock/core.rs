//! The core of the device's clock: which time a reading is stamped with, whether it is known, and by
//! how much stamps are mended. No IO, no clock, no chance: three readings of the machine's clocks come
//! in as a [`Moment`].
//!
//! ```text
//!          ┌── Hello of a bridge (the database's time, with the round trip) ──► Verified ◄─┐ either way
//!  Held ───┼── the kernel says that its clock is synchronised ────────────────► Kernel   ◄─┤ in a new epoch
//!          └── a bridge is there and sends no Hello: an old one ──────────────► Trusted ───┘
//! ```
//!
//! *Trusted* means that the wall clock is followed, for want of a better one: what is stamped then leaves
//! as uncertain. A quick answer decides at once; after a slow one a better is waited for, not for ever.
//!
//! **Axis.** All stamps of one start lie on its own axis: monotonic time plus what the wall clock said
//! when the agent started. Whatever the wall clock does afterwards, the axis runs on evenly: order and
//! distances are kept through any jump. Once the time is known, one number, the start's *shift*, takes
//! every stamp of the axis to the right time. It is decided once, written before the first of the
//! start's rows is offered, and never changes: a row that has been in a batch stays as it is. What is
//! stamped later goes to the same axis, less the shift, so that a reading which was under way while
//! the time became known is mended as well. Where the axis itself steps back, because the clock that it
//! followed was wrong, a new epoch begins with the same shift: [`Core::begin_again`].
//!
//! **Monotonic time** is the time since boot, sleep included. Two starts of one boot share it: knowing
//! the time in one of them mends the other. Nothing relates two boots: [`judge`] says what becomes of
//! an earlier one.

#[cfg(test)]
mod tests;

use schema::message::{ClockReport, ClockState, RejectReason};

/// A wall clock that parts from the monotonic one by more than this, in microseconds, was set.
pub const JUMP: i64 = 1_000_000;

/// A step back of the stamps' axis beyond this, in microseconds, begins a new epoch: its order would
/// go on from the latest stamp, ahead of the time, until the time has come up with it. Below it does.
pub const BACK_MAX: i64 = 60_000_000;

/// A clock may be ahead of the database's time by so much before that shows that it is wrong.
pub const AHEAD_MAX: i64 = 60_000_000;

/// How far two good clocks part at most: microseconds a second.
const DRIFT_PPM: i64 = 200;

/// What the three clocks of the machine say at one moment, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since the Unix epoch, as the wall clock has it.
    pub wall: i64,
    /// Since boot, sleep included; never back within one boot.
    pub monotonic: i64,
    /// The kernel says that the wall clock is synchronised.
    pub is_synchronised: bool,
}

/// What is kept of one start of the agent, beside its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartClock {
    /// The boot in which it started, by the machine's id of it.
    pub boot: u64,
    /// Monotonic time of the start.
    pub began: i64,
    /// A stamp of this start less the monotonic time at which it was made.
    pub axis: i64,
    /// The wall clock less the monotonic time, as last seen: another number than `axis` after the
    /// clock was set.
    pub wall: i64,
    /// The right time less the monotonic time, once that was known in this boot.
    pub known: Option<i64>,
    /// What becomes of this start's rows.
    pub release: Release,
}

/// What becomes of the rows of one start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The time is not known: they wait, and are not offered to the session.
    Held,
    /// They travel with their stamps moved by so many microseconds. For good.
    Shifted(i64),
    /// The same, and it is not known how right the clock was: their quality is uncertain.
    Uncertain(i64),
    /// Their clock is shown wrong, and by how much is not known.
    Quarantined(RejectReason),
}

/// An earlier start whose rows are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldStart {
    /// The clock of that start, as it was kept.
    pub clock: StartClock,
    /// The last stamp on its axis.
    pub last_stamp: i64,
}

/// What has changed, for the log and the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The time has become known: what is held can be judged and released.
    Known(ClockState),
    /// No bridge sends the time: what is held is sent as it is, and as uncertain.
    Trusted,
    /// The wall clock was set, by so many microseconds.
    WallSet(i64),
    /// The axis steps back by so many microseconds: a new epoch is due.
    Back(i64),
    /// What comes from now on is not uncertain any more: a new epoch is due.
    Certain,
}

/// The time that a bridge has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// The database's time less the monotonic time.
    offset: i64,
    /// By how much `offset` may be wrong, in microseconds.
    uncertainty: i64,
    /// When the answer came, monotonic.
    at: i64,
}

/// The clock of one start.
#[derive(Debug, Clone)]
pub struct Core {
    start: StartClock,
    known: Option<Known>,
    /// The wall clock less the monotonic time when the kernel last said that it is synchronised.
    kernel: Option<i64>,
    /// Whether the kernel says so now.
    is_synchronised: bool,
    /// The last answer of a bridge is as exact as it will get.
    is_measured: bool,
    /// Set once the bridge was found not to send the time. A wall clock before this is not followed even then.
    silent: Option<i64>,
    /// What the shift leaves of the difference, below a millisecond: the axis has no step where it was decided.
    trim: i64,
    /// The latest stamp that was made, on the axis.
    last: i64,
}

impl Core {
    /// A start of the agent in this boot.
    #[must_use]
    pub fn begin(boot: u64, now: Moment) -> Self {
        let wall = now.wall - now.monotonic;
        let kernel = now.is_synchronised.then_some(wall);
        let mut core = Self {
            start: StartClock {
                boot,
                began: now.monotonic,
                axis: wall,
                wall,
                known: kernel,
                release: Release::Held,
            },
            known: None,
            kernel,
            is_synchronised: now.is_synchronised,
            is_measured: false,
            silent: None,
            trim: 0,
            last: i64::MIN,
        };
        if now.is_synchronised {
            core.start.release = Release::Shifted(0);
        }
        core
    }

    /// Takes over what an earlier start of the same boot knew. To be called before the first stamp:
    /// what was known then still is, and this start's rows need no mending.
    pub fn resume(&mut self, earlier: &StartClock) -> Option<Change> {
        let offset = earlier.known.filter(|_| earlier.boot == self.start.boot)?;
        if self.is_known() {
            return None;
        }
        self.known = Some(Known {
            offset,
            uncertainty: self.start.began.saturating_sub(earlier.began).max(0) / 1_000_000
                * DRIFT_PPM,
            at: self.start.began,
        });
        self.is_measured = true;
        self.start.known = Some(offset);
        self.start.release = self.decided(offset);
        Some(Change::Known(ClockState::Verified))
    }

    /// What is to be kept of this start.
    #[must_use]
    pub const fn start(&self) -> StartClock {
        self.start
    }

    /// A new epoch begins in this run. Axis and shift stay: a reading that is stamped and not yet
    /// accepted leaves alike from either epoch. The order begins anew, and so does what is known of it.
    pub fn begin_again(&mut self, now: Moment) {
        self.start.began = now.monotonic;
        if let Release::Uncertain(shift) = self.start.release
            && self.is_certain()
        {
            self.start.release = Release::Shifted(shift);
        }
        self.last = i64::MIN;
    }

    /// The stamp of something that happens now, on this start's axis: what is added to it when it
    /// leaves is in [`StartClock::release`].
    pub fn stamp(&mut self, now: Moment) -> i64 {
        let stamp = match self.start.release {
            Release::Shifted(shift) | Release::Uncertain(shift) => {
                now.monotonic + self.offset(now) - shift - self.trim
            }
            Release::Held | Release::Quarantined(_) => now.monotonic + self.start.axis,
        };
        self.last = self.last.max(stamp);
        stamp
    }

    /// The best guess at the time now.
    #[must_use]
    pub fn time(&self, now: Moment) -> i64 {
        now.monotonic + self.offset(now)
    }

    /// The database's time now, at the earliest and at the latest, once a bridge has sent it.
    #[must_use]
    pub fn database_time(&self, now: Moment) -> Option<(i64, i64)> {
        let known = self.known?;
        let (at, off) = (now.monotonic + known.offset, known.aged(now));
        Some((at - off, at + off))
    }

    /// The time by which commands expire: the database's, at the latest; with a bridge that does not send it,
    /// this machine's. `None` while it is not known.
    #[must_use]
    pub fn commands_time(&self, now: Moment) -> Option<i64> {
        match self.database_time(now) {
            Some((_, latest)) => Some(latest),
            None => (self.silent.is_some() && self.is_known()).then(|| self.time(now)),
        }
    }

    /// Whether it is decided what becomes of this start's stamps: they are right, or as right as they
    /// will get.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.start.release != Release::Held
    }

    /// Whether the time was given, as exactly as it will be: by the kernel, or by a bridge.
    const fn is_certain(&self) -> bool {
        self.is_measured || self.kernel.is_some()
    }

    /// Whether the wall clock is followed, because no bridge sends the time.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.is_known() && !self.is_certain()
    }

    /// How far the clock was compared.
    #[must_use]
    pub const fn state(&self) -> ClockState {
        if self.is_synchronised {
            ClockState::Kernel
        } else if self.known.is_some() || self.kernel.is_some() {
            ClockState::Verified
        } else {
            ClockState::Unverified
        }
    }

    /// What the bridge and the status are given of it.
    #[must_use]
    pub fn report(&self, now: Moment) -> ClockReport {
        let offset = |known: Known| (now.wall - now.monotonic - known.offset) / 1000;
        ClockReport {
            state: self.state(),
            offset_ms: self.known.map(offset),
        }
    }

    /// Looks at the clocks: to be called every second or so.
    pub fn look(&mut self, now: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        let wall = now.wall - now.monotonic;
        let set_by = wall - self.start.wall;
        if set_by.abs() > JUMP {
            self.start.wall = wall;
            changes.push(Change::WallSet(set_by));
        }
        self.is_synchronised = now.is_synchronised;
        if now.is_synchronised {
            self.kernel = Some(wall);
            self.start.known = Some(wall);
        }
        self.settle(now, &mut changes);
        changes
    }

    /// A bridge answered the request sent at `requested_at` (monotonic): the database's time was
    /// `bridge_time_ms` meanwhile. Only a `last` one decides, after which no better one is waited for.
    pub fn hello(
        &mut self,
        requested_at: i64,
        now: Moment,
        bridge_time_ms: i64,
        last: bool,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.silent = None;
        self.is_measured |= last;
        let trip = now.monotonic.saturating_sub(requested_at).max(0);
        // The answer is older than now by half the trip, and cut to whole milliseconds.
        let answered = bridge_time_ms.saturating_mul(1000).saturating_add(500);
        let fresh = Known {
            offset: answered.saturating_add(trip / 2) - now.monotonic,
            uncertainty: trip / 2 + 500,
            at: now.monotonic,
        };
        let is_better = self.known.is_none_or(|known| {
            let aged = known.aged(now);
            let apart = (fresh.offset - known.offset).abs();
            fresh.uncertainty <= aged || apart > aged + fresh.uncertainty
        });
        if is_better {
            self.known = Some(fresh);
        }
        // What the next start of this boot takes over.
        if self.is_measured && !self.is_synchronised {
            self.start.known = self.known.map(|known| known.offset);
        }
        self.settle(now, &mut changes);
        changes
    }

    /// The bridge does not send the time: it is an old one. What is held is sent as it is, and the wall
    /// clock is followed. A clock before `floor` is shown wrong, and its rows wait until
    /// it is set: an old bridge would refuse them.
    pub fn bridge_is_silent(&mut self, now: Moment, floor: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        self.silent = Some(floor);
        self.settle(now, &mut changes);
        changes
    }

    /// What follows from what is known now.
    fn settle(&mut self, now: Moment, changes: &mut Vec<Change>) {
        let is_certain = self.is_certain();
        match self.start.release {
            Release::Held if is_certain => {
                self.start.release = self.decided(self.offset(now));
                changes.push(Change::Known(self.state()));
            }
            Release::Held if self.silent.is_some_and(|floor| now.wall >= floor) => {
                if let Release::Shifted(shift) = self.decided(now.wall - now.monotonic) {
                    self.start.release = Release::Uncertain(shift);
                }
                changes.push(Change::Trusted);
            }
            Release::Uncertain(_) if is_certain => {
                changes.extend([Change::Known(self.state()), Change::Certain]);
            }
            Release::Held
            | Release::Uncertain(_)
            | Release::Shifted(_)
            | Release::Quarantined(_) => {}
        }
        if let Release::Shifted(shift) | Release::Uncertain(shift) = self.start.release {
            let back = self
                .last
                .saturating_sub(now.monotonic + self.offset(now) - shift - self.trim);
            if back > BACK_MAX {
                changes.push(Change::Back(back));
            }
        }
    }

    /// By how much this start's stamps move, for good.
    fn decided(&mut self, right: i64) -> Release {
        let by = shift(right, self.start.axis);
        self.trim = right.saturating_sub(self.start.axis).saturating_sub(by);
        Release::Shifted(by)
    }

    /// The right time less the monotonic one, as far as anybody knows.
    fn offset(&self, now: Moment) -> i64 {
        let wall = now.wall - now.monotonic;
        if self.is_synchronised || self.is_trusted() {
            return wall;
        }
        match (self.known, self.kernel) {
            (Some(known), _) => known.offset,
            (None, Some(kernel)) => kernel,
            (None, None) => self.start.axis,
        }
    }
}

/// By how much stamps of an axis move: in whole milliseconds, so that stamps in milliseconds stay so.
const fn shift(right: i64, axis: i64) -> i64 {
    let by = right.saturating_sub(axis);
    by - by % 1000
}

impl Known {
    fn aged(&self, now: Moment) -> i64 {
        let seconds = now.monotonic.saturating_sub(self.at).max(0) / 1_000_000;
        self.uncertainty + seconds * DRIFT_PPM
    }
}

/// What becomes of the rows of earlier starts, oldest first, now that the time is known. `before` is the
/// boot before the first of them, and until when it lasted, in right time.
///
/// A start of a boot in which the time was known is mended. Of another one it is not known how wrong its
/// clock was: its rows are quarantined when that is *shown*, and else travel as uncertain. Shown means: below
/// `floor`, a time that had passed when this program was built; before the end of the boot before it; or
/// ahead of `now`, the database's time. Without a known time (`None`) no clock is shown wrong by it.
#[must_use]
pub fn judge(
    held: &[HeldStart],
    before: Option<(u64, i64)>,
    current: &StartClock,
    floor: i64,
    now: Option<i64>,
) -> Vec<Release> {
    let known_in = |boot: u64| {
        let of_it = |clock: &&StartClock| clock.boot == boot;
        let all = held.iter().map(|start| &start.clock);
        all.chain([current])
            .filter(of_it)
            .find_map(|clock| clock.known)
    };
    let mut verdicts = Vec::with_capacity(held.len());
    let mut before = before;
    for HeldStart { clock, last_stamp } in held {
        let ends_at = |relation: i64| {
            last_stamp
                .saturating_sub(clock.axis)
                .saturating_add(relation)
        };
        let begins_at = |relation: i64| clock.began.saturating_add(relation);
        let verdict = match known_in(clock.boot) {
            Some(known) => Release::Shifted(shift(known, clock.axis)),
            None => {
                let earliest = match before {
                    Some((boot, end)) if boot != clock.boot && now.is_some() => floor.max(end),
                    _ => floor,
                };
                let latest = now.map_or(i64::MAX, |now| now.saturating_add(AHEAD_MAX));
                // The clock as it was set last is more likely to be right than as it was found.
                let (mut found, mut wrong) = (None, None);
                let set_since = (clock.boot == current.boot).then_some(current.wall);
                for relation in set_since.into_iter().chain([clock.wall, clock.axis]) {
                    if begins_at(relation) < earliest {
                        wrong = wrong.or(Some(RejectReason::TooOld));
                    } else if ends_at(relation) > latest {
                        wrong = wrong.or(Some(RejectReason::TooNew));
                    } else {
                        found = found.or(Some(relation));
                    }
                }
                match (found, wrong) {
                    (Some(relation), _) => Release::Uncertain(shift(relation, clock.axis)),
                    (None, wrong) => Release::Quarantined(wrong.unwrap_or(RejectReason::TooOld)),
                }
            }
        };
        if let Release::Shifted(shift) | Release::Uncertain(shift) = verdict {
            before = Some((clock.boot, last_stamp.saturating_add(shift)));
        }
        verdicts.push(verdict);
    }
    verdicts
}
