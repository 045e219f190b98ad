use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange::new(first, last).unwrap()
}

fn backlog(pending: &[SeqRange]) -> Backlog {
    Backlog::new(
        pending.iter().copied().collect(),
        MS(500),
        Pace::new(100, 50),
    )
}

/// Picks, and sends `sent` of what was picked.
fn check(
    backlog: &mut Backlog,
    rows_max: u64,
    flush: bool,
    now: Duration,
    kind: Kind,
    sent: SeqRange,
) {
    let (found, mut picked) = backlog
        .pick(rows_max, flush, false, now)
        .expect("something was due");
    assert_eq!(found, kind);
    assert_eq!(picked.first(), Some(sent.first()));
    assert!(picked.contains_range(sent));
    picked.remove(sent);
    backlog.put_back(kind, &picked);
    backlog.sent(kind, sent.count());
}

#[test]
fn fresh_rows_linger_until_they_fill_a_batch_or_their_time_is_over() {
    let mut backlog = backlog(&[]);
    backlog.append(range(1, 9), true, MS(1_000));
    assert_eq!(backlog.pick(10, false, false, MS(1_000)), None);
    assert_eq!(backlog.due(10, false), Some(MS(1_500)));
    backlog.append(range(10, 10), true, MS(1_001));
    check(
        &mut backlog,
        10,
        false,
        MS(1_001),
        Kind::Fresh,
        range(1, 10),
    );
    backlog.append(range(11, 11), true, MS(2_000));
    assert_eq!(backlog.pick(10, false, false, MS(2_499)), None);
    check(
        &mut backlog,
        10,
        false,
        MS(2_500),
        Kind::Fresh,
        range(11, 11),
    );
    assert_eq!(backlog.due(10, false), None);
}

#[test]
fn history_follows_at_its_pace_behind_fresh_rows() {
    let mut backlog = backlog(&[range(1, 120)]);
    backlog.append(range(121, 170), true, MS(0));
    check(&mut backlog, 50, false, MS(0), Kind::Fresh, range(121, 170));
    check(&mut backlog, 50, false, MS(0), Kind::History, range(1, 50));
    assert_eq!(backlog.pick(50, false, false, MS(0)), None);
    // Fifty rows at a hundred a second.
    assert_eq!(backlog.due(50, false), Some(MS(500)));
    check(
        &mut backlog,
        50,
        false,
        MS(500),
        Kind::History,
        range(51, 100),
    );
    // The rest is fewer rows, so it is due earlier.
    assert_eq!(backlog.due(50, false), Some(MS(700)));
    check(
        &mut backlog,
        50,
        true,
        MS(501),
        Kind::History,
        range(101, 120),
    );
}

#[test]
fn history_has_its_turn_while_fresh_rows_never_end() {
    let mut backlog = backlog(&[range(1, 10)]);
    let mut kinds = Vec::new();
    for step in 0..5u64 {
        backlog.append(range(100 + 10 * step, 109 + 10 * step), true, MS(step));
        kinds.push(backlog.pick(10, false, false, MS(step)).unwrap().0);
    }
    use Kind::{Fresh, History};
    assert_eq!(kinds, [Fresh, Fresh, Fresh, History, Fresh]);
}

#[test]
fn what_timed_out_takes_turns_with_what_was_not_sent_yet() {
    let mut backlog = backlog(&[]);
    backlog.put_back(Kind::Lost, &[range(1, 9)].into_iter().collect());
    let kind = |backlog: &mut Backlog, untried_first| {
        let picked = backlog.pick(5, false, untried_first, MS(600));
        picked.map(|(kind, _)| kind)
    };
    assert_eq!(kind(&mut backlog, true), Some(Kind::Lost), "nothing else");
    backlog.put_back(Kind::Lost, &[range(1, 9)].into_iter().collect());
    backlog.append(range(10, 12), true, MS(0));
    assert_eq!(kind(&mut backlog, true), Some(Kind::Fresh));
    backlog.append(range(13, 13), true, MS(0));
    assert_eq!(kind(&mut backlog, false), Some(Kind::Lost));
}

#[test]
fn an_outage_turns_everything_into_history() {
    let mut backlog = backlog(&[range(1, 2)]);
    backlog.append(range(5, 6), true, MS(0));
    backlog.put_back(Kind::Lost, &[range(3, 3)].into_iter().collect());
    backlog.outage();
    backlog.append(range(7, 7), false, MS(1));
    let (kind, picked) = backlog.pick(50, false, false, MS(1)).unwrap();
    assert_eq!(kind, Kind::History);
    assert_eq!(picked.as_slice(), [range(1, 3), range(5, 7)]);
}

