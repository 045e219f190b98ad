//! Rows that do not get through, and bridges that fail for everybody for a while: the first are set aside alone,
//! the second cost no reading.

use std::collections::BTreeMap;
use std::time::Duration;

use schema::RangeSet;
use schema::message::{Ack, RejectReason, Rejection};

use super::rig::{Edge, MS, Published, ack, range, set, small};
use crate::session::{Input, SessionConfig};

/// What the world does with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Read,
    Refuse,
    /// Nothing comes back.
    Swallow,
    /// The connection ends.
    Cut,
}

/// Lets the session live until `end`, with a fresh row now and then. Returns the longest time that
/// a fresh row waited until it was read, and how many connections ended.
fn live(
    edge: &mut Edge,
    end: Duration,
    fresh_every: Duration,
    mut does: impl FnMut(&RangeSet, Duration) -> Does,
) -> (Duration, usize) {
    let mut next_fresh = edge.now + fresh_every;
    let mut appended: BTreeMap<u64, Duration> = BTreeMap::new();
    let (mut longest, mut cuts) = (Duration::ZERO, 0);
    while edge.now < end {
        for Published { rows, digest } in edge.take_published() {
            edge.now += MS(1);
            match does(&rows, edge.now) {
                Does::Swallow => {}
                Does::Refuse => edge.input(Input::Refused(digest)),
                Does::Cut => {
                    cuts += 1;
                    edge.input(Input::Disconnected);
                    edge.published.clear();
                    edge.now += MS(1_000);
                    edge.input(Input::Connected);
                    break;
                }
                Does::Read => {
                    edge.input(Input::Acked(&ack(rows.as_slice())));
                    for seq in rows.iter().flat_map(|r| r.first()..=r.last()) {
                        if let Some(at) = appended.remove(&seq) {
                            longest = longest.max(edge.now - at);
                        }
                    }
                }
            }
        }
        if !edge.published.is_empty() {
            continue;
        }
        let wakeup = edge.session.next_wakeup().unwrap_or(end);
        edge.now = edge.now.max(wakeup.min(next_fresh));
        if edge.now >= next_fresh {
            next_fresh = edge.now + fresh_every;
            let seq = edge.session.last_seq() + 1;
            appended.insert(seq, edge.now);
            edge.append(range(seq, seq));
        } else {
            edge.input(Input::Timer);
        }
    }
    let waiting = appended.values().map(|at| end.saturating_sub(*at)).max();
    (longest.max(waiting.unwrap_or_default()), cuts)
}

fn with_window(batches: usize) -> SessionConfig {
    SessionConfig {
        window_batches: batches,
        refusal_stale: Duration::from_secs(60),
        ..small()
    }
}

#[test]
fn one_row_that_does_not_get_through_is_set_aside_alone_and_delays_no_fresh_one() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    for (how, window, wait_max) in [
        (Does::Refuse, 4, 2),
        (Does::Refuse, 1, 2),
        (Does::Swallow, 4, 2),
        // Its probe has the only place until its time is over.
        (Does::Swallow, 1, 20),
        (Does::Cut, 4, 5),
        (Does::Cut, 1, 5),
    ] {
        for bad in [1u64, 7, 30] {
            let mut edge = Edge::connected(with_window(window), &[range(1, 30)]);
            let fresh_every = Duration::from_secs(7);
            let does = |rows: &RangeSet, _| match rows.contains(bad) {
                true => how,
                false => Does::Read,
            };
            let (waited, cuts) = live(&mut edge, minutes(60), fresh_every, does);
            assert_eq!(edge.rejected, set(&[range(bad, bad)]), "{how:?} {window}");
            assert!(
                edge.settled.contains_range(range(31, 500)),
                "{how:?} {window}"
            );
            assert_eq!(edge.settled.intersection(&set(&[range(1, 30)])).count(), 29);
            let wait_max = Duration::from_secs(wait_max);
            assert!(waited <= wait_max, "{how:?} {window} {bad}: {waited:?}");
            assert!(cuts < 25, "{cuts} connections");
        }
    }
}

