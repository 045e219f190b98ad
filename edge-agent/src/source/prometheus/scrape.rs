//! One answer of an exporter → readings. Pure, with the counters of the scrape before as its memory.

use schema::{ObservedAt, Quality, Reading, SensorDeclaration, SensorName, Value};

use super::metadata::{self, Fresh};
use super::names;
use super::rates::Rates;
use super::text::{self, Format, LineError, Role, Series};
use crate::buffer::{Sample, SensorPattern, Timing};

/// Which series are taken, and as what.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Selection {
    /// Metrics that are taken, by their names; all when empty.
    pub(super) allow: Vec<SensorPattern>,
    /// Metrics that are not, also of those.
    pub(super) deny: Vec<SensorPattern>,
    pub(super) counters: Counters,
    /// Whether the buckets of histograms and the quantiles of summaries are taken.
    pub(super) buckets: bool,
    /// Whether the exporter's times are taken, where it gives any.
    pub(super) timestamps: bool,
    /// Most readings of one scrape.
    pub(super) series_max: usize,
}

/// What becomes of counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counters {
    /// How much they grow in a second.
    #[default]
    Rate,
    /// Their values as they are.
    Raw,
}

/// When a scrape was made, by two clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// By the agent's wall clock, microseconds since the Unix epoch.
    pub(super) wall_micros: i64,
    /// By a clock that nobody sets, in seconds.
    pub(super) steady_seconds: f64,
}

/// What an answer held.
#[derive(Debug, Default)]
pub(super) struct Scraped {
    pub(super) samples: Vec<Sample>,
    /// Lines that are series, taken or not.
    pub(super) good_lines: u64,
    /// Lines that are no series.
    pub(super) bad_lines: u64,
    /// The first of them: its number, and what is wrong with it.
    pub(super) first_bad: Option<(usize, LineError)>,
    /// Series that are allowed, and NaN or infinite just now: they have no value, or are stale.
    pub(super) not_finite: u64,
    /// Series that are taken, counters that are seen for the first time among them.
    pub(super) taken: usize,
    /// Series beyond the most that are taken.
    pub(super) too_many: u64,
    /// What series are that were not seen before.
    pub(super) declared: Vec<(SensorName, SensorDeclaration)>,
    fresh: Vec<Fresh>,
    /// Whether an answer that says where it ends has come to its end.
    pub(super) is_whole: bool,
}

impl Selection {
    fn takes(&self, metric: &str) -> bool {
        let is_in = |list: &[SensorPattern]| list.iter().any(|one| one.matches(metric));
        (self.allow.is_empty() || is_in(&self.allow)) && !is_in(&self.deny)
    }

    /// The readings of an answer.
    pub(super) fn read(
        &self,
        body: &[u8],
        format: Format,
        now: Moment,
        rates: &mut Rates,
    ) -> Scraped {
        let mut scraped = Scraped::default();
        let (mut bad_lines, mut first_bad) = (0, None);
        let ended = text::read(
            body,
            format,
            |series| self.take(series, now, rates, &mut scraped),
            |line, error| {
                bad_lines += 1;
                first_bad.get_or_insert((line, error));
            },
        );
        rates.scrape_ended();
        scraped.declared = metadata::declared(body, std::mem::take(&mut scraped.fresh));
        scraped.is_whole = ended || format == Format::Text;
        (scraped.bad_lines, scraped.first_bad) = (bad_lines, first_bad);
        scraped
    }

