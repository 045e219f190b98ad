//! `tideline token revoke` and `list-revoked`, through the bridge.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use daemon::{Class, Failure};
use serde_json::{Value, json};

use super::inspect::read;
use super::{given, instant};
use crate::client::{Path, RawPages};
use crate::moment::{Moment, moment};
use crate::output::{self, Column, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<Value>; 5] = [
    Column::new("JTI", |token| plain(&token["jti"])),
    Column::new("SUBJECT", |token| plain(&token["subject"])),
    Column::new("REVOKED", |token| output::instant(&token["revoked_at"])),
    Column::new("ENDS", |token| output::instant(&token["expires_at"])),
    Column::new("REASON", |token| plain(&token["reason"])),
];

/// What a list of people shows.
const SUBJECTS: [Column<Value>; 4] = [
    Column::new("SUBJECT", |revoked| plain(&revoked["subject"])),
    Column::new("ISSUED UNTIL", |revoked| {
        output::instant(&revoked["issued_until"])
    }),
    Column::new("BY", |revoked| plain(&revoked["revoked_by"])),
    Column::new("REASON", |revoked| plain(&revoked["reason"])),
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                        tideline token revoke alice.token --reason 'left the company'\n  \
                        tideline token revoke --jti 5f0c… --reason 'seen in a log'\n  \
                        tideline token revoke --subject alice --reason 'lost her laptop'\n\n\
                        Every bridge refuses the token within five seconds. With --subject it is all tokens made out \
                        to that name until now; one that is issued a second later counts.")]
pub(super) struct Revoke {
    /// The token, or a file that holds it; - is standard input
    #[arg(
        value_name = "TOKEN|FILE|-",
        required_unless_present_any = ["jti", "subject"],
        conflicts_with_all = ["jti", "subject"]
    )]
    token: Option<String>,
    /// The token's own name, when it is not at hand
    #[arg(long, value_name = "JTI", value_parser = NonEmptyStringValueParser::new())]
    jti: Option<String>,
    /// All tokens of this person, program or device that were issued until now
    #[arg(long, value_name = "NAME", conflicts_with = "jti", value_parser = NonEmptyStringValueParser::new())]
    subject: Option<String>,
    /// When it ends, if that is known; it is remembered for as long as any token is good at least
    #[arg(long, value_name = "TIME", requires = "jti", conflicts_with_all = ["subject", "token"], allow_hyphen_values = true, value_parser = moment)]
    expires_at: Option<Moment>,
    /// Why, for those who ask later
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tideline token list-revoked\n  tideline token list-revoked --subjects"
)]
pub(super) struct ListRevoked {
    /// Those whose tokens were all revoked, instead of single tokens
    #[arg(long)]
    subjects: bool,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

pub(super) async fn run(revoke: &Revoke, session: &mut Session) -> Outcome {
    let (path, body, done) = match &revoke.subject {
        Some(subject) => {
            let path = Path::new("tokens/subjects").segment(subject);
            let done = format!("all tokens of {} are revoked", output::clean(subject));
            let body = json!({ "reason": revoke.reason });
            (path.then("/revoke"), body, done)
        }
        None => {
            let body = body(revoke)?;
            let done = format!("{} is revoked", plain(&body["jti"]));
            (Path::new("tokens/revoke"), body, done)
        }
    };
    let answer = session.api()?.post(&path, Some(&body)).await?;
    session.show_raw(&answer, |_| output::print(&done))
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
            let mut body = json!({ "jti": jti, "reason": reason });
            if let Some(at) = revoke.expires_at {
                body["expires_at"] = at.rfc3339().into();
            }
            Ok(body)
        }
        (None, None) => Err(Failure::new(
            Class::Configuration,
            "revoke a token: name it, its --jti, or its --subject",
        )),
    }
}

pub(super) async fn list(list: &ListRevoked, session: &mut Session) -> Outcome {
    let (path, of, columns) = match list.subjects {
        true => ("tokens/subjects", "subjects", &SUBJECTS[..]),
        false => ("tokens/revoked", "tokens", &COLUMNS[..]),
    };
    let pages = RawPages::new(Path::new(path), of, list.limit as usize);
    session.list_raw(pages, columns).await
}
