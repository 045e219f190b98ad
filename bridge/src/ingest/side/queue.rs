//! What waits to be written of what devices say beside readings: the latest word of each, bounded in number and bytes.
//! Pure: `Receipt` is whatever is acknowledged once an entry is kept.
//!
//! ```text
//! offer ─► latest of its key ─► take ─► written: acknowledged
//!   │           ▲                └─► refused by the database: put back, due later ─┐
//!   │           └──────────────────────────────────────────────────────────────────┘
//!   └─ no room ─► withheld: the receipt stays with the broker's window, which closes
//! ```
//!
//! A later word of a device replaces an earlier one of the same kind, because it says all that the earlier one said: a
//! birth of a later connection, a report with the same epochs, a whole configuration, a further state of a command. What
//! is replaced is acknowledged; what it stood for waits on. Of births, wills, reports and configurations a device has so
//! one each; its share bounds what there may be many of, words and letters, and can cost it nothing else.
//!
//! Invariant: entries and bytes are within their bounds, or beyond them by what was taken out at once and put back: that
//! was acknowledged, and is not dropped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schema::DeviceId;
use schema::limits::{PAYLOAD_BYTES_MAX, REPORT_EPOCHS_MAX};
use schema::message::{CommandId, EpochAccount, Status};
use schema::time::ReceivedAt;

use store::commands::{CommandWord, step};
use store::config::ConfigReport;
use store::{DeadLetter, DeviceReport, Presence};

/// Pause before an entry that the database refused is tried again: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Bytes that are written together; one entry may have more.
const TAKE_BYTES: usize = 4 * 1024 * 1024;

/// Sessions that a birth remembers to have replaced: a device that reconnects faster has other troubles.
const REPLACED_MAX: usize = 16;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Entries of all devices: ten thousand devices come back at once, each with all it has to say.
    pub(super) entries: usize,
    /// Bytes of their payloads.
    pub(super) bytes: usize,
    /// Words and letters of one device, or of those without one, and their bytes: it loses its own, and nobody else's.
    pub(super) device_entries: usize,
    pub(super) device_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries: 65_536,
            bytes: 16 * 1024 * 1024,
            device_entries: 256,
            device_bytes: 1024 * 1024,
        }
    }
}

/// What a device says beside readings, or what could not be used.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A birth or a will.
    Presence(Presence),
    /// Its side of the ledger.
    Report(DeviceReport),
    /// Progress of a command.
    Word(CommandWord),
    /// The configuration that it has.
    Config(ConfigReport),
    /// A payload that could not be used, and its digest where it is to be refused.
    Letter(DeadLetter, Option<u64>),
}

/// Kinds of contents: each is written by a statement of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Letter,
    Presence,
    Report,
    Word,
    Config,
}

/// Of what there is only a latest one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Birth,
    Will,
    Report,
    Config,
    Word(CommandId),
    /// Each letter is one.
    Letter(u64),
}

type Key = (Option<DeviceId>, Slot);

/// One that waits, or is being written.
#[derive(Debug)]
pub(super) struct Entry<Receipt> {
    pub(super) content: Content,
    pub(super) receipt: Option<Receipt>,
    key: Key,
    bytes: usize,
    /// When it came: the database's time of it is known when it is written.
    pub(super) received: Instant,
    order: u64,
    due: Duration,
    /// How often the database refused it, and why.
    tries: u32,
    reason: String,
    /// Sessions of births that this one has replaced: their wills come too late.
    replaced: Vec<u64>,
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<Receipt> {
    /// It waits. Receipts of what it replaces, or its own if it says nothing new.
    Kept(Option<Receipt>),
    /// There is no room for anybody.
    Full(Receipt),
    /// Its device has too many words and letters waiting.
    OverShare(Receipt),
}

/// All that waits.
#[derive(Debug)]
pub(super) struct Queue<Receipt> {
    bounds: Bounds,
    entries: BTreeMap<Key, Entry<Receipt>>,
    due: BTreeMap<(Duration, u64), Key>,
    shares: BTreeMap<Option<DeviceId>, Share>,
    bytes: usize,
    orders: u64,
    refused: usize,
}

/// What waits of one device's words and letters.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    entries: usize,
    bytes: usize,
}

/// What an earlier report tells of epochs that a later one leaves out.
#[derive(Debug, Default)]
struct Rest {
    epochs: Vec<EpochAccount>,
    bytes: usize,
}

