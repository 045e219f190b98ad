//! The rules one by one: what is sent when, and what follows from each answer.

use std::time::Duration;

use schema::message::{Ack, RejectReason, Rejection};
use schema::{Epoch, RangeSet};

use super::rig::{Edge, MS, ack, range, set, small};
use crate::session::sending::NOT_SENT_PAUSE;
use crate::session::{Effect, Input, REPORT_GAP, SessionConfig, Tuning};

#[test]
fn nothing_is_sent_before_the_link_is_up_and_a_report_comes_first() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    edge.append(range(6, 7));
    assert!(edge.published.is_empty());
    assert_eq!(edge.session.next_wakeup(), None);
    edge.input(Input::Connected);
    assert_eq!(edge.reports, 1);
    assert_eq!(edge.published[0].rows, set(&[range(1, 7)]));
}

#[test]
fn an_acknowledgement_settles_and_the_idle_session_only_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.now = MS(40);
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    assert!(edge.session.is_idle());
    assert_eq!(edge.settled, set(&[range(1, 5)]));
    assert_eq!(edge.session.ack_latency(), Some(MS(40)));
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(60)));
}

/// The answer to a report names all that is in quarantine: another report would say the same again.
#[test]
fn what_is_in_quarantine_is_reported_at_the_interval_and_no_sooner() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let refused = Ack {
        rejected: vec![Rejection {
            range: range(1, 5),
            reason: RejectReason::TooOld,
        }],
        ..ack(&[])
    };
    // The count is new, so it is reported.
    edge.input(Input::Acked(&refused));
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(1)));
    for report in 2..5 {
        edge.sleep();
        assert_eq!(edge.reports, report);
        edge.input(Input::Acked(&refused));
    }
    assert_eq!(edge.now, Duration::from_secs(1 + 2 * 60));
}

#[test]
fn a_lost_acknowledgement_costs_one_retransmission() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let first = edge.take_published();
    edge.sleep();
    assert_eq!(edge.now, Duration::from_secs(5));
    let second = edge.take_published();
    assert_eq!(second.len(), 1);
    assert_eq!(first[0].rows, second[0].rows);
    assert_eq!(edge.retransmissions, 1);
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    // Karn: which of the two was acknowledged is not known.
    assert_eq!(edge.session.ack_latency(), None);
    edge.sleep_until(Duration::from_secs(59));
    assert!(edge.published.is_empty());
}

#[test]
fn a_silent_bridge_is_probed_with_one_batch_ever_more_rarely() {
    let mut edge = Edge::connected(small(), &[range(1, 100)]);
    assert_eq!(edge.take_published().len(), 1, "the burst is one batch");
    edge.sleep_until(MS(4_900));
    let before = edge.take_published().len();
    assert_eq!(before, 2);
    edge.sleep_until(Duration::from_secs(3600));
    let probes = edge.take_published().len();
    // Three losses of the first window, then 10, 20, 40 and from there 60 seconds apart.
    assert!((55..75).contains(&probes), "{probes} probes in an hour");
}

#[test]
fn a_disconnect_returns_what_was_in_flight() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.input(Input::Disconnected);
    assert_eq!(edge.session.in_flight().batches, 0);
    assert_eq!(edge.session.next_wakeup(), None);
    edge.append(range(6, 6));
    edge.now = MS(9_000);
    edge.input(Input::Connected);
    assert_eq!(edge.published[0].rows, set(&[range(1, 6)]));
    assert_eq!(edge.retransmissions, 1);
}

#[test]
fn an_acknowledgement_of_rows_not_in_flight_counts() {
    let mut edge = Edge::new(small(), &[range(1, 50)]);
    edge.input(Input::Acked(&ack(&[range(11, 30), range(41, 900)])));
    assert_eq!(edge.settled, set(&[range(11, 30), range(41, 50)]));
    assert_eq!(edge.session.waiting().history, 20);
    edge.input(Input::Connected);
    assert_eq!(edge.published[0].rows, set(&[range(1, 10)]));
}

