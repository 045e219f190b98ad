//! What one commit writes of the epochs: their accounts where they differ from the file's, and what is of no one
//! epoch. The plan is made beside what stands; only a commit that succeeded puts it in its place.

use schema::{Balance, RangeSet, SeqRange};

use super::Ledgers;
use crate::buffer::account::{Account, Counts};
use crate::buffer::log::{Entry, Ids, Kind, RangeOf, Write};

/// What one commit writes of the epochs, and what they are once it is done.
#[derive(Debug)]
pub(in crate::buffer) struct Plan {
    pub(super) changed: Vec<Changed>,
    pub(super) gone: RangeSet,
    forgotten: RangeSet,
    past: Past,
    /// Changes to rows of the log that belong to no single epoch.
    shared: Vec<Write>,
}

#[derive(Debug)]
pub(super) struct Changed {
    /// Among the ended ones; the current one stands behind them.
    pub(super) index: usize,
    account: Account,
    writes: Vec<Write>,
    is_finished: bool,
}

/// The counts of epochs that are forgotten, and how the file has them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Past {
    counts: Counts,
    id: Option<i64>,
}

impl Ledgers {
    /// What a commit writes that adds the rows up to `last_row` and evicts these.
    pub(in crate::buffer) fn plan(
        &self,
        last_row: u64,
        evicted: &RangeSet,
        at_ms: u64,
        ids: &mut Ids,
    ) -> Plan {
        let mut plan = Plan {
            changed: Vec::new(),
            gone: self.gone.clone(),
            forgotten: self.forgotten.clone(),
            past: self.past,
            shared: Vec::new(),
        };
        for (index, ledger) in self.all().enumerate() {
            let run = ledger.run();
            let hit = match (run, evicted.is_empty()) {
                (Some(run), false) => run.seqs_of(evicted),
                _ => RangeSet::new(),
            };
            let is_current = index == self.ended.len();
            if !(is_current || ledger.is_dirty) && hit.is_empty() {
                continue;
            }
            let mut account = ledger.account.clone();
            if is_current {
                account.accept(last_row - ledger.base);
                if account.last_seq() == 0 {
                    // An epoch without rows leaves no trace.
                    continue;
                }
            }
            account.evict(&hit);
            let is_finished = ledger.is_ended && account.is_finished();
            if let Some(run) = run.filter(|_| ledger.is_ended && account.holds_nothing()) {
                plan.gone.extend(SeqRange::new(run.base + 1, run.last_row));
            }
            let writes = match is_finished {
                true => {
                    plan.past.counts += account.counts();
                    let rows = SeqRange::new(ledger.base + 1, ledger.base + account.last_seq());
                    // An agent 0.1 kept no base of an epoch without rows: it would be another's.
                    let rows = rows.filter(|rows| plan.gone.contains_range(*rows));
                    plan.forgotten.extend(rows);
                    ledger.book.removal()
                }
                false => ledger.changes(&account, at_ms, ids),
            };
            plan.changed.push(Changed {
                index,
                account,
                writes,
                is_finished,
            });
        }
        let of = (self.current.account.epoch(), at_ms);
        let mut named = plan.gone.clone();
        named.subtract(&plan.forgotten);
        let shared = &mut plan.shared;
        for (said, rows) in [
            (RangeOf::Gone, &named),
            (RangeOf::Forgotten, &plan.forgotten),
            (RangeOf::Again, &self.again),
        ] {
            self.kept.changes(said, rows, of, ids, shared);
        }
        if plan.past.counts != self.past.counts {
            let id = *plan.past.id.get_or_insert_with(|| ids.next());
            shared.push(Write::Put(Entry {
                id,
                kind: Kind::Past,
                epoch: self.current.account.epoch(),
                at_ms,
                first_seq: 0,
                last_seq: 0,
                counts: plan.past.counts,
                hlc: 0,
                note: String::new(),
            }));
        }
        plan
    }

    /// Takes note that the plan was committed.
    pub(in crate::buffer) fn committed(&mut self, plan: Plan) {
        let mut finished = Vec::new();
        for changed in plan.changed {
            let ledger = match self.ended.get_mut(changed.index) {
                Some(ledger) => ledger,
                None => &mut self.current,
            };
            ledger.account = changed.account;
            ledger.book.committed(&changed.writes);
            ledger.is_dirty = false;
            if changed.is_finished {
                finished.push(changed.index);
            }
        }
        for index in finished.into_iter().rev() {
            self.ended.remove(index);
        }
        self.gone = plan.gone;
        self.forgotten = plan.forgotten;
        self.past = plan.past;
        self.kept.committed(&plan.shared);
    }
}

impl Plan {
    /// The rows of `sync_log` that change.
    pub(in crate::buffer) fn writes(&self) -> impl Iterator<Item = &Write> {
        self.changed
            .iter()
            .flat_map(|changed| &changed.writes)
            .chain(&self.shared)
    }
}

impl Past {
    /// As the file has it.
    pub(super) fn restore(entries: &[Entry]) -> Self {
        let past = entries.iter().find(|entry| entry.kind == Kind::Past);
        past.map_or_else(Self::default, |entry| Self {
            counts: entry.counts,
            id: Some(entry.id),
        })
    }

    pub(super) fn balance(&self) -> Balance {
        self.counts.balance(self.counts.sum(), 0, 0)
    }
}
