//! Quotas of what is kept aside: dead letters, and versions that lost. One device that sends garbage costs its quota and
//! no more; what falls over is counted, and good input goes on.
//!
//! ```text
//! pieces to keep ─► counted for their devices, in the commit that keeps them (a row a kind and device)
//!                      ├─ room in the device's quota and in that of all ─► kept
//!                      └─ none ─► not kept; counted, and for versions that lost noted for whoever verifies
//! ```
//!
//! A device's quota is exact: its counter is locked from where it is raised until the commit. That of all is held against a
//! sum that is [`REFRESH`] old at most, together with what this bridge has kept since: others may have kept something in
//! the meantime, and so much it may be exceeded.
//!
//! Retention, and people with SQL, remove rows and do not count. So a counter is only believed while there is room: a
//! device that has none is counted anew, once a minute at most, and so is one that is met for the first time; and
//! [`QuotaStore::recount`] goes through all of them in turn. Each counts rows by a key, and no more than a quota of them.
//!
//! Counters are locked before what they count, by all: whoever keeps a piece, throws one away, or counts.
//!
//! Reading order: this file (values, who counts) → [`store`] (the tables).

mod store;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemon::lock;
use schema::time::ReceivedAt;

use super::sql::{Broken, Port};
pub use store::{DroppedLosers, KeptAside, QuotaStore};
pub(crate) use store::{dropped_of, hold, note_dropped, recount_held, sum_up};

/// How old the sum over all devices may be.
const REFRESH: Duration = Duration::from_secs(5);

/// How old a count of a device's rows may be when it is out of room.
const RECOUNT: Duration = Duration::from_secs(60);

/// What is kept aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// Payloads that could not be used.
    DeadLetters,
    /// Versions that lost to another one of the same key.
    Conflicts,
}

/// How much of one kind is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// So many rows, at most.
    pub rows: u64,
    /// So many bytes, at most: of what they hold, not of the disk.
    pub bytes: u64,
}

/// How much of one kind is kept of each device, and of all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of one device, or of all letters without a known one.
    pub device: Quota,
    /// Of all.
    pub all: Quota,
}

/// How much is kept aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Of payloads that could not be used.
    pub dead_letters: Bounds,
    /// Of versions that lost.
    pub conflicts: Bounds,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a store did not keep since it was opened, by whose quota was used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotKept {
    /// The device's.
    pub device: u64,
    /// That of all.
    pub all: u64,
}

impl Aside {
    /// Both.
    pub const ALL: [Self; 2] = [Self::DeadLetters, Self::Conflicts];

    /// As it stands in the database and in metrics: the name of the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeadLetters => "dead_letters",
            Self::Conflicts => "conflicts",
        }
    }
}

impl Quota {
    /// Without a bound.
    pub const UNLIMITED: Self = Self {
        rows: u64::MAX,
        bytes: u64::MAX,
    };

    /// Whether so much is within it.
    const fn holds(self, amount: Amount) -> bool {
        amount.rows <= self.rows && amount.bytes <= self.bytes
    }
}

impl Quotas {
    /// Everything is kept.
    pub const UNLIMITED: Self = Self {
        dead_letters: Bounds::UNLIMITED,
        conflicts: Bounds::UNLIMITED,
    };

    const fn of(&self, aside: Aside) -> Bounds {
        match aside {
            Aside::DeadLetters => self.dead_letters,
            Aside::Conflicts => self.conflicts,
        }
    }
}

impl Bounds {
    const UNLIMITED: Self = Self {
        device: Quota::UNLIMITED,
        all: Quota::UNLIMITED,
    };
}

impl Default for Quotas {
    /// Enough to see what a device does wrong, of every device of a fleet of a hundred, or of a part of a large one.
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            dead_letters: Bounds {
                device: Quota {
                    rows: 1_000,
                    bytes: 16 * MIB,
                },
                all: Quota {
                    rows: 100_000,
                    bytes: 1_024 * MIB,
                },
            },
            conflicts: Bounds {
                device: Quota {
                    rows: 100_000,
                    bytes: 32 * MIB,
                },
                all: Quota {
                    rows: 5_000_000,
                    bytes: 1_024 * MIB,
                },
            },
        }
    }
}

impl Amount {
    const fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_add(other.rows),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            rows: self.rows.saturating_sub(other.rows),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    const fn one(bytes: u64) -> Self {
        Self { rows: 1, bytes }
    }
}

/// The quotas of a store, what is known of all devices together, and what was not kept.
#[derive(Debug)]
pub(crate) struct Rooms {
    quotas: Mutex<Quotas>,
    known: [Mutex<Known>; 2],
    not_kept: [[AtomicU64; 2]; 2],
}

