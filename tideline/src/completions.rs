//! `tideline completions`: what a shell completes after `tideline`.

use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell as Generator;
use daemon::Failure;

use crate::output;

/// What a shell completes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline completions bash > ~/.local/share/bash-completion/completions/tideline\n  \
                        tideline completions zsh > ~/.zfunc/_tideline        (a folder of `fpath`)\n  \
                        tideline completions fish > ~/.config/fish/completions/tideline.fish")]
pub struct Options {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
///
/// # Errors
/// None.
pub fn run(options: &Options, mut command: Command) -> Result<ExitCode, Failure> {
    let shell = match options.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "tideline", &mut script);
    output::print_bytes(&script);
    Ok(ExitCode::SUCCESS)
}
