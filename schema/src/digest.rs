//! An order-free digest of rows, so that what a device sent and what a table holds can be
//! compared range by range without either side keeping the other's rows.
//!
//! A row's digest is XXH3 over its canonical bytes; a set's digest is the wrapping sum of its
//! rows' digests. Sums of adjacent ranges add up to the digest of the joined range.

use crate::{Epoch, Row, Value};

/// Sums row digests. Keeps its scratch memory between rows.
#[derive(Debug, Default)]
pub struct Digester {
    bytes: Vec<u8>,
}

impl Digester {
    /// The digest of one row: sensor, time, version, quality and value all count.
    pub fn row(&mut self, epoch: Epoch, sensor: &str, row: &Row) -> u64 {
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(&epoch.get().to_le_bytes());
        bytes.extend_from_slice(&row.seq.to_le_bytes());
        bytes.extend_from_slice(&row.hlc.bits().to_le_bytes());
        bytes.extend_from_slice(&row.observed_at.micros().to_le_bytes());
        bytes.push(row.quality.into());
        match &row.value {
            Value::F64(number) => push(bytes, b'f', &number.to_bits().to_le_bytes()),
            Value::I64(number) => push(bytes, b'i', &number.to_le_bytes()),
            Value::Bool(truth) => push(bytes, b'b', &[u8::from(*truth)]),
            Value::Text(text) => {
                push(bytes, b't', &(text.len() as u64).to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        bytes.extend_from_slice(sensor.as_bytes());
        xxhash_rust::xxh3::xxh3_64(bytes)
    }
}

fn push(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    bytes.push(tag);
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hlc, ObservedAt, Quality};

    #[test]
    fn every_field_counts() {
        let row = Row {
            sensor: 0,
            observed_at: ObservedAt::from_millis(5),
            hlc: Hlc::new(6, 0),
            seq: 7,
            quality: Quality::Good,
            value: Value::I64(0),
        };
        let epoch = Epoch::from_random(8);
        let mut digester = Digester::default();
        let mut digests = vec![
            digester.row(epoch, "a", &row),
            digester.row(epoch, "b", &row),
            digester.row(Epoch::from_random(9), "a", &row),
        ];
        let mut changed = |change: fn(&mut Row)| {
            let mut other = row.clone();
            change(&mut other);
            digests.push(digester.row(epoch, "a", &other));
        };
        changed(|row| row.observed_at = ObservedAt::from_millis(6));
        changed(|row| row.hlc = Hlc::new(6, 1));
        changed(|row| row.seq = 8);
        changed(|row| row.quality = Quality::Bad);
        changed(|row| row.value = Value::F64(0.0));
        changed(|row| row.value = Value::F64(-0.0));
        changed(|row| row.value = Value::Bool(false));
        changed(|row| row.value = Value::Text("".into()));
        // Both ends compute it, in whatever versions they are: it never changes.
        assert_eq!(digests[0], 10_130_094_391_576_628_659);
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }
}
