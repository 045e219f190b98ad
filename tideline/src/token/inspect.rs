//! `tideline token inspect`: what a token says, and whether it is good.

use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bridge::auth::{Claims, KeyFolder, token};
use clap::Args;
use daemon::{Class, Failure};
use serde_json::{Value, json};

use super::{given, instant, now_seconds, unusable};
use crate::{output, session};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline token inspect alice.token\n  \
                        tideline token inspect --keys keys alice.token\n  \
                        echo $TIDELINE_TOKEN | tideline token inspect - --keys keys\n\n\
                        With --keys the exit code is 1 for a token that is not good. Whether it was revoked the bridge \
                        knows: see `tideline token list-revoked`.")]
pub(super) struct Inspect {
    /// The token, or a file that holds it; - is standard input
    #[arg(value_name = "TOKEN|FILE|-", default_value = "-")]
    token: String,
    /// Folder of the keys, to see whether its signature holds
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a token says of itself, believed by nobody yet.
pub(super) struct Said {
    pub(super) header: Value,
    pub(super) claims: Claims,
}

pub(super) fn run(inspect: &Inspect) -> Result<ExitCode, Failure> {
    let text = given(&inspect.token)?;
    let Said { header, claims } = read(&text)?;
    let now = now_seconds();
    let verdict = match &inspect.keys {
        Some(folder) => {
            let keys = KeyFolder::open(folder).map_err(unusable)?;
            Some(token::verify(&text, now, |kid| keys.key(kid)).map(drop))
        }
        None => None,
    };
    let stands = match verdict {
        None => "not checked: give --keys".to_owned(),
        Some(Ok(())) => "good".to_owned(),
        Some(Err(refused)) => format!("NOT good: it {refused}"),
    };
    if inspect.json {
        let mut told = json!(claims);
        told["kid"] = header["kid"].clone();
        told["ended"] = (claims.exp <= now).into();
        told["good"] = verdict.map(|verdict| verdict.is_ok()).into();
        told["refused"] = match verdict {
            Some(Err(refused)) => refused.as_str().into(),
            _ => Value::Null,
        };
        output::print(&told.to_string());
    } else {
        let left = match claims.exp.checked_sub(now) {
            Some(left) if left > 0 => {
                let left = std::time::Duration::from_secs(left - left % 60);
                format!(
                    "in {}",
                    humantime::format_duration(left.max(std::time::Duration::from_secs(60)))
                )
            }
            _ => "it has ended".to_owned(),
        };
        output::facts(&[
            ("token", stands),
            ("subject", output::clean(&claims.sub)),
            ("role", claims.role.to_string()),
            ("issued", instant(claims.iat)),
            ("ends", format!("{} ({left})", instant(claims.exp))),
            ("jti", output::clean(&claims.jti)),
            ("key", output::plain(&header["kid"])),
        ]);
    }
    Ok(session::verdict(!matches!(verdict, Some(Err(_)))))
}

/// Takes a token apart without asking who signed it.
pub(super) fn read(text: &str) -> Result<Said, Failure> {
    let parts: Vec<&str> = text.split('.').collect();
    let said = match parts.as_slice() {
        [header, claims, _] => part(header).zip(part(claims)).and_then(|(header, claims)| {
            let claims = serde_json::from_value(claims).ok()?;
            Some(Said { header, claims })
        }),
        _ => None,
    };
    said.ok_or_else(|| {
        Failure::new(Class::Data, "read the token")
            .because("it is no token of Tideline")
            .help("a token is one line with two dots, as `tideline token issue` prints it")
    })
}

fn part(text: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}
