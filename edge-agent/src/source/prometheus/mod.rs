//! The `prometheus` source: scrapes one exporter, on an interval.
//!
//! [`text`] reads what it answers, `scrape` chooses and makes readings, `rates` knows the counters of the scrape
//! before, and `names` is what sensors are called. Here: the settings, and the request, whose body and time are
//! bounded. What is not taken is counted: a line that is no series is logged with what is wrong with it, NaN and
//! infinities have no value to take.

mod metadata;
mod names;
mod rates;
mod scrape;
pub mod text;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Class, Failure};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::rates::Rates;
pub use self::scrape::Counters;
use self::scrape::{Moment, Scraped, Selection};
use self::text::Format;
use super::{Due, Outlet, Section, Source};
use crate::buffer::{Append, SensorPattern};
use crate::ingest::{APPEND_READINGS_MAX, IngestError};
use crate::repeat::Repeats;

pub(super) const KIND: &str = "prometheus";

/// Between two scrapes: Prometheus' own default is a minute, of most set-ups 15 seconds.
const INTERVAL: Duration = Duration::from_secs(15);

/// How long an exporter may take: one on this machine answers within a tenth of a second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer, by default and at most. A node exporter's has 100 KiB.
const BODY_BYTES: usize = 4 * 1024 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most readings of one scrape, by default and at most: the buffer keeps 16,384 names.
const SERIES: usize = 4_096;
const SERIES_MAX: usize = 16_384;

/// Most patterns of a list: each is tried for each series.
const PATTERNS_MAX: usize = 256;

/// A warning about the same bad line, this often.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// Which formats are wanted, the best first.
const FORMATS: &str =
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// The settings of a source of this kind.
#[derive(Debug, Clone)]
pub struct PrometheusSource {
    url: Url,
    selection: Selection,
    body_bytes_max: usize,
    timeout: Duration,
}

#[derive(Debug, Deserialize)]
struct Raw {
    url: String,
    #[serde(default)]
    allow: Vec<SensorPattern>,
    #[serde(default)]
    deny: Vec<SensorPattern>,
    #[serde(default)]
    counters: Counters,
    #[serde(default)]
    buckets: bool,
    #[serde(default = "yes")]
    timestamps: bool,
    series_max: Option<usize>,
    body_bytes_max: Option<usize>,
}

const fn yes() -> bool {
    true
}

/// Why a scrape brought nothing.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("{url} does not answer: {reason}; is the exporter running there?")]
    Unreachable { url: Url, reason: String },
    #[error("{url} did not answer within {allowed:?}; timeout allows more")]
    Late { url: Url, allowed: Duration },
    #[error("{url} answers with status {status}: is the path right?")]
    Status { url: Url, status: u16 },
    #[error("{url} answers with more than {bytes_max} bytes; body_bytes_max allows more")]
    TooLarge { url: Url, bytes_max: usize },
    #[error("{url} breaks off before its `# EOF`")]
    CutShort { url: Url },
    #[error("{url} answers with nothing that is a metric: line {line}: {error}")]
    NoMetrics {
        url: Url,
        line: usize,
        error: text::LineError,
    },
}

/// Reads the section of a source of this kind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Arc<dyn Source>> {
    section.interval(
        INTERVAL,
        Duration::from_secs(1)..=Duration::from_secs(86_400),
        "must be from 1s to 1day",
    );
    let timeout = section.timeout(
        TIMEOUT,
        Duration::from_millis(100)..=Duration::from_secs(60),
        "must be from 100ms to 1m",
    );
    let raw: Raw = section.read()?;
    let url = section.take("url", raw.url.parse::<Url>());
    if let Some(url) = &url {
        let has_host = url.host_str().is_some();
        section.check(
            url.scheme() == "http" && has_host,
            "url",
            "must begin with http:// and a host: exporters of this machine speak no TLS",
        );
        section.check(
            url.username().is_empty() && url.password().is_none(),
            "url",
            "must hold no user and no password: it is shown in the log and in the status",
        );
    }
    for (key, list) in [("allow", &raw.allow), ("deny", &raw.deny)] {
        let reason = format!(
            "has {} patterns, at most {PATTERNS_MAX} are allowed",
            list.len()
        );
        section.check(list.len() <= PATTERNS_MAX, key, reason);
    }
    let series_max = raw.series_max.unwrap_or(SERIES);
    let reason = format!("must be from 1 to {SERIES_MAX}");
    section.check((1..=SERIES_MAX).contains(&series_max), "series_max", reason);
    let body_bytes_max = raw.body_bytes_max.unwrap_or(BODY_BYTES);
    let reason = format!("must be from 1024 to {BODY_BYTES_MAX}");
    let bounded = (1024..=BODY_BYTES_MAX).contains(&body_bytes_max);
    section.check(bounded, "body_bytes_max", reason);
    Some(Arc::new(PrometheusSource {
        url: url?,
        selection: Selection {
            allow: raw.allow,
            deny: raw.deny,
            counters: raw.counters,
            buckets: raw.buckets,
            timestamps: raw.timestamps,
            series_max,
        },
        body_bytes_max,
        timeout,
    }))
}

