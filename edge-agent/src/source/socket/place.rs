//! The file of a Unix socket: what stands at its path, and when it may be replaced.
//!
//! The path comes from a person and may name anything, a buffer as well. Only one thing is ever removed:
//! a socket that nobody listens on, which a killed agent leaves behind. Everything else is an error that
//! names it, and stays as it is.

use std::fmt;
use std::fs::{self, FileType, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Who may use a Unix socket: its owner and group.
const SOCKET_MODE: u32 = 0o660;

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Nothing,
    /// A socket that nobody listens on.
    Leftover(Inode),
    /// A socket that somebody listens on.
    InUse,
    /// Something that is no socket.
    Other(&'static str),
}

/// A file, whatever its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    device: u64,
    number: u64,
}

/// A listener, and the file that was made for it.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: Inode,
}

/// Looks at a path without changing anything.
///
/// # Errors
/// When the system does not let it be looked at.
pub(super) async fn look(path: &Path) -> io::Result<Standing> {
    // Not what a link leads to: the link itself stands there.
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::Nothing),
        Err(error) => return Err(error),
    };
    let kind = metadata.file_type();
    if !kind.is_socket() {
        return Ok(Standing::Other(name_of(kind)));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Ok(Standing::InUse),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(Standing::Leftover(Inode::of(&metadata))),
            io::ErrorKind::NotFound => Ok(Standing::Nothing),
            // Somebody listens, and more wait than there is room for.
            io::ErrorKind::WouldBlock => Ok(Standing::InUse),
            _ => Err(error),
        },
    }
}

/// Listens at a path where nothing stands, or a leftover.
///
/// # Errors
/// When something else stands there, or the system refuses.
pub(super) async fn bind(path: &Path) -> io::Result<Bound> {
    match look(path).await? {
        Standing::Nothing => {}
        // Looked at again: it may be another one since.
        Standing::Leftover(inode) if Inode::at(path)? == inode => fs::remove_file(path)?,
        standing => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                standing.to_string(),
            ));
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(Bound {
        listener,
        path: path.to_owned(),
        inode: Inode::at(path)?,
    })
}

impl Inode {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
        }
    }

    fn at(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|metadata| Self::of(&metadata))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // What stands there now may be somebody else's.
        if Inode::at(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Courtesy: the next start replaces a leftover anyway.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a file"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing stands there"),
            Self::Leftover(_) => f.write_str("a socket that nobody listens on stands there"),
            Self::InUse => f.write_str("another program listens there"),
            Self::Other(kind) => write!(
                f,
                "{kind} stands there, and only a socket that nobody listens on is replaced"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener as StdListener};

    use super::*;

    /// Everything that may stand at a path, and that none of it is touched.
    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("notes.txt"), "mine").unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink(at("notes.txt"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let _live = StdListener::bind(at("live")).unwrap();
        symlink(at("live"), at("link-to-live")).unwrap();
        let _datagram = UnixDatagram::bind(at("datagram")).unwrap();
        for (name, part) in [
            ("notes.txt", "a file stands there"),
            ("folder", "a folder stands there"),
            ("link", "a symbolic link stands there"),
            ("dangling", "a symbolic link stands there"),
            ("link-to-live", "a symbolic link stands there"),
            ("live", "another program listens there"),
            ("datagram", "rotocol"),
        ] {
            let path = at(name);
            let before = Inode::at(&path).unwrap();
            let said = bind(&path).await.unwrap_err().to_string();
            assert!(said.contains(part), "{name}: {said}");
            assert_eq!(Inode::at(&path).unwrap(), before, "{name}");
        }
        assert_eq!(fs::read(at("notes.txt")).unwrap(), b"mine");

        drop(StdListener::bind(at("leftover")).unwrap());
        let left = Inode::at(&at("leftover")).unwrap();
        assert_eq!(
            look(&at("leftover")).await.unwrap(),
            Standing::Leftover(left)
        );
        let bound = bind(&at("leftover")).await.unwrap();
        assert_eq!(look(&at("leftover")).await.unwrap(), Standing::InUse);
        drop(bound);
        assert_eq!(look(&at("leftover")).await.unwrap(), Standing::Nothing);
    }

    #[tokio::test]
    async fn what_took_the_sockets_place_is_not_removed_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let bound = bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(bound);
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    }
}
