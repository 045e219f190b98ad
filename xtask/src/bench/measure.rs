//! Measures what was asked for, in this process, and prints each figure as soon as it is known.

use daemon::Failure;

use super::{Options, Which, codec};

/// Measures and prints.
pub(super) fn run(options: &Options) -> Result<(), Failure> {
    if options.wants(Which::Codec) {
        codec::run(&options.data, |figure| figure.print(options.json))?;
    }
    Ok(())
}

impl Options {
    fn wants(&self, which: Which) -> bool {
        self.which.is_none_or(|wanted| wanted == which)
    }
}
