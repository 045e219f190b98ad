//! Processes that end with their test.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use crate::wait::blocking;

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Guard(pub Child);

impl Guard {
    /// Starts it.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| {
            panic!("{command:?}: {error}; run the tests through `cargo xtask test`")
        }))
    }

    /// Sends it a signal; returns its exit code, and how long its end took.
    pub fn ends_on(&mut self, signal: Signal) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let ended = blocking::until_ok("it ends", || self.0.try_wait().unwrap().ok_or("it runs"));
        (ended.code(), begun.elapsed())
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
