//! A payload becomes a batch, or a named error.
//!
//! Every bound is checked before anything is allocated for it. No allocation is sized by what a
//! column claims: only by the number of rows, which is bounded, and by bytes that are there.

use std::sync::Arc;

use super::bits::BitReader;
use super::integers::{self, unzigzag};
use super::series::{self, Kind, Series};
use super::wire::Reader;
use super::{Counters, DecodeError, FLAG_MILLIS, floats, group, group_of, names, times, whole};
use crate::limits::{BATCH_ROWS_MAX, BATCH_SERIES_MAX, TEXT_BYTES_MAX};
use crate::{Batch, Epoch, Hlc, ObservedAt, Quality, Row, Value, envelope};

/// Decodes one payload. Its names are in the order of their first appearance.
///
/// # Errors
/// [`DecodeError`] when the payload is no batch of a version and form that this build reads.
pub fn decode(payload: &[u8]) -> Result<Batch, DecodeError> {
    let (flags, body) = envelope::open(payload)?;
    if flags & !FLAG_MILLIS != 0 {
        return Err(DecodeError::Envelope(envelope::EnvelopeError::Flags(flags)));
    }
    let mut reader = Reader::new(body);
    let epoch = Epoch::try_from(reader.field::<u64>()?)?;
    let rows = reader.count()?;
    if rows == 0 || rows > BATCH_ROWS_MAX {
        return Err(DecodeError::Rows(rows));
    }
    let head = Head {
        rows,
        unit: if flags & FLAG_MILLIS == 0 { 1 } else { 1000 },
        time: reader.field()?,
        lag: reader.field()?,
        counter: reader.field()?,
        seq: reader.field()?,
        period: reader.field()?,
    };
    let sensors = names::read(&mut reader, rows)?;
    let texts = read_texts(&mut reader, rows)?;
    let mut bits = BitReader::new(reader.last_bytes()?);
    let mut column = Vec::with_capacity(rows);
    let series_max = rows.min(BATCH_SERIES_MAX);
    let series = series::read(&mut bits, sensors.len(), series_max, &mut column)?;
    let (mut rows, row_series) = read_rows(&head, &series, &mut bits, &mut column)?;
    read_values(
        &series,
        &row_series,
        &texts,
        &mut rows,
        &mut bits,
        &mut column,
    )?;
    bits.finish()?;
    Ok(Batch {
        epoch,
        sensors,
        rows,
    })
}

/// The envelope's numbers.
struct Head {
    rows: usize,
    /// Microseconds in a unit of time.
    unit: i64,
    time: i64,
    lag: i64,
    counter: u16,
    seq: u64,
    period: i64,
}