#[async_trait]
impl Source for PrometheusSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn describe(&self) -> String {
        format!("scrapes {}", self.url)
    }

    async fn check(&self) -> Result<String, Failure> {
        let scraped = self.scrape(&self.client()?, &mut Rates::default(), 0).await;
        let scraped = scraped.map_err(|error| {
            Failure::new(Class::Network, format!("scrape {}", self.url)).because(error)
        })?;
        let series = scraped.samples.len();
        Ok(format!("scrapes {}: {series} readings at first", self.url))
    }

    async fn run(self: Arc<Self>, outlet: Outlet, stop: CancellationToken) -> Result<(), Failure> {
        let client = self.client()?;
        let mut polls = outlet.polls();
        let mut rates = Rates::default();
        let mut warnings = Repeats::new(WARN_EVERY);
        while let Some(due) = polls.next(&stop).await {
            let scraped = self.scrape(&client, &mut rates, outlet.now_micros());
            let scraped = tokio::select! {
                scraped = scraped => scraped,
                () = stop.cancelled() => return Ok(()),
            };
            match scraped {
                Ok(mut scraped) => {
                    outlet.working();
                    for (sensor, declaration) in scraped.declared.drain(..) {
                        outlet.declare(&sensor, declaration);
                    }
                    self.note(&scraped, &outlet, &mut warnings);
                    hand_over(scraped, due, &outlet).await;
                }
                Err(error) => {
                    // What comes after a gap is no rate of what was before.
                    rates = Rates::default();
                    outlet.failed(&error);
                }
            }
        }
        Ok(())
    }
}

/// Hands the readings over, in as few commits as they fit. One that fails is over: the next scrape shows how things
/// stand then.
async fn hand_over(scraped: Scraped, due: Due, outlet: &Outlet) {
    let mut accepted = 0;
    let mut outcome: Result<(), IngestError> = Ok(());
    let mut samples = scraped.samples;
    while !samples.is_empty() && outcome.is_ok() {
        let rest = samples.split_off(samples.len().min(APPEND_READINGS_MAX));
        let append = Append {
            samples: std::mem::replace(&mut samples, rest),
            ..Append::default()
        };
        let appended = match due {
            Due::Tick => outlet.append(append).await,
            Due::Requested(_) => outlet.append_whole(append).await,
        };
        outcome = appended.map(|appended| accepted += appended.accepted());
    }
    if let Due::Requested(request) = due {
        // The caller may be gone.
        let _ = request.send(outcome.map(|()| accepted));
    }
}

impl PrometheusSource {
    /// Never through a proxy, never elsewhere: what is scraped is what the settings name.
    fn client(&self) -> Result<Client, Failure> {
        Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| {
                let what = format!("make a client for {}", self.url);
                Failure::new(Class::Configuration, what).because(error)
            })
    }

    async fn scrape(
        &self,
        client: &Client,
        rates: &mut Rates,
        wall_micros: i64,
    ) -> Result<Scraped, ScrapeError> {
        let began = Instant::now();
        let url = || self.url.clone();
        let allowed = self.timeout;
        let (format, body) =
            timeout(allowed, self.fetch(client))
                .await
                .map_err(|_| ScrapeError::Late {
                    url: url(),
                    allowed,
                })??;
        let now = Moment {
            wall_micros,
            steady_seconds: steady_seconds(began),
        };
        let scraped = self.selection.read(&body, format, now, rates);
        if !scraped.is_whole {
            return Err(ScrapeError::CutShort { url: url() });
        }
        match scraped.first_bad.clone() {
            // A page of another kind, and no exporter's.
            Some((line, error)) if scraped.samples.is_empty() && scraped.good_lines == 0 => {
                let url = url();
                Err(ScrapeError::NoMetrics { url, line, error })
            }
            _ => Ok(scraped),
        }
    }

    /// The whole answer, if it is one, and how it is written.
    async fn fetch(&self, client: &Client) -> Result<(Format, Vec<u8>), ScrapeError> {
        let url = || self.url.clone();
        let unreachable = |error: reqwest::Error| ScrapeError::Unreachable {
            url: url(),
            reason: innermost(&error),
        };
        let request = client.get(url()).header(ACCEPT, FORMATS);
        let mut answer = request.send().await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(ScrapeError::Status { url: url(), status });
        }
        let kind = answer.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let format = match kind
            .trim_start()
            .starts_with("application/openmetrics-text")
        {
            true => Format::OpenMetrics,
            false => Format::Text,
        };
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + part.len() > self.body_bytes_max {
                let bytes_max = self.body_bytes_max;
                return Err(ScrapeError::TooLarge {
                    url: url(),
                    bytes_max,
                });
            }
            body.extend_from_slice(&part);
        }
        Ok((format, body))
    }

    /// Counts and logs what was not taken.
    fn note(&self, scraped: &Scraped, outlet: &Outlet, warnings: &mut Repeats) {
        for (reason, count) in [
            ("malformed", scraped.bad_lines),
            ("not_finite", scraped.not_finite),
            ("too_many_series", scraped.too_many),
        ] {
            if count > 0 {
                outlet.refused(reason, count);
            }
        }
        if let Some((line, error)) = &scraped.first_bad {
            let lines = scraped.bad_lines;
            if warnings.is_due(&error.to_string()) {
                warn!(url = %self.url, lines, line, %error, "lines of an exporter are no series");
            } else {
                debug!(url = %self.url, lines, line, %error, "lines of an exporter are no series");
            }
        }
        if scraped.too_many > 0 && warnings.is_due("too many") {
            let (left_out, series_max) = (scraped.too_many, self.selection.series_max);
            warn!(url = %self.url, left_out, series_max, "an exporter has more series than are taken; narrow `allow`, or raise `series_max`");
        }
    }
}

/// Seconds of a clock that nobody sets, of any beginning.
fn steady_seconds(at: Instant) -> f64 {
    use std::sync::OnceLock;
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    let beginning = *BEGINNING.get_or_init(|| at);
    match at.checked_duration_since(beginning) {
        Some(after) => after.as_secs_f64(),
        None => -beginning.duration_since(at).as_secs_f64(),
    }
}

/// The reason at the bottom: "connection refused" rather than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
