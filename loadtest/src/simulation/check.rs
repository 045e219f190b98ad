//! The promises, held against what is left when everything has settled.

use std::collections::BTreeMap;

use schema::Version;
use schema::lww::{self, Outcome};

use super::Violation;
use super::store::Key;
use super::world::World;

/// P1, P2, P3 and P8.
pub(super) fn all(world: &World) -> Result<(), Violation> {
    readings(world)?;
    rows(world)?;
    ledger(world)
}

/// P1: every accepted reading is committed, or was refused or evicted for a reason.
fn readings(world: &World) -> Result<(), Violation> {
    for reading in &world.accepted {
        let lost = Violation::Lost {
            device: reading.device.clone(),
            seq: reading.seq,
        };
        let Some(ledger) = world
            .store
            .ledger
            .get(&(reading.device.clone(), reading.epoch))
        else {
            return Err(lost);
        };
        let committed = ledger.committed.contains(reading.seq);
        let set_aside =
            ledger.rejected.contains(reading.seq) || ledger.evicted.contains(reading.seq);
        if reading.is_bad && committed {
            return Err(Violation::BadAdmitted {
                device: reading.device.clone(),
                seq: reading.seq,
            });
        }
        let refused_good = ledger.rejected.contains(reading.seq) && !reading.is_bad;
        if refused_good || !(committed || set_aside) {
            return Err(lost);
        }
    }
    Ok(())
}

/// P2 and P3: the table is what the pure rule makes of the committed readings, in any order.
fn rows(world: &World) -> Result<(), Violation> {
    let mut expected: BTreeMap<&Key, (Version, &schema::Value)> = BTreeMap::new();
    for reading in &world.accepted {
        let key = (reading.device.clone(), reading.epoch);
        let committed = world
            .store
            .ledger
            .get(&key)
            .is_some_and(|ledger| ledger.committed.contains(reading.seq));
        if !committed {
            continue;
        }
        let stored = expected.get(&reading.key).map(|(version, _)| *version);
        match lww::resolve(stored, reading.version) {
            Outcome::First | Outcome::Newer => {
                expected.insert(&reading.key, (reading.version, &reading.value));
            }
            Outcome::Older | Outcome::Same => {}
        }
    }
    let same = expected.len() == world.store.rows.len()
        && world
            .store
            .rows
            .iter()
            .all(|(key, (version, value))| expected.get(key) == Some(&(*version, value)));
    if same {
        Ok(())
    } else {
        Err(Violation::Rows {
            expected: expected.len(),
            found: world.store.rows.len(),
        })
    }
}

/// P8: both ends' counts add up, and agree on what there was.
fn ledger(world: &World) -> Result<(), Violation> {
    for agent in &world.agents {
        let edge = agent.buffer.balance();
        let key = (agent.device.clone(), agent.buffer.epoch());
        let ledger = world.store.ledger.get(&key).cloned().unwrap_or_default();
        let settlement = ledger.settle(edge.accepted, edge.pending);
        let agrees = settlement.balance.accepted == edge.accepted
            && settlement.balance.pending == edge.pending
            && settlement.balance.is_balanced()
            && settlement.unaccounted == 0
            && edge.is_balanced();
        if !agrees {
            return Err(Violation::Ledger {
                device: agent.device.clone(),
                edge,
                central: settlement.balance,
            });
        }
    }
    Ok(())
}
