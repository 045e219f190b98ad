//! Where certificates and keys lie, and how they are written: whole or not at all, keys readable
//! by their owner alone from the first moment, nothing overwritten unasked.
//!
//! ```text
//! DIR/ca.pem  ca.key  crl.pem        the authority; ca.key is needed only to issue
//! DIR/server.pem  server.key         the broker
//! DIR/service/NAME.pem  NAME.key     bridges and observers
//! DIR/device/ID.pem  ID.key          devices
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use daemon::{Class, Failure};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::identity::{Identity, Role};
use crate::tls::{TlsError, TlsFiles};

/// A certificate folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    root: PathBuf,
}

/// Whether files that exist may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// An existing file is an error.
    Refuse,
    /// Asked for by `--force`.
    Allow,
}

/// What goes wrong with certificates and their files.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file or folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
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
    /// A serial number that is none.
    #[error("{0:?} is neither a certificate file nor a serial number in hexadecimal")]
    Serial(String),
    /// A server name that is neither a DNS name nor an address.
    #[error("hosts {hosts:?} hold no DNS name or IP address: {reason}")]
    Host {
        /// All that were given.
        hosts: String,
        /// What rcgen said.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Crypto(String),
}

impl CertsError {
    pub(crate) fn crypto(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }

    pub(crate) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn help(&self) -> &'static str {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "`certs init` makes an authority; --dir names its folder"
            }
            Self::File { .. } => "check who may read and write there; --dir names the folder",
            Self::Exists(_) => "keep it, or replace it for good with --force",
            Self::Pem(_) => "`certs init` makes an authority; --dir names its folder",
            Self::Serial(_) => "`certs list` shows files and serial numbers",
            Self::Damaged { .. } => "restore the file from a backup, or issue it again",
            Self::Host { .. } => "give --host as in broker.example.com or 192.0.2.7",
            Self::Crypto(_) => "this is a bug in Tideline: please report it",
        }
    }
}

impl From<CertsError> for Failure {
    fn from(error: CertsError) -> Self {
        let class = match &error {
            CertsError::Host { .. } | CertsError::Serial(_) => Class::Configuration,
            CertsError::File { .. } => Class::Storage,
            CertsError::Exists(_) => Class::Conflict,
            CertsError::Pem(_) | CertsError::Damaged { .. } | CertsError::Crypto(_) => {
                Class::Authentication
            }
        };
        let help = error.help();
        Self::new(class, "work on certificates")
            .because(error)
            .help(help)
    }
}

impl Folder {
    /// The folder at `root`; nothing is touched yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The authority's own pair.
    #[must_use]
    pub fn ca_files(&self) -> TlsFiles {
        self.pair(&self.root, "ca")
    }

    /// The authority's revocation list.
    #[must_use]
    pub fn crl_file(&self) -> PathBuf {
        self.root.join("crl.pem")
    }

    /// The pair of an identity, whether it was issued or not. There is one server a folder.
    #[must_use]
    pub fn files_of(&self, identity: &Identity) -> TlsFiles {
        let name = identity.name.as_str();
        match identity.role {
            Role::Server => self.pair(&self.root, "server"),
            Role::Bridge | Role::Observer => self.pair(&self.root.join("service"), name),
            Role::Device => self.pair(&self.root.join("device"), name),
        }
    }

    /// Every certificate in the folder but the authority's, in the order of their paths.
    ///
    /// # Errors
    /// [`CertsError::File`] when a folder cannot be listed.
    pub fn certificates(&self) -> Result<Vec<PathBuf>, CertsError> {
        let mut found = Vec::new();
        let server = self.root.join("server.pem");
        if server.exists() {
            found.push(server);
        }
        for part in ["service", "device"] {
            let folder = self.root.join(part);
            match fs::read_dir(&folder) {
                Ok(entries) => {
                    for entry in entries {
                        let path = entry.map_err(|error| file("list", &folder, error))?.path();
                        if path.extension().is_some_and(|extension| extension == "pem") {
                            found.push(path);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(file("list", &folder, error)),
            }
        }
        found.sort();
        Ok(found)
    }

    /// The serial numbers in the revocation list, with the time of each.
    ///
    /// # Errors
    /// [`CertsError`] when there is a list that cannot be read.
    pub fn revoked(&self) -> Result<Vec<(Vec<u8>, OffsetDateTime)>, CertsError> {
        let path = self.crl_file();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = self.read(&path)?;
        let der = rustls_pemfile::crls(&mut text.as_bytes())
            .next()
            .and_then(Result::ok)
            .ok_or_else(|| CertsError::damaged(&path, &"it holds no revocation list"))?;
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| CertsError::damaged(&path, &error))?;
        Ok(list
            .iter_revoked_certificates()
            .map(|revoked| {
                (
                    revoked.raw_serial().to_vec(),
                    revoked.revocation_date.to_datetime(),
                )
            })
            .collect())
    }

    pub(crate) fn read(&self, path: &Path) -> Result<String, CertsError> {
        fs::read_to_string(path).map_err(|error| file("read", path, error))
    }

    /// Writes a certificate and its key. The key comes first: a certificate without one is of no
    /// use, a key without one is harmless.
    pub(crate) fn write_pair(
        &self,
        files: &TlsFiles,
        certificate: &str,
        key: &str,
        overwrite: Overwrite,
    ) -> Result<(), CertsError> {
        if overwrite == Overwrite::Refuse {
            for path in [&files.key, &files.cert] {
                if path.exists() {
                    return Err(CertsError::Exists(path.clone()));
                }
            }
        }
        for path in [&files.key, &files.cert] {
            let folder = path.parent().unwrap_or(&self.root);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|error| file("make folder", folder, error))?;
        }
        write_whole(&files.key, key, 0o600)?;
        write_whole(&files.cert, certificate, 0o644)
    }

    pub(crate) fn replace(&self, path: &Path, text: &str) -> Result<(), CertsError> {
        write_whole(path, text, 0o644)
    }

    fn pair(&self, folder: &Path, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.root.join("ca.pem"),
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        }
    }
}

/// Writes beside the file and renames: a reader sees the old one or the new one.
fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let partial = path.with_extension("partial");
    // Left over from a run that was killed; `create_new` below must not meet it.
    let _ = fs::remove_file(&partial);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| file("write", path, error))
}

fn file(action: &'static str, path: &Path, source: io::Error) -> CertsError {
    CertsError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
