//! `tideline token issue`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bridge::auth::{Claims, Role, keys, token};
use clap::Args;
use daemon::{Class, Failure};
use schema::DeviceId;
use serde_json::json;

use super::{instant, now_seconds, unusable};
use crate::output;

/// How long a token may be good.
const TTL_MIN: Duration = Duration::from_secs(60);
const TTL_MAX: Duration = Duration::from_secs(token::VALIDITY_SECONDS_MAX);

/// Longest name of a person or program, in bytes: it stands in every row that says who did it.
const SUBJECT_BYTES_MAX: usize = 64;

#[derive(Debug, Args)]
#[command(
    after_help = "Roles: viewer looks at everything, operator also sends commands and changes settings, \
                        admin may do all, device hands in and reads what belongs to the device that is its subject.\n\n\
                        Examples:\n  \
                        tideline token issue --keys keys --subject alice --role operator --out alice.token\n  \
                        tideline token issue --keys keys --subject press-7 --role device --ttl 1day\n  \
                        TIDELINE_TOKEN=$(tideline token issue --keys keys --subject me --role viewer --ttl 10m) tideline status"
)]
pub(super) struct Issue {
    /// Folder of the keys; the newest one signs
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Whom it is made out to: a person or a program, or for the role device its id
    #[arg(long, value_name = "NAME", value_parser = subject)]
    subject: String,
    /// What it is good for: viewer, operator, admin, device
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// How long it is good, from 1m to 366d
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = ttl)]
    ttl: Duration,
    /// Write it to this new file, which only its owner can read, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON: the token (unless there is --out) and what it says
    #[arg(long)]
    json: bool,
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (TTL_MIN..=TTL_MAX).contains(&ttl) {
        true => Ok(ttl),
        false => Err("must be from 1m to 366d".to_owned()),
    }
}

fn subject(text: &str) -> Result<String, String> {
    let is_plain = !text.chars().any(char::is_control) && text.trim() == text;
    match (1..=SUBJECT_BYTES_MAX).contains(&text.len()) && is_plain {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "must have 1 to {SUBJECT_BYTES_MAX} bytes without control characters, and no blank at its ends"
        )),
    }
}

pub(super) fn run(issue: &Issue) -> Result<ExitCode, Failure> {
    if issue.role == Role::Device
        && let Err(error) = issue.subject.parse::<DeviceId>()
    {
        let what = format!("make a token out to device {:?}", issue.subject);
        return Err(Failure::new(Class::Configuration, what).because(error));
    }
    let signer = keys::signer(&issue.keys).map_err(unusable)?;
    let claims = Claims::new(
        issue.subject.clone(),
        issue.role,
        now_seconds(),
        issue.ttl.as_secs(),
    );
    let token = signer
        .sign(&claims)
        .map_err(|error| Failure::new(Class::Data, "sign the token").because(error))?;
    if let Some(file) = &issue.out {
        write(file, &token)?;
    }
    if issue.json {
        let mut told = json!(claims);
        told["kid"] = signer.kid().into();
        if issue.out.is_none() {
            told["token"] = token.into();
        }
        output::print(&told.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    match &issue.out {
        Some(file) => output::print(&format!(
            "{}: {} as {} until {}",
            file.display(),
            claims.sub,
            claims.role,
            instant(claims.exp)
        )),
        None => output::print(&token),
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that is there already is somebody's: it is left alone.
fn write(path: &Path, token: &str) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| {
            writeln!(file, "{token}")?;
            file.sync_all()
        })
        .map_err(|error| {
            Failure::new(Class::Storage, format!("write {}", path.display()))
                .because(error)
                .help("name a file that is not there yet, in a folder that is")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_a_minute_to_a_year() {
        for (text, ok) in [
            ("59s", false),
            ("1m", true),
            ("366d", true),
            ("366d 1s", false),
            ("soon", false),
        ] {
            assert_eq!(ttl(text).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn a_subject_is_a_short_name() {
        for (text, ok) in [
            ("", false),
            ("a", true),
            (&*"x".repeat(64), true),
            (&*"x".repeat(65), false),
            ("a\nb", false),
            (" a", false),
            ("Ada Lovelace", true),
        ] {
            assert_eq!(subject(text).is_ok(), ok, "{text:?}");
        }
    }
}
