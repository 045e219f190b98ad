//! What is bounded: commands that are open, instructions that wait, the length of each text.

use schema::limits;
use schema::message::{Command, CommandState};

use super::rig::{Rig, command, id};
use crate::commands::core::{ARRIVALS_MAX, COMMANDS_OPEN_MAX, Write, bounded};

#[test]
fn one_more_than_may_be_open_is_not_kept() {
    let mut rig = Rig::empty();
    let most = COMMANDS_OPEN_MAX as u128;
    for number in 1..=most {
        rig.order(command(number));
        rig.settle();
    }
    let has_room = |rig: &Rig| matches!(rig.write, Some(Write::Keep { has_room: true, .. }));
    rig.order(command(most + 1));
    assert!(!has_room(&rig));
    rig.settle();
    // A withdrawal takes no room that it does not give back.
    rig.cancel(most + 1);
    assert!(has_room(&rig));
    rig.settle();
    for number in [most, most + 1] {
        rig.cancel(number);
        rig.settle();
        rig.noted(number, CommandState::Cancelled);
        rig.settle();
    }
    rig.order(command(most + 2));
    assert!(has_room(&rig));
}

#[test]
fn instructions_that_wait_for_the_disk_are_bounded() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    for number in 0..ARRIVALS_MAX as u128 {
        assert!(rig.core.takes_instructions());
        rig.cancel(100 + number);
    }
    assert!(!rig.core.takes_instructions());
    rig.cancel(99);
    rig.settle();
    assert!(rig.core.takes_instructions());
    let reported = rig.reported();
    assert!(!reported.contains(&(id(99), CommandState::Cancelled)));
    assert!(reported.contains(&(id(100), CommandState::Cancelled)));
}

#[test]
fn a_command_that_is_too_long_fails_and_takes_no_room() {
    for (name, arguments, runs) in [
        (limits::KEY_BYTES_MAX, limits::COMMAND_BODY_BYTES_MAX, true),
        (limits::KEY_BYTES_MAX + 1, 0, false),
        (1, limits::COMMAND_BODY_BYTES_MAX + 1, false),
    ] {
        let mut rig = Rig::empty();
        rig.order(Command {
            name: "n".repeat(name),
            arguments: "a".repeat(arguments),
            ..command(1)
        });
        if let Some(Write::Keep { command, .. }) = &rig.write
            && !runs
        {
            assert!(command.name.is_empty() && command.arguments.is_empty());
        }
        rig.settle();
        assert_eq!(rig.started().len(), usize::from(runs));
        let failed = rig.reported().contains(&(id(1), CommandState::Failed));
        assert_eq!(failed, !runs);
    }
}

#[test]
fn outputs_are_cut_between_characters() {
    let most = limits::COMMAND_BODY_BYTES_MAX;
    assert_eq!(bounded("x".repeat(most)).len(), most);
    assert_eq!(bounded("x".repeat(most + 1)).len(), most);
    let wide = format!("x{}", "ü".repeat(most));
    assert_eq!(bounded(wide).len(), most - 1);
}
