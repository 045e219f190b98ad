//! The simulation, as CI runs it.

use crate::{loadtest, report};

#[test]
fn the_promises_hold_over_ten_thousand_seeds() {
    let (code, report) = report(&mut loadtest(&["simulate", "--seeds", "10000", "--json"]));
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!((code, &report["seeds"]), (Some(0), &10_000.into()));
    let faults = report["faults"].as_object().unwrap();
    assert!(faults.len() >= 15, "{report}");
    assert!(
        faults.values().all(|count| count.as_u64() > Some(100)),
        "{report}"
    );
}
