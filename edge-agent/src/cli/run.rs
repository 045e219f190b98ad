//! `run`: the agent as a process of its own, from its settings to a stop in order. When a command asks for it, the
//! process then runs itself again with the same arguments.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Args;
use daemon::health::{STARTING, State};
use daemon::lifecycle::{Hangups, Signals};
use daemon::settings::{Effective, Given};
use daemon::{Backoff, Class, Failure, Health, Lifecycle, admin, http, notify};
use prometheus_client::registry::Registry;
use schema::message::CommandId;
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::block_on;
use crate::app::{Agent, RunningAgent};
use crate::clock::ClockSettings;
use crate::config::{OwnProcess, Settings};
use crate::watchdog;

/// The option with the command for which the process was started again.
const RESTARTED_FOR: &str = "--restarted-for";

/// How long a stop may take: draining, the farewell, the last commit.
const STOP_GRACE: Duration = Duration::from_millis(4_800);

/// The first and the longest pause before a busy admin address is tried again.
const ADMIN_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How often a start looks whether it has to wait.
const WAITING_LOOK: Duration = Duration::from_millis(100);

// What a fault plan has wrong about the clocks. (A doc comment would become the help of `run`.)
#[derive(Debug, Clone, Args)]
pub(super) struct ClockFaults {
    /// Put the wall clock off by so many milliseconds, to test faults
    #[arg(long, hide = true, allow_hyphen_values = true)]
    clock_offset_ms: Option<i64>,
    /// A file with that offset, which may change meanwhile
    #[arg(long, hide = true)]
    clock_offset_file: Option<PathBuf>,
    /// The boot to take this one for, to test faults
    #[arg(long, hide = true)]
    boot: Option<String>,
}

impl ClockFaults {
    /// Has the clocks be wrong.
    pub(super) fn apply(self, clock: &mut ClockSettings) {
        clock.offset_ms = self.clock_offset_ms.unwrap_or(clock.offset_ms);
        clock.offset_file = self.clock_offset_file;
        clock.boot = self.boot;
    }
}

/// Runs the agent; when a command wanted that, the process then becomes a new one of itself.
pub(super) fn run_and_again(
    given: &Given,
    faults: ClockFaults,
    restarted_for: Option<CommandId>,
) -> Result<(), Failure> {
    // Found now: an update may put another file in its place, which is then the one to run.
    let program = std::env::current_exe();
    let Some(command) = block_on(run(given, faults, restarted_for))? else {
        return Ok(());
    };
    let failed = |error| Failure::new(Class::Storage, "start the agent again").because(error);
    let program = program.map_err(failed)?;
    let arguments = arguments_for(std::env::args_os().skip(1), command);
    // Returns only when that fails.
    Err(failed(
        std::process::Command::new(program).args(arguments).exec(),
    ))
}

/// The same arguments, and the command that is the reason.
fn arguments_for(
    mut arguments: impl Iterator<Item = OsString>,
    command: CommandId,
) -> Vec<OsString> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == RESTARTED_FOR {
            arguments.next();
        } else {
            kept.push(argument);
        }
    }
    kept.extend([RESTARTED_FOR.into(), command.to_string().into()]);
    kept
}

/// Runs the agent until it is stopped; answers for which command it is to run again.
async fn run(
    given: &Given,
    faults: ClockFaults,
    restarted_for: Option<CommandId>,
) -> Result<Option<CommandId>, Failure> {
    let mut hangups = Hangups::listen()?;
    let mut settings = Settings::load_given(given)?;
    let at_start = settings.effective.clone();
    faults.apply(&mut settings.agent.clock);
    let levels = settings.log.start()?;
    settings.agent.own_process = Some(OwnProcess {
        levels,
        restarted_for,
    });
    info!(settings = ?settings.agent, "effective settings");
    // Taken by another program, it is bound when it is free: readings do not wait for it.
    let listener = http::bind(settings.admin)
        .await
        .inspect_err(|error| {
            warn!(
                %error,
                help = "free the port, or choose another [admin] http address; the agent goes on without it and tries again",
                "admin endpoints are not served yet"
            );
        })
        .ok();
    let (lifecycle, health) = (Lifecycle::new(), Health::default());
    let mut registry = Registry::default();
    let mut signals = Signals::listen()?;
    // A start may have to wait for the disk; it has to answer why meanwhile, and may be stopped.
    let waiting = listener
        .as_ref()
        .map(|listener| waiting_room(listener, &lifecycle, &health));
    let agent = tokio::select! {
        started = Agent::start(settings.agent, &lifecycle, &health, &mut registry) => started?,
        never = watchdog::start_takes_longer(|| reasons(&health)), if notify::is_wanted() => match never {},
        () = signals.next() => {
            info!("stopped before the agent had started");
            signals.finish(&lifecycle, STOP_GRACE).await?;
            return Ok(None);
        }
    };
    waiting.inspect(AbortHandle::abort);
    let router = admin::router(Arc::new(registry), health).merge(agent.router());
    match listener {
        Some(listener) => admin::serve(listener, router, &lifecycle),
        None => {
            let serving = serve_when_free(settings.admin, router, lifecycle.clone());
            lifecycle.spawn("admin", serving);
        }
    }
    watchdog::begin(agent.watched(), &lifecycle);
    let reloading = async {
        loop {
            hangups.next().await;
            if !lifecycle.is_stopping() {
                notify::reloading();
                reload(given, &at_start, &agent).await;
                notify::ready("settings are read");
            }
        }
    };
    // A signal while it restarts means a stop: only a stop in order is followed by the restart.
    tokio::select! {
        () = signals.wait(&lifecycle) => {}
        () = reloading => {}
    }
    match agent.restart_wanted() {
        // One that says that it stops is ended, also when it has begun anew.
        Some(_) => notify::reloading(),
        None => notify::stopping(),
    }
    signals.finish(&lifecycle, STOP_GRACE).await?;
    Ok(agent.restart_wanted())
}

