//! A whole Tideline to be fuzzed: `tideline up` on a database, with keys of its own, and an
//! administrator's token. Dropping it ends it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use daemon::{Class, Failure};
use serde::Deserialize;
use tempfile::TempDir;

/// How long it may take to come up.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// Lines of its log that are shown when something was found.
const LOG_LINES: usize = 40;

/// A running bridge, with all that it needs.
pub(super) struct Bridge {
    process: Child,
    folder: TempDir,
    url: String,
    token: String,
}

/// What `tideline up` says of itself.
#[derive(Debug, Deserialize)]
struct Endpoints {
    http: String,
    /// The folder of keys that sign tokens for it.
    token_keys: PathBuf,
}

impl Bridge {
    /// Starts it on a database, which it may fill.
    pub(super) fn start(database: &str) -> Result<Self, Failure> {
        let folder = TempDir::new().map_err(|error| failed().because(error))?;
        let tideline = tideline()?;
        let data = folder.path().join("data");
        let log = File::create(log(folder.path())).map_err(|error| failed().because(error))?;
        let process = Command::new(&tideline)
            .args(["up", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"])
            .args(["--device", "fuzzed", "--database", database, "--data-dir"])
            .arg(&data)
            .arg("--require-tokens")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| failed().because(error))?;
        // From here on it is ended whatever happens.
        let mut bridge = Self {
            process,
            folder,
            url: String::new(),
            token: String::new(),
        };
        let endpoints = bridge.until_ready(&data)?;
        bridge.url = endpoints.http;
        bridge.token = output(
            Command::new(&tideline)
                .args(["token", "issue", "--subject", "fuzz", "--role", "admin"])
                .args(["--ttl", "1h", "--keys"])
                .arg(&endpoints.token_keys),
        )?;
        Ok(bridge)
    }

    fn until_ready(&mut self, data: &Path) -> Result<Endpoints, Failure> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if let Some(endpoints) = endpoints(data) {
                return Ok(endpoints);
            }
            let ended = self.process.try_wait();
            let ended = ended.map_err(|error| failed().because(error))?;
            if ended.is_some() || Instant::now() >= deadline {
                let said = fs::read_to_string(log(self.folder.path())).unwrap_or_default();
                return Err(failed().because(said));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// An administrator's token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Where whatever is written meanwhile goes.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Shows the end of its log: errors of the server say there what they are.
    pub(super) fn tell(&self) {
        let text = fs::read_to_string(log(self.folder.path())).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("the bridge's log ends:");
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("  {line}");
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Its data goes with its folder: nothing is worth a drain.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn endpoints(data: &Path) -> Option<Endpoints> {
    let text = fs::read(data.join("endpoints.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn log(folder: &Path) -> PathBuf {
    folder.join("up.log")
}

/// The binary beside this one.
fn tideline() -> Result<PathBuf, Failure> {
    let running = std::env::current_exe().map_err(|error| failed().because(error))?;
    let program = running.with_file_name("tideline");
    match program.is_file() {
        true => Ok(program),
        false => Err(failed().because(format!("{} is not built", program.display()))),
    }
}

fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed().because(error))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(failed().because(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn failed() -> Failure {
    Failure::new(Class::Configuration, "start a bridge for the fuzzer")
}
