//! What was refused for now: it stays in the file with its value, within a budget of its own, and is
//! offered again.
//!
//! - It takes no room of the buffer's limits and is never an eviction's victim. Past its budget the
//!   oldest is discarded, counted and reported.
//! - It is offered again a part at a time, the oldest first, and the next part when the bridge has
//!   answered: however much there is, an outage then can make a policy evict no more than one part.
//! - For which agent and bridge it was offered last is kept in the file, so that an upgrade of
//!   either offers it once more, and a restart alone does not. What a person has requested, or a clock that became known,
//!   is kept there too, until all of it was offered.

use schema::message::{RejectReason, Rejection};
use schema::{DiscardedBy, RangeSet, SeqRange};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::commit::Settle;
use super::error::BufferError;
use super::file::File;
use super::handle::Buffer;
use super::log::{Entry, Kind, Write};
use super::row::ROW_BYTES;
use super::writer::{WARN_EVERY, Writer};
use crate::repeat::Repeats;

/// Rows of the quarantine that wait for an answer at the same time.
const OFFERED_ROWS_MAX: u64 = 4096;

/// Most ranges in quarantine: each takes memory, however few rows it has.
const RANGES_MAX: usize = 16 * 1024;

/// Rows that are looked at together for their size.
const PART_ROWS: u64 = 1024;

/// Longest text of a row, for a first guess.
const TEXT_BYTES_MAX: u64 = schema::limits::TEXT_BYTES_MAX as u64;

/// The versions for which the quarantine was offered. Kept also while there is none, once a bridge has sent its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peers {
    /// This agent's version.
    agent: String,
    /// The protocol of the bridge; 0 as long as none has sent one.
    protocol: u16,
}

/// What the quarantine needs beside the accounts.
#[derive(Debug)]
pub(super) struct Quarantine {
    /// Rows that were offered again, and wait for an answer.
    offered: RangeSet,
    /// The versions for which it was offered last, with the id of their row in the file.
    kept: Option<(i64, Peers)>,
    /// Limits the warnings that these could not be kept.
    not_kept: Repeats,
    /// Limits the warnings that texts could not be counted.
    not_counted: Repeats,
    /// The protocol of the bridge that sent one last.
    protocol: u16,
    /// Rows that were put in it since the start, by reason, in the order of [`RejectReason::ALL`].
    pub(super) refused: [u64; RejectReason::ALL.len()],
}

impl Peers {
    fn note(&self) -> String {
        format!("{} {}", self.agent, self.protocol)
    }

    fn parse(note: &str) -> Option<Self> {
        let (agent, protocol) = note.split_once(' ')?;
        Some(Self {
            agent: agent.to_owned(),
            protocol: protocol.parse().ok()?,
        })
    }
}

impl Quarantine {
    /// As the file has it.
    pub(super) fn restore(offered: Option<&Entry>) -> Self {
        let kept = offered.and_then(|entry| Some((entry.id, Peers::parse(&entry.note)?)));
        Self {
            protocol: kept.as_ref().map_or(0, |(_, peers)| peers.protocol),
            kept,
            offered: RangeSet::new(),
            not_kept: Repeats::new(WARN_EVERY),
            not_counted: Repeats::new(WARN_EVERY),
            refused: [0; RejectReason::ALL.len()],
        }
    }

    /// Counts what a bridge has refused of what was pending.
    pub(super) fn count_refused(&mut self, rejected: &[Rejection], quarantined: &RangeSet) {
        for &Rejection { range, reason } in rejected {
            let place = RejectReason::ALL.iter().position(|of| *of == reason);
            if let Some(count) = place.and_then(|place| self.refused.get_mut(place)) {
                *count += quarantined
                    .intersection(&RangeSet::from_iter([range]))
                    .count();
            }
        }
    }

    /// The protocol of the bridge that sent one last; 0 as long as none has.
    pub(super) const fn protocol(&self) -> u16 {
        self.protocol
    }

