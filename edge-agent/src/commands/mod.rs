//! Commands: kept before they run, run at most once (P7), and reported until the bridge has noted it.
//!
//! ```text
//! order ─► kept on disk ─► waits by priority ─► "running" on disk ─► runs ─► its end on disk
//!             │ known: only its state is reported again                         │
//!             └──────────── reported after each step, and again until noted ◄───┘
//! ```
//!
//! What ran when the agent was killed ends as unknown: it may have taken effect, so it is not tried
//! again. A damaged buffer takes the memory of commands with it; orders from before that are
//! answered as unknown too.
//!
//! [`core`] decides, [`work`] is what a command does, and the task here carries out: it waits for
//! one input, hands it to the core, and carries out the effects.

pub mod core;
mod exec;
pub(crate) mod restart;
#[cfg(test)]
mod tests;
pub mod work;

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use daemon::Failure;
use schema::message::{Command, CommandId, CommandProgress, CommandState, Event};
use schema::{Channel, envelope};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::core::{Answer, Core, Effect, Input, Moment, Write};
use crate::buffer::{Buffer, BufferError, Kept};
use crate::clock::AgentClock;
use crate::link::LinkState;
use crate::program::strays;
use work::{Outcome, Workshop};

pub use self::core::{COMMANDS_OPEN_MAX, Instruction};

/// How long a stop of the agent waits for programs that were terminated, and then killed.
const ENDINGS_TIME_MAX: Duration = Duration::from_secs(3);

/// Reports of progress that may wait; each program sends one a second.
const PERCENTS_QUEUE: usize = 16;

/// What the task is made of.
pub(crate) struct Commands {
    pub(crate) buffer: Buffer,
    pub(crate) clock: AgentClock,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) instructions: mpsc::Receiver<Instruction>,
    pub(crate) workshop: Workshop,
    /// Commands that may run at the same time.
    pub(crate) parallel: watch::Receiver<usize>,
    pub(crate) stop: CancellationToken,
}

/// The task while it runs.
struct CommandsTask {
    parts: Commands,
    core: Core,
    started: Instant,
    running: HashMap<CommandId, AbortHandle>,
    work: JoinSet<(CommandId, Outcome)>,
    /// The write that the core waits for.
    write: Option<Writing>,
    /// Receives how far running commands are, in percent.
    percents: mpsc::Receiver<(CommandId, u8)>,
}

/// Ends with `None` when the buffer is closed.
type Writing = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

impl Commands {
    /// Runs until stopped. What runs then is ended, and known as unknown at the next start.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let (progress, percents) = mpsc::channel(PERCENTS_QUEUE);
        self.workshop.tools.progress = Some(progress);
        let stored = self.buffer.commands().await.map_err(|error| {
            Failure::new(error.class(), "read the commands of the buffer").because(error)
        })?;
        for stored in &stored.commands {
            if stored.progress.state == CommandState::Running {
                let id = stored.command.id;
                let left = strays::kill(exec::mark(id)).await;
                if left > 0 {
                    warn!(command = %id, processes = left, "a program outlived the agent and was killed");
                }
            }
        }
        let started = Instant::now();
        let parallel = *self.parallel.borrow_and_update();
        let restarted_for = self.workshop.tools.restarted_for;
        let now = moment(started, &self.clock);
        let (core, effects) = Core::new(stored, parallel, restarted_for, now);
        let mut task = CommandsTask {
            parts: self,
            core,
            started,
            running: HashMap::new(),
            work: JoinSet::new(),
            write: None,
            percents,
        };
        task.carry_out(effects);
        task.go().await;
        task.end().await;
        Ok(())
    }
}

impl CommandsTask {
    /// Handles inputs until the agent stops or the buffer is closed.
    async fn go(&mut self) {
        loop {
            let wakeup = self.core.next_wakeup(self.moment());
            let wakeup = wakeup.map(|at| self.started + at);
            let parts = &mut self.parts;
            let input = tokio::select! {
                biased;
                () = parts.stop.cancelled() => return,
                answer = written(&mut self.write) => match answer {
                    Some(answer) => Input::Written(answer),
                    None => return,
                },
                Some(done) = self.work.join_next() => match broken_off(done, &self.running) {
                    Some((id, outcome)) => {
                        self.running.remove(&id);
                        Input::Ended { id, outcome }
                    }
                    None => continue,
                },
                Some((id, percent)) = self.percents.recv() => Input::Progress { id, percent },
                Some(instruction) = parts.instructions.recv(), if self.core.takes_instructions() => {
                    Input::Instruction(instruction)
                }
                Ok(()) = parts.link.changed() => match *parts.link.borrow_and_update() {
                    LinkState::Up(_) => Input::LinkUp,
                    LinkState::Down(_) => continue,
                },
                Ok(()) = parts.parallel.changed() => {
                    Input::Parallel(*parts.parallel.borrow_and_update())
                }
                () = sleep_until(wakeup.unwrap_or(self.started)), if wakeup.is_some() => Input::Timer,
            };
            let effects = self.core.handle(input, self.moment());
            self.carry_out(effects);
        }
    }

