//! `tideline token`: keys that sign, tokens that they sign, and tokens that are good no more.
//! Private keys stay in their files: nothing here prints one.

mod inspect;
mod issue;
mod revoke;

use std::io::Read;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use bridge::auth::{KeyFolderError, keys};
use clap::{Args, Subcommand};
use daemon::{Class, Failure};
use serde_json::json;

use crate::output;
use crate::session::{Outcome, Session};

/// Longest text that is taken as a token.
const TOKEN_BYTES_MAX: u64 = 8 * 1024;

/// Tokens for the API.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  tideline token key --keys keys\n  \
                  tideline token issue --keys keys --subject alice --role operator --ttl 30d --out alice.token\n  \
                  tideline token inspect --keys keys alice.token\n  \
                  tideline token revoke alice.token --reason 'left the company'\n\n\
                  A bridge needs the KID.pub of the folder alone; whoever issues tokens needs the KID.key too.\n\n\
                  Exit codes: 0 done, 1 it could not be done (inspect: the token is not good), 2 wrong arguments."
)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key, which signs from now on; the older ones still check
    Key(Key),
    /// Make a token out to somebody, and print it
    Issue(issue::Issue),
    /// Show what a token says, and whether it is good
    Inspect(inspect::Inspect),
    /// Have every bridge refuse a token from now on
    Revoke(revoke::Revoke),
    /// List the tokens that were revoked
    ListRevoked(revoke::ListRevoked),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tideline token key --keys keys\n\n\
                        To rotate: make a key, give its KID.pub to every bridge, and take the old KID.pub away when \
                        the last of its tokens has ended.")]
struct Key {
    /// Folder of the keys; made if it is not there
    #[arg(long, value_name = "DIR")]
    keys: std::path::PathBuf,
    /// Do nothing when the folder has a key already
    #[arg(long)]
    if_missing: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it: with files alone, or through the bridge.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    match &options.action {
        Action::Key(key) => make_key(key),
        Action::Issue(issue) => issue::run(issue),
        Action::Inspect(inspect) => inspect::run(inspect),
        Action::Revoke(revoke) => revoke::run(revoke, session).await,
        Action::ListRevoked(list) => revoke::list(list, session).await,
    }
}

fn make_key(key: &Key) -> Result<ExitCode, Failure> {
    if key.if_missing && keys::signer(&key.keys).is_ok() {
        let folder = key.keys.display();
        output::print(&match key.json {
            true => json!({ "kid": null, "folder": key.keys }).to_string(),
            false => format!("{folder} has a key already"),
        });
        return Ok(ExitCode::SUCCESS);
    }
    let made = keys::create(&key.keys, now_seconds()).map_err(unusable)?;
    let (kid, folder) = (made.kid(), key.keys.display());
    if key.json {
        let told = json!({ "kid": kid, "folder": key.keys });
        output::print(&told.to_string());
    } else {
        output::print(&format!("key {kid} signs from now on"));
        output::print(&format!(
            "  {folder}/{kid}.key  keep it secret: it signs tokens"
        ));
        output::print(&format!("  {folder}/{kid}.pub  every bridge needs it"));
    }
    Ok(ExitCode::SUCCESS)
}

fn unusable(error: KeyFolderError) -> Failure {
    Failure::new(Class::Configuration, "use the folder of keys").because(error)
}

fn now_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// A token as it is given: `-` is standard input, a file's name is read, anything else is the
/// token itself.
fn given(text: &str) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Class::Configuration, "read the token").because(error);
    let mut token = String::new();
    let read = if text == "-" {
        std::io::stdin()
            .take(TOKEN_BYTES_MAX)
            .read_to_string(&mut token)
    } else if std::path::Path::new(text).is_file() {
        std::fs::File::open(text)
            .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut token))
    } else {
        token.push_str(text);
        Ok(text.len())
    };
    read.map_err(failed)?;
    Ok(token.trim().to_owned())
}

fn instant(seconds: u64) -> String {
    let at = i64::try_from(seconds).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(at)
        .ok()
        .and_then(|at| {
            at.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| seconds.to_string())
}
