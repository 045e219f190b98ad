//! What commands print: lines for people, or one JSON object a line.

use std::path::Path;

use daemon::{Failure, say, stdout};
use serde::Serialize;
use time::OffsetDateTime;

use crate::folder::Folder;
use crate::identity::Identity;
use crate::inventory::Entry;
use crate::serial::Serial;

/// What a command made.
#[derive(Debug, Serialize)]
struct Made<'a> {
    cert: &'a Path,
    key: &'a Path,
    ca: &'a Path,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// What a revocation did.
#[derive(Debug, Serialize)]
pub(super) struct Revoked<'a> {
    pub(super) crl: &'a Path,
    pub(super) revoked: &'a [Serial],
}

/// One JSON object.
pub(super) fn json(value: &impl Serialize) {
    stdout::print(&json_text(value));
}

fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own structs are JSON")
}

/// A certificate and its key, just written or found good. Others may be to be made: one that nobody reads about
/// any more stops none of them.
pub(super) fn made(as_json: bool, folder: &Folder, cert: &Path, key: &Path) -> Result<(), Failure> {
    let entry = &Entry::read(folder, cert, OffsetDateTime::now_utc())?;
    if as_json {
        let ca = &folder.ca_files().cert;
        return stdout::try_print(&json_text(&Made {
            cert,
            key,
            ca,
            entry,
        }));
    }
    let what = entry.identity.as_ref().map_or_else(
        || "the authority of the fleet".to_owned(),
        ToString::to_string,
    );
    let mut text = format!("{what}, until {}\n  {}", entry.not_after, cert.display());
    if key.exists() {
        text += &format!("\n  {} (secret)", key.display());
    }
    stdout::try_print(&text)
}

/// What was revoked, and what a thief could still use.
pub(super) fn revoked(crl: &Path, serials: &[Serial], still_hold: &[Entry]) {
    for serial in serials {
        say!("revoked {serial}");
    }
    say!("wrote {}: give it to the broker", crl.display());
    for entry in still_hold {
        say!(
            "note: {} of the same name holds still; `certs revoke --name NAME` revokes all",
            entry.path.display()
        );
    }
}

/// A line for each certificate.
pub(super) fn table(entries: &[Entry]) {
    say!(
        "{:<9} {:<24} {:<9} {:>5}  {:<32}  FILE",
        "ROLE",
        "NAME",
        "STATE",
        "DAYS",
        "SERIAL"
    );
    for entry in entries {
        let (role, name) = match &entry.identity {
            Some(Identity { name, role }) => (role.as_str(), name.as_str()),
            None => ("-", "-"),
        };
        say!(
            "{role:<9} {name:<24} {:<9} {:>5}  {:<32}  {}",
            entry.state.as_str(),
            entry.days_left,
            entry.serial.to_string(),
            entry.path.display(),
        );
    }
}

/// All that is known of one certificate.
pub(super) fn entry(entry: &Entry) {
    if let Some(identity) = &entry.identity {
        say!("identity  {identity}");
    }
    if !entry.hosts.is_empty() {
        say!("hosts     {}", entry.hosts.join(", "));
    }
    say!("serial    {}", entry.serial);
    say!("pin       {}", entry.pin);
    say!("valid     {} to {}", entry.not_before, entry.not_after);
    say!("state     {}", entry.state.as_str());
    for problem in &entry.problems {
        say!("problem   {problem}");
    }
    for warning in &entry.warnings {
        say!("warning   {warning}");
    }
}
