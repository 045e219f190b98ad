//! The core step by step, over a table in memory that answers when it is told to.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const WALL_MS: i64 = 1_800_000_000_000;

struct Rig {
    core: Core,
    now: Moment,
    /// What was asked for, without writes.
    done: Vec<Effect>,
    write: Option<Write>,
}

impl Rig {
    fn new(stored: StoredCommands, parallel: usize) -> Self {
        let now = Moment {
            at: Duration::ZERO,
            time_ms: Some(WALL_MS),
            random: 1.0,
        };
        let (core, effects) = Core::new(stored, parallel, None, now);
        let mut rig = Self {
            core,
            now,
            done: Vec::new(),
            write: None,
        };
        rig.take(effects);
        rig
    }

    fn empty() -> Self {
        Self::new(StoredCommands::default(), 1)
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(write) => {
                    assert!(self.write.is_none(), "two writes at a time");
                    self.write = Some(write);
                }
                other => self.done.push(other),
            }
        }
    }

    fn input(&mut self, input: Input) {
        let effects = self.core.handle(input, self.now);
        self.take(effects);
        let wakeup = self.core.next_wakeup(self.now);
        assert!(wakeup.is_none_or(|at| at > self.now.at), "{wakeup:?}");
    }

    fn order(&mut self, command: Command) {
        self.input(Input::Instruction(Instruction::Order(Order::Run(command))));
    }

    fn ask(&mut self, number: u128) {
        let ask = Ask {
            id: id(number),
            expires_at_ms: i64::MAX,
        };
        self.input(Input::Instruction(Instruction::Order(Order::Ask(ask))));
    }

    fn cancel(&mut self, number: u128) {
        let cancel = Cancel {
            id: id(number),
            expires_at_ms: i64::MAX,
        };
        self.input(Input::Instruction(Instruction::Order(Order::Cancel(
            cancel,
        ))));
    }

    fn noted(&mut self, number: u128, state: CommandState) {
        let noted = Noted {
            id: id(number),
            state,
        };
        self.input(Input::Instruction(Instruction::Noted(vec![noted])));
    }

    fn answer(&mut self, answer: Answer) {
        assert!(self.write.take().is_some(), "nothing is written");
        self.input(Input::Written(answer));
    }

    /// Answers writes as a disk that works and has no other commands.
    fn settle(&mut self) {
        while let Some(write) = &self.write {
            let answer = match write {
                Write::Keep { has_room: true, .. } => Answer::Kept(Kept::New),
                Write::Keep { .. } => Answer::Kept(Kept::Full),
                Write::Move(_) | Write::Note { .. } => Answer::Done,
            };
            self.answer(answer);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.at += time;
        let passed = i64::try_from(time.as_millis()).unwrap();
        self.now.time_ms = self.now.time_ms.map(|now| now + passed);
        self.input(Input::Timer);
    }

    fn started(&self) -> Vec<CommandId> {
        let started = self.done.iter().filter_map(|effect| match effect {
            Effect::Start(command) => Some(command.id),
            _ => None,
        });
        started.collect()
    }

    /// The words told since the last look.
    fn told(&mut self) -> Vec<(CommandId, CommandState)> {
        let told = self.done.iter().filter_map(|effect| match effect {
            Effect::Publish(word) => Some((word.id, word.state)),
            _ => None,
        });
        let told = told.collect();
        self.done
            .retain(|effect| !matches!(effect, Effect::Publish(_)));
        told
    }
}

fn id(number: u128) -> CommandId {
    CommandId::new(WALL_MS.unsigned_abs(), number)
}

fn command(number: u128) -> Command {
    Command {
        id: id(number),
        name: "exec".to_owned(),
        arguments: "{}".to_owned(),
        expires_at_ms: WALL_MS + 60_000,
        priority: 0,
    }
}

fn stored(number: u128, state: CommandState, noted: bool) -> StoredCommand {
    StoredCommand {
        command: command(number),
        progress: word(id(number), state, String::new()),
        noted,
    }
}

#[test]
fn nothing_starts_before_running_is_on_the_disk() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    assert!(matches!(rig.write, Some(Write::Keep { .. })));
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    rig.answer(Answer::Kept(Kept::New));
    assert_eq!(rig.told(), [(id(1), CommandState::Delivered)]);
    let running = word(id(1), CommandState::Running, String::new());
    assert_eq!(rig.write, Some(Write::Move(running)));
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    rig.answer(Answer::Done);
    assert_eq!(rig.started(), [id(1)]);
    assert_eq!(rig.told(), [(id(1), CommandState::Running)]);
    // Its end is told when it is on the disk.
    let outcome = Ok("done".to_owned());
    rig.input(Input::Ended { id: id(1), outcome });
    assert!(rig.told().is_empty());
    rig.answer(Answer::Done);
    assert_eq!(rig.told(), [(id(1), CommandState::Succeeded)]);
}

#[test]
fn what_the_disk_knows_does_not_start() {
    for state in CommandState::ALL
        .into_iter()
        .filter(|state| state.is_final())
    {
        let mut rig = Rig::empty();
        rig.order(command(1));
        rig.answer(Answer::Kept(Kept::Known(word(id(1), state, String::new()))));
        rig.settle();
        assert!(rig.started().is_empty());
        assert_eq!(rig.told(), [(id(1), state)]);
    }
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
    assert_eq!(rig.core.open[&id].word.state, CommandState::Delivered);
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
    let told = rig.told();
    assert_eq!(told.last(), Some(&(id(1), CommandState::Expired)));
}

