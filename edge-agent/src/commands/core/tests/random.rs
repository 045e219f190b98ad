//! Inputs in any order, over a disk that remembers, also what it was said to have refused.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use schema::message::{CommandId, CommandProgress, CommandState};

use super::rig::{Rig, command, id};
use crate::buffer::{Kept, StoredCommands};
use crate::commands::core::{Answer, Input, Write, progress};

/// A table of commands that remembers.
fn apply(disk: &mut BTreeMap<CommandId, CommandProgress>, write: &Write) -> Answer {
    match write {
        Write::Keep {
            command,
            state,
            has_room,
        } => Answer::Kept(match disk.get(&command.id) {
            Some(known) => Kept::Known(known.clone()),
            None if *has_room => {
                let new = progress(command.id, *state, String::new());
                disk.insert(command.id, new);
                Kept::New
            }
            None => Kept::Full,
        }),
        Write::Move(progress) => {
            disk.insert(progress.id, progress.clone());
            Answer::Done
        }
        Write::Note { .. } => Answer::Done,
    }
}

proptest! {
    /// Whatever comes in whatever order: no illegal stage, no second start, no busy timer.
    #[test]
    fn any_inputs_leave_a_command_started_at_most_once(steps in prop::collection::vec((0..9u8, 1..4u128, 0..100u64), 0..200)) {
        let mut rig = Rig::new(StoredCommands::default(), 2);
        let mut disk = BTreeMap::new();
        for (what, number, millis) in steps {
            let id = id(number);
            match what {
                0 => rig.order(command(number)),
                1 => rig.cancel(number),
                2 => rig.input(Input::Ended { id, outcome: Ok(String::new()) }),
                3 => rig.input(Input::Progress { id, percent: u8::try_from(millis).unwrap_or(0) }),
                4 => rig.noted(number, CommandState::ALL[usize::try_from(millis).unwrap_or(0) % 7]),
                5 => rig.input(Input::LinkUp),
                6 => {
                    if let Some(write) = rig.write.clone() {
                        // It may be on the disk all the same.
                        if millis % 2 == 0 {
                            apply(&mut disk, &write);
                        }
                        rig.answer(Answer::Failed);
                    }
                }
                7 => rig.pass(Duration::from_millis(100 * millis)),
                _ => {
                    if let Some(write) = rig.write.clone() {
                        let answer = apply(&mut disk, &write);
                        rig.answer(answer);
                    }
                }
            }
            let mut started = rig.started();
            started.sort();
            let count = started.len();
            started.dedup();
            prop_assert_eq!(count, started.len());
        }
    }
}