#[test]
fn an_acknowledgement_during_preparation_is_not_undone() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    let effects = edge.handle(Input::Connected);
    let Some(Effect::Send(ask)) = effects.last() else {
        panic!("no batch was asked for: {effects:?}");
    };
    let prepared = edge.prepare(ask);
    edge.input(Input::Acked(&ack(&[range(1, 3)])));
    edge.input(Input::Prepared(prepared));
    assert_eq!(edge.session.in_flight().rows, 2);
    edge.input(Input::Acked(&ack(&[range(4, 5)])));
    assert!(edge.session.is_idle());
}

#[test]
fn an_older_epoch_is_passed_on_untouched() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    let other = Ack {
        epoch: Epoch::from_random(8),
        ..ack(&[range(1, 900)])
    };
    let effects = edge.handle(Input::Acked(&other));
    let [Effect::Settle(settle)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(settle.epoch, other.epoch);
    assert_eq!(settle.committed, set(&[range(1, 900)]));
    assert_eq!(edge.session.in_flight().rows, 5);
}

#[test]
fn a_pause_stops_sending_and_no_timer_runs_hot() {
    let mut edge = Edge::connected(small(), &[]);
    edge.input(Input::Pause);
    edge.append(range(1, 50));
    assert!(edge.published.is_empty());
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(60)));
    edge.input(Input::Resume);
    assert_eq!(edge.published.len(), 3);
}

#[test]
fn alarms_alone_go_where_nothing_else_may_also_when_they_were_lost() {
    let mut edge = Edge::connected(small(), &[]);
    edge.input(Input::AlarmsOnly);
    edge.held.insert(range(1, 21));
    let alarms = set(&[range(7, 8)]);
    edge.input(Input::Ranked {
        range: range(1, 20),
        alarms: &alarms,
        history: &RangeSet::new(),
    });
    let rows = |edge: &mut Edge| -> Vec<RangeSet> {
        edge.take_published()
            .into_iter()
            .map(|published| published.rows)
            .collect()
    };
    assert_eq!(rows(&mut edge), std::slice::from_ref(&alarms));
    // Nobody answers: they go again, and nothing else with them.
    let again = edge.session.next_wakeup().unwrap();
    assert!(again < Duration::from_secs(60), "{again:?}");
    edge.sleep();
    assert_eq!(rows(&mut edge), [alarms]);
    edge.input(Input::Acked(&ack(&[range(7, 8)])));
    assert_eq!(edge.session.next_wakeup(), Some(Duration::from_secs(60)));
    edge.input(Input::Pause);
    edge.input(Input::Ranked {
        range: range(21, 21),
        alarms: &set(&[range(21, 21)]),
        history: &RangeSet::new(),
    });
    assert!(rows(&mut edge).is_empty());
    edge.input(Input::Resume);
    assert_eq!(rows(&mut edge)[0], set(&[range(21, 21)]));
}

#[test]
fn alarms_that_nobody_answers_go_again_and_again_and_nothing_else_does() {
    let mut edge = Edge::connected(small(), &[]);
    edge.input(Input::AlarmsOnly);
    edge.held.insert(range(1, 20));
    let alarms = set(&[range(7, 8)]);
    edge.input(Input::Ranked {
        range: range(1, 20),
        alarms: &alarms,
        history: &RangeSet::new(),
    });
    let mut times = 0;
    while edge.now < Duration::from_secs(1_800) && edge.sleep() {
        for published in edge.take_published() {
            assert_eq!(published.rows.intersection(&alarms), published.rows);
            times += 1;
        }
    }
    assert!(times > 5, "{times}");
}

#[test]
fn a_link_that_takes_nothing_is_asked_again_later() {
    let mut edge = Edge::new(small(), &[range(1, 5)]);
    let effects = edge.handle(Input::Connected);
    let Some(Effect::Send(ask)) = effects.last() else {
        panic!("{effects:?}");
    };
    let effects = edge.handle(Input::NotSent(ask.batch));
    assert!(effects.is_empty());
    assert_eq!(edge.session.next_wakeup(), Some(NOT_SENT_PAUSE));
    edge.sleep();
    assert_eq!(edge.published[0].rows, set(&[range(1, 5)]));
}

#[test]
fn rows_that_do_not_fit_travel_in_the_next_batch() {
    let mut edge = Edge::new(small(), &[range(1, 9)]);
    edge.fitting = 4;
    edge.input(Input::Connected);
    let rows: Vec<RangeSet> = edge.published.iter().map(|p| p.rows.clone()).collect();
    assert_eq!(
        rows,
        [
            set(&[range(1, 4)]),
            set(&[range(5, 8)]),
            set(&[range(9, 9)])
        ]
    );
}