/// How much of one kind there is of all devices.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    amount: Amount,
    /// When it was summed up.
    at: Option<Instant>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            quotas: Mutex::new(Quotas::UNLIMITED),
            known: Default::default(),
            not_kept: Default::default(),
        }
    }
}

/// What came of keeping some pieces.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Of each piece, whether it is kept.
    is_kept: Vec<bool>,
    kept: Amount,
    not_kept: NotKept,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.is_kept.extend(other.is_kept);
        self.kept = self.kept.plus(other.kept);
        self.not_kept.device += other.not_kept.device;
        self.not_kept.all += other.not_kept.all;
    }
}

impl Taken {
    /// What is kept of the pieces that were asked for, and what is not.
    pub(crate) fn split<'t, T>(&self, pieces: &'t [T]) -> (Vec<&'t T>, Vec<&'t T>) {
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for (piece, is_kept) in pieces.iter().zip(&self.is_kept) {
            match is_kept {
                true => kept.push(piece),
                false => dropped.push(piece),
            }
        }
        (kept, dropped)
    }
}

impl Rooms {
    pub(crate) fn set(&self, quotas: Quotas) {
        *lock(&self.quotas) = quotas;
    }

    /// Whether the sum over all devices is wanted, and too old. Asking puts it off for the others.
    pub(crate) fn is_due(&self, aside: Aside) -> bool {
        let is_bounded = lock(&self.quotas).of(aside).all != Quota::UNLIMITED;
        let mut known = lock(&self.known[aside as usize]);
        let is_old = known.at.is_none_or(|at| at.elapsed() >= REFRESH);
        if is_bounded && is_old && known.at.is_some() {
            known.at = Some(Instant::now());
        }
        is_bounded && is_old
    }

    pub(crate) fn summed(&self, aside: Aside, amount: Amount) {
        *lock(&self.known[aside as usize]) = Known {
            amount,
            at: Some(Instant::now()),
        };
    }

    /// What was taken is committed.
    pub(crate) fn took(&self, aside: Aside, taken: &Taken) {
        let mut known = lock(&self.known[aside as usize]);
        known.amount = known.amount.plus(taken.kept);
        let [device, all] = &self.not_kept[aside as usize];
        device.fetch_add(taken.not_kept.device, Ordering::Relaxed);
        all.fetch_add(taken.not_kept.all, Ordering::Relaxed);
    }

    pub(crate) fn not_kept(&self, aside: Aside) -> NotKept {
        let [device, all] = &self.not_kept[aside as usize];
        NotKept {
            device: device.load(Ordering::Relaxed),
            all: all.load(Ordering::Relaxed),
        }
    }

    fn bounds(&self, aside: Aside) -> (Bounds, Amount) {
        let bounds = lock(&self.quotas).of(aside);
        (bounds, lock(&self.known[aside as usize]).amount)
    }
}

/// What a device has, before the pieces of one call.
#[derive(Debug, Clone, Copy)]
struct Count {
    before: Amount,
    /// When its rows were counted, if ever.
    counted_at: Option<ReceivedAt>,
}

/// Counts pieces, each of a device and so many bytes, and decides which are kept: to be called before they are written, in
/// the same transaction. Those that come first are kept.
pub(crate) async fn take(
    port: &mut dyn Port,
    rooms: &Rooms,
    aside: Aside,
    pieces: &[(&str, u64)],
    now: ReceivedAt,
) -> Result<Taken, Broken> {
    let (bounds, all) = rooms.bounds(aside);
    let mut added: BTreeMap<&str, Amount> = BTreeMap::new();
    for (device, bytes) in pieces {
        let of = added.entry(device).or_default();
        *of = of.plus(Amount::one(*bytes));
    }
    let mut counts = store::add(port, aside, &added).await?;
    let old = now.minus(RECOUNT);
    let mut recounted = Vec::new();
    for (device, count) in &mut counts {
        let is_full = !bounds
            .device
            .holds(count.before.plus(added[device.as_str()]));
        let is_doubted = match count.counted_at {
            None => true,
            Some(at) => is_full && at < old,
        };
        if is_doubted {
            count.before = store::count(port, aside, device).await?;
            recounted.push(device.clone());
        }
    }
    let (taken, dropped) = decide(bounds, all, &counts, pieces);
    for (device, count) in &counts {
        let dropped = dropped.get(device.as_str()).copied().unwrap_or_default();
        let is_counted = recounted.contains(device);
        if is_counted || dropped.rows > 0 {
            let kept = count.before.plus(added[device.as_str()]).minus(dropped);
            store::settle(port, aside, device, kept, dropped, now, is_counted).await?;
        }
    }
    Ok(taken)
}

