//! The set of one machine: made once, used again, mended.

use std::fs;

use certs::certificate::Certificate;
use certs::profile::Validity;
use certs::{Authority, CertsError, Folder, MachineSet, Overwrite, Role, TlsFiles, tls};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::fleet::identity;

struct Machine {
    folder: Folder,
    _temporary: TempDir,
}

impl Machine {
    fn new() -> Self {
        let temporary = TempDir::new().unwrap();
        let folder = Folder::new(temporary.path().join("deep").join("certs"));
        Self {
            folder,
            _temporary: temporary,
        }
    }

    fn ensure(&self, hosts: &[&str]) -> Result<MachineSet, CertsError> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        MachineSet::ensure(&self.folder, &"press-7".parse().unwrap(), &hosts)
    }

    fn serials(&self, hosts: &[&str]) -> Vec<String> {
        let set = self.ensure(hosts).unwrap();
        let serial = |files: &TlsFiles| Certificate::read(&files.cert).unwrap().serial.to_string();
        vec![
            serial(&set.server),
            serial(&set.bridge),
            serial(&set.observer),
            serial(&set.device),
        ]
    }
}

#[test]
fn everything_is_made_and_fits_together() {
    let machine = Machine::new();
    let set = machine.ensure(&["localhost", "127.0.0.1", "::1"]).unwrap();
    tls::server_config(&set.server, Some(&set.crl)).unwrap();
    for files in [&set.bridge, &set.observer, &set.device] {
        tls::client_config(files).unwrap();
    }
}

#[test]
fn what_holds_is_used_again() {
    let machine = Machine::new();
    let first = machine.serials(&["localhost", "::1"]);
    assert_eq!(machine.serials(&["localhost", "0:0:0:0:0:0:0:1"]), first);
    assert_eq!(machine.serials(&["localhost"]), first);
}

#[test]
fn another_host_makes_another_server_certificate_and_nothing_else() {
    let machine = Machine::new();
    let first = machine.serials(&["localhost"]);
    let second = machine.serials(&["localhost", "192.0.2.7"]);
    assert_ne!(second[0], first[0]);
    assert_eq!(second[1..], first[1..]);
}

#[test]
fn what_ends_soon_is_revoked_or_broken_is_issued_anew() {
    let machine = Machine::new();
    let first = machine.serials(&["localhost"]);
    let authority = Authority::open(machine.folder.clone()).unwrap();
    let now = OffsetDateTime::now_utc();
    let soon = Validity {
        not_before: now - Duration::days(9),
        not_after: now + Duration::days(9),
    };
    authority
        .issue_within(
            &identity("press-7", Role::Device),
            &[],
            soon,
            Overwrite::Allow,
        )
        .unwrap();
    authority.revoke(&[first[1].parse().unwrap()]).unwrap();
    let observer = machine
        .folder
        .files_of(&identity("observer", Role::Observer));
    fs::write(&observer.key, "broken").unwrap();

    let second = machine.serials(&["localhost"]);
    assert_eq!(second[0], first[0]);
    for (one, other) in second.iter().zip(&first).skip(1) {
        assert_ne!(one, other);
    }
    assert_eq!(machine.serials(&["localhost"]), second);
    let bridge = machine.ensure(&["localhost"]).unwrap().bridge;
    tls::client_config(&bridge).unwrap();
}

#[test]
fn a_key_left_by_a_killed_start_is_no_obstacle() {
    let machine = Machine::new();
    fs::create_dir_all(machine.folder.root()).unwrap();
    fs::write(machine.folder.ca_files().key, "half").unwrap();
    machine.ensure(&["localhost"]).unwrap();
}

#[test]
fn an_authority_that_has_signed_is_never_replaced() {
    let machine = Machine::new();
    machine.ensure(&["localhost"]).unwrap();
    let files = machine.folder.ca_files();
    let (certificate, key) = (
        fs::read(&files.cert).unwrap(),
        fs::read(&files.key).unwrap(),
    );
    fs::remove_file(&files.cert).unwrap();
    assert!(matches!(
        machine.ensure(&["localhost"]),
        Err(CertsError::Exists(_))
    ));
    assert_eq!(fs::read(&files.key).unwrap(), key);
    fs::write(&files.cert, certificate).unwrap();
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(
        machine.ensure(&["localhost"]),
        Err(CertsError::File { .. })
    ));
    assert!(!files.key.exists());
}

#[test]
fn an_authority_that_ends_soon_is_prolonged() {
    let machine = Machine::new();
    Authority::init_for_days(machine.folder.clone(), "Brief", 9, Overwrite::Refuse).unwrap();
    machine.ensure(&["localhost"]).unwrap();
    let entry = Certificate::read(&machine.folder.ca_files().cert).unwrap();
    assert!(entry.validity.not_after > OffsetDateTime::now_utc() + Duration::days(1000));
    assert_eq!(entry.common_name, "Brief");
}

#[test]
fn processes_that_start_together_share_one_set() {
    let machine = Machine::new();
    let all: Vec<Vec<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| machine.serials(&["localhost"])))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(all.iter().all(|serials| *serials == all[0]), "{all:?}");
}
