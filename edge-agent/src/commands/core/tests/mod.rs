//! The core step by step, over a table in memory that answers when it is told to: `stages` from an order to its end,
//! `restart` what the disk knows from before, `bounds`, `reporting`, and `random` inputs in any order.

mod bounds;
mod random;
mod reporting;
mod restart;
mod rig;
mod stages;
