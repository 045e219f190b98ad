//! The promises, held against what is left when everything has settled. That no reading is lost is
//! checked while the simulation runs, too; see `oracle`.

use std::collections::BTreeMap;

use bridge::admit::Bounds;
use schema::Version;
use schema::message::RejectReason;

use super::Violation;
use super::oracle::Key;
use super::world::World;

/// P1, P2, P3 and P8.
pub(super) fn all(world: &World) -> Result<(), Violation> {
    quarantine(world)?;
    rows(world)?;
    ledger(world)
}

/// P1: a person had everything offered again, so only what is bad, or carries a time that nobody
/// can believe, is still set aside.
fn quarantine(world: &World) -> Result<(), Violation> {
    let bounds = Bounds::default();
    let now = world.bridge_wall_micros();
    let past = i64::try_from(bounds.past_max.as_micros()).unwrap_or(i64::MAX);
    let future = i64::try_from(bounds.future_max.as_micros()).unwrap_or(i64::MAX);
    for agent in &world.agents {
        let Some(of) = world.oracle.readings.get(&agent.id) else {
            continue;
        };
        for (&(epoch, seq), known) in of {
            let Some((reason, times)) = agent.buffer.quarantined(epoch, seq) else {
                continue;
            };
            let believable = times
                .iter()
                .all(|time| (now - past..=now + future).contains(&time.micros()));
            let is_of_time = matches!(reason, RejectReason::TooOld | RejectReason::TooNew);
            let is_justified = known.is_bad || (is_of_time && !believable);
            if !is_justified {
                return Err(Violation::Refused {
                    device: agent.id.clone(),
                    seq,
                    reason: reason.as_str(),
                });
            }
        }
    }
    Ok(())
}

/// P2 and P3: the table holds, of each key, the highest committed version and nothing else. Said
/// here in other terms than the code under test has for it. And P8 for the committed: each is a row,
/// or superseded, or expired.
fn rows(world: &World) -> Result<(), Violation> {
    let mut expected: BTreeMap<&Key, Version> = BTreeMap::new();
    for known in world.oracle.readings.values().flat_map(BTreeMap::values) {
        let Some((key, version)) = &known.stored else {
            continue;
        };
        let rank = |version: &Version| (version.hlc.bits(), version.epoch.get(), version.seq);
        let best = expected.entry(key).or_insert(*version);
        if rank(version) > rank(best) {
            *best = *version;
        }
    }
    if let Some(horizon) = world.oracle.horizon {
        expected.retain(|key, _| key.2 >= horizon);
    }
    let found = world.store.memory().rows();
    let is_young = |key: &Key| world.oracle.horizon.is_none_or(|horizon| key.2 >= horizon);
    let young = found.iter().filter(|(key, _)| is_young(key));
    let same = young.clone().count() == expected.len()
        && young
            .clone()
            .all(|(key, row)| expected.get(key) == Some(&row.version));
    if same {
        Ok(())
    } else {
        Err(Violation::Rows {
            expected: expected.len(),
            found: found.len(),
        })
    }
}

/// P8: the device's counts add up, and both ends agree on what became of each reading.
fn ledger(world: &World) -> Result<(), Violation> {
    for agent in &world.agents {
        let edge = agent.buffer.balance();
        let broken = |central| Violation::Ledger {
            device: agent.id.clone(),
            edge,
            central,
        };
        if !edge.is_balanced() {
            return Err(broken(edge));
        }
        for account in agent.buffer.report() {
            let ledger = world.store.ledger(&agent.id, account.epoch);
            let balance = account.balance;
            // It adds up as it is made; what it says is held against the device.
            let settlement = ledger.settle(balance.accepted, balance.held());
            let central = settlement.balance;
            // Where a disk was put back, the ledger knows of more than this disk does; and of a reading that
            // was committed just before it was given up the device need not have heard.
            let agrees = world.was_replaced(&agent.id)
                || central.accepted == balance.accepted
                    && central.pending == balance.pending
                    && central.quarantined == balance.quarantined
                    && central.committed >= balance.committed;
            if settlement.unaccounted > 0 || !agrees {
                return Err(broken(central));
            }
        }
    }
    Ok(())
}
