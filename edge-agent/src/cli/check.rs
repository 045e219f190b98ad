//! `check`: what a start would find, without changing anything.

use std::path::Path;

use clap::Args;
use daemon::settings::{Effective, Listed, Place};
use daemon::{Class, Failure, say};
use serde_json::{Value, json};

use super::SettingsFrom;
use crate::buffer::{self, BufferError};
use crate::config::Settings;
use crate::place;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    from: SettingsFrom,
    /// Print one JSON object, also of what is wrong
    #[arg(long)]
    json: bool,
    /// List every key that is set, and where it was written
    #[arg(long)]
    keys: bool,
}

impl Options {
    /// For people, of these settings.
    pub(super) const fn of(from: SettingsFrom) -> Self {
        Self {
            from,
            json: false,
            keys: false,
        }
    }
}

/// What a start would find.
struct Found {
    buffer: Option<String>,
    /// Names, and what each says.
    sources: Vec<(String, String)>,
    /// What keeps the agent from starting.
    failures: Vec<Failure>,
}

/// Prints what is configured; fails when a start could not use it.
pub(super) async fn check(options: Options) -> Result<(), Failure> {
    let Options { from, json, keys } = options;
    let given = from.given();
    let (settings, problems) = Settings::examine(&given);
    let listed = problems.list();
    let settings = settings.filter(|_| problems.is_empty());
    let effective = problems.effective();
    let found = match &settings {
        Some(settings) => look(settings).await,
        None => Found::nothing(),
    };
    if json {
        say!(
            "{}",
            as_json(&given.path, settings.as_ref(), &listed, &effective, &found)
        );
    }
    let settings = Settings::settle(&given, settings, problems)?;
    if json || !found.failures.is_empty() {
        return found.settle(&given.path);
    }
    let agent = &settings.agent;
    say!("{}: settings are good", given.path.display());
    say!("device           {}", agent.link.device);
    for broker in &agent.link.brokers {
        say!("broker           {broker}");
    }
    if let Some(proxy) = &agent.link.proxy {
        say!("proxy            {proxy}");
    }
    say!("certificate      {}", agent.link.tls.cert.display());
    if let Some(buffer) = &found.buffer {
        say!("buffer           {buffer}");
    }
    if agent.sources.is_empty() {
        say!("sources          none: add [source.host] or [source.socket]");
    }
    for (name, found) in &found.sources {
        say!("{:<16} {found}", format!("source {name}"));
    }
    let is_elsewhere =
        |place: &Place| !matches!(place, Place::File { path, .. } if **path == given.path);
    if keys || effective.keys().iter().any(|key| is_elsewhere(&key.from)) {
        print_keys(&effective);
    }
    Ok(())
}

/// Where each key was written. Values may be secret, and stay where they are.
fn print_keys(effective: &Effective) {
    say!("keys             and where each was written");
    for key in effective.keys() {
        let over: Vec<String> = key.over.iter().map(Place::to_string).collect();
        match over.is_empty() {
            true => say!("  {:<40} {}", key.key, key.from),
            false => say!("  {:<40} {}, over {}", key.key, key.from, over.join(", ")),
        }
    }
}

/// Looks at the buffer's file and at all sources.
async fn look(settings: &Settings) -> Found {
    let mut found = Found::nothing();
    match check_buffer(&settings.agent.buffer.path) {
        Ok(buffer) => found.buffer = Some(buffer),
        Err(failure) => found.failures.push(failure),
    }
    for source in &settings.agent.sources {
        match source.source.check().await {
            Ok(says) => {
                let every = match source.interval {
                    Some(interval) => format!(", every {interval:?}"),
                    None => String::new(),
                };
                let name = source.name.to_string();
                found.sources.push((name, format!("{says}{every}")));
            }
            Err(failure) => found.failures.push(failure),
        }
    }
    found
}

impl Found {
    const fn nothing() -> Self {
        Self {
            buffer: None,
            sources: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The failure that keeps the agent from starting; one of settings decides the exit code.
    fn settle(mut self, config: &Path) -> Result<(), Failure> {
        if self.failures.len() < 2 {
            return self.failures.pop().map_or(Ok(()), Err);
        }
        let classes = || self.failures.iter().map(Failure::class);
        let class = classes()
            .find(|class| *class == Class::Configuration)
            .or_else(|| classes().next())
            .unwrap_or(Class::Configuration);
        let list: String = self
            .failures
            .iter()
            .map(|failure| format!("\n  {failure}"))
            .collect();
        let what = format!("find what {} needs", config.display());
        Err(Failure::new(class, what).because(list))
    }
}

/// A path as text: JSON has no other.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn as_json(
    config: &Path,
    settings: Option<&Settings>,
    problems: &[Listed],
    effective: &Effective,
    found: &Found,
) -> Value {
    let failures: Vec<Value> = found
        .failures
        .iter()
        .map(|failure| json!({ "class": failure.class().as_str(), "what": failure.to_string() }))
        .collect();
    let sources: serde_json::Map<String, Value> = found
        .sources
        .iter()
        .map(|(name, says)| (name.clone(), json!(says)))
        .collect();
    let agent = settings.map(|settings| &settings.agent);
    json!({
        "config": shown(config),
        "files": effective.files().iter().map(|file| shown(file)).collect::<Vec<_>>(),
        "good": problems.is_empty() && failures.is_empty() && settings.is_some(),
        "problems": problems,
        "failures": failures,
        "device": agent.map(|agent| agent.link.device.to_string()),
        "brokers": agent.map(|agent| agent.link.brokers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "certificate": agent.map(|agent| shown(&agent.link.tls.cert)),
        "buffer": found.buffer,
        "sources": sources,
        "keys": effective.keys(),
    })
}

/// Describes what stands at the buffer's path, and fails when an agent could not begin there.
fn check_buffer(path: &Path) -> Result<String, Failure> {
    let unusable = |error| {
        Failure::new(Class::Storage, format!("use the buffer {}", path.display()))
            .because(error)
            .help("give this user the right to write the file and its folder, or choose another [buffer] path")
    };
    // libSQL writes its log beside the file, so the folder must take files in any case.
    place::check_folder_of(path).map_err(unusable)?;
    match std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .open(path)
    {
        Ok(file) => {
            let bytes = file.metadata().map_err(unusable)?.len();
            let damage = match buffer::begins_damaged(path) {
                Ok(true) => ", damaged: a start recovers it",
                Ok(false) => "",
                Err(BufferError::Foreign { .. }) => {
                    let error = "it is no database of an agent's, and none begins there";
                    return Err(unusable(std::io::Error::other(error)));
                }
                Err(error) => return Err(unusable(std::io::Error::other(error))),
            };
            Ok(format!("{} ({bytes} bytes{damage})", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(format!("{} (does not exist yet)", path.display()))
        }
        Err(error) => Err(unusable(error)),
    }
}