/// Reads the settings again and applies them, or says why not; the outcome is logged.
async fn reload(given: &Given, at_start: &Effective, agent: &RunningAgent) {
    info!(
        file = %given.path.display(),
        "settings are read again, as SIGHUP asks for"
    );
    let again = given.clone();
    // A file system may hang, and the agent must not.
    let read = tokio::task::spawn_blocking(move || Settings::load_given(&again)).await;
    match read {
        Ok(Ok(settings)) => {
            agent.reload(at_start, settings).await;
        }
        Ok(Err(failure)) => agent.refuse_settings(&failure.to_string()),
        Err(error) => agent.refuse_settings(&error.to_string()),
    }
}

/// Serves the admin endpoints as soon as their address is free.
async fn serve_when_free(
    address: SocketAddr,
    router: Router,
    lifecycle: Lifecycle,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new(ADMIN_BACKOFF.0, ADMIN_BACKOFF.1);
    loop {
        tokio::select! {
            () = tokio::time::sleep(backoff.next_jittered()) => {}
            () = lifecycle.stopping() => return Ok(()),
        }
        match http::bind(address).await {
            Ok(listener) => {
                info!(%address, "admin endpoints are served from now on");
                return http::serve(listener, router, None, lifecycle).await;
            }
            Err(error) => debug!(%error, "admin endpoints are not served yet"),
        }
    }
}

/// Answers for the agent until it has started: the health of its parts, also as an answer to `/status`.
fn waiting_room(
    listener: &tokio::net::TcpListener,
    lifecycle: &Lifecycle,
    health: &Health,
) -> AbortHandle {
    let parts = health.clone();
    let status = move || async move { (StatusCode::SERVICE_UNAVAILABLE, reasons(&parts)) };
    let router =
        admin::router(Arc::new(Registry::default()), health.clone()).route("/status", get(status));
    let lifecycle = lifecycle.clone();
    let shared = share(listener);
    let parts = health.clone();
    let answering = tokio::spawn(async move {
        // A start that need not wait needs no substitute.
        while !parts.states().values().any(has_reason) {
            tokio::time::sleep(WAITING_LOOK).await;
        }
        if let Ok(listener) = shared {
            // Its connections end with it; the agent's own answers take their place.
            let _ = http::serve(listener, router, None, lifecycle).await;
        }
    });
    answering.abort_handle()
}

/// Whether a part waits for something else than its start.
fn has_reason(state: &State) -> bool {
    matches!(state, State::Waiting(reason) if reason != STARTING)
}

/// What parts wait for, beside their start.
fn reasons(parts: &Health) -> String {
    let reasons = parts
        .states()
        .into_values()
        .filter_map(|state| match state {
            State::Waiting(reason) if reason != STARTING => Some(reason),
            _ => None,
        });
    reasons.collect::<Vec<_>>().join("; ")
}

/// A second listener on the same socket.
fn share(listener: &tokio::net::TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    tokio::net::TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_restart_keeps_the_arguments_and_names_its_own_reason() {
        let (first, second) = (CommandId::from_bits(1), CommandId::from_bits(2));
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let once = arguments_for(words("run --config a.toml").into_iter(), first);
        assert_eq!(
            once,
            words(&format!("run --config a.toml --restarted-for {first}"))
        );
        let twice = arguments_for(once.into_iter(), second);
        assert_eq!(
            twice,
            words(&format!("run --config a.toml --restarted-for {second}"))
        );
        assert!(Cli::try_parse_from([words("edge-agent"), twice].concat()).is_ok());
    }
}