/// The dictionaries of the text series. All entries together are at most as many as rows.
fn read_texts(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<Vec<Arc<str>>>, DecodeError> {
    let count = reader.count()?;
    if count > rows {
        return Err(DecodeError::Texts);
    }
    let mut left = rows;
    let mut dictionaries = Vec::with_capacity(count);
    for _ in 0..count {
        let entries = reader.count()?;
        left = left.checked_sub(entries).ok_or(DecodeError::Texts)?;
        let mut dictionary = Vec::with_capacity(entries);
        for _ in 0..entries {
            let text = reader.text()?;
            if text.len() > TEXT_BYTES_MAX {
                return Err(DecodeError::TextTooLong { bytes: text.len() });
            }
            dictionary.push(Arc::from(text));
        }
        dictionaries.push(dictionary);
    }
    Ok(dictionaries)
}

/// Everything of the rows but their values; and the series of each.
fn read_rows(
    head: &Head,
    series: &[Series],
    bits: &mut BitReader<'_>,
    column: &mut Vec<u64>,
) -> Result<(Vec<Row>, Vec<u16>), DecodeError> {
    integers::read(bits, head.rows, column)?;
    let mut predictor = series::Predictor::default();
    predictor.reset(series.len());
    let row_series = column
        .iter()
        .map(|code| predictor.decode(*code, series.len()))
        .collect::<Result<Vec<u16>, _>>()?;
    if !predictor.saw_all() {
        return Err(DecodeError::RowSeries);
    }

    let by_row = bits.read(1) == 1;
    integers::read(bits, head.rows, column)?;
    let mut predictor = times::Predictor::new(head.time, head.period, by_row, series.len());
    let mut rows = Vec::with_capacity(head.rows);
    for (residual, &series_index) in column.iter().zip(&row_series) {
        let time = predictor
            .predict(series_index)
            .wrapping_add(unzigzag(*residual));
        predictor.learn(series_index, time);
        let micros = time.checked_mul(head.unit).ok_or(DecodeError::Time)?;
        rows.push(Row {
            sensor: series[usize::from(series_index)].sensor,
            observed_at: ObservedAt::from_micros(micros),
            hlc: Hlc::default(),
            seq: 0,
            quality: Quality::Good,
            value: Value::Bool(false),
        });
    }

    integers::read(bits, head.rows, column)?;
    for (row, residual) in rows.iter_mut().zip(column.iter()) {
        let lag = head.lag.wrapping_add(unzigzag(*residual));
        let millis = row.observed_at.millis().wrapping_add(lag) as u64;
        if millis >> 48 != 0 {
            return Err(DecodeError::Clock);
        }
        row.hlc = Hlc::from_bits(millis << 16);
    }
    integers::read(bits, head.rows, column)?;
    let first = Hlc::from_bits(rows[0].hlc.bits() | u64::from(head.counter));
    let mut counters = Counters::new(first);
    for (row, residual) in rows.iter_mut().zip(column.iter()) {
        let expected = counters.expect(row.hlc.millis());
        let counter = i64::from(expected)
            .checked_add(unzigzag(*residual))
            .and_then(|counter| u16::try_from(counter).ok())
            .ok_or(DecodeError::Clock)?;
        row.hlc = Hlc::from_bits(row.hlc.bits() | u64::from(counter));
        counters.learn(row.hlc);
    }

    integers::read(bits, head.rows, column)?;
    let mut expected = head.seq;
    for (row, residual) in rows.iter_mut().zip(column.iter()) {
        row.seq = expected.wrapping_add(unzigzag(*residual) as u64);
        expected = row.seq.wrapping_add(1);
    }

    integers::read(bits, head.rows, column)?;
    for (row, grade) in rows.iter_mut().zip(column.iter()) {
        row.quality = u8::try_from(*grade)
            .ok()
            .and_then(|grade| Quality::try_from(grade).ok())
            .ok_or(DecodeError::Quality)?;
    }
    Ok((rows, row_series))
}

fn read_values(
    series: &[Series],
    row_series: &[u16],
    texts: &[Vec<Arc<str>>],
    rows: &mut [Row],
    bits: &mut BitReader<'_>,
    column: &mut Vec<u64>,
) -> Result<(), DecodeError> {
    let mut ends = vec![0; series.len()];
    for &one in row_series {
        ends[usize::from(one)] += 1;
    }
    let mut grouped = Vec::new();
    group(row_series, &mut ends, |row| row as u16, &mut grouped);
    let (mut numbers, mut decimals) = (Vec::new(), Vec::new());
    let mut dictionaries = texts.iter();
    for (index, one) in series.iter().enumerate() {
        let members = group_of(&grouped, &ends, index);
        let count = members.len();
        let rows_of = members.iter().map(|row| usize::from(*row));
        match one.kind {
            Kind::I64 => {
                whole::read(bits, count, column, &mut numbers)?;
                for (row, number) in rows_of.zip(&numbers) {
                    rows[row].value = Value::I64(*number);
                }
            }
            Kind::F64 => {
                floats::read(bits, count, column, &mut numbers, &mut decimals)?;
                for (row, number) in rows_of.zip(&decimals) {
                    rows[row].value = Value::F64(*number);
                }
            }
            Kind::Bool => {
                integers::read(bits, count, column)?;
                let mut last = 0;
                for (row, change) in rows_of.zip(column.iter()) {
                    if *change > 1 {
                        return Err(DecodeError::Bool);
                    }
                    last ^= change;
                    rows[row].value = Value::Bool(last == 1);
                }
            }
            Kind::Text => {
                let dictionary = dictionaries.next().ok_or(DecodeError::Texts)?;
                integers::read(bits, count, column)?;
                let mut last = 0i64;
                for (row, delta) in rows_of.zip(column.iter()) {
                    last = last.wrapping_add(unzigzag(*delta));
                    let text = usize::try_from(last)
                        .ok()
                        .and_then(|index| dictionary.get(index))
                        .ok_or(DecodeError::Texts)?;
                    rows[row].value = Value::Text(Arc::clone(text));
                }
            }
        }
    }
    match dictionaries.next() {
        None => Ok(()),
        Some(_) => Err(DecodeError::Texts),
    }
}
