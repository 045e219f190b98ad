//! `tideline token revoke` and `list-revoked`, through the bridge.

use api::tokens::{
    ListRevokedSubjects, ListRevokedTokens, OfSubject, RevokeBody, RevokeSubject,
    RevokeSubjectBody, RevokeToken, RevokedSubject, RevokedToken,
};
use api::{Endpoint as _, Nothing};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use daemon::{Class, Failure};

use super::inspect::read;
use super::{given, instant};
use crate::client::Pages;
use crate::moment::{Moment, moment};
use crate::output::{self, Column, plain};
use crate::session::{Outcome, Session};

/// What a list shows.
const COLUMNS: [Column<RevokedToken>; 5] = [
    Column::new("JTI", |token| plain(&token.jti)),
    Column::new("SUBJECT", |token| plain(&token.subject)),
    Column::new("REVOKED", |token| output::instant(&token.revoked_at)),
    Column::new("ENDS", |token| output::instant(&token.expires_at)),
    Column::new("REASON", |token| plain(&token.reason)),
];

/// What a list of people shows.
const SUBJECTS: [Column<RevokedSubject>; 4] = [
    Column::new("SUBJECT", |revoked| plain(&revoked.subject)),
    Column::new("ISSUED UNTIL", |revoked| {
        output::instant(&revoked.issued_until)
    }),
    Column::new("BY", |revoked| plain(&revoked.revoked_by)),
    Column::new("REASON", |revoked| plain(&revoked.reason)),
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
    if let Some(subject) = &revoke.subject {
        let of = OfSubject {
            subject: subject.clone(),
        };
        let body = RevokeSubjectBody {
            reason: revoke.reason.clone(),
        };
        let request = RevokeSubject::at(of).body(body);
        let answer = session.api()?.ask(&request).await?;
        let done = format!("all tokens of {} are revoked", output::clean(subject));
        return session.done(&answer, &done);
    }
    let body = body(revoke)?;
    let done = format!("{} is revoked", plain(&body.jti));
    let request = RevokeToken::at(Nothing {}).body(body);
    let answer = session.api()?.ask(&request).await?;
    session.done(&answer, &done)
}

fn body(revoke: &Revoke) -> Result<RevokeBody, Failure> {
    let reason = revoke.reason.clone();
    match (&revoke.token, &revoke.jti) {
        (Some(token), _) => {
            let claims = read(&given(token)?)?.claims;
            Ok(RevokeBody {
                jti: claims.jti,
                subject: claims.sub,
                expires_at: Some(instant(claims.exp)),
                reason,
            })
        }
        (None, Some(jti)) => Ok(RevokeBody {
            jti: jti.clone(),
            expires_at: revoke.expires_at.map(Moment::rfc3339),
            reason,
            ..RevokeBody::default()
        }),
        (None, None) => Err(Failure::new(
            Class::Configuration,
            "revoke a token: name it, its --jti, or its --subject",
        )),
    }
}

pub(super) async fn list(list: &ListRevoked, session: &mut Session) -> Outcome {
    let limit = list.limit as usize;
    if list.subjects {
        let pages = Pages::new(ListRevokedSubjects::at(Nothing {}), limit);
        return session.list(pages, &SUBJECTS).await;
    }
    let pages = Pages::new(ListRevokedTokens::at(Nothing {}), limit);
    session.list(pages, &COLUMNS).await
}
