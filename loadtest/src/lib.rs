//! Proof by load and fault: real processes, flaky links, and a simulation of the whole data path.
//!
//! Reading order: [`process`] and [`proxy`], what a disturbed system is made of.

pub mod memory;
pub mod process;
pub mod proxy;
