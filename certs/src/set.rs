//! All certificates that one machine needs to run everything: made once, used again while they
//! hold, issued anew when they are about to end.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use schema::DeviceId;
use time::OffsetDateTime;

use crate::authority::{Authority, Key, default_name};
use crate::error::CertsError;
use crate::folder::{Folder, Lock, Overwrite};
use crate::identity::{Identity, Role};
use crate::inventory::Entry;
use crate::profile::{AUTHORITY_DAYS, RENEW_DAYS, SERVER_NAME, Validity, default_days};
use crate::tls::TlsFiles;
use crate::whole;

/// The certificates of one machine.
#[derive(Debug, Clone)]
pub struct MachineSet {
    /// The broker's.
    pub server: TlsFiles,
    /// The bridge's.
    pub bridge: TlsFiles,
    /// For people who watch.
    pub observer: TlsFiles,
    /// The agent's.
    pub device: TlsFiles,
    /// The revocation list, for the broker.
    pub crl: PathBuf,
}

impl MachineSet {
    /// Makes what is missing in the folder. `hosts` are the names that the broker is reached
    /// under; a server certificate that lacks one of them is issued anew. Another process that
    /// does the same waits, and then finds everything in place.
    ///
    /// # Errors
    /// [`CertsError`] when the folder cannot be used, or its authority is damaged: what that
    /// signed may be out in the field, so it is never replaced here.
    pub fn ensure(
        folder: &Folder,
        device: &DeviceId,
        hosts: &[String],
    ) -> Result<Self, CertsError> {
        let lock = folder.lock()?;
        let authority = ensure_authority(&lock, folder)?;
        let ensure = |name: &str, role, hosts: &[String]| {
            let name = name.parse().expect("a fixed name is an identity");
            ensure(&lock, &authority, &Identity { name, role }, hosts)
        };
        Ok(Self {
            server: ensure(SERVER_NAME, Role::Server, hosts)?,
            bridge: ensure("bridge", Role::Bridge, &[])?,
            observer: ensure("observer", Role::Observer, &[])?,
            device: ensure(device.as_str(), Role::Device, &[])?,
            crl: folder.crl_file(),
        })
    }

    /// Copies what each process needs, and no more, to a folder of its own below `out`: `broker`,
    /// `bridge`, `observer`, `agent`, each laid out as `folder` is. The authority's key stays.
    ///
    /// # Errors
    /// [`CertsError`] when something cannot be read or written.
    pub fn hand_out(&self, folder: &Folder, out: &Path) -> Result<(), CertsError> {
        for (to, files, more) in [
            ("broker", &self.server, Some(&self.crl)),
            ("bridge", &self.bridge, None),
            ("observer", &self.observer, None),
            ("agent", &self.device, None),
        ] {
            let copy = |path: &Path, mode| {
                let place = path.strip_prefix(folder.root()).unwrap_or(path);
                copy(path, &out.join(to).join(place), mode)
            };
            copy(&files.ca, whole::PUBLIC)?;
            // The key first: see `Folder::write_pair`.
            copy(&files.key, whole::SECRET)?;
            copy(&files.cert, whole::PUBLIC)?;
            if let Some(crl) = more {
                copy(crl, whole::PUBLIC)?;
            }
        }
        Ok(())
    }
}

/// Finds or issues a pair for each of these devices, in their order, with the authority that the
/// folder has. `each` is called for every one, as many take a while.
///
/// # Errors
/// [`CertsError`] when the folder has no authority or cannot be written.
pub fn ensure_devices<'a>(
    folder: &Folder,
    devices: impl IntoIterator<Item = &'a DeviceId>,
    mut each: impl FnMut(TlsFiles),
) -> Result<(), CertsError> {
    let authority = Authority::open(folder.clone())?;
    let lock = folder.lock()?;
    for device in devices {
        let identity = Identity::of_device(device.clone());
        each(ensure(&lock, &authority, &identity, &[])?);
    }
    Ok(())
}

/// Copies a file unless it is there already, so that nobody reads again what did not change.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), CertsError> {
    let text = fs::read_to_string(from).map_err(|error| CertsError::file("read", from, error))?;
    match fs::read(to) {
        Ok(there) if there == text.as_bytes() => return Ok(()),
        // Older ones are replaced; what is no certificate and no key is somebody else's.
        Ok(there) if !there.is_empty() && !there.starts_with(b"-----BEGIN ") => {
            return Err(CertsError::Exists(to.to_owned()));
        }
        _ => {}
    }
    whole::make_folder(to.parent().unwrap_or(to))?;
    whole::write(to, &text, mode, Overwrite::Allow)
}

fn ensure_authority(lock: &Lock, folder: &Folder) -> Result<Authority, CertsError> {
    if !folder.ca_files().cert.exists() {
        // A process that was killed before may have left a key, with which nothing was signed.
        let mut overwrite = Overwrite::Allow;
        for role in Role::ALL {
            if !folder.issued(role)?.is_empty() {
                overwrite = Overwrite::Refuse;
            }
        }
        let name = default_name();
        return Authority::init_locked(lock, folder.clone(), &name, AUTHORITY_DAYS, overwrite);
    }
    let authority = Authority::open(folder.clone())?;
    let left = authority.certificate().validity.not_after - OffsetDateTime::now_utc();
    if left.whole_days() >= RENEW_DAYS {
        return Ok(authority);
    }
    authority.renew_locked(lock, &folder.ca_files().cert, None, Key::Keep)?;
    Authority::open(folder.clone())
}

fn ensure(
    lock: &Lock,
    authority: &Authority,
    identity: &Identity,
    hosts: &[String],
) -> Result<TlsFiles, CertsError> {
    let files = authority.folder().files_of(identity);
    let now = OffsetDateTime::now_utc();
    if files.cert.exists() && files.key.exists() {
        // A damaged certificate is replaced like an ended one: the authority is at hand.
        let holds = Entry::read(authority.folder(), &files.cert, now).is_ok_and(|entry| {
            entry.problems.is_empty()
                && entry.days_left >= RENEW_DAYS
                && entry.identity.as_ref() == Some(identity)
                && hosts
                    .iter()
                    .all(|host| entry.hosts.contains(&canonical(host)))
        });
        if holds {
            return Ok(files);
        }
    }
    let validity = Validity::starting(now, default_days(identity.role));
    authority.issue_locked(lock, identity, hosts, validity, Overwrite::Allow)
}

/// An address as certificates hold it.
fn canonical(host: &str) -> String {
    host.parse()
        .map_or_else(|_| host.to_owned(), |address: IpAddr| address.to_string())
}