impl Slot {
    /// Whether a device may have many of its kind.
    const fn is_shared(&self) -> bool {
        match self {
            Self::Word(_) | Self::Letter(_) => true,
            Self::Birth | Self::Will | Self::Report | Self::Config => false,
        }
    }
}

impl Content {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Presence(_) => Kind::Presence,
            Self::Report(_) => Kind::Report,
            Self::Word(_) => Kind::Word,
            Self::Config(_) => Kind::Config,
            Self::Letter(..) => Kind::Letter,
        }
    }

    pub(super) const fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Presence(Presence { device, .. })
            | Self::Report(DeviceReport { device, .. })
            | Self::Word(CommandWord { device, .. })
            | Self::Config(ConfigReport { device, .. }) => Some(device),
            Self::Letter(letter, _) => letter.device.as_ref(),
        }
    }

    /// When the bridge took it, by the database's time.
    pub(super) const fn stamp(&mut self, at: ReceivedAt) {
        match self {
            Self::Presence(Presence { received_at, .. })
            | Self::Report(DeviceReport { received_at, .. })
            | Self::Word(CommandWord { received_at, .. })
            | Self::Config(ConfigReport { received_at, .. })
            | Self::Letter(DeadLetter { received_at, .. }, _) => *received_at = at,
        }
    }

    fn slot(&self, order: u64) -> Slot {
        match self {
            Self::Presence(presence) => match presence.status {
                Status::Online { .. } => Slot::Birth,
                Status::Offline { .. } => Slot::Will,
            },
            Self::Report(_) => Slot::Report,
            Self::Word(word) => Slot::Word(word.progress.id),
            Self::Config(_) => Slot::Config,
            Self::Letter(..) => Slot::Letter(order),
        }
    }
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Letter => "dead letters",
            Self::Presence => "births and wills",
            Self::Report => "reports",
            Self::Word => "progress of commands",
            Self::Config => "configurations",
        }
    }
}