    fn peers(&self) -> Peers {
        Peers {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: self.protocol,
        }
    }

    fn is_offered_to(&self, peers: &Peers) -> bool {
        self.kept.as_ref().is_some_and(|(_, kept)| kept == peers)
    }
}

impl Buffer {
    /// What is in quarantine for one of these reasons, or for any, is to be offered again: a part
    /// of it at a time, as history. Returns how many readings that are.
    ///
    /// # Errors
    /// When it could not be kept: it is done, and a restart may undo it before the disk takes it.
    pub async fn requeue(&self, reasons: Option<Vec<RejectReason>>) -> Result<u64, BufferError> {
        self.run(async move |writer| {
            let rows = writer.state.epochs.in_quarantine(reasons.as_deref());
            let count = writer.requeue_rows(&rows).await;
            writer.keep_accounts().await?;
            Ok(count)
        })
        .await
    }

    /// Gives up what is in quarantine for one of these reasons, or for any, as a person has asked
    /// for. Returns how many readings that were.
    ///
    /// # Errors
    /// When it could not be kept: it is done, and a restart may undo it before the disk takes it.
    pub async fn discard(&self, reasons: Option<Vec<RejectReason>>) -> Result<u64, BufferError> {
        self.run(async move |writer| {
            let rows = writer.state.epochs.in_quarantine(reasons.as_deref());
            let count = writer.discard_rows(&rows, DiscardedBy::Person).await;
            if count > 0 {
                warn!(count, "readings in quarantine were discarded, as asked for");
            }
            writer.publish_progress();
            writer.keep_accounts().await?;
            Ok(count)
        })
        .await
    }

    /// Offers all of the quarantine again if it was refused for another version of the agent, or
    /// by a bridge of another protocol. Returns how many readings that are. What the bridge understands
    /// is kept, see [`super::Opened::bridge_protocol`].
    ///
    /// # Errors
    /// [`BufferError::Closed`].
    pub async fn offer(&self, protocol: Option<u16>) -> Result<u64, BufferError> {
        self.run(async move |writer| {
            if let Some(protocol) = protocol {
                writer.quarantine.protocol = protocol;
            }
            if writer.quarantine.is_offered_to(&writer.quarantine.peers()) {
                return Ok(0);
            }
            if writer.state.epochs.quarantined_rows() == 0 {
                // What a bridge understands is worth knowing at the next start.
                if protocol.is_some() {
                    writer.keep_peers().await;
                }
                return Ok(0);
            }
            // No peer mends a clock that is shown wrong.
            let mut rows = writer.state.epochs.in_quarantine(None);
            rows.subtract(&writer.state.epochs.shown_wrong());
            let count = writer.requeue_rows(&rows).await;
            writer.keep_peers().await;
            Ok(count)
        })
        .await
    }
}

impl Writer {
    /// Takes note that rows have left the pending ones, or the quarantine.
    pub(super) fn quarantine_answered(&mut self, rows: &RangeSet) {
        self.quarantine.offered.subtract(rows);
        self.state.epochs.again.subtract(rows);
    }

    /// Rows were put in quarantine: logs that, and keeps the quarantine within its budget.
    pub(super) async fn quarantined(&mut self, rows: &RangeSet) {
        if self.warnings.is_due("quarantined") {
            let (count, all) = (rows.count(), self.state.epochs.quarantined_rows());
            let (path, reasons) = (self.settings.path.display(), self.reasons());
            warn!(%path, count, all, reasons, "readings were refused for now and are kept in quarantine");
        }
        let discarded = self.keep_to_budget().await;
        if discarded > 0 && self.losses.is_due("discarded") {
            let path = &self.settings.path;
            error!(path = %path.display(), discarded, "the quarantine is full: its oldest readings are discarded");
        }
        self.keep_peers().await;
    }

