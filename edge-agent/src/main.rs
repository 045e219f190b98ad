//! The edge agent's command line.

fn main() {}
