//! `tideline alert`: what is wrong with the fleet, and who looks after it.

use api::alerts::{AcknowledgeAlert, AlertBody, AlertState, ListAlerts, OfAlert, WhichAlerts};
use api::{Endpoint as _, Nothing};
use clap::{Args, Subcommand, ValueEnum};
use schema::DeviceId;

use crate::client::Pages;
use crate::output::{self, Column, instant, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<AlertBody>; 7] = [
    Column::new("ALERT", |alert| plain(&alert.id)),
    Column::new("OPENED", |alert| instant(&alert.opened_at)),
    Column::new("STATE", |alert| plain(&alert.state)),
    Column::new("SEVERITY", |alert| plain(&alert.severity)),
    Column::new("RULE", |alert| plain(&alert.rule)),
    Column::new("DEVICE", |alert| plain(&alert.device)),
    Column::new("DETAIL", |alert| plain(&alert.detail)),
];

/// What is wrong with the fleet.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline alert list --state firing\n  \
                  tideline alert acknowledge 6f1c0d…\n\n\
                  Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List alerts
    List {
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Only those of this device
        #[arg(long, value_name = "DEVICE")]
        device: Option<DeviceId>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Say that somebody looks after an alert
    Acknowledge {
        /// Its id, as the list shows it
        alert: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Wrong now, and nobody looks after it
    Firing,
    /// Wrong now, and somebody looks after it
    Acknowledged,
    /// Not wrong any more
    Resolved,
}

impl From<State> for AlertState {
    fn from(state: State) -> Self {
        match state {
            State::Firing => Self::Firing,
            State::Acknowledged => Self::Acknowledged,
            State::Resolved => Self::Resolved,
        }
    }
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    match &options.action {
        Action::List {
            state,
            device,
            limit,
        } => {
            let which = WhichAlerts {
                state: state.map(AlertState::from),
                device: device.clone(),
                ..WhichAlerts::default()
            };
            let list = ListAlerts::at(Nothing {}).query(which);
            session
                .list(Pages::new(list, *limit as usize), &COLUMNS)
                .await
        }
        Action::Acknowledge { alert } => {
            let of = OfAlert {
                alert: alert.clone(),
            };
            let answer = session.api()?.ask(&AcknowledgeAlert::at(of)).await?;
            session.show(&answer, |answer| {
                let by = plain(&answer.acknowledged_by);
                output::print(&format!("{alert}  {}, by {by}", plain(&answer.state)));
            })
        }
    }
}