    /// The reasons and their counts, for people.
    fn reasons(&self) -> String {
        let counts = self.state.epochs.reasons();
        let named = RejectReason::ALL.iter().zip(counts);
        let listed: Vec<String> = named
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{} {count}", reason.as_str()))
            .collect();
        listed.join(", ")
    }

    /// Discards the oldest of it while it is over its budget. Returns how many.
    async fn keep_to_budget(&mut self) -> u64 {
        let (rows_max, bytes_max) = self.settings.quarantine_max();
        let mut discarded = 0;
        loop {
            let rows = self.state.epochs.quarantined_rows();
            if rows == 0 {
                // What was counted too high is no reason to go on.
                self.state.quarantined_text_bytes = 0;
                return discarded;
            }
            let texts = self.state.quarantined_text_bytes;
            let over_rows = rows.saturating_sub(rows_max);
            // As many as make up for it even if each has the longest text.
            let row_bytes_max = ROW_BYTES + texts.min(TEXT_BYTES_MAX);
            let over_bytes = (rows * ROW_BYTES + texts)
                .saturating_sub(bytes_max)
                .div_ceil(row_bytes_max);
            let surplus = self
                .state
                .epochs
                .quarantined_ranges()
                .saturating_sub(RANGES_MAX);
            let over = over_rows.max(over_bytes);
            if over == 0 && surplus == 0 {
                return discarded;
            }
            let mut victims = lowest(&self.state.epochs.in_quarantine(None), over);
            victims.merge(&self.state.epochs.lowest_in_quarantine(surplus));
            let by = DiscardedBy::QuarantineBudget;
            let count = self.discard_rows(&victims, by).await;
            if count == 0 {
                return discarded;
            }
            discarded += count;
        }
    }

    async fn discard_rows(&mut self, rows: &RangeSet, by: DiscardedBy) -> u64 {
        let freed = self.state.epochs.discard(rows, by);
        self.state.quarantined_text_bytes = self
            .state
            .quarantined_text_bytes
            .saturating_sub(self.texts(&freed).await);
        self.deferred.settle(&freed);
        self.quarantine_answered(&freed);
        self.settle_soon();
        freed.count()
    }

    /// These rows are to be offered again. Returns how many there are.
    pub(super) async fn requeue_rows(&mut self, rows: &RangeSet) -> u64 {
        let count = rows.count();
        if count > 0 {
            info!(count, "readings in quarantine are offered again");
            self.state.epochs.again.merge(rows);
            self.deferred.settle(&RangeSet::new());
            self.settle_soon();
            self.offer_next().await;
            self.publish_progress();
        }
        count
    }

    /// Before a person is answered, what was done has to be on the disk; also what was done before and could not be
    /// kept then.
    async fn keep_accounts(&mut self) -> Result<(), BufferError> {
        match self.deferred.is_account_due() {
            true => self.commit(Settle::Rows).await,
            false => Ok(()),
        }
    }

    /// Offers the next part of what is to be offered again.
    pub(super) async fn offer_next(&mut self) {
        while let Some(first) = self.state.epochs.again.first() {
            let epochs = &self.state.epochs;
            let rows_left = self
                .settings
                .rows_max
                .saturating_sub(epochs.pending_rows())
                .min(OFFERED_ROWS_MAX.saturating_sub(self.quarantine.offered.count()));
            let bytes = epochs.pending_rows() * ROW_BYTES + self.state.text_bytes;
            let bytes_left = self.settings.bytes_max.saturating_sub(bytes);
            let most = rows_left.min(bytes_left / ROW_BYTES).min(PART_ROWS);
            let mut part = lowest(&self.state.epochs.again, most);
            let mut texts = self.texts(&part).await;
            if part.count() * ROW_BYTES + texts > bytes_left {
                part = lowest(
                    &self.state.epochs.again,
                    bytes_left / (ROW_BYTES + TEXT_BYTES_MAX),
                );
                texts = self.texts(&part).await;
            }
            if part.is_empty() {
                return;
            }
            let rows = self.state.epochs.requeue(&part);
            self.state.epochs.again.subtract(&part);
            debug_assert!(rows.contains(first));
            self.state.text_bytes += texts;
            self.state.quarantined_text_bytes =
                self.state.quarantined_text_bytes.saturating_sub(texts);
            self.quarantine.offered.merge(&rows);
            self.shows.requeued.add(&rows);
            self.pending_again(&rows);
            self.deferred.settle(&RangeSet::new());
            self.settle_soon();
        }
    }

