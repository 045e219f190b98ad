//! `init`: writes settings for what is on this machine, as a person wants it.

mod ask;
mod find;
mod text;
mod write;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::Args;
use daemon::{Class, Failure, say};
use schema::{BrokerAddress, DeviceId};

use super::{FILE, FILE_VARIABLE, SettingsFrom, check};
use ask::Asker;
use find::{Found, Identity};
use text::{Picked, Plan};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The settings file to write
    #[arg(long, short, default_value = FILE, env = FILE_VARIABLE)]
    config: PathBuf,
    /// The fleet's broker, as HOST or HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    broker: Option<String>,
    /// The folder of this device's certificates, as `certs device` writes it
    #[arg(long, value_name = "FOLDER")]
    certs: Option<PathBuf>,
    /// Which device this is, where the folder has certificates of several
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The file that keeps readings until the database has them
    #[arg(long, value_name = "FILE")]
    buffer: Option<PathBuf>,
    /// Where the agent answers on this machine, for `edge-agent status`
    #[arg(long, value_name = "ADDRESS")]
    http: Option<std::net::SocketAddr>,
    /// Ask nothing: take all that is found
    #[arg(long, short)]
    yes: bool,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

/// Finds, asks, writes, checks.
pub(super) async fn init(options: Options) -> Result<(), Failure> {
    let path = &options.config;
    // Before anybody answers questions in vain.
    write::check(path, options.force)?;
    if let Some(broker) = &options.broker {
        parse_broker(broker).map_err(|reason| {
            let what = format!("use the broker's address {broker}");
            Failure::new(Class::Configuration, what).because(reason)
        })?;
    }
    let found = find::find(path, options.certs.as_deref()).await;
    let is_asked =
        !options.yes && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    tell(&found);
    let plan = plan(&options, found, &mut Asker::new(is_asked))?;
    write::write(path, &text::settings(&plan), options.force)?;
    say!("");
    say!("{} is written", path.display());
    let checked = check::check(check::Options::of(SettingsFrom::file(path))).await;
    if let Err(failure) = checked {
        say!("");
        say!(
            "What is missing is below. Then: edge-agent check --config {}",
            path.display()
        );
        return Err(failure);
    }
    say!("");
    say!("Next: edge-agent run --config {}", path.display());
    Ok(())
}

fn parse_broker(text: &str) -> Result<(), String> {
    let parsed: Result<BrokerAddress, _> = text.parse();
    parsed.map(drop).map_err(|error| error.to_string())
}

/// Says what is there.
fn tell(found: &Found) {
    say!("Found on this machine:");
    match &found.identities[..] {
        [] => say!(
            "  no certificate of a device (looked in {})",
            shown(&found.looked)
        ),
        all => {
            for one in all {
                say!(
                    "  certificate of device {} in {}",
                    one.device,
                    one.cert.display()
                );
            }
        }
    }
    for line in &found.serial {
        say!("  serial line {}", line.display());
    }
    if found.has_mqtt {
        say!("  an MQTT broker on {}", find::MQTT);
    }
    for exporter in &found.exporters {
        say!("  exporter {} on {}", exporter.name, exporter.url);
    }
    if let Some(broker) = &found.broker {
        say!("  something that may be the fleet's broker on {broker}");
    }
}

fn shown(paths: &[PathBuf]) -> String {
    let all: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    all.join(", ")
}

/// What is to be written, of what is found and what is answered.
fn plan(options: &Options, found: Found, ask: &mut Asker) -> Result<Plan, Failure> {
    let broker = match &options.broker {
        Some(broker) => broker.clone(),
        None => broker(&found, ask)?,
    };
    let identity = identity(options, &found.identities, ask)?;
    let host = ask.yes("Read this machine's processors, memory, disks and temperatures?")?;
    let mut picked = Picked {
        host,
        mqtt: false,
        exporters: Vec::new(),
    };
    if found.has_mqtt {
        let question = format!(
            "Read what zigbee2mqtt sends to the broker on {}?",
            find::MQTT
        );
        picked.mqtt = ask.yes(&question)?;
    }
    for exporter in found.exporters {
        let question = format!("Read exporter {} on {}?", exporter.name, exporter.url);
        if ask.yes(&question)? {
            picked.exporters.push(exporter);
        }
    }
    Ok(Plan {
        broker,
        identity,
        certs: options.certs.clone(),
        buffer: buffer(options),
        http: options.http,
        picked,
        serial: found.serial,
    })
}

fn broker(found: &Found, ask: &mut Asker) -> Result<String, Failure> {
    let answer = ask.text(
        "The fleet's broker, as HOST or HOST:PORT",
        found.broker.as_deref(),
        parse_broker,
    )?;
    answer.ok_or_else(|| {
        Failure::new(Class::Configuration, "know the fleet's broker")
            .because("none answers on this machine")
            .help("give it with --broker HOST:PORT")
    })
}

/// Which device this is; `None` while there is no certificate.
fn identity(
    options: &Options,
    all: &[Identity],
    ask: &mut Asker,
) -> Result<Option<Identity>, Failure> {
    let names: Vec<&str> = all.iter().map(|one| one.device.as_str()).collect();
    let pick = |device: &str| {
        all.iter()
            .find(|one| one.device.as_str() == device)
            .cloned()
    };
    let unknown = |device: &str| {
        let known = match names.is_empty() {
            true => "none is found".to_owned(),
            false => format!("those found are of {}", names.join(", ")),
        };
        Failure::new(
            Class::Configuration,
            format!("find a certificate of device {device}"),
        )
        .because(known)
        .help("give the folder with --certs, or leave --device out and copy the certificate later")
    };
    if let Some(device) = &options.device {
        return pick(device).map(Some).ok_or_else(|| unknown(device));
    }
    match all {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => {
            let check = |text: &str| match text.parse::<DeviceId>() {
                Ok(_) if names.contains(&text) => Ok(()),
                _ => Err(format!("is none of {}", names.join(", "))),
            };
            let answer = ask.text("Which device is this?", None, check)?;
            match answer {
                Some(device) => Ok(pick(&device)),
                None => Err(
                    Failure::new(Class::Configuration, "know which device this is")
                        .because(format!("there are certificates of {}", names.join(", ")))
                        .help("name it with --device"),
                ),
            }
        }
    }
}

/// Beside the settings; what is in `/etc` has its data where data belongs.
fn buffer(options: &Options) -> PathBuf {
    match &options.buffer {
        Some(path) => path.clone(),
        None if options.config.starts_with("/etc") => {
            Path::new("/var/lib/tideline/buffer.db").into()
        }
        None => "buffer.db".into(),
    }
}
