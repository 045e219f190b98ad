//! `tideline ledger`: the delivery ledger of a device or of the fleet, through the REST API.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use daemon::{Class, Failure, lifecycle};
use schema::{Balance, DeviceId, SeqRange};
use serde::Deserialize;
use serde_json::Value;

/// How long the bridge may take to answer: verifying reads every row.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Shows what became of every reading.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 every reading is accounted for, 1 it is not or the bridge does not answer, 2 wrong arguments."
)]
pub struct Options {
    /// The device; the whole fleet when left out
    device: Option<DeviceId>,
    /// Read the rows too, and compare them with what the devices sent
    #[arg(long, requires = "device")]
    verify: bool,
    /// The bridge's address
    #[arg(
        long,
        value_name = "URL",
        env = "TIDELINE_API",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
    /// Print the bridge's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Fleet {
    devices: u64,
    epochs: u64,
    #[serde(flatten)]
    balance: Balance,
    balanced: bool,
    unaccounted: u64,
}

#[derive(Debug, Deserialize)]
struct Device {
    device: String,
    balance: Balance,
    balanced: bool,
    unaccounted: u64,
    epochs: Vec<Epoch>,
}

#[derive(Debug, Deserialize)]
struct Epoch {
    epoch: String,
    balance: Balance,
    balanced: bool,
    unaccounted: u64,
    gaps: Vec<SeqRange>,
    ranges: Vec<Range>,
}

#[derive(Debug, Deserialize)]
struct Range {
    kind: String,
    first: u64,
    last: u64,
    verified: Option<Verified>,
}

#[derive(Debug, Deserialize)]
struct Verified {
    matches: bool,
    rows: u64,
    missing: Vec<SeqRange>,
}

/// Asks the bridge and prints its answer.
///
/// # Errors
/// When the bridge does not answer, or not with a ledger.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let path = match (&options.device, options.verify) {
        (None, _) => "/api/v1/ledger".to_owned(),
        (Some(device), false) => format!("/api/v1/devices/{device}/ledger"),
        (Some(device), true) => format!("/api/v1/devices/{device}/ledger?verify=true"),
    };
    let answer = fetch(&format!("{}{path}", options.api.trim_end_matches('/')))?;
    let unreadable = |error: serde_json::Error| {
        Failure::new(Class::Data, "understand the bridge's answer")
            .because(error)
            .help("bridge and `tideline` should be of the same version")
    };
    let balanced = if options.json {
        println!("{answer}");
        answer["balanced"].as_bool().unwrap_or(false)
    } else if options.device.is_some() {
        let device: Device = serde_json::from_value(answer).map_err(unreadable)?;
        print_device(&device);
        device.balanced
    } else {
        let fleet: Fleet = serde_json::from_value(answer).map_err(unreadable)?;
        println!("{} devices, {} buffer files", fleet.devices, fleet.epochs);
        print_balance("", &fleet.balance, fleet.balanced, fleet.unaccounted);
        fleet.balanced
    };
    Ok(if balanced {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_device(device: &Device) {
    println!("device {}", device.device);
    print_balance("", &device.balance, device.balanced, device.unaccounted);
    for epoch in &device.epochs {
        println!("epoch {}", epoch.epoch);
        print_balance("  ", &epoch.balance, epoch.balanced, epoch.unaccounted);
        if !epoch.gaps.is_empty() {
            println!("  not in the database: {}", join(&epoch.gaps));
        }
        for range in &epoch.ranges {
            let Some(verified) = &range.verified else {
                continue;
            };
            let (kind, first, last) = (&range.kind, range.first, range.last);
            if verified.matches {
                println!("  {kind} {first}-{last}: {} rows as sent", verified.rows);
            } else if verified.missing.is_empty() {
                println!("  {kind} {first}-{last}: rows DIFFER from what was sent");
            } else {
                println!(
                    "  {kind} {first}-{last}: rows are MISSING: {}",
                    join(&verified.missing)
                );
            }
        }
    }
}

fn print_balance(indent: &str, balance: &Balance, balanced: bool, unaccounted: u64) {
    println!("{indent}{balance}");
    match (balanced, unaccounted) {
        (true, _) => println!("{indent}every reading is accounted for"),
        (false, 0) => println!("{indent}NOT in balance"),
        (false, lost) => println!("{indent}NOT in balance: {lost} readings are not accounted for"),
    }
}

fn join(ranges: &[SeqRange]) -> String {
    let texts: Vec<String> = ranges.iter().map(SeqRange::to_string).collect();
    texts.join(", ")
}

fn fetch(url: &str) -> Result<Value, Failure> {
    lifecycle::runtime(Some(1))?.block_on(async {
        let failed = |error: reqwest::Error| {
            Failure::new(Class::Network, format!("ask the bridge at {url}"))
                .because(error.without_url())
                .help("start it (`tideline up`), or say where it is with --api")
        };
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .build()
            .map_err(failed)?;
        let answer = client.get(url).send().await.map_err(failed)?;
        let status = answer.status();
        let body: Value = answer.json().await.map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let detail = body["detail"].as_str().unwrap_or_default().to_owned();
        Err(Failure::new(Class::Data, format!("read {url}")).because(format!("{status}: {detail}")))
    })
}
