//! `check`: what a start would find, without changing anything.

use std::path::Path;

use daemon::{Class, Failure, say};

use crate::buffer::{self, BufferError};
use crate::config::Settings;
use crate::place;

/// Prints what is configured; fails when a start could not use it.
pub(super) async fn check(config: &Path) -> Result<(), Failure> {
    let settings = Settings::load(config)?;
    let agent = &settings.agent;
    let buffer = check_buffer(&agent.buffer.path)?;
    let mut sources = Vec::new();
    for source in &agent.sources {
        let found = source.source.check().await?;
        let every = match source.interval {
            Some(interval) => format!(", every {interval:?}"),
            None => String::new(),
        };
        sources.push((&source.name, format!("{found}{every}")));
    }
    say!("{}: settings are good", config.display());
    say!("device           {}", agent.link.device);
    for broker in &agent.link.brokers {
        say!("broker           {broker}");
    }
    if let Some(proxy) = &agent.link.proxy {
        say!("proxy            {proxy}");
    }
    say!("certificate      {}", agent.link.tls.cert.display());
    say!("buffer           {buffer}");
    if sources.is_empty() {
        say!("sources          none: add [source.host] or [source.socket]");
    }
    for (name, found) in sources {
        say!("{:<16} {found}", format!("source {name}"));
    }
    Ok(())
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
