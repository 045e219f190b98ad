//! `tideline audit`: who did what, and who was turned away.

use std::process::ExitCode;

use clap::Args;
use daemon::{Failure, lifecycle};

use crate::api::{Api, Pages, Path, Reach, list};
use crate::output::{Column, instant, plain};

/// What a list shows.
const COLUMNS: [Column; 6] = [
    Column::new("AT", |entry| instant(&entry["at"])),
    Column::new("ACTOR", |entry| plain(&entry["actor"])),
    Column::new("ACTION", |entry| plain(&entry["action"])),
    Column::new("TARGET", |entry| plain(&entry["target"])),
    Column::new("ADDRESS", |entry| plain(&entry["address"])),
    Column::new("OUTCOME", |entry| plain(&entry["outcome"])),
];

/// Who did what over the API, latest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline audit --limit 20\n  \
                        tideline audit --json --limit 100000 > audit.jsonl\n\n\
                        Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments.")]
pub struct Options {
    #[command(flatten)]
    reach: Reach,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// Asks the bridge.
///
/// # Errors
/// When the bridge refuses or does not answer.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    lifecycle::runtime(Some(1))?.block_on(async {
        let mut api = Api::of(&options.reach)?;
        let pages = Pages::new(Path::new("audit"), "entries", options.limit as usize);
        list(&mut api, pages, options.reach.json, &COLUMNS).await?;
        Ok(ExitCode::SUCCESS)
    })
}
