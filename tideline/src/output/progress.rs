//! How something goes on: one line that moves on a terminal, and elsewhere a line a step.

use std::io::{IsTerminal, stdout};

use super::table::terminal_width;

/// Characters of a whole bar.
const BAR: usize = 24;

/// A line that stays current.
#[derive(Debug)]
pub(crate) struct Progress {
    is_terminal: bool,
    shown: String,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: stdout().is_terminal(),
            shown: String::new(),
        }
    }

    /// Whether a line can move here.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows how things stand, if that is new.
    pub(crate) fn tell(&mut self, line: String) {
        if line == self.shown {
            return;
        }
        if self.is_terminal {
            let width = terminal_width().unwrap_or(usize::MAX);
            let line: String = line.chars().take(width.saturating_sub(1)).collect();
            // Back to the start of the line, and away with what is left of the last one.
            super::print_bytes(format!("\r{line}\x1b[K").as_bytes());
        } else {
            super::print(&line);
        }
        self.shown = line;
    }

    /// Leaves the line as it is.
    pub(crate) fn end(self) {
        if self.is_terminal && !self.shown.is_empty() {
            super::print("");
        }
    }
}

/// How much of 100 is done, to look at.
pub(crate) fn bar(percent: u64) -> String {
    let percent = percent.min(100);
    let done = BAR * usize::try_from(percent).unwrap_or(100) / 100;
    format!(
        "[{}{}] {percent:>3} %",
        "#".repeat(done),
        "·".repeat(BAR - done)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_empty_half_and_full() {
        assert_eq!(bar(0), "[························]   0 %");
        assert_eq!(bar(50), "[############············]  50 %");
        assert_eq!(bar(100), "[########################] 100 %");
        assert_eq!(bar(255), bar(100));
    }
}
