//! What a command does with its bridge: it asks, and prints the answer, as people read it or as JSON.

use std::process::ExitCode;

use daemon::{Class, Failure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use api::{Endpoint, Listing as List, Paged};

use crate::client::{Answered, Api, Pages, Reach};
use crate::output::{self, Column, Listing};

/// How a command ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Says with the exit code whether all is well.
pub(crate) const fn verdict(is_well: bool) -> ExitCode {
    match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// One command's session with a bridge.
#[derive(Debug)]
pub(crate) struct Session {
    reach: Reach,
    api: Option<Api>,
}

impl Session {
    /// Nothing is asked yet.
    pub(crate) const fn new(reach: Reach) -> Self {
        Self { reach, api: None }
    }

    /// The bridge, from the first time that it is needed: what else was typed is understood, and
    /// agreed to, before a token is read.
    pub(crate) fn api(&mut self) -> Result<&mut Api, Failure> {
        let api = match self.api.take() {
            Some(api) => api,
            None => Api::of(&self.reach)?,
        };
        Ok(self.api.insert(api))
    }

    /// Whether a program reads what is printed.
    pub(crate) const fn is_json(&self) -> bool {
        self.reach.json
    }

    /// Prints an answer as JSON, if that was asked for.
    pub(crate) fn print_json(&self, answer: &Value) -> bool {
        if self.is_json() {
            output::print(&answer.to_string());
        }
        self.is_json()
    }

    /// Prints an answer: as JSON, or as `print` shows it to people.
    pub(crate) fn show<T: DeserializeOwned>(
        &self,
        answer: &Answered<T>,
        print: impl FnOnce(&T),
    ) -> Outcome {
        if !self.print_json(&answer.raw) {
            print(&answer.body()?);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints an answer as JSON, or for people that it is done.
    pub(crate) fn done<T>(&self, answer: &Answered<T>, done: &str) -> Outcome {
        if !self.print_json(&answer.raw) {
            output::print(done);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints a list, page after page.
    pub(crate) async fn list<E>(
        &mut self,
        mut pages: Pages<E>,
        columns: &[Column<<E::Answer as List>::Entry>],
    ) -> Outcome
    where
        E: Endpoint<Answer: List, Query: Paged>,
    {
        let mut listing = Listing::new(columns, self.is_json());
        while let Some(entries) = pages.next(self.api()?).await? {
            for entry in &entries {
                listing.push_answered(entry)?;
            }
        }
        listing.end();
        if pages.is_cut() {
            eprintln!("there may be more: ask for them with a higher --limit");
        }
        let not_kept = pages.not_kept();
        if not_kept > 0 {
            eprintln!("{not_kept} more were not kept: a quota is used up ([limits] of the bridge)");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The failure of arguments that cannot be meant, though each of them can.
pub(crate) fn wrong(command: &str, reason: &str) -> Failure {
    Failure::new(Class::Configuration, "understand the arguments")
        .because(reason.to_owned())
        .help(format!("`tideline {command} --help` has examples"))
}
