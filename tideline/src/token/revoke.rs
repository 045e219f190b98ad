//! `tideline token revoke` and `list-revoked`, through the bridge.

use std::process::ExitCode;

use clap::Args;
use daemon::{Class, Failure, lifecycle};
use serde_json::{Value, json};

use super::inspect::read;
use super::{given, instant, now_seconds};
use crate::api::{Api, Pages, Path, Reach};
use crate::moment::{Moment, moment};
use crate::output::{self, Column, plain};

/// The longest that a token of which only the name is known can still be good.
const LONGEST_SECONDS: u64 = 366 * 86_400;

/// What a list shows.
const COLUMNS: [Column; 5] = [
    Column::new("JTI", |token| plain(&token["jti"])),
    Column::new("SUBJECT", |token| plain(&token["subject"])),
    Column::new("REVOKED", |token| output::instant(&token["revoked_at"])),
    Column::new("ENDS", |token| output::instant(&token["expires_at"])),
    Column::new("REASON", |token| plain(&token["reason"])),
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline token revoke alice.token --reason 'left the company'\n  \
                        tideline token revoke --jti 5f0c… --reason 'seen in a log'\n\n\
                        Every bridge refuses the token within five seconds.")]
pub(super) struct Revoke {
    /// The token, or a file that holds it; - is standard input
    #[arg(
        value_name = "TOKEN|FILE|-",
        required_unless_present = "jti",
        conflicts_with = "jti"
    )]
    token: Option<String>,
    /// The token's own name, when it is not at hand
    #[arg(long, value_name = "JTI")]
    jti: Option<String>,
    /// When it ends, if that is known; it can be forgotten then
    #[arg(long, value_name = "TIME", requires = "jti", allow_hyphen_values = true, value_parser = moment)]
    expires_at: Option<Moment>,
    /// Why, for those who ask later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tideline token list-revoked")]
pub(super) struct ListRevoked {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn run(revoke: &Revoke) -> Result<ExitCode, Failure> {
    let body = body(revoke)?;
    lifecycle::runtime(Some(1))?.block_on(async {
        let mut api = Api::of(&revoke.reach)?;
        let path = Path::new("tokens/revoke").to_string();
        let answer = api.post(&path, Some(&body)).await?;
        if revoke.reach.json {
            output::print(&answer.to_string());
        } else {
            output::print(&format!("{} is revoked", plain(&body["jti"])));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn body(revoke: &Revoke) -> Result<Value, Failure> {
    let reason = revoke.reason.as_str();
    match (&revoke.token, &revoke.jti) {
        (Some(token), _) => {
            let claims = read(&given(token)?)?.claims;
            Ok(json!({
                "jti": claims.jti,
                "subject": claims.sub,
                "expires_at": instant(claims.exp),
                "reason": reason,
            }))
        }
        (None, Some(jti)) => {
            let ends = match revoke.expires_at {
                Some(at) => at.rfc3339(),
                None => instant(now_seconds() + LONGEST_SECONDS),
            };
            Ok(json!({ "jti": jti, "expires_at": ends, "reason": reason }))
        }
        (None, None) => Err(Failure::new(
            Class::Configuration,
            "revoke a token: name it or its --jti",
        )),
    }
}

pub(super) fn list(list: &ListRevoked) -> Result<ExitCode, Failure> {
    lifecycle::runtime(Some(1))?.block_on(async {
        let mut api = Api::of(&list.reach)?;
        let pages = Pages::new(Path::new("tokens/revoked"), "tokens", list.limit as usize);
        crate::api::list(&mut api, pages, list.reach.json, &COLUMNS).await?;
        Ok(ExitCode::SUCCESS)
    })
}
