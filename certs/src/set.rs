//! All certificates that one machine needs to run everything: made once, used again while they
//! hold, renewed when they are about to end.

use time::OffsetDateTime;

use crate::authority::{Authority, default_days};
use crate::folder::{CertsError, Folder, Overwrite};
use crate::identity::{Identity, Role};
use crate::inventory::Entry;
use crate::tls::TlsFiles;

/// A certificate with fewer days left is issued anew.
const RENEW_DAYS: i64 = 30;

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
}

impl MachineSet {
    /// Makes what is missing in the folder. `hosts` are the names that the broker is reached
    /// under; a server certificate of other hosts is issued anew.
    ///
    /// # Errors
    /// [`CertsError`] when the folder cannot be used, or what is there is damaged.
    pub fn ensure(
        folder: &Folder,
        device: &schema::DeviceId,
        hosts: &[String],
    ) -> Result<Self, CertsError> {
        let authority = if folder.ca_files().cert.exists() {
            Authority::open(folder.clone())?
        } else {
            Authority::init(folder.clone(), "Tideline authority", Overwrite::Refuse)?
        };
        let ensure = |name: &str, role, hosts: &[String]| {
            let identity = Identity {
                name: name.parse().expect("a fixed name is an identity"),
                role,
            };
            ensure(&authority, &identity, hosts)
        };
        Ok(Self {
            server: ensure("broker", Role::Server, hosts)?,
            bridge: ensure("bridge", Role::Bridge, &[])?,
            observer: ensure("observer", Role::Observer, &[])?,
            device: ensure_device(&authority, device)?,
        })
    }
}

fn ensure_device(authority: &Authority, device: &schema::DeviceId) -> Result<TlsFiles, CertsError> {
    let identity = Identity {
        name: device.clone(),
        role: Role::Device,
    };
    ensure(authority, &identity, &[])
}

fn ensure(
    authority: &Authority,
    identity: &Identity,
    hosts: &[String],
) -> Result<TlsFiles, CertsError> {
    let files = authority.folder().files_of(identity);
    if files.cert.exists() && files.key.exists() {
        let entry = Entry::read(authority.folder(), &files.cert, OffsetDateTime::now_utc())?;
        let holds = entry.problems.is_empty()
            && entry.days_left >= RENEW_DAYS
            && entry.identity.as_ref() == Some(identity)
            && hosts.iter().all(|host| entry.hosts.contains(host));
        if holds {
            return Ok(files);
        }
    }
    authority.issue(
        identity,
        hosts,
        default_days(identity.role),
        Overwrite::Allow,
    )
}