#[test]
fn a_write_that_failed_and_was_made_all_the_same_changes_nothing() {
    // Of an order: the next one finds it on the disk, and it runs.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.answer(Answer::Failed);
    rig.pass(STORE_AGAIN);
    rig.order(command(1));
    let delivered = word(id(1), CommandState::Delivered, String::new());
    rig.answer(Answer::Kept(Kept::Known(delivered.clone())));
    rig.settle();
    assert_eq!(rig.started(), [id(1)]);
    // The same, withdrawn before the next order.
    let mut rig = Rig::empty();
    rig.cancel(1);
    rig.answer(Answer::Kept(Kept::Known(delivered)));
    rig.settle();
    assert_eq!(rig.told(), [(id(1), CommandState::Cancelled)]);
    rig.order(command(1));
    rig.settle();
    assert!(rig.started().is_empty());
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
    assert_eq!(rig.told().last(), Some(&(id(1), CommandState::Cancelled)));
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
    let told = rig.told();
    for number in [1, 2] {
        assert!(told.contains(&(id(number), CommandState::Cancelled)));
    }
    // After its end: the end stands.
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    let outcome = Err("no".to_owned());
    rig.input(Input::Ended { id: id(1), outcome });
    rig.cancel(1);
    rig.settle();
    assert_eq!(rig.told().last(), Some(&(id(1), CommandState::Failed)));
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
    assert!(rig.told().contains(&(id(5), CommandState::Expired)));
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
    let told = rig.told();
    // Nor is it told: the bridge goes on asking until it is.
    assert!(!told.iter().any(|(told, _)| *told == id(2)));
    rig.ask(2);
    assert_eq!(rig.told().first(), Some(&(id(2), CommandState::Delivered)));
    rig.settle();
    assert_eq!(rig.started(), [id(2)]);
    assert!(told.contains(&(id(1), CommandState::Unknown)));
    assert!(told.contains(&(id(3), CommandState::Failed)));
    assert!(!told.iter().any(|(told, _)| *told == id(4)));
    assert!(!told.contains(&(id(1), CommandState::Running)));
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
    assert!(rig.started().is_empty() && rig.told().is_empty());
    rig.pass(Duration::from_millis(1));
    rig.settle();
    assert_eq!(rig.told(), [(id(1), CommandState::Expired)]);
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
    let told = rig.told();
    assert!(
        told.iter()
            .all(|told| *told == (id(1), CommandState::Cancelled))
    );
    assert!(!told.is_empty());
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
        let last = rig.told().last().copied();
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
    rig.told();
    ask(&mut rig);
    assert_eq!(rig.told(), [(id(1), CommandState::Running)]);
    // Not known, though the device had it.
    let mut rig = Rig::empty();
    ask(&mut rig);
    assert_eq!(rig.told(), [(id(1), CommandState::Unknown)]);
    rig.order(command(1));
    rig.cancel(1);
    rig.settle();
    assert!(rig.started().is_empty());
}

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
    let told = rig.told();
    assert!(!told.contains(&(id(99), CommandState::Cancelled)));
    assert!(told.contains(&(id(100), CommandState::Cancelled)));
}

#[test]
fn a_word_is_told_until_it_is_noted() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    rig.told();
    rig.pass(TELL_FIRST);
    assert_eq!(rig.told(), [(id(1), CommandState::Running)]);
    // The next pause is longer.
    rig.pass(TELL_FIRST);
    assert!(rig.told().is_empty());
    rig.input(Input::LinkUp);
    assert_eq!(rig.told(), [(id(1), CommandState::Running)]);
    // An older word was noted: that is not this one.
    rig.noted(1, CommandState::Delivered);
    rig.settle();
    rig.pass(TELL_MAX);
    assert_eq!(rig.told().len(), 1);
    rig.noted(1, CommandState::Running);
    rig.settle();
    rig.pass(TELL_MAX);
    assert!(rig.told().is_empty());
    let outcome = Ok(String::new());
    rig.input(Input::Ended { id: id(1), outcome });
    rig.settle();
    assert_eq!(rig.told(), [(id(1), CommandState::Succeeded)]);
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
fn percentages_go_forwards_and_are_told_once_a_second() {
    let mut rig = Rig::empty();
    rig.order(command(1));
    rig.settle();
    rig.noted(1, CommandState::Running);
    rig.settle();
    rig.told();
    let percents = |rig: &mut Rig| -> Vec<u8> {
        let told = rig.done.iter().filter_map(|effect| match effect {
            Effect::Publish(word) => Some(word.percent),
            _ => None,
        });
        let told = told.collect();
        rig.told();
        told
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
        let failed = rig.told().contains(&(id(1), CommandState::Failed));
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
                let new = word(command.id, *state, String::new());
                disk.insert(command.id, new);
                Kept::New
            }
            None => Kept::Full,
        }),
        Write::Move(word) => {
            disk.insert(word.id, word.clone());
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
