//! `try`: what a source would read. It is run as an agent would run it, with its shaping and limits; what comes of it is printed
//! instead of kept.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use daemon::settings::Given;
use daemon::{Class, Failure, SystemClock, say};
use schema::timestamp::rfc3339;
use schema::{Reading, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::sensors::{SensorRule, Sensors};
use crate::source::{Outlet, Patience, Report, SourceConfig, SourceState, SourceStatus, supervise};

/// How often the state of the source is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long a source may take to end, beside what it is waited for anyway.
const END: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// End after so many readings
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, as 500ms, 10s, 5m
    #[arg(long = "for", default_value = "10s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Print one JSON object for each reading
    #[arg(long)]
    json: bool,
}

/// Runs the source and prints what comes of it.
pub(super) async fn run(given: &Given, name: &str, options: Options) -> Result<(), Failure> {
    let (sources, rules) = Settings::load_for_trial(given)?;
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let Some(source) = sources.iter().find(|source| source.name.as_str() == name) else {
        let known = match names.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        let what = format!("find [source.{name}] in {}", given.path.display());
        return Err(Failure::new(Class::Configuration, what).because(known));
    };
    let report = Arc::new(Report::new(source.name.clone(), source.source.kind()));
    let shown = show(source, rules, &report, &options).await;
    let status = report.status();
    note(&format!("source {name}: {status}"));
    match status.last_error {
        Some(error) if shown == 0 => {
            let what = format!("read anything from source {name}");
            Err(Failure::new(Class::Network, what).because(error))
        }
        _ => Ok(()),
    }
}

/// Runs the source; returns how many of its readings were printed.
async fn show(
    source: &SourceConfig,
    rules: Vec<SensorRule>,
    report: &Arc<Report>,
    options: &Options,
) -> u64 {
    let sensors = Sensors::new(rules, Vec::new());
    let (samples, mut shown) = mpsc::channel(1);
    let outlet = Outlet::shown(
        source,
        Arc::clone(report),
        samples,
        Arc::new(SystemClock::default()),
        sensors.clone(),
    );
    let stop = CancellationToken::new();
    let running = supervise(
        Arc::clone(&source.source),
        outlet,
        Patience::default(),
        stop.clone(),
    );
    let running = tokio::spawn(running);
    let deadline = Instant::now() + options.time;
    let mut looks = interval(LOOK);
    let (mut count, mut said) = (0, None);
    let left = |count: u64| options.count.map_or(u64::MAX, |most| most - count);
    while left(count) > 0 && report.status().state != SourceState::Stopped {
        tokio::select! {
            () = sleep_until(deadline) => break,
            Some(samples) = shown.recv() => {
                for sample in samples {
                    if left(count) > 0 {
                        print(&sample.reading, &sensors, options.json);
                        count += 1;
                    }
                }
            }
            _ = looks.tick() => complain(report.status(), &mut said),
        }
    }
    stop.cancel();
    // What windows say at the end is read, too.
    while let Ok(Some(samples)) = timeout(END, shown.recv()).await {
        for sample in samples {
            if left(count) > 0 {
                print(&sample.reading, &sensors, options.json);
                count += 1;
            }
        }
    }
    // One that hangs is left behind with this process.
    running.abort();
    count
}

/// Says once of each error that the source cannot read.
fn complain(status: SourceStatus, said: &mut Option<String>) {
    if status.failing_since_ms.is_some() && status.last_error != *said {
        if let Some(error) = &status.last_error {
            note(&format!("{}: {error}", status.state.as_str()));
        }
        *said = status.last_error;
    }
}

/// To standard error: beside what is read.
fn note(text: &str) {
    // Nobody may read it, and the readings still matter.
    let _ = writeln!(io::stderr(), "{text}");
}

fn print(reading: &Reading, sensors: &Sensors, as_json: bool) {
    let Reading {
        sensor,
        observed_at,
        value,
        quality,
    } = reading;
    let time = rfc3339(observed_at.micros());
    let unit = sensors.of(sensor).and_then(|declared| declared.unit);
    if as_json {
        let mut line = serde_json::json!({
            "sensor": sensor, "value": value, "quality": quality, "observed_at": time,
        });
        if let Some(unit) = unit {
            line["unit"] = unit.into();
        }
        say!("{line}");
        return;
    }
    let value = match value {
        Value::Bool(is) => is.to_string(),
        Value::I64(number) => number.to_string(),
        Value::F64(number) => format!("{number:?}"),
        Value::Text(text) => format!("{text:?}"),
    };
    let quality = quality.as_str();
    // A number of nothing in particular needs no word.
    let unit = unit.filter(|unit| unit != "1");
    let unit = unit.map_or_else(String::new, |unit| format!(" {unit}"));
    say!("{time:<27} {sensor:<48} {value:>20} {quality}{unit}");
}
