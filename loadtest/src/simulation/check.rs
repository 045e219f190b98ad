//! The promises, held against what is left when everything has settled.

use std::collections::BTreeMap;

use schema::{Value, Version};

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
            ledger.discarded.contains(reading.seq) || ledger.evicted.contains(reading.seq);
        if reading.is_bad && committed {
            return Err(Violation::BadAdmitted {
                device: reading.device.clone(),
                seq: reading.seq,
            });
        }
        let refused_good = ledger.discarded.contains(reading.seq) && !reading.is_bad;
        if refused_good || !(committed || set_aside) {
            return Err(lost);
        }
    }
    Ok(())
}

/// P2 and P3: the table holds, of each key, the highest committed version and nothing else. Said
/// here in other words than the code under test has for it.
fn rows(world: &World) -> Result<(), Violation> {
    let mut expected: BTreeMap<&Key, (Version, &Value)> = BTreeMap::new();
    for reading in &world.accepted {
        let key = (reading.device.clone(), reading.epoch);
        let ledger = world.store.ledger.get(&key);
        if !ledger.is_some_and(|ledger| ledger.committed.contains(reading.seq)) {
            continue;
        }
        let rank = |version: &Version| (version.hlc.bits(), version.epoch.get(), version.seq);
        let best = expected
            .entry(&reading.key)
            .or_insert((reading.version, &reading.value));
        if rank(&reading.version) > rank(&best.0) {
            *best = (reading.version, &reading.value);
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
        let key = (agent.id.clone(), agent.buffer.epoch());
        let ledger = world.store.ledger.get(&key).cloned().unwrap_or_default();
        let settlement = ledger.settle(edge.accepted, edge.held());
        let agrees = settlement.balance.accepted == edge.accepted
            && settlement.balance.pending == edge.pending
            && settlement.balance.is_balanced()
            && settlement.unaccounted == 0
            && edge.is_balanced();
        if !agrees {
            return Err(Violation::Ledger {
                device: agent.id.clone(),
                edge,
                central: settlement.balance,
            });
        }
    }
    Ok(())
}