#[test]
fn rows_asked_for_again_wait_once() {
    let mut backlog = backlog(&[range(1, 2)]);
    backlog.append(range(8, 9), true, MS(0));
    backlog.resume(range(1, 9));
    assert_eq!(backlog.counts(), (2, 7));
}

#[test]
fn a_thinned_buffer_does_not_grow_the_sets_without_bound() {
    let mut backlog = backlog(&[range(1, 200_000)]);
    for odd in (1..200_000).step_by(2) {
        backlog.forget(range(odd, odd));
    }
    assert!(backlog.history.as_slice().len() <= WAITING_RANGES_MAX);
    let scattered: RangeSet = (0..100_000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
    backlog.put_back(Kind::Lost, &scattered);
    for even in (2..200_000).step_by(4) {
        backlog.put_back(Kind::Fresh, &[range(even, even)].into_iter().collect());
    }
    assert!(backlog.fresh.as_slice().len() <= WAITING_RANGES_MAX);
    for n in 0..100_000 {
        assert!(backlog.lost.contains(2 * n + 1));
    }
}

#[test]
fn a_batch_has_few_enough_ranges_for_one_acknowledgement() {
    let scattered: Vec<SeqRange> = (0..1000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
    let mut backlog = backlog(&scattered);
    let (_, taken) = backlog.pick(500, true, false, MS(0)).unwrap();
    assert_eq!(taken.as_slice().len(), BATCH_RANGES_MAX);
}

fn ranked(
    backlog: &mut Backlog,
    rows: SeqRange,
    alarms: &[SeqRange],
    patient: &[SeqRange],
    now: Duration,
) {
    let of = |ranges: &[SeqRange]| ranges.iter().copied().collect::<RangeSet>();
    backlog.append_ranked(rows, (&of(alarms), &of(patient)), true, now);
}

#[test]
fn alarms_go_before_all_others_at_once_and_in_small_batches() {
    let mut backlog = backlog(&[range(1, 300)]);
    backlog.put_back(Kind::Lost, &[range(290, 300)].into_iter().collect());
    ranked(
        &mut backlog,
        range(301, 500),
        &[range(301, 401)],
        &[],
        MS(0),
    );
    assert_eq!(backlog.due(50, false), Some(MS(0)));
    check(
        &mut backlog,
        500,
        false,
        MS(0),
        Kind::Alarm,
        range(301, 364),
    );
    check(
        &mut backlog,
        500,
        false,
        MS(0),
        Kind::Alarm,
        range(365, 401),
    );
    assert_eq!(backlog.alarms(), 0);
    check(&mut backlog, 500, false, MS(0), Kind::Lost, range(290, 300));
    let next = backlog.pick(500, false, false, MS(0));
    assert_eq!(next.map(|(kind, _)| kind), Some(Kind::History));
}

#[test]
fn a_storm_of_alarms_leaves_others_their_turn() {
    use Kind::{Alarm, Fresh, History};
    let mut backlog = backlog(&[range(1, 10)]);
    let mut kinds = Vec::new();
    for step in 0..8u64 {
        let first = 100 + 100 * step;
        let alarms = range(first, first + 63);
        ranked(
            &mut backlog,
            range(first, first + 73),
            &[alarms],
            &[],
            MS(step),
        );
        kinds.push(backlog.pick(10, false, false, MS(step)).unwrap().0);
    }
    assert_eq!(
        kinds,
        [Alarm, Alarm, Alarm, Fresh, Alarm, Alarm, Alarm, Fresh]
    );
    // Where nobody else waits, no turn is lost.
    let mut backlog = self::backlog(&[]);
    ranked(&mut backlog, range(1, 600), &[range(1, 600)], &[], MS(0));
    for _ in 0..9 {
        assert_eq!(backlog.pick(500, false, false, MS(0)).unwrap().0, Alarm);
    }
    // History has its turn among the others.
    let mut backlog = self::backlog(&[range(1, 10)]);
    ranked(&mut backlog, range(11, 500), &[range(11, 500)], &[], MS(0));
    let kinds: Vec<Kind> = (0..4)
        .map(|_| backlog.pick(500, false, false, MS(0)).unwrap().0)
        .collect();
    assert_eq!(kinds, [Alarm, Alarm, Alarm, History]);
}

#[test]
fn rows_between_alarms_wait_also_where_others_are_on_their_way() {
    let mut backlog = backlog(&[]);
    let append = |backlog: &mut Backlog, first: u64, alarms: usize| {
        let last = first + 2 * alarms as u64 - 1;
        let of: Vec<SeqRange> = (first..=last)
            .step_by(2)
            .map(|row| range(row, row))
            .collect();
        ranked(backlog, range(first, last), &of, &[], MS(0));
        range(first, last)
    };
    append(&mut backlog, 1, 64);
    let (kind, taken) = backlog.pick(500, false, false, MS(0)).unwrap();
    assert_eq!((kind, taken.count()), (Kind::Alarm, 64));
    // With those on their way more than are told apart, and without them not.
    let new = append(&mut backlog, 129, WAITING_RANGES_MAX - 10);
    assert_eq!(backlog.waiting(new).count(), new.count());
}

#[test]
fn an_alarm_stays_one_through_an_outage_until_it_is_settled() {
    let mut backlog = backlog(&[range(1, 100)]);
    backlog.rank(&[range(40, 41)].into_iter().collect());
    let (kind, taken) = backlog.pick(500, false, false, MS(0)).unwrap();
    assert_eq!(
        (kind, taken.as_slice()),
        (Kind::Alarm, &[range(40, 41)][..])
    );
    // It was on its way when the connection ended, or timed out before that.
    backlog.put_back(Kind::History, &[range(40, 40)].into_iter().collect());
    backlog.put_back(Kind::Lost, &[range(41, 41)].into_iter().collect());
    backlog.outage();
    assert_eq!(backlog.waiting(range(40, 41)).count(), 2);
    let (kind, taken) = backlog.pick(500, false, false, MS(0)).unwrap();
    assert_eq!(
        (kind, taken.as_slice()),
        (Kind::Alarm, &[range(40, 41)][..])
    );
    backlog.forget(range(40, 40));
    backlog.resume(range(40, 41));
    assert_eq!(
        backlog.alarms(),
        1,
        "what was settled is offered again as any other"
    );
    assert_eq!(backlog.counts(), (0, 99));
}

#[test]
fn rows_that_can_wait_travel_together_and_behind_an_outage() {
    let mut backlog = backlog(&[]);
    ranked(&mut backlog, range(1, 2), &[], &[range(1, 2)], MS(0));
    assert_eq!(backlog.counts(), (0, 2));
    assert_eq!(backlog.due(50, false), Some(MS(5_000)));
    assert_eq!(backlog.pick(50, false, false, MS(4_999)), None);
    check(
        &mut backlog,
        50,
        false,
        MS(5_000),
        Kind::History,
        range(1, 2),
    );
    ranked(&mut backlog, range(3, 4), &[], &[range(3, 3)], MS(6_000));
    check(&mut backlog, 50, false, MS(6_500), Kind::Fresh, range(4, 4));
    // A flush does not wait, and neither does a whole batch.
    assert_eq!(backlog.due(1, false), Some(MS(6_500)));
    check(
        &mut backlog,
        50,
        true,
        MS(6_500),
        Kind::History,
        range(3, 3),
    );
    // What an outage has left takes them along.
    backlog.put_back(Kind::History, &[range(1, 1)].into_iter().collect());
    ranked(&mut backlog, range(5, 5), &[], &[range(5, 5)], MS(7_000));
    let (kind, taken) = backlog.pick(50, false, false, MS(7_000)).unwrap();
    assert_eq!(
        (kind, taken.as_slice()),
        (Kind::History, &[range(1, 1), range(5, 5)][..])
    );
}

#[test]
fn alarms_between_all_others_do_not_grow_the_sets_without_bound() {
    let mut backlog = backlog(&[]);
    let odd: Vec<SeqRange> = (0..50_000).map(|n| range(2 * n + 1, 2 * n + 1)).collect();
    ranked(&mut backlog, range(1, 100_000), &odd, &[], MS(0));
    for set in [&backlog.alarms, &backlog.alarm, &backlog.fresh] {
        assert!(set.as_slice().len() <= WAITING_RANGES_MAX);
    }
    let all = range(1, 100_000);
    assert_eq!(backlog.waiting(all).as_slice(), [all], "none is forgotten");
}
