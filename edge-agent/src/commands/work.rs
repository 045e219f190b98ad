//! What commands do: `ping`, `flush`, and `exec` from a list of programs that the device's owner
//! allows. Nothing that arrives is ever a program's name or argument.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use schema::limits;
use schema::message::CommandId;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::buffer::Buffer;
use crate::driver::Control;

/// How long a flush may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a flush looks whether everything has arrived.
const FLUSH_LOOK: Duration = Duration::from_millis(50);

/// Tells a program which command it was started for.
const ID_VARIABLE: &str = "TIDELINE_COMMAND_ID";

/// How a command ended, and its output.
pub(crate) type Outcome = Result<String, String>;

/// A program that commands may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub program: PathBuf,
    /// What it is called with, always.
    pub args: Vec<String>,
    /// It is killed after this time.
    pub timeout: Duration,
}

/// What commands work with.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) buffer: Buffer,
    pub(crate) controls: mpsc::Sender<Control>,
    pub(crate) programs: Arc<BTreeMap<String, Program>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    name: String,
}

/// A flush, which ends when this is dropped: also when its command is withdrawn.
struct Flushing<'a>(&'a mpsc::Sender<Control>);

impl<'a> Flushing<'a> {
    async fn begin(controls: &'a mpsc::Sender<Control>) -> Result<Self, String> {
        let begun = controls.send(Control::Flush(true)).await;
        begun.map_err(|_| "the agent is stopping".to_owned())?;
        Ok(Self(controls))
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        // A driver that is gone flushes no more.
        let _ = self.0.try_send(Control::Flush(false));
    }
}

impl Workshop {
    /// Does what a command says. Dropping it stops what it started.
    pub(crate) fn perform(
        &self,
        id: CommandId,
        name: String,
        arguments: String,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let shop = self.clone();
        async move {
            match name.as_str() {
                "ping" => Ok("pong".to_owned()),
                "flush" => shop.flush().await,
                "exec" => shop.exec(id, &arguments).await,
                other => Err(format!(
                    "this agent knows no command {other:?}; it knows ping, flush and exec"
                )),
            }
        }
    }

    /// Sends all there is, without linger and pace.
    async fn flush(&self) -> Outcome {
        let flushing = Flushing::begin(&self.controls).await?;
        let arrived = timeout(FLUSH_TIMEOUT, async {
            while self.buffer.balance().pending > 0 {
                sleep(FLUSH_LOOK).await;
            }
        });
        let arrived = arrived.await.is_ok();
        drop(flushing);
        let pending = self.buffer.balance().pending;
        match arrived {
            true => Ok("everything is in the database".to_owned()),
            false => Err(format!("{pending} readings are still pending")),
        }
    }

    async fn exec(&self, id: CommandId, arguments: &str) -> Outcome {
        let Exec { name } = serde_json::from_str(arguments)
            .map_err(|error| format!("arguments are not of the form {{\"name\": …}}: {error}"))?;
        let Some(allowed) = self.programs.get(&name) else {
            let known: Vec<&str> = self.programs.keys().map(String::as_str).collect();
            return Err(format!(
                "{name:?} is not in this device's [commands.exec] list, which has {known:?}"
            ));
        };
        run(id, allowed).await
    }
}

/// Runs a program to its end. Its output is read as it comes and kept up to a bound.
async fn run(id: CommandId, allowed: &Program) -> Outcome {
    let program = allowed.program.display();
    let mut child = Command::new(&allowed.program)
        .args(&allowed.args)
        .env(ID_VARIABLE, id.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let finished = timeout(allowed.timeout, async {
        tokio::join!(read(out), read(err), child.wait())
    });
    let Ok((out, err, status)) = finished.await else {
        return Err(format!("{program} was killed after {:?}", allowed.timeout));
    };
    let status = status.map_err(|error| format!("cannot wait for {program}: {error}"))?;
    let said = match (out.is_empty(), err.is_empty()) {
        (_, true) => out,
        (true, false) => err,
        (false, false) => format!("{out}\n{err}"),
    };
    match status.success() {
        true => Ok(said),
        false => Err(format!("{program} ended with {status}: {said}")),
    }
}

/// Reads to the end, and keeps as much as may travel.
async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let Some(mut from) = from else {
        return String::new();
    };
    let mut part = [0; 4096];
    while let Ok(bytes @ 1..) = from.read(&mut part).await {
        let room = limits::COMMAND_BODY_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..bytes.min(room)]);
    }
    // SQL text holds no NUL.
    String::from_utf8_lossy(&kept)
        .replace('\0', "\u{fffd}")
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: CommandId = CommandId::from_bits(1);

    fn program(script: &str, timeout_ms: u64) -> Program {
        Program {
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout: Duration::from_millis(timeout_ms),
        }
    }

    #[tokio::test]
    async fn a_programs_output_and_end_are_told() {
        let run = async |script| run(ID, &program(script, 10_000)).await;
        assert_eq!(run("echo $TIDELINE_COMMAND_ID").await, Ok(ID.to_string()));
        assert_eq!(run("echo done").await, Ok("done".to_owned()));
        assert_eq!(run("echo a; echo b >&2").await, Ok("a\nb".to_owned()));
        let failed = run("echo bad >&2; exit 3").await.unwrap_err();
        assert!(failed.contains("3") && failed.ends_with("bad"), "{failed}");
        assert_eq!(
            run("printf 'a\\000b\\377'").await,
            Ok("a\u{fffd}b\u{fffd}".to_owned())
        );
    }

    #[tokio::test]
    async fn endless_output_is_read_and_cut_and_an_endless_program_killed() {
        let long = run(
            ID,
            &program("head -c 1000000 /dev/zero | tr '\\0' x", 10_000),
        )
        .await
        .unwrap();
        assert_eq!(long.len(), limits::COMMAND_BODY_BYTES_MAX);
        let killed = run(ID, &program("sleep 60", 50)).await.unwrap_err();
        assert!(killed.contains("killed"), "{killed}");
    }

    #[tokio::test]
    async fn a_flush_that_is_withdrawn_ends() {
        let (controls, mut heard) = mpsc::channel(2);
        let flushing = Flushing::begin(&controls).await.unwrap();
        assert!(matches!(heard.recv().await, Some(Control::Flush(true))));
        drop(flushing);
        assert!(matches!(heard.recv().await, Some(Control::Flush(false))));
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_named() {
        let missing = Program {
            program: "/nowhere/program".into(),
            ..program("", 1)
        };
        let error = run(ID, &missing).await.unwrap_err();
        assert!(error.contains("/nowhere/program"), "{error}");
    }
}
