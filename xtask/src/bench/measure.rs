//! Measures what was asked for, in this process, and prints each figure as soon as it is known.

use daemon::{Class, Failure};

use super::{Options, POSTGRES_VARIABLE, Which, buffer, codec, command, end_to_end, ingest, soak};

/// Measures and prints.
pub(super) fn run(options: &Options) -> Result<(), Failure> {
    if options.wants(Which::Codec) {
        codec::run(&options.data, |figure| figure.print(options.json))?;
    }
    if options.wants(Which::Buffer) {
        buffer::run(|figure| figure.print(options.json))?;
    }
    if options.wants(Which::Ingest) {
        let url = database("ingest")?;
        ingest::run(&url, |figure| figure.print(options.json))?;
    }
    if options.wants(Which::Command) {
        let url = database("commands")?;
        command::run(&url, |figure| figure.print(options.json))?;
    }
    if options.wants(Which::EndToEnd) {
        let url = database("end to end")?;
        end_to_end::run(&url, |figure| figure.print(options.json))?;
    }
    if options.which == Some(Which::Soak) {
        let rows = options.rows.unwrap_or(soak::ROWS);
        soak::run(&database("the soak")?, rows, |figure| {
            figure.print(options.json);
        })?;
    }
    Ok(())
}

/// Where the server is that was started for this.
fn database(what: &str) -> Result<String, Failure> {
    std::env::var(POSTGRES_VARIABLE).map_err(|_| {
        Failure::new(Class::Configuration, format!("measure {what}"))
            .because(format!("{POSTGRES_VARIABLE} is not set"))
            .help("run it through `cargo xtask bench`, which starts a PostgreSQL")
    })
}

impl Options {
    fn wants(&self, which: Which) -> bool {
        self.which.is_none_or(|wanted| wanted == which)
    }
}
