//! What the bridge's word, or the device's own, does to the rows: some are free, others are in quarantine now.

use schema::message::Rejection;
use schema::{Balance, Epoch, RangeSet};

use super::Writer;
use crate::buffer::epochs::Run;

/// What is settled: of one epoch, by sequence, or of the file, by row.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) committed: RangeSet,
    pub(super) rejected: Vec<Rejection>,
    pub(super) evicted: RangeSet,
}

impl Word {
    /// The part of a word on rows that is on one epoch's.
    fn of(&self, run: Run) -> Option<(Epoch, Self)> {
        let rejected = self.rejected.iter().filter_map(|rejection| {
            let range = run.seq_range(rejection.range)?;
            Some(Rejection {
                range,
                ..*rejection
            })
        });
        let part = Self {
            committed: run.seqs_of(&self.committed),
            rejected: rejected.collect(),
            evicted: run.seqs_of(&self.evicted),
        };
        let is_empty =
            part.committed.is_empty() && part.rejected.is_empty() && part.evicted.is_empty();
        (!is_empty).then_some((run.epoch, part))
    }
}

impl Writer {
    /// Takes the bridge's word on sequences of an epoch, or on rows of the file.
    pub(super) async fn settle(&mut self, epoch: Option<Epoch>, word: Word) -> Balance {
        let words = match epoch {
            Some(epoch) => vec![(epoch, word)],
            None => self
                .state
                .epochs
                .runs()
                .filter_map(|run| word.of(run))
                .collect(),
        };
        for (epoch, word) in words {
            // An epoch that is settled to the end, or one that this device never had.
            let Some(ledger) = self.state.epochs.named(epoch) else {
                continue;
            };
            let account = &mut ledger.account;
            let changed = account.settle(&word.committed, &word.rejected, &word.evicted);
            let run = ledger.run();
            self.quarantine
                .count_refused(&word.rejected, &changed.quarantined);
            let rows = |seqs: &RangeSet| run.map(|run| run.rows_of(seqs)).unwrap_or_default();
            self.settled(
                rows(&changed.freed),
                rows(&changed.released),
                rows(&changed.quarantined),
            )
            .await;
        }
        self.offer_next().await;
        self.tell();
        self.state.epochs.balance()
    }

    /// Carries out what a word has changed: pending rows that are free, quarantined ones that are,
    /// and pending ones that are in quarantine now.
    pub(in crate::buffer) async fn settled(
        &mut self,
        freed: RangeSet,
        released: RangeSet,
        quarantined: RangeSet,
    ) {
        let texts = self.texts(&freed).await;
        self.state.text_bytes = self.state.text_bytes.saturating_sub(texts);
        let texts = self.texts(&released).await;
        let kept = &mut self.state.quarantined_text_bytes;
        *kept = kept.saturating_sub(texts);
        let texts = self.texts(&quarantined).await;
        self.state.text_bytes = self.state.text_bytes.saturating_sub(texts);
        self.state.quarantined_text_bytes += texts;
        self.deferred.settle(&freed);
        self.deferred.settle(&released);
        self.settle_soon();
        for rows in [&freed, &released, &quarantined] {
            self.quarantine_answered(rows);
        }
        if !quarantined.is_empty() {
            self.quarantined(&quarantined).await;
        }
    }
}
