//! `doctor`: looks for what keeps the agent from working, and says for each thing how it is mended. It changes nothing;
//! what it finds out it finds out as the agent would: with the same settings, files, addresses and TLS.

mod clock;
mod disk;
mod files;
mod network;
mod ports;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use daemon::{Failure, say, stdout};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use super::run::ClockFaults;
use super::status::{Answer, ask};
use super::{SettingsFrom, for_terminal};
use crate::clock::{AgentClock, ClockSettings, Machine};
use crate::config::{Settings, Sketch};
use crate::source::socket::TAKEN;
use crate::source::{SourceConfig, SourceState};
use crate::status::Status;
use crate::status::text::NAME;

/// How long one check may take: a server far away, a disk that is busy.
const CHECK_TIMEOUT: Duration = Duration::from_secs(7);

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    from: SettingsFrom,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faults: ClockFaults,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// The agent works, and may soon not.
    Warn,
    /// The agent does not work, or not wholly.
    Fail,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    level: Level,
    what: String,
    /// How it is mended.
    mend: Option<String>,
}

impl Finding {
    fn ok(check: &str, what: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            level: Level::Ok,
            what: what.into(),
            mend: None,
        }
    }

    fn warn(check: &str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            mend: Some(mend.into()),
            ..Self::ok(check, what)
        }
    }

    fn fail(check: &str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(check, what, mend)
        }
    }
}

/// Checks everything, and prints what was found.
pub(super) async fn doctor(options: &Options) -> Result<ExitCode, Failure> {
    let findings = examine(options).await;
    let fails = findings.iter().filter(|of| of.level == Level::Fail).count();
    if options.json {
        say!("{}", json!({ "healthy": fails == 0, "findings": findings }));
    } else {
        let text: String = findings.iter().map(shown).collect();
        stdout::print_bytes(for_terminal(&text).as_bytes());
        let warns = findings.iter().filter(|of| of.level == Level::Warn).count();
        say!("{} checks: {fails} fail, {warns} warn", findings.len());
    }
    Ok(match fails {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn shown(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warn => "WARN",
        Level::Fail => "FAIL",
    };
    let mut text = format!("{level:<5}{:<10} {}\n", finding.check, finding.what);
    if let Some(mend) = &finding.mend {
        text += &format!("{:NAME$}mend: {mend}\n", "");
    }
    text
}

async fn examine(options: &Options) -> Vec<Finding> {
    let given = options.from.given();
    let loaded = Settings::load_given(&given);
    let sketch = match &loaded {
        Ok(settings) => Ok(Sketch::of(settings)),
        Err(_) => Sketch::read(&given),
    };
    let mut findings = vec![match &loaded {
        Ok(_) => Finding::ok("settings", format!("{} is good", given.path.display())),
        Err(failure) => Finding::fail(
            "settings",
            one_line(&failure.to_string()),
            "correct what is named; `edge-agent check` says it by line",
        ),
    }];
    let mut clock_settings = match &loaded {
        Ok(settings) => settings.agent.clock.clone(),
        Err(_) => ClockSettings::default(),
    };
    options.faults.clone().apply(&mut clock_settings);
    let clock = Arc::new(AgentClock::begin(Machine::new(clock_settings)));
    let Ok(sketch) = sketch else {
        findings.extend(clock::check(&clock, None));
        return findings;
    };
    if let Some(tls) = &sketch.tls {
        // For what this device's own certificate proves of the time.
        let _ = certs::tls::client_config_floored(tls, &clock.servers());
    }
    let running = match timeout(CHECK_TIMEOUT, ask(sketch.admin)).await {
        Ok(Ok(Answer::Status(status))) => Some(*status),
        _ => None,
    };
    let sources = match loaded {
        Ok(settings) => settings.agent.sources,
        // What is wrong with them is among the problems of the settings.
        Err(_) => Settings::load_sources_given(&given).unwrap_or_default(),
    };
    let status = running.as_ref();
    let (network, files, disk, ports, sources) = tokio::join!(
        network::check(&sketch, &clock),
        timed("files", {
            let (tls, clock) = (sketch.tls.clone(), Arc::clone(&clock));
            blocking(move || tls.map_or_else(Vec::new, |tls| files::check(&tls, clock.wall_ms())))
        }),
        timed("disk", {
            let buffer = sketch.buffer.clone();
            blocking(move || buffer.map_or_else(Vec::new, |path| disk::check(&path)))
        }),
        timed("ports", ports::check(&sketch, status)),
        check_sources(sources, status),
    );
    findings.extend(clock::check(&clock, status));
    for found in [files, network, disk, ports, sources] {
        findings.extend(found);
    }
    findings
}

/// Work that the system may hold up.
async fn blocking(work: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_default()
}

/// As much of a check as ends in time.
async fn timed(check: &'static str, work: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    timeout(CHECK_TIMEOUT, work).await.unwrap_or_else(|_| {
        let what = format!("no answer within {CHECK_TIMEOUT:?}");
        vec![Finding::fail(
            check,
            what,
            "look at the disk and its mounts (dmesg, mount): something hangs",
        )]
    })
}

/// As the agent that runs sees them; where none does, as its start would.
async fn check_sources(sources: Vec<SourceConfig>, running: Option<&Status>) -> Vec<Finding> {
    if let Some(status) = running {
        let of = |(name, source): (&String, &crate::source::SourceStatus)| {
            let check = format!("source {name}");
            match source.state {
                SourceState::Failing | SourceState::Stalled => Finding::fail(
                    &check,
                    source.to_string(),
                    "mend what it says; it is tried again by itself",
                ),
                _ => Finding::ok(&check, source.to_string()),
            }
        };
        return status.sources.iter().map(of).collect();
    }
    if sources.is_empty() {
        let mend = "add a section [source.NAME]; docs/sources has one for each kind";
        return vec![Finding::warn(
            "sources",
            "there are none: nothing is read",
            mend,
        )];
    }
    let mut checks = Vec::new();
    for config in sources {
        let name = format!("source {}", config.name);
        let source = Arc::clone(&config.source);
        let check = tokio::spawn(async move { timeout(CHECK_TIMEOUT, source.check()).await });
        checks.push((name, check));
    }
    let mut findings = Vec::new();
    for (name, check) in checks {
        let mend = "mend what it says; `edge-agent try NAME` shows what it would read";
        findings.push(match check.await {
            Ok(Ok(Ok(found))) if found.contains(TAKEN) => Finding::fail(
                &name,
                format!("{found}, which is not this agent"),
                "stop that program (ss -lnp names it), or give the source another address",
            ),
            Ok(Ok(Ok(found))) => Finding::ok(&name, found),
            Ok(Ok(Err(failure))) => Finding::fail(&name, one_line(&failure.to_string()), mend),
            Ok(Err(_)) => Finding::fail(&name, format!("no answer within {CHECK_TIMEOUT:?}"), mend),
            Err(error) => Finding::fail(&name, error.to_string(), "please report this bug"),
        });
    }
    findings
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
