//! The folder of keys: `KID.key` (PKCS#8 in PEM, readable by its owner alone) signs, `KID.pub`
//! (SubjectPublicKeyInfo in PEM) checks. Rotation is adding a key: the newest one signs, every
//! `KID.pub` that is there checks; taking one away ends all of its tokens.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use daemon::lock;
use rustls_pemfile::Item;

use super::token::{SigningKey, VerifyingKey};

/// How old what was read may be: a key that was added or taken away counts after so long.
const FRESH: Duration = Duration::from_secs(2);

/// Most keys that are read.
const KEYS_MAX: usize = 64;

/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A folder of keys, read again when it may have changed.
#[derive(Debug)]
pub struct KeyFolder {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: BTreeMap<String, VerifyingKey>,
    read_at: Option<Instant>,
}

/// Why a folder of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFolderError {
    /// A file or the folder cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        error: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{0}: holds no Ed25519 key in PEM")]
    Key(PathBuf),
    /// There is none to check with.
    #[error("{0}: holds no KID.pub; `tideline token key --keys FOLDER` makes one")]
    Empty(PathBuf),
    /// There is none to sign with.
    #[error("{0}: holds no KID.key to sign with; `tideline token key --keys FOLDER` makes one")]
    NoSigner(PathBuf),
    /// More than anybody needs.
    #[error("{0}: holds more than {KEYS_MAX} keys; take old ones away")]
    TooMany(PathBuf),
    /// The system's random numbers, or the encoder.
    #[error("make a key: {0}")]
    Make(rcgen::Error),
}

impl KeyFolder {
    /// The keys of a folder, of which there must be one at least.
    ///
    /// # Errors
    /// [`KeyFolderError`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, KeyFolderError> {
        let path = path.into();
        let keys = read(&path)?;
        if keys.is_empty() {
            return Err(KeyFolderError::Empty(path));
        }
        let known = Known {
            keys,
            read_at: Some(Instant::now()),
        };
        Ok(Self {
            path,
            known: Mutex::new(known),
        })
    }

    /// The key of this name, if the folder has it. A folder that cannot be read has the keys that
    /// it had.
    #[must_use]
    pub fn key(&self, kid: &str) -> Option<VerifyingKey> {
        let mut known = lock(&self.known);
        if known.read_at.is_none_or(|at| at.elapsed() >= FRESH) {
            match read(&self.path) {
                Ok(keys) => known.keys = keys,
                Err(error) => tracing::warn!(%error, "token keys were not read again"),
            }
            known.read_at = Some(Instant::now());
        }
        known.keys.get(kid).cloned()
    }
}

/// Makes a new key in a folder, which is made if it is not there; from now on it signs.
///
/// # Errors
/// [`KeyFolderError`].
pub fn create(folder: &Path, unix_seconds: u64) -> Result<SigningKey, KeyFolderError> {
    fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(KeyFolderError::Make)?;
    // Names ascend with time: the last one signs.
    let kid = format!("{unix_seconds:010}-{:08x}", rand::random::<u32>());
    let secret = folder.join(format!("{kid}.key"));
    write(&secret, 0o600, &made.serialize_pem())?;
    write(
        &folder.join(format!("{kid}.pub")),
        0o644,
        &made.public_key_pem(),
    )?;
    SigningKey::from_pkcs8(kid, &made.serialize_der()).ok_or(KeyFolderError::Key(secret))
}

/// The newest key of a folder that can sign.
///
/// # Errors
/// [`KeyFolderError`].
pub fn signer(folder: &Path) -> Result<SigningKey, KeyFolderError> {
    let (kid, path) = files(folder, "key")?
        .pop_last()
        .ok_or_else(|| KeyFolderError::NoSigner(folder.to_owned()))?;
    let signing = match pem(&path)? {
        Some(Item::Pkcs8Key(document)) => SigningKey::from_pkcs8(kid, document.secret_pkcs8_der()),
        _ => None,
    };
    signing.ok_or(KeyFolderError::Key(path))
}

