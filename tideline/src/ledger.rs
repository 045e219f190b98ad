//! `tideline ledger`: the delivery ledger of a device or of the fleet, through the REST API.

use std::process::ExitCode;

use clap::Args;
use daemon::{Failure, lifecycle};
use schema::{Balance, DeviceId, SeqRange};
use serde::Deserialize;

use crate::api::{Api, Reach, unreadable};

/// Shows what became of every reading.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tideline ledger\n  tideline ledger press-7 --verify\n\n\
                  Exit codes: 0 every reading is accounted for, 1 it is not or the bridge does not answer, 2 wrong arguments."
)]
pub struct Options {
    /// The device; the whole fleet when left out
    device: Option<DeviceId>,
    /// Read the rows too, and compare them with what the devices sent
    #[arg(long, requires = "device")]
    verify: bool,
    #[command(flatten)]
    reach: Reach,
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
    let mut api = Api::of(&options.reach)?;
    let answer = lifecycle::runtime(Some(1))?.block_on(api.get(&path))?;
    let balanced = if options.reach.json {
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
