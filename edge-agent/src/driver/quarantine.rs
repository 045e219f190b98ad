//! When what is in quarantine is offered again: to another agent or bridge all of it, else now and then a little,
//! to learn whether the cause is mended.

use schema::RangeSet;
use schema::message::RejectReason;

use super::DriverTask;
use crate::probes::Offer;

impl DriverTask {
    /// Offers again what another version of the agent or the bridge refused.
    pub(super) async fn offer(&mut self, protocol: Option<u16>) {
        let offered = self.parts.buffer.offer(protocol).await;
        self.storage_did("offer again", offered);
    }

    /// Offers a little of what is in quarantine, to learn whether the cause is mended.
    pub(super) async fn probe(&mut self) {
        let now = self.origin.elapsed();
        while let Some(Offer { reason, rows_max }) = self.parts.probes.due(rand::random(), now) {
            let rows = self.offer_sample(reason, rows_max).await;
            self.parts.probes.offered(reason, rows, now);
        }
    }

    pub(super) async fn offer_sample(&mut self, reason: RejectReason, rows_max: u64) -> RangeSet {
        let buffer = &self.parts.buffer;
        let offered = buffer.offer_sample(reason, rows_max, rand::random()).await;
        self.storage_did("offer again", offered).unwrap_or_default()
    }

    pub(super) fn count_quarantine(&mut self) {
        let progress = self.parts.buffer.progress();
        let now = self.origin.elapsed();
        let probes = &mut self.parts.probes;
        probes.counted(&progress.reasons, &progress.refused, rand::random(), now);
    }
}
