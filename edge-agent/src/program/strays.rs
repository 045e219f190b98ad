//! Processes that belong to a program of ours and are in its process group no more: they made a session of
//! their own, or the agent was killed while they ran. Each still has the program's [`Mark`] in its
//! environment, which it inherits.
//!
//! They are looked for where nothing may survive: after a time-out, after a withdrawal, at the
//! start for commands that were running when the agent ended, and before a source starts its program. A
//! program that ends by itself may leave a service behind that it has started as one (`setsid`).

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::task::spawn_blocking;

use super::Mark;

/// Kills those with this mark, and returns how many there were.
pub(crate) async fn kill(mark: Mark) -> usize {
    let named = format!("{}={}", mark.variable, mark.value);
    kill_where(move |variable| variable == named.as_bytes()).await
}

/// Kills those whose environment has a variable that `is_meant`.
pub(crate) async fn kill_where(is_meant: impl Fn(&[u8]) -> bool + Send + 'static) -> usize {
    // What cannot be looked for any more is left to the next start.
    spawn_blocking(move || kill_now(is_meant))
        .await
        .unwrap_or(0)
}

fn kill_now(is_meant: impl Fn(&[u8]) -> bool) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    let mut killed = 0;
    for process in processes.flatten() {
        let number = process.file_name();
        let number = number.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.filter(|number| *number != std::process::id().cast_signed()) else {
            continue;
        };
        // The handle first, so that the process whose environment is read is the one that is killed.
        let Some(Ok(handle)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()))
        else {
            continue;
        };
        let Ok(environment) = fs::read(process.path().join("environ")) else {
            continue;
        };
        let mut variables = environment.split(|byte| *byte == 0);
        if variables.any(&is_meant) && pidfd_send_signal(handle, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    killed
}
