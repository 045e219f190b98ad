//! Benchmarks: figures with a reference measured in the same run, because machines differ.
//!
//! Each module measures one hot path and gives its figures back; this one chooses, prints, and
//! sees to it that optimised code is measured. Benchmarks are no tests: nothing here fails
//! because something was slow.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};
use daemon::{Class, Failure};

mod codec;
mod dataset;
mod figure;

pub(crate) use figure::Figure;

/// Measures the hot paths beside a reference.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure; everything when left out
    which: Option<Which>,
    /// Print JSON lines, one a figure: name, value, unit, reference, ratio
    #[arg(long)]
    json: bool,
    /// Sensor data files for `codec`: `interval_seconds,name:type,…`, then one row a scan
    #[arg(long, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Bytes and nanoseconds a reading, beside JSON and postcard rows
    Codec,
}

/// Runs benchmarks, as a release build.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    if cfg!(debug_assertions) {
        return run_optimised();
    }
    let wanted = |which| options.which.is_none_or(|one| one == which);
    if wanted(Which::Codec) {
        codec::run(&options.data, |figure| figure.print(options.json))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs this same command line again, built with optimisation.
fn run_optimised() -> Result<ExitCode, Failure> {
    eprintln!("building with optimisation (figures of a debug build mean nothing)");
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1))
        .status()
        .map_err(|error| {
            Failure::new(Class::Configuration, "start cargo for a release build").because(error)
        })?;
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
