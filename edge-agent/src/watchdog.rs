//! The agent's signs of life for systemd, and its one line of status there.
//!
//! A sign is given only while all of these have made progress within the time in which one is due (`WatchdogSec`): the
//! runtime, which runs this; the driver with its session; the thread that owns the buffer's file. Each is asked, and
//! asked again when it has answered. So one operation on a slow disk may take as long as `WatchdogSec`, and longer than
//! that no sign comes; systemd then waits once more as long before it ends the process. A disk that *fails* answers, and
//! is no reason: the agent says so and tries again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::{Failure, Lifecycle, lock, notify};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval, sleep};
use tracing::{error, info};

use crate::buffer::Buffer;
use crate::commands::work::SendRequest;
use crate::status::{Status, text};

/// How often the line of status changes at most.
const STATUS_PAUSE: Duration = Duration::from_secs(10);

/// How much longer a start, or a stop, may take from each time that it is asked for.
const EXTENSION: Duration = Duration::from_secs(30);

/// What is watched of an agent.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) buffer: Buffer,
    pub(crate) driver: mpsc::Sender<SendRequest>,
    pub(crate) status: watch::Receiver<Status>,
}

/// When a part answered last.
type Answered = Arc<Mutex<Instant>>;

/// Says that the agent works, and from then on that it lives.
pub(crate) fn begin(watched: Watched, lifecycle: &Lifecycle) {
    if !notify::is_wanted() {
        return;
    }
    let Watched {
        buffer,
        driver,
        status,
    } = watched;
    notify::ready(&line(&status.borrow()));
    let whole = lifecycle.clone();
    let mut lines = status.clone();
    lifecycle.spawn("status line", async move {
        loop {
            tokio::select! {
                Ok(()) = lines.changed() => {}
                () = whole.stopping() => return Ok(()),
            }
            notify::status(&line(&lines.borrow_and_update()));
            tokio::select! {
                () = sleep(STATUS_PAUSE) => {}
                () = whole.stopping() => return Ok(()),
            }
        }
    });
    let Some(due) = notify::watchdog() else {
        return;
    };
    let parts = [
        (
            "the buffer",
            ask(due, lifecycle, move || answer_of_buffer(buffer.clone())),
        ),
        (
            "the session",
            ask(due, lifecycle, move || answer_of_driver(driver.clone())),
        ),
    ];
    let whole = lifecycle.clone();
    lifecycle.spawn("watchdog", async move {
        let mut signs = interval(notify::pause(due));
        let mut silent = None;
        loop {
            tokio::select! {
                _ = signs.tick() => {}
                () = whole.stopping() => return Ok::<(), Failure>(()),
            }
            let now = Instant::now();
            let found = parts
                .iter()
                .find(|(_, answered)| now > *lock(answered) + due)
                .map(|(name, _)| *name);
            if found != silent {
                report(found, due);
                silent = found;
            }
            if silent.is_none() {
                notify::alive();
            }
        }
    });
}

/// While a start waits, for a disk or a long recovery: it takes longer, and why. Ends when it is dropped.
pub(crate) async fn start_takes_longer(reason: impl Fn() -> String) -> std::convert::Infallible {
    let mut times = interval(EXTENSION / 3);
    loop {
        times.tick().await;
        notify::extend(EXTENSION);
        let reason = reason();
        notify::status(match reason.is_empty() {
            true => "starts: opens the buffer",
            false => &reason,
        });
    }
}

/// Asks a part again and again; returns when it answered last.
fn ask<F>(due: Duration, lifecycle: &Lifecycle, answer: impl Fn() -> F + Send + 'static) -> Answered
where
    F: Future<Output = bool> + Send + 'static,
{
    let answered = Arc::new(Mutex::new(Instant::now()));
    let (noted, whole) = (Arc::clone(&answered), lifecycle.clone());
    lifecycle.spawn("watched part", async move {
        loop {
            tokio::select! {
                is_alive = answer() => if is_alive {
                    *lock(&noted) = Instant::now();
                },
                () = whole.stopping() => return Ok(()),
            }
            tokio::select! {
                () = sleep(notify::pause(due)) => {}
                () = whole.stopping() => return Ok(()),
            }
        }
    });
    answered
}

async fn answer_of_buffer(buffer: Buffer) -> bool {
    buffer.answers().await.is_ok()
}

async fn answer_of_driver(driver: mpsc::Sender<SendRequest>) -> bool {
    let (reply, answer) = oneshot::channel();
    driver.send(SendRequest::Alive(reply)).await.is_ok() && answer.await.is_ok()
}

fn report(silent: Option<&'static str>, due: Duration) {
    match silent {
        Some(part) => {
            notify::status(&format!(
                "{part} has not answered for {}: no sign of life is given",
                text::duration(due)
            ));
            error!(
                part,
                due_seconds = due.as_secs_f64(),
                help = "look at the disk (dmesg, smartctl); systemd ends the process unless it answers",
                "a part of the agent stands still; no sign of life is given"
            );
        }
        None => info!("all parts of the agent make progress again"),
    }
}

/// The status in one line.
fn line(status: &Status) -> String {
    let link = match (&status.link, status.connected) {
        (Some(link), true) => format!("connected to {}", link.broker),
        (Some(link), false) => match &link.last_error {
            Some(error) => format!("no connection: {error}"),
            None => format!("connects to {}", link.broker),
        },
        (None, is_connected) => format!("connected: {is_connected}"),
    };
    let pending = status.balance.pending;
    match &status.storage.trouble {
        Some(trouble) => format!(
            "buffer fails: {}; {link}; {pending} readings wait",
            trouble.what
        ),
        None => format!("{link}; {pending} readings wait"),
    }
}