impl<Receipt> Queue<Receipt> {
    pub(super) const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: BTreeMap::new(),
            due: BTreeMap::new(),
            shares: BTreeMap::new(),
            bytes: 0,
            orders: 0,
            refused: 0,
        }
    }

    /// Whether so much room is there again that waiting for it may end.
    pub(super) fn is_roomy(&self) -> bool {
        self.entries.len() <= self.bounds.entries / 2 && self.bytes <= self.bounds.bytes / 2
    }

    /// Takes a content that came as `bytes` of payload.
    pub(super) fn offer(
        &mut self,
        content: Content,
        bytes: usize,
        received: Instant,
        receipt: Receipt,
    ) -> Offered<Receipt> {
        self.orders += 1;
        let device = content.device().cloned();
        let mut entry = Entry {
            key: (device, content.slot(self.orders)),
            content,
            receipt: Some(receipt),
            bytes,
            received,
            order: self.orders,
            due: Duration::ZERO,
            tries: 0,
            reason: String::new(),
            replaced: Vec::new(),
        };
        if self.comes_too_late(&entry) {
            return Offered::Kept(entry.receipt);
        }
        let before = self.remove(&entry.key.clone());
        let rest = before.as_ref().map(|before| entry.rest_of(before));
        let rest = rest.unwrap_or_default();
        let fits_all = self.entries.len() < self.bounds.entries
            && self.bytes + bytes + rest.bytes <= self.bounds.bytes;
        let share = self.shares.get(&entry.key.0).copied().unwrap_or_default();
        let fits_share = !entry.key.1.is_shared()
            || share.entries < self.bounds.device_entries
                && share.bytes + bytes <= self.bounds.device_bytes;
        if !(fits_all && fits_share) {
            // What waited before it waits on.
            if let Some(before) = before {
                self.insert(before);
            }
            return match entry.receipt {
                Some(receipt) if fits_all => Offered::OverShare(receipt),
                Some(receipt) => Offered::Full(receipt),
                None => Offered::Kept(None),
            };
        }
        let replaced = before.and_then(|before| entry.replace(before, rest));
        self.insert(entry);
        Offered::Kept(replaced)
    }

    /// A will of a connection that a birth has followed, or a state of a command that a further one has.
    fn comes_too_late(&self, entry: &Entry<Receipt>) -> bool {
        match &entry.content {
            Content::Presence(Presence {
                status: Status::Offline { session },
                ..
            }) => {
                let birth = (entry.key.0.clone(), Slot::Birth);
                self.entries
                    .get(&birth)
                    .is_some_and(|birth| birth.replaced.contains(session))
            }
            Content::Word(word) => match self.entries.get(&entry.key).map(|entry| &entry.content) {
                Some(Content::Word(known)) => {
                    step(known.progress.state) > step(word.progress.state)
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Takes out what is due, in the order in which it came.
    pub(super) fn take(&mut self, now: Duration, most: usize) -> Vec<Entry<Receipt>> {
        let mut keys: Vec<Key> = Vec::new();
        let mut bytes = 0;
        for (_, key) in self.due.range(..=(now, u64::MAX)).take(most) {
            bytes += self.entries.get(key).map_or(0, |entry| entry.bytes);
            if bytes > TAKE_BYTES && !keys.is_empty() {
                break;
            }
            keys.push(key.clone());
        }
        let mut taken: Vec<Entry<Receipt>> =
            keys.iter().filter_map(|key| self.remove(key)).collect();
        taken.sort_by_key(|entry| entry.order);
        taken
    }

    /// When the next entry is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((due, _), _)| *due)
    }

    /// The database has refused an entry, alone, or all of its kind: it is tried again later. Its receipt is returned:
    /// it does not hold the broker's window, for its device says it again.
    pub(super) fn put_back(
        &mut self,
        mut entry: Entry<Receipt>,
        reason: &str,
        now: Duration,
    ) -> Option<Receipt> {
        let receipt = entry.receipt.take();
        entry.tries += 1;
        entry.reason.clear();
        entry.reason.push_str(reason);
        let doublings = (entry.tries - 1).min(16);
        entry.due = now + AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_MAX);
        if let Some(mut newer) = self.remove(&entry.key) {
            // Of two the later one came later; it waits as long as this one did.
            newer.tries = entry.tries;
            newer.due = entry.due;
            newer.reason.clone_from(&entry.reason);
            let rest = newer.rest_of(&entry);
            newer.replace(entry, rest);
            self.insert(newer);
        } else {
            // With or without room: with its receipt nobody else has it any more.
            self.insert(entry);
        }
        receipt
    }

    /// What is refused: how many of which kind, and why, of one of them.
    pub(super) fn refused(&self) -> Vec<(Kind, usize, &str)> {
        let mut found: BTreeMap<Kind, (usize, &str)> = BTreeMap::new();
        if self.refused > 0 {
            for entry in self.entries.values().filter(|entry| entry.tries > 0) {
                let (count, reason) = found.entry(entry.content.kind()).or_default();
                *count += 1;
                *reason = entry.reason.as_str();
            }
        }
        found
            .into_iter()
            .map(|(kind, (count, reason))| (kind, count, reason))
            .collect()
    }

    fn insert(&mut self, entry: Entry<Receipt>) {
        if entry.key.1.is_shared() {
            let share = self.shares.entry(entry.key.0.clone()).or_default();
            share.entries += 1;
            share.bytes += entry.bytes;
        }
        self.bytes += entry.bytes;
        self.refused += usize::from(entry.tries > 0);
        self.due.insert((entry.due, entry.order), entry.key.clone());
        self.entries.insert(entry.key.clone(), entry);
    }

    fn remove(&mut self, key: &Key) -> Option<Entry<Receipt>> {
        let entry = self.entries.remove(key)?;
        self.due.remove(&(entry.due, entry.order));
        self.bytes -= entry.bytes;
        self.refused -= usize::from(entry.tries > 0);
        if key.1.is_shared()
            && let Some(share) = self.shares.get_mut(&key.0)
        {
            share.entries -= 1;
            share.bytes -= entry.bytes;
            if share.entries == 0 {
                self.shares.remove(&key.0);
            }
        }
        Some(entry)
    }
}

impl<Receipt> Entry<Receipt> {
    /// What stays of an earlier report, as far as one message has room for it: a device tells all of it again, and no
    /// more epochs at once.
    fn rest_of(&self, before: &Self) -> Rest {
        let (Content::Report(report), Content::Report(earlier)) = (&self.content, &before.content)
        else {
            return Rest::default();
        };
        // What was told in the words of another version is told again.
        if report.is_legacy != earlier.is_legacy {
            return Rest::default();
        }
        let told = &report.report.epochs;
        let room = REPORT_EPOCHS_MAX.saturating_sub(told.len());
        let rest = earlier.report.epochs.iter();
        let rest = rest.filter(|of| !told.iter().any(|new| new.epoch == of.epoch));
        let epochs: Vec<EpochAccount> = rest.take(room).cloned().collect();
        let all = weight(&earlier.report.epochs).max(1);
        let bytes = (before.bytes * weight(&epochs)).div_ceil(all);
        if self.bytes + bytes > PAYLOAD_BYTES_MAX {
            return Rest::default();
        }
        Rest { epochs, bytes }
    }

    /// Takes the place of an earlier one, and keeps the rest of it. Returns its receipt.
    fn replace(&mut self, before: Self, rest: Rest) -> Option<Receipt> {
        match (&mut self.content, before.content) {
            (Content::Presence(now), Content::Presence(earlier)) => {
                if let (Status::Online { session, .. }, Status::Online { session: last, .. }) =
                    (&now.status, &earlier.status)
                {
                    // Also a birth that is told again: its will is still to come.
                    self.replaced = before.replaced;
                    self.replaced.push(*last);
                    self.replaced.retain(|replaced| replaced != session);
                    let surplus = self.replaced.len().saturating_sub(REPLACED_MAX);
                    self.replaced.drain(..surplus);
                }
            }
            (Content::Report(report), Content::Report(_)) => {
                report.report.epochs.extend(rest.epochs);
                self.bytes += rest.bytes;
            }
            _ => {}
        }
        before.receipt
    }
}

/// How much of a message some accounts take, of all of it.
fn weight(epochs: &[EpochAccount]) -> usize {
    let ranges = |of: &EpochAccount| of.evicted.len() + of.quarantined.len() + of.discarded.len();
    epochs.iter().map(|of| 4 + ranges(of)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::message::{CommandProgress, CommandState};

    const NOW: Duration = Duration::from_secs(100);

    fn queue() -> Queue<u32> {
        Queue::new(Bounds {
            entries: 6,
            bytes: 1_000,
            device_entries: 4,
            device_bytes: 400,
        })
    }

    fn offer(queue: &mut Queue<u32>, content: Content, bytes: usize, receipt: u32) -> Offered<u32> {
        queue.offer(content, bytes, Instant::now(), receipt)
    }

    fn presence(device: &str, session: u64, online: bool) -> Content {
        let status = match online {
            true => Status::Online {
                session,
                epoch: schema::Epoch::from_random(1),
                agent_version: "1.0.0".to_owned(),
            },
            false => Status::Offline { session },
        };
        Content::Presence(Presence {
            device: device.parse().unwrap(),
            status,
            received_at: ReceivedAt::from_micros(1),
        })
    }

    fn word(device: &str, id: u128, state: CommandState) -> Content {
        Content::Word(CommandWord {
            device: device.parse().unwrap(),
            progress: CommandProgress {
                id: CommandId::from_bits(id),
                state,
                percent: 0,
                output: String::new(),
            },
            received_at: ReceivedAt::from_micros(1),
        })
    }

    fn sessions(entries: &[Entry<u32>]) -> Vec<(u64, bool)> {
        let session = |entry: &Entry<u32>| match &entry.content {
            Content::Presence(presence) => match presence.status {
                Status::Online { session, .. } => Some((session, true)),
                Status::Offline { session } => Some((session, false)),
            },
            _ => None,
        };
        entries.iter().filter_map(session).collect()
    }

    #[test]
    fn a_later_word_replaces_an_earlier_one_and_frees_its_receipt() {
        let mut queue = queue();
        assert_eq!(
            offer(&mut queue, presence("a", 1, true), 10, 1),
            Offered::Kept(None)
        );
        assert_eq!(
            offer(&mut queue, presence("a", 2, true), 10, 2),
            Offered::Kept(Some(1))
        );
        // The will of the connection that was replaced comes late: it is kept by saying nothing.
        assert_eq!(
            offer(&mut queue, presence("a", 1, false), 10, 3),
            Offered::Kept(Some(3))
        );
        assert_eq!(
            offer(&mut queue, presence("a", 2, false), 10, 4),
            Offered::Kept(None)
        );
        assert_eq!(sessions(&queue.take(NOW, 10)), [(2, true), (2, false)]);
        assert!(queue.take(NOW, 10).is_empty());
    }

    #[test]
    fn a_birth_after_a_will_is_written_after_it() {
        let mut queue = queue();
        let _ = offer(&mut queue, presence("a", 1, false), 10, 1);
        let _ = offer(&mut queue, presence("a", 2, true), 10, 2);
        assert_eq!(sessions(&queue.take(NOW, 10)), [(1, false), (2, true)]);
    }

    #[test]
    fn a_command_keeps_its_furthest_state() {
        let mut queue = queue();
        let _ = offer(&mut queue, word("a", 1, CommandState::Succeeded), 10, 1);
        assert_eq!(
            offer(&mut queue, word("a", 1, CommandState::Running), 10, 2),
            Offered::Kept(Some(2))
        );
        let _ = offer(&mut queue, word("a", 2, CommandState::Running), 10, 3);
        assert_eq!(queue.take(NOW, 10).len(), 2);
    }

    #[test]
    fn without_room_for_anybody_a_receipt_is_withheld_and_a_device_loses_its_own() {
        let mut queue = queue();
        for id in 0..4 {
            let _ = offer(&mut queue, word("a", id, CommandState::Running), 10, 1);
        }
        assert_eq!(
            offer(&mut queue, word("a", 9, CommandState::Running), 10, 9),
            Offered::OverShare(9)
        );
        assert_eq!(
            offer(&mut queue, word("b", 1, CommandState::Running), 401, 2),
            Offered::OverShare(2)
        );
        let _ = offer(&mut queue, presence("b", 1, true), 10, 2);
        let _ = offer(&mut queue, presence("c", 1, true), 10, 3);
        assert_eq!(
            offer(&mut queue, presence("d", 1, true), 10, 4),
            Offered::Full(4)
        );
        // What is there already may be replaced.
        assert_eq!(
            offer(&mut queue, presence("c", 2, true), 10, 5),
            Offered::Kept(Some(3))
        );
        assert!(!queue.is_roomy());
        assert_eq!(queue.take(NOW, 10).len(), 6);
        assert!(queue.is_roomy() && queue.bytes == 0 && queue.shares.is_empty());
    }

    #[test]
    fn words_that_wait_cost_a_device_no_birth() {
        let mut queue = Queue::new(Bounds::default());
        for id in 0..16 {
            let kept = offer(
                &mut queue,
                word("a", id, CommandState::Running),
                64 * 1024,
                1,
            );
            assert_eq!(kept, Offered::Kept(None));
        }
        assert_eq!(
            offer(&mut queue, word("a", 16, CommandState::Running), 1, 2),
            Offered::OverShare(2)
        );
        for content in [
            presence("a", 1, true),
            presence("a", 1, false),
            report("a", 0..1),
        ] {
            assert_eq!(offer(&mut queue, content, 100, 3), Offered::Kept(None));
        }
        assert_eq!(queue.take(NOW, 100).len(), 19);
        assert!(queue.bytes == 0 && queue.shares.is_empty());
    }

    #[test]
    fn a_birth_that_is_heard_twice_waits_for_its_will() {
        let mut queue = queue();
        for receipt in 1..=2 {
            let _ = offer(&mut queue, presence("a", 1, true), 10, receipt);
        }
        assert_eq!(
            offer(&mut queue, presence("a", 1, false), 10, 3),
            Offered::Kept(None)
        );
        assert_eq!(sessions(&queue.take(NOW, 10)), [(1, true), (1, false)]);
    }

    #[test]
    fn a_will_is_dropped_of_a_session_that_was_replaced_and_of_no_other() {
        let mut queue = queue();
        for session in [1, 2, 1] {
            let _ = offer(&mut queue, presence("a", session, true), 10, 1);
        }
        // The birth of 1 was told last: it is that session whose will counts.
        for (session, kept) in [(2, Offered::Kept(Some(9))), (1, Offered::Kept(None))] {
            let offered = offer(&mut queue, presence("a", session, false), 10, 9);
            assert_eq!(offered, kept, "{session}");
        }
    }

    fn report(device: &str, epochs: std::ops::Range<u64>) -> Content {
        let account = |number: u64| EpochAccount {
            epoch: schema::Epoch::from_random(number + 1),
            balance: schema::Balance::default(),
            evicted: Vec::new(),
            quarantined: Vec::new(),
            discarded: Vec::new(),
        };
        let report = schema::message::LedgerReport {
            device_time_ms: 0,
            clock: schema::message::ClockReport {
                state: schema::message::ClockState::Unverified,
                offset_ms: None,
            },
            epochs: epochs.map(account).collect(),
        };
        let received_at = ReceivedAt::from_micros(1);
        Content::Report(DeviceReport::new(
            device.parse().unwrap(),
            report,
            received_at,
        ))
    }

    /// Epochs of the one report that waits, and the bytes that it counts for.
    fn waiting(queue: &Queue<u32>) -> (usize, usize) {
        let entry = queue.entries.values().next().unwrap();
        assert_eq!((queue.entries.len(), queue.bytes), (1, entry.bytes));
        match &entry.content {
            Content::Report(report) => (report.report.epochs.len(), entry.bytes),
            _ => panic!("no report"),
        }
    }

    #[test]
    fn joined_reports_have_no_more_epochs_than_one_message() {
        let most = REPORT_EPOCHS_MAX as u64;
        for (second, epochs) in [(most - 2, 15), (most - 1, 16), (most, 16), (most + 1, 16)] {
            let mut queue = Queue::new(Bounds::default());
            let _ = offer(&mut queue, report("a", 0..most), 1_600, 1);
            let kept = offer(&mut queue, report("a", 100..101), 100, 2);
            assert_eq!(kept, Offered::Kept(Some(1)));
            assert_eq!(waiting(&queue), (16, 1_600));
            let mut queue = Queue::new(Bounds::default());
            let _ = offer(&mut queue, report("a", 0..1), 100, 1);
            let _ = offer(&mut queue, report("a", 1..1 + second), 100, 2);
            assert_eq!(waiting(&queue).0, epochs.max(second as usize));
        }
    }

    #[test]
    fn a_report_that_is_told_again_and_again_does_not_grow() {
        let mut queue = queue();
        for round in 0..100 {
            let kept = offer(&mut queue, report("a", round * 20..round * 20 + 8), 300, 1);
            assert!(matches!(kept, Offered::Kept(_)), "{round}: {kept:?}");
            assert!(waiting(&queue).0 <= 16 && waiting(&queue).1 <= 600);
        }
    }

    #[test]
    fn joined_reports_keep_to_the_bytes_of_all_and_of_one_message() {
        // Of three epochs, two are left over: 200 bytes.
        for (bytes, fits) in [(799, true), (800, true), (801, false)] {
            let mut queue = queue();
            let _ = offer(&mut queue, report("a", 0..3), 300, 1);
            let offered = offer(&mut queue, report("a", 0..1), bytes, 2);
            match fits {
                true => {
                    assert_eq!(offered, Offered::Kept(Some(1)));
                    assert_eq!(waiting(&queue), (3, bytes + 200));
                }
                false => {
                    assert_eq!(offered, Offered::Full(2));
                    assert_eq!(waiting(&queue), (3, 300));
                }
            }
        }
        for (bytes, epochs) in [(201, 3), (200, 3), (199, 1)] {
            let mut queue = Queue::new(Bounds::default());
            let _ = offer(&mut queue, report("a", 0..3), 300, 1);
            let _ = offer(&mut queue, report("a", 0..1), PAYLOAD_BYTES_MAX - bytes, 2);
            assert_eq!(waiting(&queue).0, epochs, "{bytes}");
            assert!(waiting(&queue).1 <= PAYLOAD_BYTES_MAX);
        }
    }

    #[test]
    fn what_was_acknowledged_is_put_back_with_or_without_room() {
        let mut queue = queue();
        let _ = offer(&mut queue, presence("a", 1, true), 10, 1);
        let taken = queue.take(NOW, 10).pop().unwrap();
        for device in ["b", "c", "d", "e", "f", "g"] {
            let _ = offer(&mut queue, presence(device, 1, true), 10, 2);
        }
        assert_eq!(
            offer(&mut queue, presence("h", 1, true), 10, 3),
            Offered::Full(3)
        );
        assert_eq!(queue.put_back(taken, "no", NOW), Some(1));
        assert_eq!(queue.take(NOW + AGAIN_MAX, 10).len(), 7);
    }

    #[test]
    fn what_was_refused_comes_again_later_unless_something_newer_came() {
        let mut queue = queue();
        let _ = offer(&mut queue, presence("a", 1, true), 10, 1);
        let taken = queue.take(NOW, 10).pop().unwrap();
        assert_eq!(queue.put_back(taken, "no", NOW), Some(1));
        assert_eq!(queue.refused(), [(Kind::Presence, 1, "no")]);
        assert!(queue.take(NOW, 10).is_empty());
        assert_eq!(queue.next_due(), Some(NOW + AGAIN_FIRST));
        let taken = queue.take(NOW + AGAIN_FIRST, 10).pop().unwrap();
        let _ = offer(&mut queue, presence("a", 2, true), 10, 2);
        assert_eq!(queue.put_back(taken, "no", NOW), None);
        let taken = queue.take(NOW + AGAIN_MAX, 10);
        assert_eq!(sessions(&taken), [(2, true)]);
        assert_eq!(taken[0].receipt, Some(2));
        assert!(queue.refused().is_empty());
    }
}
