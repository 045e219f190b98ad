//! What is known of epochs' ledgers, and the next state of each, which a write makes so or does not.

use schema::ObservedAt;

use super::super::ledger::plan::{Intake, NewRow};
use super::super::ledger::{EpochState, Group, Run, Span, grow};

/// What is known of epochs, and in which era of the connections all of it was learnt, or later.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) states: Vec<Option<EpochState>>,
    pub(super) era: u64,
}

impl Known {
    /// Nothing yet, of so many epochs.
    pub(super) fn nothing(epochs: usize) -> Self {
        Self {
            states: vec![None; epochs],
            era: 0,
        }
    }
}

/// The next state of one buffer file's ledger, not yet committed.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) group: usize,
    pub(super) of: &'a Group,
    pub(super) version: i64,
    pub(super) mergeable: bool,
    /// As of its [`EpochState`].
    pub(super) marked_before: Option<ObservedAt>,
    pub(super) spans: Vec<Span>,
}

/// The heads that a part moves, or `None` when a state is missing.
pub(super) fn heads<'a>(
    intake: &'a Intake<'_>,
    part: &[NewRow],
    states: &[Option<EpochState>],
) -> Option<Vec<Head<'a>>> {
    let mut heads = Vec::new();
    for (group, mut runs) in intake.runs(part) {
        let of = &intake.groups[group];
        let state = states[group].as_ref()?;
        runs.extend(of.claimed(state));
        heads.push(Head::new(group, of, state, &runs));
    }
    // All writers lock rows in one order.
    heads.sort_by(Head::by_key);
    Some(heads)
}

impl<'a> Head<'a> {
    pub(super) fn new(group: usize, of: &'a Group, state: &EpochState, runs: &[Run]) -> Self {
        let (spans, mergeable) = grow(state, runs, of.received_at);
        Self {
            group,
            of,
            version: state.version,
            mergeable,
            marked_before: state.marked_before,
            spans,
        }
    }

    pub(super) fn by_key(a: &Self, b: &Self) -> std::cmp::Ordering {
        (&a.of.device, a.of.epoch).cmp(&(&b.of.device, b.of.epoch))
    }
}

/// What is known after a commit.
pub(super) fn advance(state: &mut Option<EpochState>, spans: Vec<Span>) {
    if let Some(state) = state {
        state.version += 1;
        state.is_remembered = false;
        for span in spans {
            state.put(span);
        }
    }
}
