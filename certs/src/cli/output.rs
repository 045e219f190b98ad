//! What commands print: lines for people, or one JSON object a line.

use std::path::Path;

use serde::Serialize;
use time::OffsetDateTime;

use crate::error::CertsError;
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
    let text = serde_json::to_string(value).expect("our own structs are JSON");
    println!("{text}");
}

/// A certificate and its key, just written or found good.
pub(super) fn made(
    as_json: bool,
    folder: &Folder,
    cert: &Path,
    key: &Path,
) -> Result<(), CertsError> {
    let entry = &Entry::read(folder, cert, OffsetDateTime::now_utc())?;
    if as_json {
        let ca = &folder.ca_files().cert;
        json(&Made {
            cert,
            key,
            ca,
            entry,
        });
        return Ok(());
    }
    let what = entry.identity.as_ref().map_or_else(
        || "the authority of the fleet".to_owned(),
        ToString::to_string,
    );
    println!("{what}, until {}", entry.not_after);
    println!("  {}", cert.display());
    if key.exists() {
        println!("  {} (secret)", key.display());
    }
    Ok(())
}

/// What was revoked, and what a thief could still use.
pub(super) fn revoked(crl: &Path, serials: &[Serial], still_hold: &[Entry]) {
    for serial in serials {
        println!("revoked {serial}");
    }
    println!("wrote {}: give it to the broker", crl.display());
    for entry in still_hold {
        println!(
            "note: {} of the same name holds still; `certs revoke --name NAME` revokes all",
            entry.path.display()
        );
    }
}

/// A line for each certificate.
pub(super) fn table(entries: &[Entry]) {
    println!(
        "{:<9} {:<24} {:<9} {:>5}  {:<32}  FILE",
        "ROLE", "NAME", "STATE", "DAYS", "SERIAL"
    );
    for entry in entries {
        let (role, name) = match &entry.identity {
            Some(Identity { name, role }) => (role.as_str(), name.as_str()),
            None => ("-", "-"),
        };
        println!(
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
        println!("identity  {identity}");
    }
    if !entry.hosts.is_empty() {
        println!("hosts     {}", entry.hosts.join(", "));
    }
    println!("serial    {}", entry.serial);
    println!("pin       {}", entry.pin);
    println!("valid     {} to {}", entry.not_before, entry.not_after);
    println!("state     {}", entry.state.as_str());
    for problem in &entry.problems {
        println!("problem   {problem}");
    }
    for warning in &entry.warnings {
        println!("warning   {warning}");
    }
}
