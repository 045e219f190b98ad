//! The folder that holds everything of one `tideline up`: certificates, the agent's buffer, the
//! bridge's store, and where the running system can be reached.
//!
//! ```text
//! DIR/lock             held while `up` runs: two of them would share one buffer
//! DIR/certs/           as `certs` lays it out
//! DIR/agent/buffer.db  DIR/bridge/store.db
//! DIR/tokens/          keys of tokens, where they are asked for
//! DIR/endpoints.json   addresses and certificates of the running system
//! ```

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bridge::auth::keys;
use daemon::{Class, Clock, Failure, SystemClock};
use schema::DeviceId;
use serde::Serialize;

/// Where a running system can be reached.
const ENDPOINTS: &str = "endpoints.json";

/// The folder, held by a lock until dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Where a running system can be reached: for scripts that let it choose its ports.
#[derive(Debug, Serialize)]
pub(super) struct Endpoints<'a> {
    /// This machine, as a device.
    pub(super) device: &'a DeviceId,
    /// The REST API, as a URL.
    pub(super) http: String,
    /// The broker, as host:port.
    pub(super) mqtt: SocketAddr,
    /// The certificate authority of all parts.
    pub(super) ca: &'a Path,
    /// An observer's certificate, for `mosquitto_sub`.
    pub(super) observer_cert: &'a Path,
    /// Its key.
    pub(super) observer_key: &'a Path,
    /// The folder of keys that callers' tokens must be signed with; none are asked for without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_keys: Option<&'a Path>,
}

impl DataDir {
    /// Opens the folder, making it when it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made or written, or another `up` holds it.
    pub(super) fn open(root: &Path) -> Result<Self, Failure> {
        let unusable = |error: std::io::Error| {
            Failure::new(
                Class::Storage,
                format!("use data folder {}", root.display()),
            )
            .because(error)
            .help("choose a folder that this user may write, with --data-dir")
        };
        for folder in [root.to_owned(), root.join("agent"), root.join("bridge")] {
            fs::create_dir_all(folder).map_err(unusable)?;
        }
        let root = root.canonicalize().map_err(unusable)?;
        let lock = File::options()
            .create(true)
            // A file of that name that is somebody else's stays as it is.
            .truncate(false)
            .write(true)
            .open(root.join("lock"))
            .map_err(unusable)?;
        check_endpoints(&root.join(ENDPOINTS))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
            Err(TryLockError::WouldBlock) => Err(Failure::new(
                Class::Conflict,
                format!(
                    "use data folder {}: another `tideline up` runs there",
                    root.display()
                ),
            )
            .help("stop the other one, or choose another folder with --data-dir")),
        }
    }

    /// The keys of tokens, of which one is made when there is none.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub(super) fn token_keys(&self) -> Result<PathBuf, Failure> {
        let folder = self.root.join("tokens");
        if keys::signer(&folder).is_err() {
            let now = SystemClock::default().now_ms() / 1000;
            keys::create(&folder, now).map_err(|error| {
                Failure::new(Class::Storage, "make a key for tokens").because(error)
            })?;
        }
        Ok(folder)
    }

    /// Where certificates live.
    #[must_use]
    pub(super) fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// The agent's buffer file.
    #[must_use]
    pub(super) fn buffer(&self) -> PathBuf {
        self.root.join("agent/buffer.db")
    }

    /// The bridge's store file.
    #[must_use]
    pub(super) fn store(&self) -> PathBuf {
        self.root.join("bridge/store.db")
    }

    /// Tells scripts where the system is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn publish(&self, endpoints: &Endpoints<'_>) -> Result<(), Failure> {
        let path = self.root.join(ENDPOINTS);
        check_endpoints(&path)?;
        // Written whole or not at all: scripts wait for this file.
        let write = || {
            let mut partial = tempfile::Builder::new()
                .prefix(".endpoints-")
                .permissions(fs::Permissions::from_mode(0o644))
                .tempfile_in(&self.root)?;
            partial.write_all(&serde_json::to_vec_pretty(endpoints)?)?;
            partial.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error: std::io::Error| {
            Failure::new(Class::Storage, format!("write {}", path.display())).because(error)
        })
    }

    /// The system is gone: so is the file that says where it was.
    pub(super) fn withdraw(&self) {
        let path = self.root.join(ENDPOINTS);
        if check_endpoints(&path).is_ok() {
            // A missing file is what we want.
            let _ = fs::remove_file(path);
        }
    }
}

/// Refuses a file that `up` did not write.
fn check_endpoints(path: &Path) -> Result<(), Failure> {
    let Ok(text) = fs::read(path) else {
        return Ok(());
    };
    let is_ours = serde_json::from_slice::<serde_json::Value>(&text)
        .is_ok_and(|known| known.get("mqtt").is_some() && known.get("device").is_some());
    match is_ours {
        true => Ok(()),
        false => Err(Failure::new(
            Class::Conflict,
            format!("write {}: it is not of `tideline up`", path.display()),
        )
        .help("choose another folder with --data-dir, or move that file away")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_somebody_elses_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lock"), "mine").unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        assert_eq!(fs::read(folder.path().join("lock")).unwrap(), b"mine");
        fs::write(folder.path().join(ENDPOINTS), "{}").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("endpoints.json"), "{error}");
        assert_eq!(fs::read(folder.path().join(ENDPOINTS)).unwrap(), b"{}");
    }

    #[test]
    fn a_folder_serves_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let second = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(second.contains("another `tideline up`"), "{second}");
        drop(first);
        assert!(DataDir::open(folder.path()).is_ok());
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::open(file.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&file.path().display().to_string())
        );
        assert_eq!(error.exit_code(), 1);
    }
}
