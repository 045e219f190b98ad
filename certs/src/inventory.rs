//! What a certificate file says, and whether it holds: for `certs list` and `certs verify`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::folder::{CertsError, Folder};
use crate::identity::Identity;
use crate::pin::Pin;
use crate::tls;

/// A certificate, read from its file and held against the folder's authority.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Whom it speaks for, if anybody.
    #[serde(flatten)]
    pub identity: Option<Identity>,
    /// Names and addresses that a server is reached under.
    pub hosts: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// SHA-256 of its public key.
    pub pin: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// Whole days until it ends; negative when it has.
    pub days_left: i64,
    /// What is wrong with it; nothing when it holds.
    pub problems: Vec<String>,
}

impl Entry {
    /// Reads a certificate file and checks signature, validity, identity and revocation.
    ///
    /// # Errors
    /// [`CertsError`] when a file cannot be read or holds no certificate.
    pub fn read(folder: &Folder, path: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        let damaged = |error: &dyn std::fmt::Display| CertsError::damaged(path, error);
        let ca_path = folder.ca_files().cert;
        let ca_chain = tls::read_certs(&ca_path)?;
        let (_, ca) = X509Certificate::from_der(&ca_chain[0])
            .map_err(|error| CertsError::damaged(&ca_path, &error))?;
        let chain = tls::read_certs(path)?;
        let (_, certificate) =
            X509Certificate::from_der(&chain[0]).map_err(|error| damaged(&error))?;
        let mut problems = Vec::new();
        if certificate.verify_signature(Some(ca.public_key())).is_err() {
            problems.push(format!("not signed by {}", ca_path.display()));
        }
        let validity = certificate.validity();
        let (from, until) = (
            validity.not_before.to_datetime(),
            validity.not_after.to_datetime(),
        );
        if now < from {
            problems.push(format!("not valid before {}", rfc3339(from)));
        }
        if now > until {
            problems.push(format!("expired at {}", rfc3339(until)));
        }
        let identity = match Identity::from_der(&chain[0]) {
            Ok(identity) => Some(identity),
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        };
        let serial = certificate.raw_serial();
        if folder.revoked()?.iter().any(|(known, _)| known == serial) {
            problems.push("revoked".to_owned());
        }
        Ok(Self {
            path: path.to_owned(),
            identity,
            hosts: hosts(&certificate),
            serial: hex::encode(serial),
            pin: Pin::of_certificate(&chain[0])
                .map_err(|error| damaged(&error))?
                .to_string(),
            not_before: rfc3339(from),
            not_after: rfc3339(until),
            days_left: (until - now).whole_days(),
            problems,
        })
    }
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names[..],
        Ok(None) | Err(_) => &[],
    };
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
