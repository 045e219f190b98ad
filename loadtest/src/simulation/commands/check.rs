//! P7, held against what devices really did: at each start, at each report, and when all is settled.

use std::time::Duration;

use schema::message::{Command, CommandId, CommandProgress, CommandState};

use super::super::Violation;
use super::store::Known;
use super::world::{Truth, World};
use store::commands::State;

/// How far behind the bridges' clocks a device's may be without a lost memory starting anything.
const FORGOTTEN_MARGIN_MS: u64 = 10 * 60 * 1000;

/// Work is about to begin.
pub(super) fn start(world: &mut World, device: usize, command: &Command) -> Result<(), Violation> {
    let id = command.id;
    let now = world.moment(device);
    let truth = world.truths.get(&id);
    let Some(truth) = truth.filter(|truth| truth.device == device) else {
        return Err(broken(id, "started and nobody asked this device for it"));
    };
    if truth.starts > 0 {
        return Err(broken(id, "started twice"));
    }
    if world.devices[device].disk.state(id) != Some(CommandState::Running) {
        return Err(broken(id, "started before its disk said so"));
    }
    if now
        .time_ms
        .is_none_or(|now_ms| command.expires_at_ms <= now_ms)
    {
        return Err(broken(
            id,
            "started after its expiry, or before the time was known",
        ));
    }
    let stored = world.store.commands.get(&id);
    let expired = State::Reported(CommandState::Expired);
    if stored.is_some_and(|known| known.standing.state == expired) {
        return Err(broken(id, "started after everybody saw it expired"));
    }
    let cancelled = State::Reported(CommandState::Cancelled);
    if truth.said_cancelled || stored.is_some_and(|known| known.standing.state == cancelled) {
        return Err(broken(id, "started after its cancellation was confirmed"));
    }
    let device = &world.devices[device];
    if device.working.len() >= device.parallel {
        return Err(broken(id, "started beside as many as may run"));
    }
    Ok(())
}

/// A device is about to say something: never more than its disk has.
pub(super) fn progress(
    world: &mut World,
    device: usize,
    progress: &CommandProgress,
) -> Result<(), Violation> {
    let on_disk = world.devices[device].disk.state(progress.id);
    let is_known =
        on_disk.is_some_and(|state| state == progress.state || progress.state.may_become(state));
    if !is_known {
        let what = format!(
            "was said to be {}, and the disk says {on_disk:?}",
            progress.state.as_str()
        );
        return Err(broken(progress.id, &what));
    }
    if let Some(truth) = world.truths.get_mut(&progress.id) {
        truth.said_cancelled |= progress.state == CommandState::Cancelled;
    }
    Ok(())
}

/// Every outcome that the database has against what the device did.
pub(super) fn all(world: &World) -> Result<(), Violation> {
    for (id, known) in &world.store.commands {
        let Some(truth) = world.truths.get(id) else {
            return Err(broken(*id, "was never asked for"));
        };
        let device = &world.devices[truth.device];
        let forgot_until = device.disk.forgot_until_ms;
        let forgotten = forgot_until > 0 && id.made_ms() <= forgot_until + FORGOTTEN_MARGIN_MS;
        outcome(*id, known, truth, forgotten)?;
        let on_disk = device.disk.state(*id).map(State::Reported);
        if known.standing.is_settled()
            && !forgotten
            && on_disk.is_some_and(|state| state != known.standing.state)
        {
            return Err(broken(*id, &format!("is {on_disk:?} on its device")));
        }
    }
    Ok(())
}

fn outcome(id: CommandId, known: &Known, truth: &Truth, forgotten: bool) -> Result<(), Violation> {
    let standing = &known.standing;
    let State::Reported(state) = standing.state else {
        return Err(broken(id, "has no outcome"));
    };
    let agrees = match state {
        CommandState::Succeeded => truth.ended == Some(true),
        CommandState::Failed => truth.ended == Some(false),
        // Not what the device reported: what it had begun may be lost with its memory.
        CommandState::Expired if !standing.is_settled() => truth.starts == 0 || forgotten,
        CommandState::Expired => truth.starts == 0,
        CommandState::Cancelled if standing.output.contains("while it ran") => {
            truth.starts == 1 && truth.ended.is_none()
        }
        CommandState::Cancelled => truth.starts == 0,
        CommandState::Unknown => truth.interrupted || forgotten,
        CommandState::Delivered | CommandState::Running => false,
    };
    match agrees {
        true => Ok(()),
        false => Err(broken(
            id,
            &format!(
                "is {} ({:?}), and its device: {truth:?}, forgotten: {forgotten}",
                state.as_str(),
                standing.output
            ),
        )),
    }
}

/// What keeps the world from being settled.
pub(super) fn unsettled(world: &World, at: Duration) -> Violation {
    let open = world.store.commands.iter();
    let mut open = open.filter(|(_, known)| !known.standing.state.is_final());
    match open.next() {
        Some((id, known)) => broken(
            *id,
            &format!("is still {} after {at:?}", known.standing.state.as_str()),
        ),
        None => broken(
            CommandId::from_bits(0),
            &format!("is none, and still a device has something to report after {at:?}"),
        ),
    }
}

fn broken(id: CommandId, what: &str) -> Violation {
    Violation::Command {
        id,
        what: what.to_owned(),
    }
}
