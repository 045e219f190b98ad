//! What is reported to the bridge, and how often.

use schema::message::CommandState;

use super::rig::{Rig, command, id};
use crate::commands::core::reporting::{PERCENT_INTERVAL, REPORT_FIRST, REPORT_MAX};
use crate::commands::core::{Effect, Input, REMEMBER_MS, Write};

#[test]
fn a_state_is_reported_until_it_is_noted() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    rig.reported();
    rig.pass(REPORT_FIRST);
    assert_eq!(rig.reported(), [(id(1), CommandState::Running)]);
    // The next pause is longer.
    rig.pass(REPORT_FIRST);
    assert!(rig.reported().is_empty());
    rig.input(Input::LinkUp);
    assert_eq!(rig.reported(), [(id(1), CommandState::Running)]);
    // An older state was noted: that is not this one.
    rig.noted(1, CommandState::Delivered);
    rig.settle();
    rig.pass(REPORT_MAX);
    assert_eq!(rig.reported().len(), 1);
    rig.noted(1, CommandState::Running);
    rig.settle();
    rig.pass(REPORT_MAX);
    assert!(rig.reported().is_empty());
    let outcome = Ok(String::new());
    rig.input(Input::Ended { id: id(1), outcome });
    rig.settle();
    assert_eq!(rig.reported(), [(id(1), CommandState::Succeeded)]);
    assert!(!rig.core.is_idle());
    rig.noted(1, CommandState::Succeeded);
    let Some(Write::Note {
        forget_before_ms, ..
    }) = rig.write
    else {
        panic!("{:?}", rig.write);
    };
    assert_eq!(forget_before_ms, rig.now.time_ms.unwrap() - REMEMBER_MS);
    rig.settle();
    assert!(rig.core.is_idle());
    assert_eq!(rig.core.next_wakeup(rig.now), None);
}

#[test]
fn percentages_go_forwards_and_are_reported_once_a_second() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    rig.noted(1, CommandState::Running);
    rig.settle();
    rig.reported();
    let percents = |rig: &mut Rig| -> Vec<u8> {
        let reported = rig.done.iter().filter_map(|effect| match effect {
            Effect::Publish(progress) => Some(progress.percent),
            _ => None,
        });
        let reported = reported.collect();
        rig.reported();
        reported
    };
    for percent in [10, 30, 20, 255] {
        let id = id(1);
        rig.input(Input::Progress { id, percent });
        assert!(rig.write.is_none(), "a percentage was written");
    }
    assert!(percents(&mut rig).is_empty());
    assert_eq!(rig.core.next_wakeup(rig.now), Some(PERCENT_INTERVAL));
    rig.pass(PERCENT_INTERVAL);
    assert_eq!(percents(&mut rig), [100]);
    rig.pass(PERCENT_INTERVAL);
    assert!(percents(&mut rig).is_empty());
}
