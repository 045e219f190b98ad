//! Benchmarks: figures with a reference measured in the same run, because machines differ.
//!
//! Each module measures one hot path and gives its figures back; this one chooses, prints, and
//! sees to it that optimised code is measured. Benchmarks are no tests: nothing here fails
//! because something was slow.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use daemon::Failure;

use crate::supervisor::Supervisor;
use crate::workspace;

mod codec;
mod dataset;
mod figure;

pub(crate) use figure::Figure;

/// How long everything may take, with the build of all dependencies.
const TIME_MAX: Duration = Duration::from_secs(2 * 60 * 60);

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
    /// Measure in this process, which has been built for it
    #[arg(long, hide = true)]
    measure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Bytes and nanoseconds a reading, beside JSON and postcard rows
    Codec,
}

/// Runs benchmarks. The process that a person starts keeps the servers; its child, built with
/// optimisation, measures.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    if !options.measure {
        return delegate();
    }
    if options.wants(Which::Codec) {
        codec::run(&options.data, |figure| figure.print(options.json))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds this program with optimisation and lets it measure, beside the servers it needs.
fn delegate() -> Result<ExitCode, Failure> {
    let mut supervisor = Supervisor::new()?;
    let mut command = workspace::cargo();
    command
        // Data files are named from where the person is.
        .current_dir(".")
        .args(["run", "--quiet", "--locked", "--release"])
        .args(["--package", "xtask", "--", "bench", "--measure"])
        .args(std::env::args_os().skip(2));
    eprintln!("building with optimisation: figures of a debug build mean nothing");
    let status = supervisor.run("measure", command, TIME_MAX)?;
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

impl Options {
    fn wants(&self, which: Which) -> bool {
        self.which.is_none_or(|wanted| wanted == which)
    }
}
