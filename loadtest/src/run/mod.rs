//! Load: devices without hardware, each with the real session, codec and MQTT link, its buffer in
//! memory, in one process.
//!
//! ```text
//! certificates ─► devices come online at a steady rate ─► scans for a while ─► drain ─► report
//! ```

mod fleet;
mod report;
mod simulated;
mod tally;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use certs::Folder;
use clap::Args;
use daemon::{Failure, lifecycle, logs};
use schema::BrokerAddress;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use fleet::{Fleet, Plan};
use report::Report;
use tally::Tally;

/// How often the progress line is written.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How often the drain looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the devices may take to say goodbye together.
const GOODBYE: Duration = Duration::from_secs(10);

/// What to load, and how much.
#[derive(Debug, Args)]
#[command(
    after_help = "The certificate folder must hold the authority that the broker trusts, with its key, as\n\
                  `certs init` or `tideline up` make it: each device gets a certificate of its own there.\n\n\
                  Try it:  tideline up        and in another window\n         \
                  loadtest run --certs tideline-data/certs --devices 1000 --for 30s"
)]
pub struct Options {
    /// The broker
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8883")]
    broker: BrokerAddress,
    /// Folder of the certificate authority
    #[arg(long, value_name = "DIR", default_value = "tideline-data/certs")]
    certs: PathBuf,
    /// Devices; each needs a descriptor
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    devices: u32,
    /// Name of the devices, before their numbers
    #[arg(long, value_name = "NAME", default_value = "load")]
    prefix: String,
    /// Readings a second of each device
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = rate)]
    rate: f64,
    /// Sensors of each device, all read in one scan
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    sensors: u16,
    /// Of a hundred scans, so many observe at the time of the scan before, as a source that repeats itself
    /// does: each of their readings meets another under its key
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    repeats: u8,
    /// Readings that each device keeps at most; the oldest goes when one more comes
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    buffer_rows: u32,
    /// Devices that come online a second
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: u32,
    /// How long the devices read, once all were told to connect
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to wait for the last acknowledgements
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// Print JSON instead of text for people
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        Ok(_) => Err("must be from 0.001 to 100000".to_owned()),
        Err(_) => Err("is no number".to_owned()),
    }
}

/// Runs the load.
///
/// # Errors
/// When the devices cannot get certificates, or the system refuses threads.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    logs::start(logs::Format::Text, "error")?;
    let plan = Plan {
        broker: options.broker.clone(),
        devices: options.devices as usize,
        prefix: options.prefix.clone(),
        sensors: usize::from(options.sensors),
        scan_every: Duration::from_secs_f64(f64::from(options.sensors) / options.rate),
        repeats: options.repeats,
        buffer_rows: options.buffer_rows as usize,
        connect_every: Duration::from_secs(1) / options.connect_rate,
    };
    let mut progress = Progress::new();
    let fleet = Fleet::prepare(&Folder::new(&options.certs), plan, |done, of| {
        progress.show(&format!("certificates {done} of {of}"));
    })?;
    let report = lifecycle::runtime(None)?.block_on(drive(fleet, options, &mut progress))?;
    progress.end();
    report.print(options.json);
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn drive(
    fleet: Fleet,
    options: &Options,
    progress: &mut Progress,
) -> Result<Report, Failure> {
    let tally = Arc::new(Tally::default());
    let (quiet, stop) = (CancellationToken::new(), CancellationToken::new());
    let devices = fleet.len();
    let began = Instant::now();
    let running = fleet.start(&tally, &quiet, &stop);
    let ramp = running.ramp();

    let scanning = sleep(ramp + options.duration);
    let interrupted = tokio::select! {
        () = show_progress(&tally, devices, progress) => unreachable!("progress has no end"),
        signal = lifecycle::signalled() => signal.map(|()| true)?,
        () = scanning => false,
    };
    quiet.cancel();
    let read_for = began.elapsed();
    let settled = async {
        while tally.balance().pending > 0 {
            sleep(LOOK_EVERY).await;
        }
    };
    let drain = if interrupted {
        Duration::ZERO
    } else {
        options.drain
    };
    tokio::select! {
        () = show_progress(&tally, devices, progress) => unreachable!("progress has no end"),
        signal = lifecycle::signalled() => signal?,
        _ = timeout(drain, settled) => {}
    }
    let report = Report::new(devices, &tally, read_for, began.elapsed());
    stop.cancel();
    // Whoever takes longer is cut off: its broker notices.
    let _ = timeout(GOODBYE, running.ended()).await;
    Ok(report)
}

async fn show_progress(tally: &Tally, devices: usize, progress: &mut Progress) {
    let mut ticks = interval(SHOW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = tally.balance().committed;
    loop {
        ticks.tick().await;
        let now = tally.balance();
        progress.show(&format!(
            "connected {} of {devices}  accepted {}  pending {}  committed {} ({}/s)",
            tally.connected(),
            now.accepted,
            now.pending,
            now.committed,
            now.committed - before,
        ));
        before = now.committed;
    }
}

/// One line on standard error that stays current; whole lines, few of them, where it is no terminal.
#[derive(Debug)]
struct Progress {
    last: Instant,
    open: bool,
}

impl Progress {
    const LINE_EVERY: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self {
            last: Instant::now(),
            open: false,
        }
    }

    fn show(&mut self, line: &str) {
        let mut out = std::io::stderr();
        let every = if out.is_terminal() {
            SHOW_EVERY / 2
        } else {
            Self::LINE_EVERY
        };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        // Nobody reads it any more: the run goes on.
        let _ = if out.is_terminal() {
            self.open = true;
            write!(out, "\r{line}\x1b[K").and_then(|()| out.flush())
        } else {
            writeln!(out, "{line}")
        };
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_bounds() {
        for good in ["0.001", "1", "100000"] {
            assert!(rate(good).is_ok(), "{good}");
        }
        for bad in ["0", "0.0009", "100001", "NaN", "inf", "-1", "much"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
