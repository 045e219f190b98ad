//! Whether a certificate holds: judged by the same code that judges it in a handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificate::Certificate;
use crate::error::CertsError;
use crate::folder::Folder;
use crate::identity::{IdentityError, Role};
use crate::profile::check_hosts;
use crate::revocation::Revocations;
use crate::tls::{self, TlsError};

/// Verifies certificates against one authority and its revocation list.
#[derive(Debug)]
pub struct Verifier {
    ca: PathBuf,
    authority: Certificate,
    revocations: Revocations,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

/// Why a certificate does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its time is over.
    #[error("it expired at {}", rfc3339(*.0))]
    Expired(OffsetDateTime),
    /// Its time has not come.
    #[error("it is not valid before {}; check this machine's clock", rfc3339(*.0))]
    NotYetValid(OffsetDateTime),
    /// It is on the revocation list.
    #[error("it is revoked")]
    Revoked,
    /// Another authority signed it, or nobody did.
    #[error("it is not signed by {}", .0.display())]
    Foreign(PathBuf),
    /// It names nobody we know.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A server that cannot be reached under any name, or not under this one.
    #[error("it is not for host {0:?}")]
    Host(String),
    /// The key beside it is another's.
    #[error("{} is not its key", .0.display())]
    Key(PathBuf),
    /// The key beside it cannot be used.
    #[error("its key cannot be used: {0}")]
    UnusableKey(String),
    /// What else rustls refuses.
    #[error("it would be refused: {0}")]
    Refused(String),
}

impl Verifier {
    /// Verifies against the authority and the revocation list of a folder.
    ///
    /// # Errors
    /// [`CertsError`] when the folder has no authority, or its files cannot be used.
    pub fn of(folder: &Folder) -> Result<Self, CertsError> {
        let ca = folder.ca_files().cert;
        if !ca.exists() {
            return Err(CertsError::NoAuthority(folder.root().to_owned()));
        }
        Self::new(&ca, Some(&folder.crl_file()))
    }

    /// Verifies against an authority's certificate and a revocation list, if there is one.
    ///
    /// # Errors
    /// [`CertsError`] that names the file that cannot be used.
    pub fn new(ca: &Path, crl: Option<&Path>) -> Result<Self, CertsError> {
        Ok(Self {
            ca: ca.to_owned(),
            authority: Certificate::read(ca)?,
            revocations: crl.map(Revocations::read).transpose()?.unwrap_or_default(),
            clients: tls::client_verifier(ca, crl)?,
            servers: tls::server_verifier(ca, crl)?,
        })
    }

    /// What is wrong with a certificate at a time; nothing when it holds.
    #[must_use]
    pub fn problems(&self, certificate: &Certificate, now: OffsetDateTime) -> Vec<Problem> {
        if certificate.is_authority {
            return self.problems_of_authority(certificate, now);
        }
        let mut problems = Vec::new();
        let role = match &certificate.identity {
            Ok(identity) => identity.role,
            Err(error) => {
                problems.push(error.clone().into());
                // Still tells who signed it, and whether it has ended.
                Role::Device
            }
        };
        let verified = match role {
            Role::Server => self.verify_server(certificate, now),
            Role::Device | Role::Bridge | Role::Observer => self
                .clients
                .verify_client_cert(&certificate.der, &[], unix_time(now))
                .map(|_| ())
                .map_err(|error| self.problem(certificate, error)),
        };
        problems.extend(verified.err());
        // rustls stops at the first reason; that it is revoked must be known of an ended one too.
        if self.revocations.contains(&certificate.serial) && !problems.contains(&Problem::Revoked) {
            problems.push(Problem::Revoked);
        }
        problems
    }

    /// Whether a server's certificate is good for a host.
    #[must_use]
    pub fn problem_with_host(
        &self,
        certificate: &Certificate,
        host: &str,
        now: OffsetDateTime,
    ) -> Option<Problem> {
        let wrong_host = || Problem::Host(host.to_owned());
        let Ok(name) = ServerName::try_from(host) else {
            return Some(wrong_host());
        };
        self.servers
            .verify_server_cert(&certificate.der, &[], &name, &[], unix_time(now))
            .err()
            .map(|error| match error {
                Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => wrong_host(),
                error => self.problem(certificate, error),
            })
    }

    fn verify_server(&self, certificate: &Certificate, now: OffsetDateTime) -> Result<(), Problem> {
        check_hosts(&certificate.hosts).map_err(|error| Problem::Refused(error.to_string()))?;
        for host in &certificate.hosts {
            // A wildcard is good for any first label.
            let host = host.replace('*', "any");
            if let Some(problem) = self.problem_with_host(certificate, &host, now) {
                return Err(problem);
            }
        }
        Ok(())
    }

    fn problems_of_authority(
        &self,
        certificate: &Certificate,
        now: OffsetDateTime,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        if certificate.der != self.authority.der {
            problems.push(Problem::Foreign(self.ca.clone()));
        }
        if now > certificate.validity.not_after {
            problems.push(Problem::Expired(certificate.validity.not_after));
        }
        if now < certificate.validity.not_before {
            problems.push(Problem::NotYetValid(certificate.validity.not_before));
        }
        problems
    }

    fn problem(&self, certificate: &Certificate, error: Error) -> Problem {
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Problem::Expired(certificate.validity.not_after)
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Problem::NotYetValid(certificate.validity.not_before)
                }
                CertificateError::Revoked => Problem::Revoked,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Problem::Foreign(self.ca.clone())
                }
                error => Problem::Refused(error.to_string()),
            },
            error => Problem::Refused(error.to_string()),
        }
    }
}

/// Checks that a key is the one of a certificate.
#[must_use]
pub fn problem_with_key(cert: &Path, key: &Path) -> Option<Problem> {
    match tls::check_pair(cert, key) {
        Ok(()) => None,
        Err(TlsError::KeyMismatch { .. }) => Some(Problem::Key(key.to_owned())),
        Err(error) => Some(Problem::UnusableKey(error.to_string())),
    }
}

pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn unix_time(at: OffsetDateTime) -> UnixTime {
    let seconds = at.unix_timestamp().max(0).unsigned_abs();
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