    fn take(&self, mut series: Series<'_>, now: Moment, rates: &mut Rates, into: &mut Scraped) {
        into.good_lines += 1;
        let is_wanted = match series.role {
            Role::Value | Role::Counter => true,
            Role::Bucket | Role::Quantile => self.buckets,
            Role::Info | Role::Created => false,
        };
        if !is_wanted || !self.takes(&series.name) {
            return;
        }
        if !series.value.is_finite() {
            into.not_finite += 1;
            return;
        }
        if into.taken >= self.series_max {
            into.too_many += 1;
            return;
        }
        into.taken += 1;
        let at_micros = series.at_micros.filter(|_| self.timestamps);
        let counts = matches!(series.role, Role::Counter | Role::Bucket);
        let is_rate = counts && self.counters == Counters::Rate;
        let (sensor, value, quality) = if is_rate {
            let metric = names::of_rate(&series.name);
            let sensor = names::sensor(&metric, &mut series);
            let at_seconds = match at_micros {
                Some(micros) => micros as f64 / 1e6,
                None => now.steady_seconds,
            };
            let Some((rate, quality)) = rates.rate(&sensor, series.value, at_seconds) else {
                return;
            };
            (sensor, rate, quality)
        } else {
            let metric = series.name.clone().into_owned();
            let sensor = names::sensor(&metric, &mut series);
            (sensor, series.value, Quality::Good)
        };
        if rates.described.is_new(&sensor) {
            into.fresh.push(Fresh {
                sensor: sensor.clone(),
                metric: series.name.clone().into_owned(),
                is_rate,
            });
        }
        let timing = match at_micros {
            Some(_) => Timing::Given,
            None => Timing::Read,
        };
        let reading = Reading {
            sensor,
            observed_at: ObservedAt::from_micros(at_micros.unwrap_or(now.wall_micros)),
            value: Value::F64(value),
            quality,
        };
        into.samples.push(Sample { reading, timing });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection() -> Selection {
        Selection {
            allow: Vec::new(),
            deny: Vec::new(),
            counters: Counters::Rate,
            buckets: false,
            timestamps: true,
            series_max: 100,
        }
    }

    fn moment(seconds: f64) -> Moment {
        Moment {
            wall_micros: 1_700_000_000_000_000 + (seconds * 1e6) as i64,
            steady_seconds: seconds,
        }
    }

    fn told(scraped: &Scraped) -> Vec<String> {
        let told = scraped.samples.iter().map(|Sample { reading, timing }| {
            let Value::F64(value) = reading.value else {
                panic!("{reading:?}");
            };
            let at = reading.observed_at.micros() - 1_700_000_000_000_000;
            format!(
                "{} {value} {} {timing:?} {at}",
                reading.sensor,
                reading.quality.as_str()
            )
        });
        told.collect()
    }

    const FIRST: &str = "# TYPE a_total counter\na_total{x=\"1\"} 10\n# TYPE g gauge\ng 1\nbad\n\
        # TYPE h histogram\nh_bucket{le=\"1\"} 4\nh_sum 2\nh_count 4\nu NaN\nv +Inf\nw 3 1700000000500\n";
    const SECOND: &str = "# TYPE a_total counter\na_total{x=\"1\"} 30\n# TYPE g gauge\ng 2\n\
        # TYPE h histogram\nh_bucket{le=\"1\"} 8\nh_sum 1\nh_count 8\n";

    #[test]
    fn counters_are_rates_from_the_second_scrape_on() {
        let mut rates = Rates::default();
        let first = selection().read(FIRST.as_bytes(), Format::Text, moment(0.0), &mut rates);
        assert_eq!(told(&first), ["g 1 good Read 0", "w 3 good Given 500000"]);
        assert_eq!((first.bad_lines, first.not_finite), (1, 2));
        assert_eq!(first.first_bad, Some((5, LineError::Value)));
        let second = selection().read(SECOND.as_bytes(), Format::Text, moment(10.0), &mut rates);
        assert_eq!(
            told(&second),
            [
                "a_per_second{x=1} 2 good Read 10000000",
                "g 2 good Read 10000000",
                "h_sum_per_second 0.1 uncertain Read 10000000",
                "h_count_per_second 0.4 good Read 10000000",
            ]
        );
        assert!(second.is_whole);
    }

    #[test]
    fn what_is_taken_is_chosen() {
        let check = |selection: Selection, expected: &[&str]| {
            let mut rates = Rates::default();
            let scraped = selection.read(FIRST.as_bytes(), Format::Text, moment(0.0), &mut rates);
            let names: Vec<&str> = scraped
                .samples
                .iter()
                .map(|sample| sample.reading.sensor.as_str())
                .collect();
            assert_eq!(names, expected, "{selection:?}");
        };
        let raw = Selection {
            counters: Counters::Raw,
            ..selection()
        };
        check(raw.clone(), &["a_total{x=1}", "g", "h_sum", "h_count", "w"]);
        let buckets = Selection {
            buckets: true,
            ..raw.clone()
        };
        check(
            buckets,
            &[
                "a_total{x=1}",
                "g",
                "h_bucket{le=1}",
                "h_sum",
                "h_count",
                "w",
            ],
        );
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let allowed = Selection {
            allow: patterns(&["a_*", "h_*"]),
            deny: patterns(&["*_sum"]),
            ..raw.clone()
        };
        check(allowed, &["a_total{x=1}", "h_count"]);
        for series_max in [4, 5, 6] {
            let mut rates = Rates::default();
            let few = Selection {
                series_max,
                ..raw.clone()
            };
            let scraped = few.read(FIRST.as_bytes(), Format::Text, moment(0.0), &mut rates);
            let taken = scraped.samples.len();
            assert_eq!(taken, series_max.min(5));
            assert_eq!(scraped.too_many, 5 - taken as u64);
        }
        let unstamped = Selection {
            timestamps: false,
            ..raw
        };
        let scraped = unstamped.read(
            b"w 3 1700000000500\n",
            Format::Text,
            moment(7.0),
            &mut Rates::default(),
        );
        assert_eq!(told(&scraped), ["w 3 good Read 7000000"]);
    }

    #[test]
    fn an_open_metrics_answer_that_was_cut_short_is_noticed() {
        let mut rates = Rates::default();
        let mut read = |body: &str| {
            let scraped = selection().read(
                body.as_bytes(),
                Format::OpenMetrics,
                moment(0.0),
                &mut rates,
            );
            scraped.is_whole
        };
        assert!(read("g 1\n# EOF\n"));
        assert!(read("g 1\n# EOF"));
        assert!(!read("g 1\n"));
        assert!(!read(""));
    }
}