#[test]
fn the_last_row_of_all_is_never_set_aside() {
    for how in [Does::Refuse, Does::Swallow, Does::Cut] {
        let mut edge = Edge::connected(with_window(4), &[range(1, 8)]);
        let hours = Duration::from_secs(5 * 3600);
        let does = |rows: &RangeSet, _| match rows.contains(8) {
            true => how,
            false => Does::Read,
        };
        live(&mut edge, hours, 2 * hours, does);
        assert!(edge.rejected.is_empty(), "{how:?}");
        assert_eq!(edge.settled, set(&[range(1, 7)]), "{how:?}");
    }
}

/// The hole of an earlier rule: a bridge that does nothing right for a while, reads, and then fails
/// again just when a row is tried again.
#[test]
fn a_bridge_that_fails_for_everybody_for_a_while_costs_no_reading() {
    let hours = Duration::from_secs(6 * 3600);
    for how in [Does::Refuse, Does::Swallow, Does::Cut] {
        for (reads, fails, every) in [
            (5, 5, 3),
            (10, 60, 3),
            (60, 10, 3),
            (90, 90, 3),
            (90, 90, 40),
            (7, 600, 3),
        ] {
            let mut edge = Edge::connected(with_window(4), &[range(1, 30)]);
            let does = |_: &RangeSet, now: Duration| match now.as_secs() % (reads + fails) < reads {
                true => Does::Read,
                false => how,
            };
            live(&mut edge, hours, Duration::from_secs(every), does);
            assert!(
                edge.rejected.is_empty(),
                "{how:?} {reads} {fails}: {:?}",
                edge.rejected
            );
        }
        // And one that never does anything right.
        let mut edge = Edge::connected(with_window(4), &[range(1, 30)]);
        live(&mut edge, hours, Duration::from_secs(3), |_, _| how);
        assert!(edge.rejected.is_empty(), "{how:?}");
    }
}

#[test]
fn a_refusal_from_before_rows_were_offered_again_does_not_count() {
    let mut edge = Edge::connected(small(), &[range(1, 10)]);
    let first = edge.take_published();
    let refuse = |edge: &mut Edge, rows: &RangeSet| {
        let reason = RejectReason::TooNew;
        let rejected = rows.iter().map(|range| Rejection { range, reason });
        let ack = Ack {
            rejected: rejected.collect(),
            ..ack(&[])
        };
        edge.input(Input::Acked(&ack));
    };
    let rows = first[0].rows.clone();
    refuse(&mut edge, &rows);
    assert_eq!(edge.rejected, rows);
    // Offered again while the link takes nothing; the same acknowledgement comes once more.
    edge.input(Input::Pause);
    edge.rejected = RangeSet::new();
    edge.held.merge(&rows);
    edge.input(Input::Requeued(&rows));
    refuse(&mut edge, &rows);
    assert!(edge.rejected.is_empty(), "{:?}", edge.rejected);
    // Once it was sent, it counts.
    edge.input(Input::Resume);
    while !rows.intersection(&edge.held).is_empty() {
        assert!(edge.now < Duration::from_secs(60));
        for Published { rows, .. } in edge.take_published() {
            refuse(&mut edge, &rows);
        }
        edge.sleep();
    }
    assert_eq!(edge.rejected.intersection(&rows), rows);
}

#[test]
fn a_reader_that_reads_nothing_costs_no_reading() {
    let mut edge = Edge::connected(small(), &[range(1, 30)]);
    let mut refused = 0;
    let hours = Duration::from_secs(4 * 3600);
    while edge.now < hours {
        for Published { digest, .. } in edge.take_published() {
            refused += 1;
            edge.now += MS(1);
            edge.input(Input::Refused(digest));
        }
        edge.sleep();
    }
    assert!(edge.rejected.is_empty());
    assert!(refused < 4 * 60 * 4, "{refused} refusals in four hours");
    // The bridge is upgraded: everything arrives.
    for _ in 0..200 {
        for Published { rows, .. } in edge.take_published() {
            edge.now += MS(1);
            edge.input(Input::Acked(&ack(rows.as_slice())));
        }
        if edge.session.is_idle() {
            break;
        }
        edge.sleep();
    }
    assert_eq!(edge.settled, set(&[range(1, 30)]));
}
