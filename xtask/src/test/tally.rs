//! Reads what the test harness prints and counts: one line at the end says it all.

use std::fmt;

/// What the tests of all binaries came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: Vec<String>,
}

impl Tally {
    /// Takes one line of the harness.
    pub(crate) fn take(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.skipped += count(counts, "ignored");
        } else if let Some(name) = failure(line) {
            self.failures.push(name.to_owned());
        }
    }

    /// Prints and counts a step that is no test of the harness.
    pub(crate) fn take_step(&mut self, name: &str, success: bool) {
        let outcome = if success { "ok" } else { "FAILED" };
        println!("test {name} ... {outcome}");
        if success {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    /// Notes that cargo ended badly: a binary that crashed has no result line to be counted by.
    pub(crate) fn take_status(&mut self, success: bool) {
        if !success && self.failed == 0 {
            self.failed = 1;
            self.failures
                .push("cargo test ended with an error (see above)".to_owned());
        }
    }

    /// Whether something ran and nothing failed.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// The names of the tests that failed.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// The number before a word in `ok. 12 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u64 {
    counts
        .split(['.', ';'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The test that a line `test NAME ... FAILED` names.
fn failure(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix("FAILED")?;
    Some(name.trim_end().trim_end_matches("...").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.take(line);
        }
        tally
    }

    #[test]
    fn binaries_add_up() {
        let mut tally = tally(&[
            "running 3 tests",
            "test id::tests::long ... ok",
            "test a - b (line 3) ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s",
            "test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ]);
        tally.take_status(false);
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failures(), ["a - b (line 3)"]);
        assert!(!tally.is_good());
    }

    #[test]
    fn a_crash_without_a_result_is_a_failure() {
        let mut tally = tally(&["test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured"]);
        assert!(tally.is_good());
        tally.take_status(false);
        assert_eq!(tally.to_string(), "1 passed, 1 failed");
        assert!(!tally.is_good());
    }

    #[test]
    fn no_test_at_all_is_not_good() {
        let mut tally = Tally::default();
        tally.take_status(true);
        assert!(!tally.is_good());
        assert_eq!(tally.to_string(), "0 passed, 0 failed");
    }
}
