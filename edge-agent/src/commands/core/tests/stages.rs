//! From the order to the end of one command: what begins when, and what no longer does.

use std::time::Duration;

use schema::message::{Command, CommandState};

use super::rig::{Rig, WALL_MS, command, id};
use crate::buffer::{Kept, StoredCommands};
use crate::commands::core::{Answer, Effect, Input, STORE_AGAIN, Write, progress};

#[test]
fn nothing_starts_before_running_is_on_the_disk() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    assert!(matches!(rig.write, Some(Write::Keep { .. })));
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    rig.answer(Answer::Kept(Kept::New));
    assert_eq!(rig.reported(), [(id(1), CommandState::Delivered)]);
    let running = progress(id(1), CommandState::Running, String::new());
    assert_eq!(rig.write, Some(Write::Move(running)));
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    rig.answer(Answer::Done);
    assert_eq!(rig.started(), [id(1)]);
    assert_eq!(rig.reported(), [(id(1), CommandState::Running)]);
    // Its end is reported when it is on the disk.
    let outcome = Ok("done".to_owned());
    rig.input(Input::Ended { id: id(1), outcome });
    assert!(rig.reported().is_empty());
    rig.answer(Answer::Done);
    assert_eq!(rig.reported(), [(id(1), CommandState::Succeeded)]);
}

#[test]
fn before_the_time_is_known_nothing_begins_and_nothing_expires() {
    let mut rig = Rig::empty();
    rig.now.time_ms = None;
    rig.order(command(1));
    rig.answer(Answer::Kept(Kept::New));
    rig.pass(Duration::from_secs(24 * 3600));
    assert!(rig.write.is_none() && rig.started().is_empty());
    let id = command(1).id;
    assert_eq!(rig.core.open[&id].progress.state, CommandState::Delivered);
    // It wakes by itself to see whether the time is known.
    assert!(rig.core.next_wakeup(rig.now).is_some());
    rig.now.time_ms = Some(WALL_MS);
    rig.input(Input::Timer);
    rig.settle();
    assert_eq!(rig.started().len(), 1);
    // Another one, whose time has run out by the bridge's clock.
    rig.now.time_ms = None;
    let mut late = command(2);
    late.expires_at_ms = WALL_MS;
    rig.order(late);
    rig.answer(Answer::Kept(Kept::New));
    rig.now.time_ms = Some(WALL_MS);
    rig.input(Input::Timer);
    rig.settle();
    assert_eq!(rig.started().len(), 1);
}

#[test]
fn a_disk_that_refused_is_asked_again_and_what_expired_meanwhile_does_not_start() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.answer(Answer::Kept(Kept::New));
    for _ in 0..59 {
        rig.answer(Answer::Failed);
        assert!(rig.write.is_none());
        rig.pass(STORE_AGAIN);
        assert!(rig.write.is_some());
    }
    rig.now.time_ms = Some(WALL_MS + 60_000);
    rig.answer(Answer::Done);
    rig.settle();
    assert!(rig.started().is_empty());
    let reported = rig.reported();
    assert_eq!(reported.last(), Some(&(id(1), CommandState::Expired)));
}

#[test]
fn a_withdrawal_counts_at_every_stage() {
    // Before the order.
    let mut rig = Rig::empty();
    rig.cancel(1);
    rig.settle();
    rig.order(command(1));
    rig.settle();
    assert!(rig.started().is_empty());
    // While the order is being kept.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.cancel(1);
    rig.settle();
    assert!(rig.started().is_empty());
    assert_eq!(
        rig.reported().last(),
        Some(&(id(1), CommandState::Cancelled))
    );
    // While "running" is being written.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.answer(Answer::Kept(Kept::New));
    rig.cancel(1);
    rig.settle();
    assert!(rig.started().is_empty());
    // While it waits for its turn, and while it runs.
    let mut rig = Rig::empty();
    for number in [1, 2] {
        rig.order(command(number));
        rig.settle();
    }
    rig.cancel(2);
    rig.cancel(1);
    assert!(rig.done.contains(&Effect::Abort(id(1))));
    rig.settle();
    assert_eq!(rig.started(), [id(1)]);
    let reported = rig.reported();
    for number in [1, 2] {
        assert!(reported.contains(&(id(number), CommandState::Cancelled)));
    }
    // After its end: the end stands.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    let outcome = Err("no".to_owned());
    rig.input(Input::Ended { id: id(1), outcome });
    rig.cancel(1);
    rig.settle();
    assert_eq!(rig.reported().last(), Some(&(id(1), CommandState::Failed)));
}

#[test]
fn a_command_waits_for_its_turn_and_expires_while_it_does() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    let important = Command {
        priority: 1,
        ..command(4)
    };
    let brief = Command {
        expires_at_ms: WALL_MS + 1_000,
        priority: 9,
        ..command(5)
    };
    for next in [command(3), command(2), important, brief] {
        rig.order(next);
        rig.settle();
    }
    rig.pass(Duration::from_millis(999));
    assert!(rig.write.is_none());
    rig.pass(Duration::from_millis(1));
    rig.settle();
    assert!(rig.reported().contains(&(id(5), CommandState::Expired)));
    for number in [1, 4, 2, 3] {
        assert_eq!(rig.started().last(), Some(&id(number)));
        let outcome = Ok(String::new());
        rig.input(Input::Ended {
            id: id(number),
            outcome,
        });
        rig.settle();
    }
    assert_eq!(rig.started(), [id(1), id(4), id(2), id(3)]);
}

#[test]
fn so_many_run_at_a_time_as_may() {
    let mut rig = Rig::new(StoredCommands::default(), 2);
    for number in 1..=5 {
        rig.order(command(number));
        rig.settle();
    }
    assert_eq!(rig.started().len(), 2);
    rig.input(Input::Parallel(3));
    rig.settle();
    assert_eq!(rig.started().len(), 3);
    rig.input(Input::Parallel(1));
    for number in [1, 2] {
        let outcome = Ok(String::new());
        rig.input(Input::Ended {
            id: id(number),
            outcome,
        });
        rig.settle();
        assert_eq!(rig.started().len(), 3);
    }
}
