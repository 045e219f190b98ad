//! A batch becomes a payload.

use std::collections::HashMap;
use std::sync::Arc;

use super::bits::BitWriter;
use super::floats::{self, Hint};
use super::integers::{self, zigzag};
use super::series::{self, KINDS, Kind, Series};
use super::{Counters, EncodeError, FLAG_MILLIS, names, times, whole, wire};
use crate::envelope::VERSION;
use crate::limits::{BATCH_ROWS_MAX, BATCH_SERIES_MAX, PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX};
use crate::{Batch, Row, SensorName, Value};

/// A (sensor, type) that has no series yet.
const NO_SERIES: u16 = u16::MAX;

/// Encodes batches. Keeps scratch memory, and how each sensor's floats were represented last.
#[derive(Debug, Default)]
pub struct Encoder {
    /// By series of the last batch: the next one is nearly always of the same sensors.
    hints: Vec<(SensorName, Hint)>,
    bits: BitWriter,
    column: Vec<u64>,
    numbers: Vec<i64>,
    other_column: Vec<u64>,
    /// By series: its time before.
    last_times: Vec<Option<i64>>,
    floats: Vec<f64>,
    float_scratch: floats::Scratch,
    whole_scratch: whole::Scratch,
    rows: RowScratch,
}

/// The rows of a batch, sorted into series.
#[derive(Debug, Default)]
struct RowScratch {
    /// By sensor and kind: its series.
    series_of: Vec<[u16; KINDS]>,
    /// By row: its series.
    series: Vec<u16>,
    /// By series, in order of first appearance.
    all: Vec<Series>,
    /// By series: the names' index in the batch.
    sensors: Vec<u16>,
    /// Rows, grouped by series.
    grouped: Vec<u16>,
    /// By series: where its group ends.
    ends: Vec<usize>,
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
        let names = self.rows.sort(batch)?;
        let millis = rows.iter().all(|row| row.observed_at.micros() % 1000 == 0);
        let micros = rows.iter().map(|row| row.observed_at.micros());
        self.numbers.clear();
        if millis {
            self.numbers.extend(micros.map(|micros| micros / 1000));
        } else {
            self.numbers.extend(micros);
        }
        self.last_times.clear();
        self.last_times.resize(self.rows.all.len(), None);
        let period = times::period(&self.numbers, &self.rows.series, &mut self.last_times);
        let first = &rows[0];
        payload.clear();
        payload.push(VERSION);
        payload.push(if millis { FLAG_MILLIS } else { 0 });
        wire::write(&batch.epoch.get(), payload);
        wire::write(&(rows.len() as u64), payload);
        wire::write(&self.numbers[0], payload);
        wire::write(&lag(first), payload);
        wire::write(&first.hlc.counter(), payload);
        wire::write(&first.seq, payload);
        wire::write(&period, payload);
        names::write(
            names.iter().map(|&name| &batch.sensors[usize::from(name)]),
            payload,
        )?;
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
        let texts = |series: &usize| self.rows.all[*series].kind == Kind::Text;
        let series: Vec<usize> = (0..self.rows.all.len()).filter(texts).collect();
        wire::write(&(series.len() as u64), payload);
        for series in series {
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
            numbers: times,
            rows: sorted,
            ..
        } = self;
        series::write(&sorted.all, column, bits);
        let mut predictor = series::Predictor::new(sorted.all.len());
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

        let lag0 = lag(&rows[0]);
        column.clear();
        column.extend(rows.iter().map(|row| zigzag(lag(row).wrapping_sub(lag0))));
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
            let values = self
                .rows
                .group(series)
                .iter()
                .map(|&row| &batch.rows[usize::from(row)].value);
            match one.kind {
                Kind::I64 => {
                    self.numbers.clear();
                    self.numbers.extend(values.filter_map(|value| match value {
                        Value::I64(number) => Some(*number),
                        _ => None,
                    }));
                    whole::write(&self.numbers, &mut self.whole_scratch, &mut self.bits);
                }
                Kind::F64 => {
                    self.floats.clear();
                    self.floats.extend(values.filter_map(|value| match value {
                        Value::F64(number) => Some(*number),
                        _ => None,
                    }));
                    let name = &batch.sensors[usize::from(self.rows.sensors[series])];
                    let hint = hint_of(&mut self.hints, series, name);
                    floats::write(&self.floats, hint, &mut self.float_scratch, &mut self.bits);
                }
                Kind::Bool => {
                    let mut last = 0;
                    self.column.clear();
                    self.column.extend(values.map(|value| {
                        let bit = u64::from(*value == Value::Bool(true));
                        std::mem::replace(&mut last, bit) ^ bit
                    }));
                    integers::write(&self.column, &mut self.bits);
                }
                Kind::Text => {
                    let indices = dictionary(self.rows.group(series), &batch.rows).1;
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

impl RowScratch {
    /// Sorts the rows into series. Returns the used names, in order of first appearance, as
    /// indices into the batch's.
    fn sort(&mut self, batch: &Batch) -> Result<Vec<u16>, EncodeError> {
        self.series_of.clear();
        self.series_of
            .resize(batch.sensors.len(), [NO_SERIES; KINDS]);
        self.series.clear();
        self.all.clear();
        self.sensors.clear();
        self.ends.clear();
        let mut names: Vec<u16> = Vec::new();
        let mut written = vec![NO_SERIES; batch.sensors.len()];
        for row in &batch.rows {
            let kind = Kind::of(&row.value);
            let kinds = self
                .series_of
                .get_mut(usize::from(row.sensor))
                .ok_or(EncodeError::NoSuchSensor { index: row.sensor })?;
            let series = &mut kinds[kind as usize];
            if *series == NO_SERIES {
                if self.all.len() == BATCH_SERIES_MAX {
                    return Err(EncodeError::Series);
                }
                *series = self.all.len() as u16;
                let name = &mut written[usize::from(row.sensor)];
                if *name == NO_SERIES {
                    *name = names.len() as u16;
                    names.push(row.sensor);
                }
                self.all.push(Series {
                    sensor: *name,
                    kind,
                });
                self.sensors.push(row.sensor);
                self.ends.push(0);
            }
            self.series.push(*series);
            self.ends[usize::from(*series)] += 1;
        }
        super::group(&self.series, &mut self.ends, &mut self.grouped);
        Ok(names)
    }

    /// The rows of a series.
    fn group(&self, series: usize) -> &[u16] {
        super::group_of(&self.grouped, &self.ends, series)
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
fn dictionary<'a>(group: &[u16], rows: &'a [Row]) -> (Vec<&'a Arc<str>>, Vec<i64>) {
    let mut index_of: HashMap<&str, i64> = HashMap::new();
    let mut entries = Vec::new();
    let mut indices = Vec::with_capacity(group.len());
    for &row in group {
        if let Value::Text(text) = &rows[usize::from(row)].value {
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
fn lag(row: &Row) -> i64 {
    (row.hlc.millis() as i64).wrapping_sub(row.observed_at.millis())
}
