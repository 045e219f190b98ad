//! Logs: events with fields on standard error, as text for people or JSON lines for collectors.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::failure::{Class, Failure};

/// How a log event is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `filter` is a level or a list of directives as `info,edge_agent=debug`;
/// the environment's `RUST_LOG` wins over it.
///
/// # Errors
/// A configuration [`Failure`] when the filter cannot be understood or logging runs already.
pub fn start(format: Format, filter: &str) -> Result<(), Failure> {
    let directives = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = parse(&directives)?;
    // Colors are for people at a terminal; in files and collectors they are noise.
    let colors = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colors)
        .with_writer(std::io::stderr);
    match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| Failure::new(Class::Configuration, "start logging").because(error))
}

fn parse(directives: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(directives).map_err(|error| {
        Failure::new(
            Class::Configuration,
            format!("understand log filter {directives:?}"),
        )
        .because(error)
        .help("use a level (error, warn, info, debug, trace) or target=level pairs")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_understood_is_named() {
        assert!(parse("info,edge_agent=debug").is_ok());
        let error = parse("edge_agent=loud").unwrap_err();
        assert!(error.to_string().contains("edge_agent=loud"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
