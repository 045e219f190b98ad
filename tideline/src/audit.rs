//! `tideline audit`: who did what, and who was turned away.

use api::audit::{AuditLine, ListAudit};
use api::{Endpoint as _, Nothing};
use clap::Args;

use crate::client::Pages;
use crate::output::{Column, instant, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<AuditLine>; 6] = [
    Column::new("AT", |entry| instant(&entry.at)),
    Column::new("ACTOR", |entry| plain(&entry.actor)),
    Column::new("ACTION", |entry| plain(&entry.action)),
    Column::new("TARGET", |entry| plain(&entry.target)),
    Column::new("ADDRESS", |entry| plain(&entry.address)),
    Column::new("OUTCOME", |entry| plain(&entry.outcome)),
];

/// Who did what over the API, latest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline audit --limit 20\n  \
                        tideline audit --json --limit 100000 > audit.jsonl\n\n\
                        Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments.")]
pub struct Options {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    let pages = Pages::new(ListAudit::at(Nothing {}), options.limit as usize);
    session.list(pages, &COLUMNS).await
}
