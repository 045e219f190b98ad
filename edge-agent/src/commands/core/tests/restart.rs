//! What the disk knows from before: of an earlier start, of another copy of the file, or of nothing after a loss of
//! memory.

use std::time::Duration;

use schema::message::CommandState;

use super::rig::{Rig, command, id, stored};
use crate::buffer::{Kept, StoredCommands};
use crate::commands::core::{Answer, FORGOTTEN_MARGIN_MS, Input, STORE_AGAIN, progress};

#[test]
fn what_the_disk_knows_does_not_start() {
    for state in CommandState::ALL
        .into_iter()
        .filter(|state| state.is_final())
    {
        let mut rig = Rig::empty();
        rig.order(command(1));
        rig.answer(Answer::Kept(Kept::Known(progress(
            id(1),
            state,
            String::new(),
        ))));
        rig.settle();
        assert!(rig.started().is_empty());
        assert_eq!(rig.reported(), [(id(1), state)]);
    }
}

#[test]
fn a_start_ends_what_ran_and_begins_what_waited_once_the_bridge_asks_after_it() {
    let stored = StoredCommands {
        commands: vec![
            stored(1, CommandState::Running, true),
            stored(2, CommandState::Delivered, true),
            stored(3, CommandState::Failed, false),
            stored(4, CommandState::Failed, true),
        ],
        forgot_until_ms: 0,
    };
    let mut rig = Rig::new(stored, 1);
    rig.settle();
    rig.input(Input::LinkUp);
    assert!(rig.started().is_empty());
    let reported = rig.reported();
    // Nor is it reported: the bridge goes on asking until it is.
    assert!(!reported.iter().any(|(reported, _)| *reported == id(2)));
    rig.ask(2);
    assert_eq!(
        rig.reported().first(),
        Some(&(id(2), CommandState::Delivered))
    );
    rig.settle();
    assert_eq!(rig.started(), [id(2)]);
    assert!(reported.contains(&(id(1), CommandState::Unknown)));
    assert!(reported.contains(&(id(3), CommandState::Failed)));
    assert!(!reported.iter().any(|(reported, _)| *reported == id(4)));
    assert!(!reported.contains(&(id(1), CommandState::Running)));
}

/// The file may be a copy from before another one ran the command: the bridge, which has its end, neither
/// sends it nor asks.
#[test]
fn what_an_earlier_start_kept_waits_for_the_bridge_and_ends_in_time() {
    let found = || {
        let commands = vec![stored(1, CommandState::Delivered, true)];
        let stored = StoredCommands {
            commands,
            forgot_until_ms: 0,
        };
        Rig::new(stored, 1)
    };
    let mut rig = found();
    rig.pass(Duration::from_millis(59_999));
    rig.settle();
    assert!(rig.started().is_empty() && rig.reported().is_empty());
    rig.pass(Duration::from_millis(1));
    rig.settle();
    assert_eq!(rig.reported(), [(id(1), CommandState::Expired)]);
    // Sent again, as a bridge does that never heard of it; and withdrawn.
    let mut rig = found();
    rig.order(command(1));
    rig.settle();
    assert_eq!(rig.started(), [id(1)]);
    let mut rig = found();
    rig.cancel(1);
    rig.settle();
    rig.ask(1);
    assert!(rig.started().is_empty());
    let reported = rig.reported();
    assert!(
        reported
            .iter()
            .all(|reported| *reported == (id(1), CommandState::Cancelled))
    );
    assert!(!reported.is_empty());
}

#[test]
fn orders_from_before_a_loss_of_memory_do_not_run() {
    let margin = FORGOTTEN_MARGIN_MS;
    for (forgot_until_ms, runs) in [
        (0, true),
        (id(1).made_ms() - margin - 1, true),
        (id(1).made_ms() - margin, false),
    ] {
        let stored = StoredCommands {
            commands: Vec::new(),
            forgot_until_ms,
        };
        let mut rig = Rig::new(stored, 1);
        rig.order(command(1));
        rig.settle();
        assert_eq!(rig.started().len(), usize::from(runs), "{forgot_until_ms}");
        let last = rig.reported().last().copied();
        let unknown = last == Some((id(1), CommandState::Unknown));
        assert_eq!(unknown, !runs);
    }
}

#[test]
fn a_command_that_is_asked_after_is_answered_and_never_started() {
    let ask = |rig: &mut Rig| {
        rig.ask(1);
        rig.settle();
    };
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    rig.reported();
    ask(&mut rig);
    assert_eq!(rig.reported(), [(id(1), CommandState::Running)]);
    // Not known, though the device had it.
    let mut rig = Rig::empty();
    ask(&mut rig);
    assert_eq!(rig.reported(), [(id(1), CommandState::Unknown)]);
    rig.order(command(1));
    rig.cancel(1);
    rig.settle();
    assert!(rig.started().is_empty());
}

#[test]
fn a_write_that_failed_and_was_made_all_the_same_changes_nothing() {
    // Of an order: the next one finds it on the disk, and it runs.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.answer(Answer::Failed);
    rig.pass(STORE_AGAIN);
    rig.order(command(1));
    let delivered = progress(id(1), CommandState::Delivered, String::new());
    rig.answer(Answer::Kept(Kept::Known(delivered.clone())));
    rig.settle();
    assert_eq!(rig.started(), [id(1)]);
    // The same, withdrawn before the next order.
    let mut rig = Rig::empty();
    rig.cancel(1);
    rig.answer(Answer::Kept(Kept::Known(delivered)));
    rig.settle();
    assert_eq!(rig.reported(), [(id(1), CommandState::Cancelled)]);
    rig.order(command(1));
    rig.settle();
    assert!(rig.started().is_empty());
}
