//! Whether a person means it, before something that is not easily taken back.

use std::io::{IsTerminal, Write, stderr, stdin};

use clap::Args;
use daemon::{Class, Failure};

/// What a command takes that asks first.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Asks `what`, unless `--yes` was said. Where nobody can be asked, it must have been.
    ///
    /// # Errors
    /// When the answer is no, or nobody can give one.
    pub(crate) fn ask(&self, what: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !stdin().is_terminal() {
            return Err(Failure::new(Class::Configuration, format!("ask: {what}?"))
                .because("this is no terminal")
                .help("say --yes if it is meant"));
        }
        let mut out = stderr();
        let _ = write!(out, "{what}? [y/N] ").and_then(|()| out.flush());
        let mut answer = String::new();
        let read = stdin().read_line(&mut answer);
        let agreed = matches!(answer.trim(), "y" | "Y" | "yes");
        match read {
            Ok(_) if agreed => Ok(()),
            Ok(_) => Err(Failure::new(Class::Data, "go on: the answer was no")),
            Err(error) => Err(Failure::new(Class::Data, "read the answer").because(error)),
        }
    }
}
