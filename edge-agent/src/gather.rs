//! A request of the session → rows of the buffer → one payload that fits.

use schema::codec::{EncodeError, Encoder};
use schema::message::ack::payload_digest;
use schema::{Batch, SeqRange};

use crate::buffer::{Buffer, BufferError, Taken};
use crate::session::{BatchRequest, Prepared};

/// Encodes, and keeps its memory between batches.
#[derive(Debug, Default)]
pub(crate) struct Gatherer {
    encoder: Encoder,
}

/// A payload, and what is in it. No payload when no row was found.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) prepared: Prepared,
    pub(crate) payload: Option<Vec<u8>>,
}

/// Why a batch cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatherError {
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error("row {seq} cannot be encoded: {source}")]
    Encode { seq: u64, source: EncodeError },
}

impl Gatherer {
    /// Makes the batch that the session requests, with as many rows as there are and as fit.
    pub(crate) async fn gather(
        &mut self,
        buffer: &Buffer,
        request: &BatchRequest,
    ) -> Result<Gathered, GatherError> {
        let Taken { batch, base, gone } = buffer
            .read_ranges(request.ranges.clone(), request.rows_max)
            .await?;
        let (batch, payload) = self.encode(batch, request.bytes_max)?;
        let rows = |seqs: SeqRange| SeqRange::new(base + seqs.first(), base + seqs.last());
        let prepared = Prepared {
            batch: request.batch,
            sent: batch.ranges().filter_map(rows).collect(),
            gone,
            digest: payload.as_deref().map_or(0, payload_digest),
            bytes: payload.as_ref().map_or(0, Vec::len),
        };
        Ok(Gathered { prepared, payload })
    }

    /// Encodes the batch, halved until it fits; a single row always does.
    fn encode(
        &mut self,
        mut batch: Batch,
        bytes_max: usize,
    ) -> Result<(Batch, Option<Vec<u8>>), GatherError> {
        let mut payload = Vec::new();
        while let Some(first) = batch.rows.first() {
            match self.encoder.encode(&batch, &mut payload) {
                Ok(()) if payload.len() <= bytes_max || batch.rows.len() == 1 => {
                    return Ok((batch, Some(payload)));
                }
                Err(source) if batch.rows.len() == 1 => {
                    return Err(GatherError::Encode {
                        seq: first.seq,
                        source,
                    });
                }
                Ok(()) | Err(_) => {
                    let half = batch.rows.len() / 2;
                    keep_first(&mut batch, half);
                }
            }
        }
        Ok((batch, None))
    }
}

/// Shortens a batch, and its sensors with it: names stand in order of first appearance.
fn keep_first(batch: &mut Batch, rows: usize) {
    batch.rows.truncate(rows);
    let used = batch
        .rows
        .iter()
        .map(|row| usize::from(row.sensor) + 1)
        .max()
        .unwrap_or(0);
    batch.sensors.truncate(used);
}
