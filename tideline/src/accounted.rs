//! What the ledger's counts mean, in words for people. "Every reading is accounted for" is said only
//! when each has its row, waits for it, or ended by its owner's policy: what is in quarantine or was
//! discarded is named, with how many, why, and what to do about it.

use std::collections::BTreeMap;

use schema::Balance;
use serde::Serialize;

use crate::output::{form, many};

/// What is not plainly well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Exceptions {
    /// In quarantine, by reason.
    pub(crate) quarantined_by_reason: BTreeMap<String, u64>,
    /// Discarded, by whom.
    pub(crate) discarded_by: BTreeMap<String, u64>,
}

impl Exceptions {
    /// Counts some more in quarantine.
    pub(crate) fn quarantine(&mut self, reason: &str, readings: u64) {
        *self
            .quarantined_by_reason
            .entry(reason.to_owned())
            .or_default() += readings;
    }

    /// Counts some more as discarded.
    pub(crate) fn discard(&mut self, by: &str, readings: u64) {
        *self.discarded_by.entry(by.to_owned()).or_default() += readings;
    }

    /// A bridge of 0.1 does not say who discarded: what it rejected, its agents had freed.
    pub(crate) fn completed(mut self, balance: &Balance) -> Self {
        if self.discarded_by.is_empty() && balance.discarded > 0 {
            self.discard("older_agent", balance.discarded);
        }
        self
    }

    /// What the quarantine's budget discarded: counted, and lost all the same.
    pub(crate) fn overflowed(&self) -> u64 {
        let by_budget = self.discarded_by.get("quarantine_budget");
        by_budget.copied().unwrap_or(0)
    }
}

/// The sentences on some counts. `device` is named in what to do.
pub(crate) fn sentences(
    balanced: bool,
    unaccounted: u64,
    exceptions: &Exceptions,
    device: &str,
) -> Vec<String> {
    let mut said = Vec::new();
    let held: u64 = exceptions.quarantined_by_reason.values().sum();
    let discarded: u64 = exceptions.discarded_by.values().sum();
    match (balanced, unaccounted) {
        (true, _) if held == 0 && discarded == 0 => {
            said.push("every reading is accounted for".to_owned());
        }
        (true, _) => said.push("no reading is missing".to_owned()),
        (false, 0) => said.push(
            "NOT in balance: rows are missing, altered or too many. `tideline audit` and whoever else writes \
             to the database say why; a backup has what is gone: docs/ledger.md"
                .to_owned(),
        ),
        (false, lost) => said.push(format!(
            "NOT in balance: {} {} not accounted for; if the database was restored \
             from a backup, `tideline ledger accept-loss {device}` closes the books",
            many(lost, "reading"),
            form(lost, "is", "are")
        )),
    }
    if held > 0 {
        let reasons = list(&exceptions.quarantined_by_reason, |reason| {
            reason.to_owned()
        });
        said.push(format!(
            "{} {} in quarantine ({reasons}): refused for now, kept on the device; \
             mend the cause and `tideline device requeue {device}`, or give them up with \
             `tideline device discard {device}`",
            many(held, "reading"),
            form(held, "is", "are")
        ));
    }
    if discarded > 0 {
        let by = list(&exceptions.discarded_by, |by| match by {
            "person" => "by a person".to_owned(),
            "quarantine_budget" => "because the quarantine was full".to_owned(),
            "older_agent" => "by an agent of 0.1, which has no quarantine".to_owned(),
            other => format!("by {other}"),
        });
        let were = form(discarded, "was", "were");
        said.push(format!(
            "{} {were} discarded: {by}",
            many(discarded, "reading")
        ));
        if exceptions.overflowed() > 0 {
            said.push(
                "give the quarantine more room ([buffer] quarantine_rows_max in the agent's \
                 settings), and see to what it holds: docs/ledger.md"
                    .to_owned(),
            );
        }
    }
    said
}

fn list(counts: &BTreeMap<String, u64>, name: impl Fn(&str) -> String) -> String {
    let parts: Vec<String> = counts
        .iter()
        .map(|(key, count)| format!("{count} {}", name(key)))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_well_is_said_only_when_it_is() {
        let said = |balanced, unaccounted, exceptions: &Exceptions| {
            sentences(balanced, unaccounted, exceptions, "press-7").join("\n")
        };
        let none = Exceptions::default();
        assert_eq!(said(true, 0, &none), "every reading is accounted for");
        let text = said(false, 0, &none);
        assert!(
            text.starts_with("NOT in balance") && text.contains("backup"),
            "{text}"
        );
        assert!(said(false, 3, &none).contains("accept-loss press-7"));

        let mut some = Exceptions::default();
        some.quarantine("too_new", 2);
        some.quarantine("unstorable", 1);
        let text = said(true, 0, &some);
        assert!(!text.contains("every reading"), "{text}");
        assert!(text.contains("3 readings are in quarantine (2 too_new, 1 unstorable)"));
        assert!(text.contains("device requeue press-7"), "{text}");
        assert_eq!(some.overflowed(), 0);

        let mut gone = Exceptions::default();
        gone.discard("quarantine_budget", 4);
        gone.discard("person", 1);
        let text = said(true, 0, &gone);
        assert!(!text.contains("every reading"), "{text}");
        assert!(text.contains(
            "5 readings were discarded: 1 by a person, 4 because the quarantine was full"
        ));
        assert!(text.contains("more room"), "{text}");
        assert_eq!(gone.overflowed(), 4);
    }
}
