//! Commands under simulated time, network and crashes: the devices' real core, the stores' real
//! rules, and what a dispatcher does.
//!
//! ```text
//! operator ─► store (rules) ─► bridge: claim, commit ┄ publish ─► network ─► core ─► disk, work
//!               ▲                                                              │
//!               └────────── commit ┄ noted ◄── bridge ◄── network ◄ reports ◄──┘
//! ```
//!
//! A crash may fall into every gap: of a bridge between a commit and what it publishes for it, of
//! a device before, during and after each write and each run. A write under way is on the disk
//! after a crash, or not. Clocks of devices jump within the bound that the margins are made for.
//!
//! P7 is checked whenever work starts, and each outcome when everything has settled.

mod check;
mod device;
mod plan;
mod store;
mod world;

use super::{Seen, Violation};

/// Runs one seed, and adds to what was seen.
pub(super) fn run(seed: u64, seen: &mut Seen) -> Result<(), Violation> {
    let mut world = world::World::new(seed);
    world.run()?;
    for (fault, count) in world.faults() {
        *seen.faults.entry(*fault).or_default() += count;
    }
    for known in world.store.commands.values() {
        *seen
            .commands
            .entry(known.standing.state.as_str())
            .or_default() += 1;
    }
    Ok(())
}