/// Which pieces there is room for, and how much of each device there is none for.
fn decide<'a>(
    bounds: Bounds,
    mut all: Amount,
    counts: &BTreeMap<String, Count>,
    pieces: &[(&'a str, u64)],
) -> (Taken, BTreeMap<&'a str, Amount>) {
    let mut taken = Taken::default();
    let mut of_devices: BTreeMap<&str, Amount> = BTreeMap::new();
    let mut dropped: BTreeMap<&str, Amount> = BTreeMap::new();
    for (device, bytes) in pieces {
        let piece = Amount::one(*bytes);
        let of = of_devices.entry(device).or_insert_with(|| {
            let count = counts.get(*device);
            count.map_or(Amount::default(), |count| count.before)
        });
        let has_room = bounds.device.holds(of.plus(piece));
        let is_kept = has_room && bounds.all.holds(all.plus(piece));
        if is_kept {
            *of = of.plus(piece);
            all = all.plus(piece);
            taken.kept = taken.kept.plus(piece);
        } else {
            let of = dropped.entry(device).or_default();
            *of = of.plus(piece);
            match has_room {
                true => taken.not_kept.all += 1,
                false => taken.not_kept.device += 1,
            }
        }
        taken.is_kept.push(is_kept);
    }
    (taken, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn quota(rows: u64, bytes: u64) -> Quota {
        Quota { rows, bytes }
    }

    fn count(rows: u64, bytes: u64) -> Count {
        Count {
            before: Amount { rows, bytes },
            counted_at: None,
        }
    }

    /// Below, at and above each of the four bounds.
    #[test]
    fn what_fits_is_kept_and_the_rest_is_not() {
        let bounds = Bounds {
            device: quota(3, 30),
            all: quota(5, 40),
        };
        let counts = |rows, bytes| {
            BTreeMap::from([
                ("a".to_owned(), count(rows, bytes)),
                ("b".to_owned(), count(0, 0)),
            ])
        };
        let kept = |all: Amount, counts: &BTreeMap<String, Count>, pieces: &[(&str, u64)]| {
            let (taken, _) = decide(bounds, all, counts, pieces);
            (taken.is_kept, taken.not_kept.device, taken.not_kept.all)
        };
        let amount = |rows, bytes| Amount { rows, bytes };
        let none = amount(0, 0);
        let three = [("a", 1), ("a", 1), ("a", 1)];
        assert_eq!(kept(none, &counts(0, 0), &three[..2]).0, [true; 2]);
        assert_eq!(kept(none, &counts(0, 0), &three).0, [true; 3]);
        let fourth = (vec![true, true, false], 1, 0);
        assert_eq!(kept(amount(1, 1), &counts(1, 1), &three), fourth);
        assert_eq!(kept(none, &counts(0, 0), &[("a", 29)]).0, [true]);
        assert_eq!(kept(none, &counts(0, 0), &[("a", 30)]).0, [true]);
        assert_eq!(
            kept(none, &counts(0, 0), &[("a", 31), ("a", 30), ("b", 10)]),
            (vec![false, true, true], 1, 0),
            "what is too large is passed over, and others have their room"
        );
        assert_eq!(kept(amount(4, 4), &counts(0, 0), &three[..1]).0, [true]);
        assert_eq!(
            kept(amount(4, 4), &counts(0, 0), &[("a", 1), ("b", 1)]),
            (vec![true, false], 0, 1)
        );
        assert_eq!(
            kept(amount(1, 15), &counts(0, 0), &[("b", 25), ("b", 1)]),
            (vec![true, false], 0, 1)
        );
    }

    #[test]
    fn the_sum_over_all_is_asked_for_where_it_bounds_and_is_old() {
        let rooms = Rooms::default();
        assert!(!rooms.is_due(Aside::Conflicts), "nothing is bounded");
        rooms.set(Quotas::default());
        assert!(rooms.is_due(Aside::Conflicts) && rooms.is_due(Aside::DeadLetters));
        let amount = Amount { rows: 7, bytes: 70 };
        rooms.summed(Aside::Conflicts, amount);
        assert!(!rooms.is_due(Aside::Conflicts) && rooms.is_due(Aside::DeadLetters));
        let taken = Taken {
            kept: Amount::one(3),
            not_kept: NotKept { device: 2, all: 1 },
            ..Taken::default()
        };
        rooms.took(Aside::Conflicts, &taken);
        let (_, all) = rooms.bounds(Aside::Conflicts);
        assert_eq!(all, Amount { rows: 8, bytes: 73 });
        let not_kept = rooms.not_kept(Aside::Conflicts);
        assert_eq!(not_kept, NotKept { device: 2, all: 1 });
        assert_eq!(rooms.not_kept(Aside::DeadLetters), NotKept::default());
    }
}
