//! When readings were taken: each time is predicted from its series or from the row before it,
//! and the difference is what travels.
//!
//! A sensor that is read every period is predicted one period after its last reading. The sensors
//! of one scan are read one after another: there the row before is the better guess, once it is
//! later than half a period after the series' last reading. One flag a batch says whether that
//! second rule is used.

use super::integers::{length, zigzag};

/// Distances that the period is the middle one of.
const PERIOD_SAMPLE: usize = 31;

/// The predictor; both ends run the same one over the same times.
#[derive(Debug)]
pub(super) struct Predictor {
    period: i64,
    by_row: bool,
    previous: i64,
    last_of_series: Vec<Option<i64>>,
}

impl Predictor {
    /// Starts at the first time of the batch.
    pub(super) fn new(first: i64, period: i64, by_row: bool, series: usize) -> Self {
        Self {
            period,
            by_row,
            previous: first,
            last_of_series: vec![None; series],
        }
    }

    /// What the next time of a series should be.
    pub(super) fn predict(&self, series: u16) -> i64 {
        let Some(last) = self.last_of_series[usize::from(series)] else {
            return self.previous;
        };
        if self.by_row && self.previous > last.wrapping_add(self.period / 2) {
            self.previous
        } else {
            last.wrapping_add(self.period)
        }
    }

    /// What it was.
    pub(super) fn learn(&mut self, series: u16, time: i64) {
        self.last_of_series[usize::from(series)] = Some(time);
        self.previous = time;
    }
}

/// The middle one of the first distances between readings of the same series; 0 when none
/// repeats.
pub(super) fn period(times: &[i64], series: &[u16], last: &mut [Option<i64>]) -> i64 {
    let mut distances = [0; PERIOD_SAMPLE];
    let mut count = 0;
    last.fill(None);
    for (&time, &series) in times.iter().zip(series) {
        if let Some(last) = last[usize::from(series)].replace(time) {
            distances[count] = time.wrapping_sub(last);
            count += 1;
            if count == PERIOD_SAMPLE {
                break;
            }
        }
    }
    if count == 0 {
        return 0;
    }
    *distances[..count].select_nth_unstable(count / 2).1
}

/// Fills `column` with the residuals under the better rule, and says which it was. Both are
/// predicted in one pass.
pub(super) fn residuals(
    times: &[i64],
    series: &[u16],
    period: i64,
    last: &mut [Option<i64>],
    column: &mut Vec<u64>,
    other: &mut Vec<u64>,
) -> bool {
    let half = period / 2;
    let mut previous = times[0];
    let (mut by_series, mut by_row) = (0u64, 0u64);
    last.fill(None);
    column.resize(times.len(), 0);
    other.resize(times.len(), 0);
    let slots = column.iter_mut().zip(other.iter_mut());
    for ((&time, &series), (slot, other_slot)) in times.iter().zip(series).zip(slots) {
        let (plain, rowwise) = match last[usize::from(series)].replace(time) {
            None => (previous, previous),
            Some(last) => {
                let next = last.wrapping_add(period);
                let in_scan = previous > last.wrapping_add(half);
                (next, if in_scan { previous } else { next })
            }
        };
        previous = time;
        let plain = zigzag(time.wrapping_sub(plain));
        let rowwise = zigzag(time.wrapping_sub(rowwise));
        by_series += u64::from(length(plain));
        by_row += u64::from(length(rowwise));
        *slot = plain;
        *other_slot = rowwise;
    }
    if by_series < by_row {
        return false;
    }
    std::mem::swap(column, other);
    true
}