    /// Keeps the versions for which all of it was offered, once it was.
    async fn keep_peers(&mut self) {
        let peers = self.quarantine.peers();
        if self.quarantine.is_offered_to(&peers) || !self.state.epochs.again.is_empty() {
            return;
        }
        let known = self.quarantine.kept.as_ref().map(|(id, _)| *id);
        let id = known.unwrap_or_else(|| self.state.ids.next());
        let entry = Entry {
            id,
            kind: Kind::Offered,
            epoch: self.state.epochs.current().account.epoch(),
            at_ms: self.clock.now_ms(),
            first_seq: 0,
            last_seq: 0,
            counts: super::account::Counts::default(),
            hlc: 0,
            note: peers.note(),
        };
        let write = Write::Put(entry);
        let keep = async |file: &mut File| {
            file.transaction(async |file| file.write_log(std::iter::once(&write)).await)
                .await
        };
        match self.in_place(keep).await {
            Ok(()) => self.quarantine.kept = Some((id, peers)),
            Err(error) => {
                if self.quarantine.not_kept.is_due(&error.to_string()) {
                    // It is offered once more after the next start.
                    warn!(%error, "for whom the quarantine was offered is not kept");
                }
            }
        }
    }

    /// Bytes of the texts in these rows; none is looked for where none can be.
    pub(super) async fn texts(&mut self, rows: &RangeSet) -> u64 {
        if self.state.text_bytes + self.state.quarantined_text_bytes == 0 {
            return 0;
        }
        let mut all = 0;
        for range in rows.iter() {
            match self.file.text_bytes(range).await {
                Ok(bytes) => all += bytes,
                // Counted too high until the next start: a limit is met a little early.
                Err(error) if self.quarantine.not_counted.is_due("") => {
                    warn!(%error, "the size of settled texts is not known");
                }
                Err(_) => {}
            }
        }
        all
    }

    /// What has changed in memory follows in the file.
    pub(super) fn settle_soon(&mut self) {
        self.settle_by
            .get_or_insert_with(|| Instant::now() + self.settings.settle_linger);
    }
}

/// The lowest numbers of a set, at most so many.
fn lowest(set: &RangeSet, most: u64) -> RangeSet {
    let mut left = most;
    let mut taken = RangeSet::new();
    for range in set.iter() {
        let last = range.last().min(range.first().saturating_add(left) - 1);
        let Some(part) = SeqRange::new(range.first(), last).filter(|_| left > 0) else {
            break;
        };
        taken.insert(part);
        left -= part.count();
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_a_set_are_as_many_as_asked_for() {
        let set: RangeSet = [(3, 5), (9, 9), (20, 30)]
            .into_iter()
            .filter_map(|(first, last)| SeqRange::new(first, last))
            .collect();
        for most in [0, 1, 3, 4, 5, 15, 99] {
            let taken = lowest(&set, most);
            assert_eq!(taken.count(), most.min(15));
            assert!(taken.last().is_none_or(|last| set.contains(last)));
        }
        assert_eq!(lowest(&set, 4).last(), Some(9));
    }

    #[test]
    fn peers_are_read_as_they_were_written() {
        let peers = Peers {
            agent: "0.2.0".to_owned(),
            protocol: 2,
        };
        assert_eq!(Peers::parse(&peers.note()), Some(peers));
        assert_eq!(Peers::parse("nothing"), None);
    }
}
