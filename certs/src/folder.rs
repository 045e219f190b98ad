//! Where certificates and keys lie.
//!
//! ```text
//! DIR/ca.pem  ca.key  crl.pem        the authority; ca.key is needed only to issue
//! DIR/server.pem  server.key         the broker
//! DIR/service/NAME.pem  NAME.key     bridges and observers
//! DIR/device/ID.pem  ID.key          devices
//! DIR/issued/ROLE/NAME.SERIAL.pem    every certificate ever issued, so that each can be revoked
//! DIR/.lock                          one writer at a time
//! ```
//!
//! Knows paths and nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::CertsError;
use crate::identity::{Identity, Role};
use crate::serial::Serial;
use crate::tls::TlsFiles;
use crate::whole;

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

/// A certificate that was issued from this folder, as the name of its copy says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Issued {
    /// The name it was issued to.
    pub name: String,
    /// Its serial number.
    pub serial: Serial,
    /// The copy.
    pub path: PathBuf,
}

/// Held while a folder is being changed; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
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

    /// The copy of an issued certificate that the folder keeps.
    pub(crate) fn issued_file(&self, identity: &Identity, serial: &Serial) -> PathBuf {
        self.issued_folder(identity.role)
            .join(format!("{}.{serial}.pem", identity.name.as_str()))
    }

    /// Every certificate that was issued in a role, by name; other files are passed over.
    ///
    /// # Errors
    /// [`CertsError::File`] when the folder cannot be listed.
    pub fn issued(&self, role: Role) -> Result<Vec<Issued>, CertsError> {
        let folder = self.issued_folder(role);
        let list = |error| CertsError::file("list", &folder, error);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(list(error)),
        };
        let mut issued = Vec::new();
        for entry in entries {
            issued.extend(parse_issued(entry.map_err(list)?.path()));
        }
        issued.sort();
        Ok(issued)
    }

    /// Waits until no other process changes the folder. Makes the folder if need be.
    pub(crate) fn lock(&self) -> Result<Lock, CertsError> {
        whole::make_folder(&self.root)?;
        let path = self.root.join(".lock");
        let lock = || {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(whole::SECRET)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        match lock() {
            Ok(file) => Ok(Lock { _file: file }),
            Err(error) => Err(CertsError::file("write", &path, error)),
        }
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
        whole::make_folder(files.key.parent().unwrap_or(&self.root))?;
        whole::write(&files.key, key, whole::SECRET, overwrite)?;
        whole::write(&files.cert, certificate, whole::PUBLIC, overwrite)
    }

    fn issued_folder(&self, role: Role) -> PathBuf {
        self.root.join("issued").join(role.as_str())
    }

    fn pair(&self, folder: &Path, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.root.join("ca.pem"),
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        }
    }
}

impl TlsFiles {
    /// An error when the pair is there already and may not be replaced.
    pub(crate) fn check_free(&self, overwrite: Overwrite) -> Result<(), CertsError> {
        for path in [&self.key, &self.cert] {
            if overwrite == Overwrite::Refuse && path.exists() {
                return Err(CertsError::Exists(path.clone()));
            }
        }
        Ok(())
    }
}

/// `NAME.SERIAL.pem`, where the name may have dots of its own.
fn parse_issued(path: PathBuf) -> Option<Issued> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".pem")?;
    let (name, serial) = stem.rsplit_once('.')?;
    let (name, serial) = (name.to_owned(), serial.parse().ok()?);
    Some(Issued { name, serial, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_come_back_from_the_copys_name() {
        let folder = Folder::new("x");
        for name in ["press-7", "a.b", "..", ".", "a.pem", "7f.7f"] {
            let identity = Identity {
                name: name.parse().unwrap(),
                role: Role::Device,
            };
            let serial = Serial::random();
            let path = folder.issued_file(&identity, &serial);
            assert_eq!(path.parent().unwrap(), Path::new("x/issued/device"));
            let issued = parse_issued(path).unwrap();
            assert_eq!((issued.name.as_str(), issued.serial), (name, serial));
        }
    }

    #[test]
    fn no_name_leaves_its_folder_or_meets_anothers_files() {
        let folder = Folder::new("x");
        let mut seen = std::collections::BTreeSet::new();
        for name in [
            "..",
            ".",
            "a",
            "a.pem",
            "a.key",
            "a.pem.key",
            "ca",
            "server",
        ] {
            let identity = Identity {
                name: name.parse().unwrap(),
                role: Role::Device,
            };
            let files = folder.files_of(&identity);
            for path in [files.cert, files.key] {
                assert_eq!(path.parent().unwrap(), Path::new("x/device"));
                assert!(seen.insert(path), "{name}");
            }
        }
    }
}
