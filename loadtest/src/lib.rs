//! Proof by load and fault: real processes, flaky links, and a simulation of the whole data path.
//!
//! Reading order: [`memory`] → `device` (the real session without an outside) → [`simulation`]
//! (the real cores, everything else simulated) → [`run`] (such devices over real connections) →
//! [`process`], [`proxy`], [`producer`], [`operator`], [`scratch`], [`stack`] (what a disturbed real system is made of) →
//! [`chaos`].

pub mod chaos;
pub mod cli;
mod device;
pub mod memory;
pub mod operator;
pub mod process;
pub mod producer;
pub mod proxy;
pub mod run;
pub mod scratch;
pub mod simulation;
pub mod stack;
