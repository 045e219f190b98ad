//! The simulation, in the part that a run of all tests has time for; CI runs `cargo xtask simulate` beside
//! it.

use crate::{loadtest, report};

#[test]
fn the_promises_hold_over_a_thousand_seeds() {
    let (code, report) = report(&mut loadtest(&["simulate", "--seeds", "1000", "--json"]));
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!((code, &report["seeds"]), (Some(0), &1_000.into()));
    let faults = report["faults"].as_object().unwrap();
    assert!(faults.len() >= 25, "{report}");
    assert!(
        faults.values().all(|count| count.as_u64() > Some(5)),
        "{report}"
    );
}
