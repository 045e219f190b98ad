//! A batch becomes a payload.
//!
//! An agent encodes batch after batch of the same sensors, mostly of few rows: what costs by the
//! batch and not by the row (memory, names, the search for a float's form) is kept for the next.

use std::collections::HashMap;
use std::sync::Arc;

use super::bits::BitWriter;
use super::floats::{self, Hint};
use super::integers::{self, zigzag};
use super::series::{self, Kind};
use super::sorted::SortedRows;
use super::{Counters, EncodeError, FLAG_MILLIS, names, times, whole, wire};
use crate::envelope::VERSION;
use crate::limits::{BATCH_ROWS_MAX, BATCH_SERIES_MAX, PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX};
use crate::{Batch, Row, SensorName, Value};

/// Encodes batches. Keeps scratch memory, the names it wrote last, and how each sensor's floats
/// were represented last.
#[derive(Debug, Default)]
pub struct Encoder {
    /// By series of the last batch: the next one is nearly always of the same sensors.
    hints: Vec<(SensorName, Hint)>,
    names: names::Written,
    rows: SortedRows,
    /// By row: when it was taken, in ms.
    millis: Vec<i64>,
    /// By series: its time before.
    last_times: Vec<Option<i64>>,
    predictor: series::Predictor,
    column: Vec<u64>,
    other_column: Vec<u64>,
    numbers: Vec<i64>,
    floats: Vec<f64>,
    float_scratch: floats::Scratch,
    whole_column: Vec<u64>,
    bits: BitWriter,
}

impl Encoder {
    /// Replaces `payload` by the encoded batch, with its header. Names are written in the order
    /// of their first appearance; a name without a row is left out.
    ///
    /// # Errors
    /// [`EncodeError`] when the batch breaks a limit of [`crate::limits`]; `payload` is then of
    /// no use.
    pub fn encode(&mut self, batch: &Batch, payload: &mut Vec<u8>) -> Result<(), EncodeError> {
        let rows = &batch.rows;
        if rows.is_empty() || rows.len() > BATCH_ROWS_MAX {
            return Err(EncodeError::Rows { rows: rows.len() });
        }
        self.rows.sort(batch)?;
        self.millis.clear();
        let millis = rows.iter().map(|row| row.observed_at.millis());
        self.millis.extend(millis);
        let micros = || rows.iter().map(|row| row.observed_at.micros());
        let in_millis = self
            .millis
            .iter()
            .zip(micros())
            .all(|(millis, micros)| millis.checked_mul(1000) == Some(micros));
        self.numbers.clear();
        if in_millis {
            self.numbers.extend_from_slice(&self.millis);
        } else {
            self.numbers.extend(micros());
        }
        self.last_times.clear();
        self.last_times.resize(self.rows.all.len(), None);
        let period = times::period(&self.numbers, &self.rows.series, &mut self.last_times);
        let first = &rows[0];
        payload.clear();
        payload.push(VERSION);
        payload.push(if in_millis { FLAG_MILLIS } else { 0 });
        let head = (
            batch.epoch.get(),
            rows.len() as u64,
            self.numbers[0],
            lag(first, self.millis[0]),
            first.hlc.counter(),
            first.seq,
            period,
        );
        wire::write(&head, payload);
        let sensor_of = |&sensor: &u16| &batch.sensors[usize::from(sensor)];
        let names = self.rows.names.iter().map(sensor_of);
        self.names.write(names, payload)?;
        self.write_texts(rows, payload)?;
        self.bits.clear();
        self.write_rows(rows, period);
        self.write_values(batch);
        let bits = self.bits.finish();
        wire::write(&(bits.len() as u64), payload);
        payload.extend_from_slice(bits);
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(EncodeError::TooLarge {
                bytes: payload.len(),
            });
        }
        Ok(())
    }

    /// The dictionaries of the text series: the texts of each, in order of first appearance.
    fn write_texts(&self, rows: &[Row], payload: &mut Vec<u8>) -> Result<(), EncodeError> {
        let texts = || {
            (0..)
                .zip(&self.rows.all)
                .filter(|(_, one)| one.kind == Kind::Text)
        };
        wire::write(&(texts().count() as u64), payload);
        for (series, _) in texts() {
            let entries = dictionary(self.rows.group(series), rows).0;
            wire::write(&(entries.len() as u64), payload);
            for text in entries {
                if text.len() > TEXT_BYTES_MAX {
                    return Err(EncodeError::TextTooLong { bytes: text.len() });
                }
                wire::write(text.as_ref(), payload);
            }
        }
        Ok(())
    }

    /// Series, times, clocks, sequences and qualities.
    fn write_rows(&mut self, rows: &[Row], period: i64) {
        let Self {
            bits,
            column,
            other_column,
            last_times,
            millis,
            numbers: times,
            predictor,
            rows: sorted,
            ..
        } = self;
        series::write(&sorted.all, column, bits);
        predictor.reset(sorted.all.len());
        column.clear();
        column.extend(sorted.series.iter().map(|&series| predictor.encode(series)));
        integers::write(column, bits);

        let by_row = times::residuals(
            times,
            &sorted.series,
            period,
            last_times,
            column,
            other_column,
        );
        bits.write(u64::from(by_row), 1);
        integers::write(column, bits);

        let lag0 = lag(&rows[0], millis[0]);
        let lags = rows.iter().zip(&*millis);
        column.clear();
        column.extend(lags.map(|(row, &millis)| zigzag(lag(row, millis).wrapping_sub(lag0))));
        integers::write(column, bits);

        let mut counters = Counters::new(rows[0].hlc);
        column.clear();
        column.extend(rows.iter().map(|row| {
            let expected = counters.expect(row.hlc.millis());
            counters.learn(row.hlc);
            zigzag(i64::from(row.hlc.counter()) - i64::from(expected))
        }));
        integers::write(column, bits);

        let mut expected = rows[0].seq;
        column.clear();
        column.extend(rows.iter().map(|row| {
            let residual = row.seq.wrapping_sub(expected) as i64;
            expected = row.seq.wrapping_add(1);
            zigzag(residual)
        }));
        integers::write(column, bits);

        column.clear();
        column.extend(rows.iter().map(|row| u64::from(u8::from(row.quality))));
        integers::write(column, bits);
    }

    fn write_values(&mut self, batch: &Batch) {
        for (series, one) in self.rows.all.iter().enumerate() {
            let group = self.rows.group(series);
            match one.kind {
                Kind::I64 => {
                    self.numbers.clear();
                    self.numbers.extend(group.iter().map(|&bits| bits as i64));
                    whole::write(&self.numbers, &mut self.whole_column, &mut self.bits);
                }
                Kind::F64 => {
                    self.floats.clear();
                    self.floats
                        .extend(group.iter().map(|&bits| f64::from_bits(bits)));
                    let name = &batch.sensors[usize::from(self.rows.sensors[series])];
                    let hint = hint_of(&mut self.hints, series, name);
                    floats::write(&self.floats, hint, &mut self.float_scratch, &mut self.bits);
                }
                Kind::Bool => {
                    let mut last = 0;
                    self.column.clear();
                    self.column.extend(
                        group
                            .iter()
                            .map(|&bit| std::mem::replace(&mut last, bit) ^ bit),
                    );
                    integers::write(&self.column, &mut self.bits);
                }
                Kind::Text => {
                    let indices = dictionary(group, &batch.rows).1;
                    let mut last = 0;
                    self.column.clear();
                    self.column.extend(indices.into_iter().map(|index| {
                        let delta = index - std::mem::replace(&mut last, index);
                        zigzag(delta)
                    }));
                    integers::write(&self.column, &mut self.bits);
                }
            }
        }
    }
}