    /// Ends what runs, and all that programs have started.
    async fn end(&mut self) {
        let endings = self.parts.workshop.tools.endings.clone();
        let ended = async {
            self.work.shutdown().await;
            endings.close();
            endings.wait().await;
        };
        if timeout(ENDINGS_TIME_MAX, ended).await.is_err() {
            warn!("a program that was killed does not end");
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(write) => {
                    self.write = Some(Box::pin(perform(self.parts.buffer.clone(), write)));
                }
                Effect::Start(command) => self.start(command),
                Effect::Abort(id) => {
                    if let Some(task) = self.running.remove(&id) {
                        task.abort();
                    }
                }
                Effect::Publish(progress) => self.publish(&progress),
            }
        }
    }

    fn start(&mut self, command: Command) {
        let id = command.id;
        let workshop = &self.parts.workshop;
        let work = workshop.perform(id, command.name, command.arguments);
        let task = self.work.spawn(async move { (id, work.await) });
        self.running.insert(id, task);
    }

    fn publish(&self, progress: &CommandProgress) {
        let LinkState::Up(uplink) = &*self.parts.link.borrow() else {
            return;
        };
        match envelope::encode(&Event::Command(progress.clone())) {
            // What the link does not take is reported again.
            Ok(payload) => drop(uplink.publish(Channel::Event, payload)),
            Err(error) => {
                warn!(%error, command = %progress.id, "a command's state cannot be reported");
            }
        }
    }

    fn moment(&self) -> Moment {
        moment(self.started, &self.parts.clock)
    }
}

fn moment(started: Instant, clock: &AgentClock) -> Moment {
    Moment {
        at: started.elapsed(),
        time_ms: clock.commands_ms(),
        random: rand::random(),
    }
}

/// How work ended; `None` for work that was stopped, whose end is known already.
fn broken_off(
    done: Result<(CommandId, Outcome), JoinError>,
    running: &HashMap<CommandId, AbortHandle>,
) -> Option<(CommandId, Outcome)> {
    match done {
        Ok(done) => Some(done),
        Err(error) => {
            let (id, _) = running.iter().find(|(_, task)| task.id() == error.id())?;
            Some((*id, Err("its work broke off".to_owned())))
        }
    }
}

/// The answer to the write under way; never, when there is none.
async fn written(write: &mut Option<Writing>) -> Option<Answer> {
    match write {
        Some(under_way) => {
            let answer = under_way.await;
            *write = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// Carries out a write, and returns the answer for the core; `None` when the buffer is closed.
async fn perform(buffer: Buffer, write: Write) -> Option<Answer> {
    let (id, done) = match write {
        Write::Keep {
            command,
            state,
            has_room,
        } => {
            let (id, name) = (command.id, command.name.clone());
            let kept = buffer.keep_command(command, state, has_room).await;
            match &kept {
                Ok(Kept::New) if state == CommandState::Delivered => {
                    info!(command = %id, name, "command received");
                }
                Ok(Kept::Full) => {
                    warn!(command = %id, "too many commands wait; this one is sent again");
                }
                Ok(Kept::New | Kept::Known(_)) | Err(_) => {}
            }
            (Some(id), kept.map(Answer::Kept))
        }
        Write::Move(progress) => {
            let (id, state) = (progress.id, progress.state);
            let moved = buffer.move_command(progress).await;
            if moved.is_ok() && state.is_final() {
                info!(command = %id, state = state.as_str(), "command ended");
            }
            (Some(id), moved.map(|()| Answer::Done))
        }
        Write::Note {
            noted,
            forget_before_ms,
        } => {
            let done = buffer.note_commands(noted, forget_before_ms).await;
            (None, done.map(|()| Answer::Done))
        }
    };
    match (done, id) {
        (Ok(answer), _) => Some(answer),
        (Err(BufferError::Closed), _) => None,
        (Err(error), Some(id)) => {
            warn!(%error, command = %id, "a command's state was not kept");
            Some(Answer::Failed)
        }
        (Err(error), None) => {
            debug!(%error, "what the bridge noted was not kept");
            Some(Answer::Failed)
        }
    }
}
