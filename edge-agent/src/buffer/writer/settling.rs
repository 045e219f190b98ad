//! What an acknowledgement by the bridge, or a decision of the device itself, does to the rows: some are freed,
//! others are in quarantine now.

use schema::message::Rejection;
use schema::{Balance, Epoch, RangeSet};

use super::Writer;
use crate::buffer::epochs::Run;

/// What became of rows: by sequence of one epoch, or by row number of the file.
#[derive(Debug)]
pub(in crate::buffer) struct Acknowledged {
    pub(in crate::buffer) committed: RangeSet,
    pub(in crate::buffer) rejected: Vec<Rejection>,
    pub(in crate::buffer) evicted: RangeSet,
}

impl Acknowledged {
    /// The part that concerns one epoch, by its sequences, of what is by row number.
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
    /// Settles sequences of an epoch, or rows of the file.
    pub(super) async fn settle(
        &mut self,
        epoch: Option<Epoch>,
        acknowledged: Acknowledged,
    ) -> Balance {
        let parts = match epoch {
            Some(epoch) => vec![(epoch, acknowledged)],
            None => self
                .state
                .epochs
                .runs()
                .filter_map(|run| acknowledged.of(run))
                .collect(),
        };
        for (epoch, part) in parts {
            // An epoch that is settled to the end, or one that this device never had.
            let Some(ledger) = self.state.epochs.named(epoch) else {
                continue;
            };
            let account = &mut ledger.account;
            let changed = account.settle(&part.committed, &part.rejected, &part.evicted);
            let run = ledger.run();
            self.quarantine
                .count_refused(&part.rejected, &changed.quarantined);
            let rows = |seqs: &RangeSet| run.map(|run| run.rows_of(seqs)).unwrap_or_default();
            self.settled(
                rows(&changed.freed),
                rows(&changed.released),
                rows(&changed.quarantined),
            )
            .await;
        }
        self.offer_next().await;
        self.publish_progress();
        self.state.epochs.balance()
    }

    /// Carries out what was settled: `freed` were pending and `released` in quarantine, and neither is needed any
    /// more; `quarantined` were pending and are in quarantine now.
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