/// The hint for the sensor of a series: at the place of the series, wherever it was before.
fn hint_of<'a>(
    hints: &'a mut Vec<(SensorName, Hint)>,
    series: usize,
    name: &SensorName,
) -> &'a mut Hint {
    if hints.get(series).is_none_or(|(known, _)| known != name) {
        let known = hints.iter().position(|(known, _)| known == name);
        let at = series.min(hints.len());
        match known {
            Some(known) if at < hints.len() => hints.swap(known, at),
            _ => hints.insert(at, (name.clone(), Hint::default())),
        }
        hints.truncate(BATCH_SERIES_MAX);
    }
    let at = series.min(hints.len() - 1);
    &mut hints[at].1
}

/// The different texts of a series, and the index of each row's.
fn dictionary<'a>(group: &[u64], rows: &'a [Row]) -> (Vec<&'a Arc<str>>, Vec<i64>) {
    let mut index_of: HashMap<&str, i64> = HashMap::new();
    let mut entries = Vec::new();
    let mut indices = Vec::with_capacity(group.len());
    for &row in group {
        if let Value::Text(text) = &rows[row as usize].value {
            let index = *index_of.entry(text).or_insert_with(|| {
                entries.push(text);
                entries.len() as i64 - 1
            });
            indices.push(index);
        }
    }
    (entries, indices)
}

/// How far a row's clock is ahead of its time, in milliseconds.
fn lag(row: &Row, millis: i64) -> i64 {
    (row.hlc.millis() as i64).wrapping_sub(millis)
}