#[test]
fn a_resync_sends_what_is_held_and_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.input(Input::Acked(&ack(&[range(1, 2)])));
    // The bridge lost track of 1 to 5; 3 to 5 are in flight, 1 and 2 are gone for good.
    let again = Ack {
        resync: vec![range(1, 9)],
        ..ack(&[])
    };
    edge.now = MS(5);
    edge.input(Input::Acked(&again));
    assert!(edge.published.is_empty());
    edge.sleep();
    assert_eq!(edge.reports, 2);
    assert_eq!(edge.now, REPORT_GAP);
}

#[test]
fn eviction_is_reported_soon_but_not_in_a_storm() {
    let mut edge = Edge::connected(small(), &[]);
    for n in 1..=1_000u64 {
        edge.now = MS(n);
        edge.input(Input::Evicted(&set(&[range(n, n)])));
    }
    assert_eq!(edge.reports, 2);
}

/// A hundred thousand ranges in reports of a thousand: minutes, not hours.
#[test]
fn a_confirmed_report_is_followed_by_the_next() {
    let mut edge = Edge::connected(small(), &[range(1, 10)]);
    let confirmed = Ack {
        evicted: vec![range(1, 3)],
        ..ack(&[])
    };
    for reports in 1..=100 {
        assert_eq!(edge.reports, reports);
        edge.now += MS(30);
        edge.input(Input::Acked(&confirmed));
        let end = edge.now + REPORT_GAP;
        edge.sleep_until(end);
    }
    assert!(edge.now < Duration::from_secs(120), "{:?}", edge.now);
    // An acknowledgement that confirms nothing causes no report.
    let reports = edge.reports;
    edge.input(Input::Acked(&ack(&[range(1, 10)])));
    let end = edge.now + Duration::from_secs(50);
    edge.sleep_until(end);
    assert_eq!(edge.reports, reports);
}

#[test]
fn limits_change_while_the_session_runs() {
    let mut edge = Edge::connected(small(), &[]);
    let limits = Tuning {
        batch_rows_max: 4,
        linger: MS(100),
        history_rows_per_second: 2_000,
        bytes_per_second: None,
    };
    edge.input(Input::Tune(limits));
    edge.append(range(1, 3));
    edge.sleep();
    assert_eq!(edge.now, MS(100));
    assert_eq!(edge.take_published()[0].rows, set(&[range(1, 3)]));
    // Four are a whole batch, which waits for nobody.
    edge.append(range(4, 7));
    assert_eq!(edge.take_published()[0].rows, set(&[range(4, 7)]));
}

#[test]
fn a_bound_link_rests_after_each_batch_also_in_a_flush() {
    let config = SessionConfig {
        bytes_per_second: std::num::NonZeroU32::new(1_000),
        ..small()
    };
    let mut edge = Edge::connected(config, &[range(1, 10)]);
    assert_eq!(edge.take_published().len(), 1);
    edge.input(Input::Flush(true));
    edge.append(range(11, 20));
    // Ten rows were eighty bytes.
    edge.now = MS(79);
    edge.input(Input::Timer);
    assert!(edge.published.is_empty());
    edge.sleep();
    assert_eq!((edge.now, edge.take_published().len()), (MS(80), 1));
    edge.append(range(21, 30));
    let free = Tuning {
        bytes_per_second: None,
        ..small().tuning()
    };
    edge.input(Input::Tune(free));
    assert_eq!(edge.take_published().len(), 1);
}

#[test]
fn a_resync_sends_again_what_is_not_acknowledged_and_reports() {
    let mut edge = Edge::connected(small(), &[range(1, 5)]);
    edge.take_published();
    edge.now = MS(2_000);
    edge.input(Input::Resync);
    assert_eq!(edge.take_published()[0].rows, set(&[range(1, 5)]));
    assert_eq!((edge.reports, edge.retransmissions), (2, 1));
    // The first one's acknowledgement counts as well.
    edge.input(Input::Acked(&ack(&[range(1, 5)])));
    assert!(edge.session.is_idle());
}
