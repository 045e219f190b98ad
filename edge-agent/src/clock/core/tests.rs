use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// The right time at which the boot began, of all tests.
const BOOT: i64 = 1_800_000_000 * SECOND;

const BUILT: i64 = BOOT - YEAR;

/// `at` microseconds after the boot, with a wall clock that is wrong by `off`.
fn moment(at: i64, off: i64) -> Moment {
    Moment {
        wall: BOOT + at + off,
        monotonic: at,
        is_synchronised: false,
    }
}

fn synchronised(at: i64) -> Moment {
    Moment {
        is_synchronised: true,
        ..moment(at, 0)
    }
}

/// The bridge's answer to a question asked `trip` ago.
fn hello(core: &mut Core, at: i64, off: i64, trip: i64) -> Vec<Change> {
    let bridge_time_ms = (BOOT + at - trip / 2) / 1000;
    core.hello(at - trip, moment(at, off), bridge_time_ms, true)
}

/// A stamp as it leaves the device.
fn mended(core: &Core, stamp: i64) -> i64 {
    match core.start().release {
        Release::Shifted(shift) | Release::Uncertain(shift) => stamp + shift,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn close(found: i64, expected: i64, by: i64) {
    let apart = found.abs_diff(expected);
    assert!(
        apart <= by.unsigned_abs(),
        "{found} is {apart} from {expected}"
    );
}

#[test]
fn whatever_the_clock_says_the_bridge_mends_it() {
    for off in [-BOOT, -YEAR, -HOUR, -SECOND, 0, SECOND, 2 * DAY, YEAR] {
        let mut core = Core::begin(1, moment(10 * SECOND, off));
        assert_eq!(core.state(), ClockState::Unverified);
        assert_eq!(core.start().release, Release::Held);
        let first = core.stamp(moment(11 * SECOND, off));
        assert_eq!(first, BOOT + 11 * SECOND + off);
        let changes = hello(&mut core, 20 * SECOND, off, 40_000);
        assert_eq!(changes, [Change::Known(ClockState::Verified)]);
        let second = core.stamp(moment(21 * SECOND, off));
        close(mended(&core, first), BOOT + 11 * SECOND, 2_000);
        close(mended(&core, second), BOOT + 21 * SECOND, 2_000);
        assert_eq!(second - first, 10 * SECOND);
        let report = core.report(moment(21 * SECOND, off));
        close(report.offset_ms.unwrap(), off / 1000, 2);
    }
}

#[test]
fn a_clock_that_is_set_while_running_moves_no_stamp() {
    for by in [YEAR, -HOUR, BOOT] {
        let mut core = Core::begin(1, moment(0, -DAY));
        let before = core.stamp(moment(SECOND, -DAY));
        let set = -DAY + by;
        assert_eq!(core.look(moment(2 * SECOND, set)), [Change::WallSet(by)]);
        assert_eq!(core.look(moment(3 * SECOND, set)), []);
        let after = core.stamp(moment(3 * SECOND, set));
        assert_eq!(after - before, 2 * SECOND);
        hello(&mut core, 4 * SECOND, set, 0);
        close(mended(&core, before), BOOT + SECOND, 2_000);
        close(mended(&core, after), BOOT + 3 * SECOND, 2_000);
        // And nothing moves when it is set again.
        core.look(moment(5 * SECOND, 0));
        close(core.time(moment(5 * SECOND, 0)), BOOT + 5 * SECOND, 2_000);
    }
}

#[test]
fn a_reading_on_its_way_while_the_time_becomes_known_is_mended_like_the_others() {
    let mut core = Core::begin(1, moment(0, -BOOT));
    let on_its_way = core.stamp(moment(SECOND, -BOOT));
    hello(&mut core, 2 * SECOND, -BOOT, 10_000);
    let later = core.stamp(moment(2 * SECOND, -BOOT));
    assert!(later > on_its_way);
    close(mended(&core, on_its_way), BOOT + SECOND, 10_000);
}

#[test]
fn the_kernels_word_counts_and_the_difference_is_reported() {
    let mut core = Core::begin(1, moment(0, -YEAR));
    let early = core.stamp(moment(SECOND, -YEAR));
    // NTP sets the clock.
    let changes = core.look(synchronised(10 * SECOND));
    let expected = [Change::WallSet(YEAR), Change::Known(ClockState::Kernel)];
    assert_eq!(changes, expected);
    close(mended(&core, early), BOOT + SECOND, 0);
    // The database is two seconds behind: the device keeps its own.
    let bridge_ms = (BOOT + 18 * SECOND) / 1000;
    core.hello(20 * SECOND, synchronised(20 * SECOND), bridge_ms, true);
    assert_eq!(core.time(synchronised(20 * SECOND)), BOOT + 20 * SECOND);
    let report = core.report(synchronised(20 * SECOND));
    assert_eq!(report.state, ClockState::Kernel);
    close(report.offset_ms.unwrap(), 2_000, 1);
    let (earliest, latest) = core.database_time(synchronised(20 * SECOND)).unwrap();
    assert!((earliest..=latest).contains(&(BOOT + 18 * SECOND)));
    // It loses its source: the bridge's time counts now, and the axis steps back less than matters.
    let stamp = core.stamp(synchronised(21 * SECOND));
    let changes = core.look(moment(22 * SECOND, 0));
    assert_eq!(changes, []);
    assert_eq!(core.state(), ClockState::Verified);
    assert!(core.stamp(moment(22 * SECOND, 0)) < stamp);
}

#[test]
fn an_old_bridge_has_what_is_held_sent_as_it_is() {
    let mut core = Core::begin(1, moment(0, HOUR));
    let stamp = core.stamp(moment(SECOND, HOUR));
    assert_eq!(
        core.bridge_is_silent(moment(5 * SECOND, HOUR), BUILT),
        [Change::Trusted]
    );
    assert_eq!(core.start().release, Release::Uncertain(0));
    assert_eq!(mended(&core, stamp), stamp);
    assert_eq!(core.state(), ClockState::Unverified);
    assert_eq!(core.bridge_is_silent(moment(6 * SECOND, HOUR), BUILT), []);
    // It is upgraded. A slow answer changes nothing yet.
    let bridge_ms = (BOOT + 7 * SECOND) / 1000;
    let slow = core.hello(0, moment(7 * SECOND, HOUR), bridge_ms, false);
    assert_eq!((slow, core.is_trusted()), (vec![], true));
    // New stamps are right, those that were sent stay as they are.
    let last = core.stamp(moment(7 * SECOND, HOUR));
    let changes = hello(&mut core, 8 * SECOND, HOUR, 0);
    assert_eq!(changes[0], Change::Known(ClockState::Verified));
    assert_eq!(changes[1], Change::Certain);
    assert!(matches!(changes[2], Change::Back(back) if back > HOUR - 2 * SECOND));
    assert_eq!(core.start().release, Release::Uncertain(0));
    assert_eq!(mended(&core, last), last);
    core.begin_again(moment(9 * SECOND, HOUR));
    assert_eq!(core.start().release, Release::Shifted(0));
    let fresh = core.stamp(moment(9 * SECOND, HOUR));
    close(mended(&core, fresh), BOOT + 9 * SECOND, 2_000);
    assert_eq!(core.look(moment(10 * SECOND, HOUR)), []);
}

/// A new epoch keeps axis and shift: what is under way meanwhile leaves the same from either.
#[test]
fn a_step_back_begins_anew_and_moves_nothing_that_is_under_way() {
    let mut core = Core::begin(1, moment(0, -DAY));
    core.look(synchronised(SECOND));
    let shift = core.start().release;
    assert_eq!(shift, Release::Shifted(DAY));
    let under_way = core.stamp(synchronised(2 * SECOND));
    // Its source of time was an hour ahead.
    let corrected = Moment {
        is_synchronised: true,
        ..moment(3 * SECOND, -HOUR)
    };
    let changes = core.look(corrected);
    assert!(
        matches!(changes[..], [Change::WallSet(_), Change::Back(_)]),
        "{changes:?}"
    );
    core.begin_again(corrected);
    assert_eq!(core.look(corrected), []);
    assert_eq!(core.start().release, shift);
    close(mended(&core, under_way), BOOT + 2 * SECOND, 0);
    let fresh = core.stamp(corrected);
    close(mended(&core, fresh), BOOT + 3 * SECOND - HOUR, 0);
}

#[test]
fn a_clock_that_is_shown_wrong_is_not_followed_before_it_is_set() {
    let mut core = Core::begin(1, moment(0, -BOOT));
    let early = core.stamp(moment(SECOND, -BOOT));
    assert_eq!(core.bridge_is_silent(moment(5 * SECOND, -BOOT), BUILT), []);
    assert_eq!(core.start().release, Release::Held);
    assert_eq!(core.commands_time(moment(5 * SECOND, -BOOT)), None);
    let changes = core.look(moment(6 * SECOND, 0));
    assert_eq!(changes, [Change::WallSet(BOOT), Change::Trusted]);
    close(mended(&core, early), BOOT + SECOND, 1_000);
}

#[test]
fn a_slow_answer_decides_only_when_no_better_one_is_waited_for() {
    let mut core = Core::begin(1, moment(0, -YEAR));
    let early = core.stamp(moment(SECOND, -YEAR));
    // Twenty seconds on its way, most of them to the bridge.
    let at = 30 * SECOND;
    let bridge_ms = |at: i64| (BOOT + at) / 1000;
    let changes = core.hello(10 * SECOND, moment(at, -YEAR), bridge_ms(at), false);
    assert_eq!(changes, []);
    assert_eq!(core.look(moment(at, -YEAR)), []);
    let start = core.start();
    assert_eq!((start.release, start.known), (Release::Held, None));
    let (earliest, latest) = core.database_time(moment(at, -YEAR)).unwrap();
    assert!((earliest..=latest).contains(&(BOOT + at)));
    let changes = hello(&mut core, at + SECOND, -YEAR, 10_000);
    assert_eq!(changes, [Change::Known(ClockState::Verified)]);
    close(mended(&core, early), BOOT + SECOND, 10_000);
}

#[test]
fn commands_have_a_time_when_the_bridge_tells_it_or_never_will() {
    let now = moment(9 * SECOND, 0);
    // Told by the kernel alone, it is not the bridge's.
    let mut core = Core::begin(1, synchronised(0));
    assert_eq!(core.commands_time(synchronised(9 * SECOND)), None);
    assert_eq!(core.bridge_is_silent(synchronised(5 * SECOND), BUILT), []);
    assert_eq!(core.commands_time(synchronised(9 * SECOND)), Some(now.wall));
    hello(&mut core, 9 * SECOND, 0, SECOND);
    let time = core.commands_time(synchronised(9 * SECOND)).unwrap();
    assert!(time >= now.wall && time <= now.wall + SECOND);
    let mut trusted = Core::begin(1, moment(0, 0));
    trusted.bridge_is_silent(moment(5 * SECOND, 0), BUILT);
    assert_eq!(trusted.commands_time(now), Some(now.wall));
}

#[test]
fn a_start_in_a_boot_whose_time_is_known_needs_no_mending() {
    let mut first = Core::begin(7, moment(0, 2 * DAY));
    hello(&mut first, SECOND, 2 * DAY, 0);
    let mut second = Core::begin(7, moment(HOUR, 0));
    assert!(second.resume(&first.start()).is_some());
    let stamp = second.stamp(moment(HOUR, 0));
    close(mended(&second, stamp), BOOT + HOUR, 2_000);
    // Of another boot nothing follows.
    let mut third = Core::begin(8, moment(HOUR, 0));
    assert_eq!(third.resume(&first.start()), None);
    assert_eq!(third.start().release, Release::Held);
}

/// A start that took readings for an hour, from `began` on its boot's monotonic clock.
fn held(boot: u64, began: i64, axis: i64) -> HeldStart {
    HeldStart {
        clock: StartClock {
            boot,
            began,
            axis,
            wall: axis,
            known: None,
            release: Release::Held,
        },
        last_stamp: began + HOUR + axis,
    }
}

#[test]
fn earlier_starts_are_mended_sent_as_uncertain_or_set_aside() {
    let now = BOOT + DAY;
    let mut current = Core::begin(9, moment(0, 0)).start();
    current.known = Some(BOOT);
    let judged = |starts: &[HeldStart]| judge(starts, None, &current, BUILT, Some(now));
    let wrong = |reason| Release::Quarantined(reason);
    // The same boot: it ran at the right time, whatever its clock said.
    assert_eq!(judged(&[held(9, 0, 0)]), [Release::Shifted(BOOT)]);
    assert_eq!(
        judged(&[held(9, 0, BOOT + YEAR)]),
        [Release::Shifted(-YEAR)]
    );
    // Others: 1970, ahead of the database, and anything between.
    assert_eq!(judged(&[held(1, 0, 0)]), [wrong(RejectReason::TooOld)]);
    let ahead = held(1, 0, now + DAY);
    assert_eq!(judged(&[ahead]), [wrong(RejectReason::TooNew)]);
    let plausible = held(1, 0, BOOT - DAY);
    assert_eq!(judged(&[plausible]), [Release::Uncertain(0)]);
    // Before the boot before it.
    let earlier = held(2, 0, BOOT - 2 * DAY);
    let both = [Release::Uncertain(0), wrong(RejectReason::TooOld)];
    assert_eq!(judged(&[plausible, earlier]), both);
    let after = judge(
        &[earlier],
        Some((1, BOOT - DAY)),
        &current,
        BUILT,
        Some(now),
    );
    assert_eq!(after, [wrong(RejectReason::TooOld)]);
    // It was in 1970, and then somebody set the clock: that is believed.
    let mut set = held(3, 0, 0);
    set.clock.wall = BOOT - DAY;
    assert_eq!(judged(&[set]), [Release::Uncertain(BOOT - DAY)]);
    // It was set to nonsense: as it was found is believed.
    let mut set = held(3, 0, BOOT - DAY);
    set.clock.wall = now + YEAR;
    assert_eq!(judged(&[set]), [Release::Uncertain(0)]);
}

/// An old bridge: only what had passed when this was built shows a clock wrong.
#[test]
fn a_clock_that_is_only_followed_shows_no_other_one_wrong() {
    let mut core = Core::begin(9, moment(0, 0));
    core.bridge_is_silent(moment(0, 0), BUILT);
    let judged = |starts: &[HeldStart]| judge(starts, None, &core.start(), BUILT, None);
    let too_old = Release::Quarantined(RejectReason::TooOld);
    assert_eq!(judged(&[held(1, 0, 0)]), [too_old]);
    let both = [held(1, 0, BOOT + YEAR), held(2, 0, BOOT - DAY)];
    assert_eq!(judged(&both), [Release::Uncertain(0); 2]);
    // Of the same boot the clock that is followed tells more than as it was found.
    assert_eq!(judged(&[held(9, 0, 0)]), [Release::Uncertain(BOOT)]);
}

proptest! {
    /// Jumps, lost and slow answers, NTP that comes and goes: stamps of one epoch never step back by
    /// more than is allowed without saying so, and what is mended is right as soon as it is known.
    #[test]
    fn stamps_keep_their_order_and_end_up_right(
        start_off in -YEAR..YEAR,
        steps in prop::collection::vec((1..100i64, 0..5u8, -YEAR..YEAR, 0..2_000_000i64), 1..60),
    ) {
        let (mut at, mut off) = (0, start_off);
        let mut core = Core::begin(1, moment(at, off));
        let mut stamps: Vec<(i64, i64)> = Vec::new();
        let mut decided = None;
        for (pause, kind, by, trip) in steps {
            at += pause * SECOND;
            let changes = match kind {
                0 => {
                    off = by;
                    core.look(moment(at, off))
                }
                1 => hello(&mut core, at, off, trip),
                _ => core.look(moment(at, off)),
            };
            if changes.iter().any(|change| matches!(change, Change::Back(_))) {
                core.begin_again(moment(at, off));
                stamps.clear();
            }
            match (decided, core.start().release) {
                (None, Release::Shifted(shift)) => decided = Some(shift),
                (Some(shift), release) => prop_assert_eq!(release, Release::Shifted(shift)),
                (None, _) => {}
            }
            let stamp = core.stamp(moment(at, off));
            if let Some((_, last)) = stamps.last() {
                prop_assert!(stamp > last - BACK_MAX);
            }
            stamps.push((at, stamp));
            if core.is_known() {
                for (at, stamp) in &stamps {
                    // The first answer may have been slow, and a later one better.
                    let apart = mended(&core, *stamp).abs_diff(BOOT + at);
                    prop_assert!(apart <= 2 * 1_000_000 + 20_000, "{apart}");
                }
            }
        }
    }

    /// No numbers of a damaged file stop the judging.
    #[test]
    fn any_record_is_judged(
        numbers in prop::collection::vec((0..3u64, any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>()), 0..5),
    ) {
        let starts: Vec<HeldStart> = numbers
            .into_iter()
            .map(|(boot, began, axis, wall, last_stamp)| HeldStart {
                clock: StartClock { boot, began, axis, wall, known: None, release: Release::Held },
                last_stamp,
            })
            .collect();
        let current = Core::begin(1, moment(0, 0)).start();
        let verdicts = judge(&starts, None, &current, BUILT, Some(BOOT));
        prop_assert_eq!(verdicts.len(), starts.len());
        prop_assert!(!verdicts.contains(&Release::Held));
    }
}