fn read(folder: &Path) -> Result<BTreeMap<String, VerifyingKey>, KeyFolderError> {
    let mut keys = BTreeMap::new();
    for (kid, path) in files(folder, "pub")? {
        let key = match pem(&path)? {
            Some(Item::SubjectPublicKeyInfo(info)) => info
                .as_ref()
                .strip_prefix(&SPKI_PREFIX)
                .and_then(|raw| raw.try_into().ok()),
            _ => None,
        };
        let key = key.ok_or(KeyFolderError::Key(path))?;
        keys.insert(kid, VerifyingKey(key));
    }
    Ok(keys)
}

/// The files with this ending, by what stands before it.
fn files(folder: &Path, ending: &str) -> Result<BTreeMap<String, PathBuf>, KeyFolderError> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|error| io(folder, error))? {
        let path = entry.map_err(|error| io(folder, error))?.path();
        if path.extension().is_some_and(|found| found == ending)
            && let Some(kid) = path.file_stem().and_then(|stem| stem.to_str())
        {
            found.insert(kid.to_owned(), path.clone());
        }
    }
    match found.len() {
        0..=KEYS_MAX => Ok(found),
        _ => Err(KeyFolderError::TooMany(folder.to_owned())),
    }
}

fn pem(path: &Path) -> Result<Option<Item>, KeyFolderError> {
    let text = fs::read(path).map_err(|error| io(path, error))?;
    rustls_pemfile::read_one(&mut text.as_slice()).map_err(|error| io(path, error))
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), KeyFolderError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| io(path, error))
}

fn io(path: &Path, error: std::io::Error) -> KeyFolderError {
    KeyFolderError::Io {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::auth::token::verify;
    use crate::auth::{Claims, Refused, Role};

    #[test]
    fn a_new_key_signs_and_the_old_ones_still_check() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let old = create(&path, 1_000).unwrap();
        let claims = Claims::new("a".to_owned(), Role::Viewer, 1_000, 60);
        let of_old = signer(&path).unwrap().sign(&claims).unwrap();
        let new = create(&path, 2_000).unwrap();
        assert_eq!(signer(&path).unwrap().kid(), new.kid());
        let of_new = signer(&path).unwrap().sign(&claims).unwrap();
        let keys = KeyFolder::open(&path).unwrap();
        for token in [&of_old, &of_new] {
            assert_eq!(
                verify(token, 1_000, |kid| keys.key(kid)),
                Ok(claims.clone())
            );
        }
        let secret = path.join(format!("{}.key", old.kid()));
        let mode = fs::metadata(secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(path.join(format!("{}.pub", old.kid()))).unwrap();
        keys.known.lock().unwrap().read_at = None;
        let refused = verify(&of_old, 1_000, |kid| keys.key(kid));
        assert_eq!(refused, Err(Refused::UnknownKey));
        assert!(verify(&of_new, 1_000, |kid| keys.key(kid)).is_ok());
    }

    #[test]
    fn folders_that_cannot_be_used_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let none = KeyFolder::open(path.join("none"));
        assert!(matches!(none, Err(KeyFolderError::Io { .. })));
        assert!(matches!(
            KeyFolder::open(path),
            Err(KeyFolderError::Empty(_))
        ));
        assert!(matches!(signer(path), Err(KeyFolderError::NoSigner(_))));
        for (name, text) in [("a.pub", "text"), ("a.key", "-----BEGIN")] {
            fs::write(path.join(name), text).unwrap();
        }
        assert!(matches!(KeyFolder::open(path), Err(KeyFolderError::Key(_))));
        assert!(signer(path).is_err());
    }

    #[test]
    fn a_folder_that_is_gone_keeps_the_keys_that_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let key = create(&path, 1).unwrap();
        let keys = KeyFolder::open(&path).unwrap();
        fs::remove_dir_all(&path).unwrap();
        keys.known.lock().unwrap().read_at = None;
        assert!(keys.key(key.kid()).is_some());
    }
}
