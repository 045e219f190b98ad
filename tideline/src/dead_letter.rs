//! `tideline dead-letter`: messages that were set aside, looked at, tried again or thrown away.

use api::dead_letters::{
    DiscardDeadLetter, LetterBody, ListDeadLetters, OfLetter, RetryDeadLetter, ShowDeadLetter,
    WhichLetters,
};
use api::{Endpoint as _, Nothing};
use clap::{Args, Subcommand};
use schema::DeviceId;

use crate::client::Pages;
use crate::output::{self, Column, Confirm, instant, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<LetterBody>; 6] = [
    Column::new("LETTER", |letter| plain(&letter.id)),
    Column::new("RECEIVED", |letter| instant(&letter.received_at)),
    Column::new("DEVICE", |letter| plain(&letter.device)),
    Column::new("TIMES", |letter| plain(&letter.times)),
    Column::new("BYTES", |letter| plain(&letter.payload_bytes)),
    Column::new("REASON", |letter| plain(&letter.reason)),
];

/// Messages that the bridge could not take, and set aside.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline dead-letter list --device press-7\n  \
                  tideline dead-letter show 00f1e2d3c4b5a697.press-7\n  \
                  tideline dead-letter retry 00f1e2d3c4b5a697.press-7\n\n\
                  Exit codes: 0 done, 1 the bridge refuses or does not answer, 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them
    List {
        /// Only those of this device
        #[arg(long, value_name = "DEVICE")]
        device: Option<DeviceId>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Show one, with its payload
    Show {
        /// Its id, as the list shows it
        letter: String,
    },
    /// Hand one to the database again, as if it had just arrived; gone when that succeeds
    Retry {
        /// Its id, as the list shows it
        letter: String,
    },
    /// Throw one away for ever
    Discard {
        /// Its id, as the list shows it
        letter: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Asks the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    let of = |letter: &String| OfLetter {
        letter: letter.clone(),
    };
    match &options.action {
        Action::List { device, limit } => {
            let which = WhichLetters {
                device: device.clone(),
                ..WhichLetters::default()
            };
            let list = ListDeadLetters::at(Nothing {}).query(which);
            session
                .list(Pages::new(list, *limit as usize), &COLUMNS)
                .await
        }
        Action::Show { letter } => {
            let request = ShowDeadLetter::at(of(letter));
            let answer = session.api()?.ask(&request).await?;
            session.show(&answer, show)
        }
        Action::Retry { letter } => {
            let request = RetryDeadLetter::at(of(letter));
            let answer = session.api()?.ask(&request).await?;
            let done = format!("{letter} is in the database, and no dead letter any more");
            session.done(&answer, &done)
        }
        Action::Discard { letter, confirm } => {
            confirm.ask(&format!("throw {letter} away for ever"))?;
            let request = DiscardDeadLetter::at(of(letter));
            let answer = session.api()?.ask(&request).await?;
            let done = format!("{letter} is thrown away");
            session.done(&answer, &done)
        }
    }
}

fn show(letter: &LetterBody) {
    output::facts(&[
        ("letter", plain(&letter.id)),
        ("device", plain(&letter.device)),
        ("topic", plain(&letter.topic)),
        ("reason", plain(&letter.reason)),
        ("received", instant(&letter.received_at)),
        ("times", plain(&letter.times)),
        ("bytes", plain(&letter.payload_bytes)),
        ("payload", plain(&letter.payload_hex)),
    ]);
    if !letter.payload_hex.is_empty() {
        output::print(&format!(
            "read it with: echo '{} {}' | tideline decode",
            output::clean(&letter.topic),
            output::clean(&letter.payload_hex)
        ));
    }
}
