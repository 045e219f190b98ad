//! What goes wrong with certificates and their files, and what the operator can do about it.

use std::io;
use std::path::{Path, PathBuf};

use daemon::{Class, Failure, Fault};

use crate::identity::Role;
use crate::serial::Serial;
use crate::tls::TlsError;

/// What goes wrong with certificates and their files.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The folder has no authority.
    #[error("{} holds no authority", .0.display())]
    NoAuthority(PathBuf),
    /// A file or folder cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A file that does not hold what it should.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A PEM file that cannot be read or holds the wrong thing.
    #[error(transparent)]
    Pem(#[from] TlsError),
    /// A key that is not the certificate's.
    #[error("{} is not the key of {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The authority's own certificate has ended.
    #[error("{} has expired, nothing that it signs would be accepted", .0.display())]
    AuthorityExpired(PathBuf),
    /// A name that was given to another role before.
    #[error("the name {name} belongs to role {holder}, role {wanted} cannot have it too")]
    NameTaken {
        /// The name.
        name: String,
        /// The role that has it.
        holder: Role,
        /// The role that was asked for.
        wanted: Role,
    },
    /// A serial number that was never issued here.
    #[error("no certificate with serial number {0} was issued here")]
    UnknownSerial(Serial),
    /// A name that no certificate was issued to.
    #[error("no certificate was issued to {0}")]
    UnknownName(String),
    /// Neither a file nor a serial number.
    #[error("{0:?} is neither a certificate file nor a serial number")]
    NeitherFileNorSerial(String),
    /// A server name that is neither a DNS name nor an address.
    #[error("host {0:?} is neither a DNS name nor an IP address")]
    Host(String),
    /// A server without a name to reach it under, or with more than fit in a certificate.
    #[error("a server needs 1 to {max} hosts, {found} were given")]
    Hosts {
        /// How many were given.
        found: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A certificate that cannot be renewed, and why.
    #[error("{} cannot be renewed: {reason}", path.display())]
    NotRenewable {
        /// The certificate.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Crypto(String),
}

impl CertsError {
    pub(crate) fn crypto(error: impl std::fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }

    pub(crate) fn damaged(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What the error is about. What the command line named wrongly is configuration.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoAuthority(_)
            | Self::NameTaken { .. }
            | Self::UnknownSerial(_)
            | Self::UnknownName(_)
            | Self::NeitherFileNorSerial(_)
            | Self::Host(_)
            | Self::Hosts { .. } => Class::Configuration,
            Self::Pem(error) => error.class(),
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Class::Configuration,
                _ => Class::Storage,
            },
            Self::Exists(_) => Class::Conflict,
            Self::Damaged { .. }
            | Self::KeyMismatch { .. }
            | Self::AuthorityExpired(_)
            | Self::NotRenewable { .. }
            | Self::Crypto(_) => Class::Authentication,
        }
    }

    /// Nothing here heals by itself.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Halt
    }

    fn help(&self) -> &'static str {
        match self {
            Self::NoAuthority(_) => {
                "name the folder with --dir, or make an authority in it with `certs init`"
            }
            Self::File { .. } => {
                "check that the path is right and who may read and write there; --dir names the folder"
            }
            Self::Exists(_) => "keep it, or replace it for good with --force",
            Self::Pem(_) => {
                "check the path; the file must be PEM, as `certs` writes it (a lost crl.pem: take the broker's copy)"
            }
            Self::Damaged { .. } => "restore the file from a backup, or issue it again",
            Self::KeyMismatch { .. } => {
                "restore the pair that belongs together from a backup, or issue it again with --force"
            }
            Self::AuthorityExpired(_) => "renew it with `certs renew` on that file",
            Self::NameTaken { .. } => {
                "choose another name: brokers that read the name alone could not tell the two apart"
            }
            Self::UnknownSerial(_) | Self::UnknownName(_) | Self::NeitherFileNorSerial(_) => {
                "`certs list` shows names, files and serial numbers"
            }
            Self::Host(_) | Self::Hosts { .. } => {
                "give --host as in broker.example.com or 192.0.2.7, without scheme and port"
            }
            Self::NotRenewable { .. } => {
                "issue a new one with `certs server`, `certs service` or `certs device`"
            }
            Self::Crypto(_) => "this is a bug in Tideline: please report it",
        }
    }
}

impl From<CertsError> for Failure {
    fn from(error: CertsError) -> Self {
        let help = error.help();
        Self::new(error.class(), "work on certificates")
            .because(error)
            .help(help)
    }
}
