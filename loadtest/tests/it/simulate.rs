//! The simulation, in the part that a run of all tests has time for. `cargo xtask simulate --seeds 10000`
//! goes further.

use crate::{loadtest, report};

#[test]
fn the_promises_hold_over_thousands_of_seeds() {
    let (code, report) = report(&mut loadtest(&["simulate", "--seeds", "3000", "--json"]));
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!((code, &report["seeds"]), (Some(0), &3_000.into()));
    let faults = report["faults"].as_object().unwrap();
    assert!(faults.len() >= 25, "{report}");
    assert!(
        faults.values().all(|count| count.as_u64() > Some(15)),
        "{report}"
    );
}
