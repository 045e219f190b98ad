//! A certificate folder of its own for each test.

use std::path::PathBuf;

use certs::profile::Validity;
use certs::{Authority, Folder, Identity, Overwrite, Role, TlsFiles};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// An authority in a temporary folder, with a server for localhost.
pub(crate) struct Fleet {
    pub(crate) authority: Authority,
    pub(crate) server: TlsFiles,
    _temporary: TempDir,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let folder = Folder::new(temporary.path().join("certs"));
        let authority = Authority::init(folder, "Test authority", Overwrite::Refuse).unwrap();
        let server = issue(
            &authority,
            "broker",
            Role::Server,
            &["localhost", "127.0.0.1"],
        );
        Self {
            authority,
            server,
            _temporary: temporary,
        }
    }

    pub(crate) fn issue(&self, name: &str, role: Role) -> TlsFiles {
        issue(&self.authority, name, role, &[])
    }

    /// A certificate that holds from `from` to `until`, seen from now.
    pub(crate) fn issue_between(&self, name: &str, from: Duration, until: Duration) -> TlsFiles {
        let now = OffsetDateTime::now_utc();
        let validity = Validity {
            not_before: now + from,
            not_after: now + until,
        };
        let identity = identity(name, Role::Device);
        self.authority
            .issue_within(&identity, &[], validity, Overwrite::Refuse)
            .unwrap()
    }

    pub(crate) fn crl(&self) -> PathBuf {
        self.authority.folder().crl_file()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.authority.folder().root().to_owned()
    }

    pub(crate) fn revoke(&self, files: &TlsFiles) {
        let serial = certs::certificate::Certificate::read(&files.cert)
            .unwrap()
            .serial;
        self.authority.revoke(&[serial]).unwrap();
    }
}

pub(crate) fn identity(name: &str, role: Role) -> Identity {
    Identity {
        name: name.parse().unwrap(),
        role,
    }
}

fn issue(authority: &Authority, name: &str, role: Role, hosts: &[&str]) -> TlsFiles {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    authority
        .issue(&identity(name, role), &hosts, 30, Overwrite::Refuse)
        .unwrap()
}
