//! Proof by load and fault: real processes, flaky links, and a simulation of the whole data path.
//!
//! Reading order: [`memory`] → [`simulation`] (the real cores, everything else simulated) →
//! [`process`], [`proxy`], [`producer`], [`stack`] (what a disturbed real system is made of) →
//! [`chaos`].

pub mod chaos;
pub mod cli;
pub mod memory;
pub mod process;
pub mod producer;
pub mod proxy;
pub mod simulation;
pub mod stack;
