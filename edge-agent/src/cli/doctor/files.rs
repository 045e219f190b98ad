//! Authority, certificate and key: whether they can be read, hold now and for a while, and belong together.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use certs::TlsFiles;
use certs::certificate::Certificate;
use certs::profile::RENEW_DAYS;
use certs::verify::{Problem, Verifier, problem_with_key};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Finding;

/// Rights of others than the owner.
const OTHERS: u32 = 0o077;

pub(super) fn check(tls: &TlsFiles, now_ms: i64) -> Vec<Finding> {
    let nanos = i128::from(now_ms) * 1_000_000;
    let now =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut findings = Vec::new();
    let authority = read("authority", &tls.ca, now, &mut findings);
    let own = read("cert", &tls.cert, now, &mut findings);
    if let Some(own) = &own {
        match own
            .identity
            .as_ref()
            .map(|identity| (identity.device(), identity))
        {
            Ok((Some(device), _)) => findings.push(Finding::ok("device", device.to_string())),
            Ok((None, identity)) => findings.push(Finding::fail(
                "device",
                format!("{} is of role {}", tls.cert.display(), identity.role),
                "give a certificate of role device: certs device ID",
            )),
            Err(error) => findings.push(Finding::fail(
                "device",
                format!("{}: {error}", tls.cert.display()),
                "give a certificate as `certs device ID` writes it",
            )),
        }
    }
    if let (Some(_), Some(own)) = (&authority, &own) {
        findings.extend(belongs(tls, own, now));
    }
    findings.extend(key(tls, own.is_some()));
    findings
}

fn read(
    check: &str,
    path: &Path,
    now: OffsetDateTime,
    findings: &mut Vec<Finding>,
) -> Option<Certificate> {
    let name = path.display();
    match Certificate::read(path) {
        Ok(certificate) => {
            findings.push(dates(check, &name.to_string(), &certificate, now));
            Some(certificate)
        }
        Err(error) => {
            findings.push(Finding::fail(
                check,
                with_causes(&error),
                format!("give a PEM file at {name} that this user may read; [tls] names it"),
            ));
            None
        }
    }
}

fn dates(check: &str, name: &str, certificate: &Certificate, now: OffsetDateTime) -> Finding {
    let validity = certificate.validity;
    let days = (validity.not_after - now).whole_days();
    let (from, until) = (date(validity.not_before), date(validity.not_after));
    let renew = match check {
        "authority" => {
            "make a new authority and new certificates before that day; docs/configuration.md has the steps"
        }
        _ => "renew it: certs renew; the agent reads the file again by itself",
    };
    if now < validity.not_before {
        let mend = "set this machine's clock; if it is right, the certificate was made for later";
        Finding::fail(check, format!("{name} is not valid before {from}"), mend)
    } else if now > validity.not_after {
        Finding::fail(check, format!("{name} has expired on {until}"), renew)
    } else if days < RENEW_DAYS {
        Finding::warn(
            check,
            format!("{name} expires in {days} days, on {until}"),
            renew,
        )
    } else {
        Finding::ok(check, format!("{name} is valid until {until}, {days} days"))
    }
}

/// Whether the authority signed the certificate; its dates were looked at before.
fn belongs(tls: &TlsFiles, own: &Certificate, now: OffsetDateTime) -> Vec<Finding> {
    let problems = match Verifier::new(&tls.ca, None) {
        Ok(verifier) => verifier.problems(own, now),
        Err(error) => {
            let mend = "give the fleet's ca.pem as [tls] ca";
            return vec![Finding::fail("chain", with_causes(&error), mend)];
        }
    };
    let is_other =
        |problem: &Problem| !matches!(problem, Problem::Expired(_) | Problem::NotYetValid(_));
    let findings: Vec<Finding> = problems
        .iter()
        .filter(|problem| is_other(problem))
        .map(|problem| {
            Finding::fail(
                "chain",
                format!("{}: {problem}", tls.cert.display()),
                "give ca.pem, certificate and key of one fleet: those that were issued together",
            )
        })
        .collect();
    // Outside of its dates nothing else was looked at.
    if findings.is_empty() && problems.is_empty() {
        let what = format!("{} signed {}", tls.ca.display(), tls.cert.display());
        return vec![Finding::ok("chain", what)];
    }
    findings
}

fn key(tls: &TlsFiles, has_certificate: bool) -> Vec<Finding> {
    let name = tls.key.display();
    let mut findings = Vec::new();
    match std::fs::File::open(&tls.key).and_then(|file| file.metadata()) {
        Err(error) => {
            return vec![Finding::fail(
                "key",
                format!("{name} cannot be read: {error}"),
                "give this user the right to read it (chown, chmod 600), or correct [tls] key",
            )];
        }
        Ok(found) if found.permissions().mode() & OTHERS != 0 => findings.push(Finding::warn(
            "key mode",
            format!(
                "{name} is open to other users ({:03o})",
                found.permissions().mode() & 0o777
            ),
            format!("chmod 600 {name}"),
        )),
        Ok(_) => {}
    }
    if has_certificate {
        findings.push(match problem_with_key(&tls.cert, &tls.key) {
            None => Finding::ok("key", format!("{name} is the certificate's")),
            Some(problem) => Finding::fail(
                "key",
                problem.to_string(),
                "give the key that was issued with the certificate",
            ),
        });
    }
    findings
}

fn date(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
