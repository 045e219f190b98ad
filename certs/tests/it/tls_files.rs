//! Files that do not make a TLS configuration: one clear message each.

use std::fs;

use certs::tls::{self, TlsError, TlsFiles};
use certs::{Authority, CertsError, Folder, Role};
use daemon::{Class, Failure, Fault};

use crate::fleet::Fleet;

/// The message of a failure names the file and the help, and the process ends with 2.
fn check(error: TlsError, file: &std::path::Path, says: &str) {
    assert_eq!(
        (error.class(), error.fault()),
        (Class::Configuration, Fault::Halt)
    );
    let failure = Failure::from(error);
    let text = failure.to_string();
    assert!(text.starts_with("failed to set up TLS: "), "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
    assert!(text.contains(says), "{says:?} in {text}");
    assert_eq!(failure.exit_code(), 2);
}

#[test]
fn each_missing_file_is_named() {
    let fleet = Fleet::new();
    let good = fleet.issue("press-7", Role::Device);
    let missing = fleet.root().join("missing.pem");
    for broken in [
        TlsFiles {
            ca: missing.clone(),
            ..good.clone()
        },
        TlsFiles {
            cert: missing.clone(),
            ..good.clone()
        },
        TlsFiles {
            key: missing.clone(),
            ..good.clone()
        },
    ] {
        check(
            tls::client_config(&broken).unwrap_err(),
            &missing,
            "No such file",
        );
        check(
            tls::server_config(&broken, None).unwrap_err(),
            &missing,
            "No such file",
        );
    }
    let error = tls::server_config(&good, Some(&missing)).unwrap_err();
    check(error, &missing, "No such file");
}

#[test]
fn each_wrong_content_is_named() {
    let fleet = Fleet::new();
    let good = fleet.issue("press-7", Role::Device);
    let garbage = fleet.root().join("garbage");
    let pem =
        |bytes: &str| format!("-----BEGIN CERTIFICATE-----\n{bytes}\n-----END CERTIFICATE-----\n");
    for content in [
        String::new(),
        "hello".to_owned(),
        pem(""),
        pem("????"),
        pem("aGVsbG8="),
        "-----BEGIN CERTIFICATE-----\n".to_owned(),
    ] {
        fs::write(&garbage, &content).unwrap();
        for broken in [
            TlsFiles {
                ca: garbage.clone(),
                ..good.clone()
            },
            TlsFiles {
                cert: garbage.clone(),
                ..good.clone()
            },
            TlsFiles {
                key: garbage.clone(),
                ..good.clone()
            },
        ] {
            check(tls::client_config(&broken).unwrap_err(), &garbage, "");
            check(tls::server_config(&broken, None).unwrap_err(), &garbage, "");
        }
        check(
            tls::server_config(&good, Some(&garbage)).unwrap_err(),
            &garbage,
            "",
        );
    }
}

#[test]
fn a_folder_in_the_place_of_a_file_is_named() {
    let fleet = Fleet::new();
    let key = fleet.root();
    let files = TlsFiles {
        key: key.clone(),
        ..fleet.server.clone()
    };
    check(
        tls::server_config(&files, None).unwrap_err(),
        &key,
        "cannot read",
    );
}

#[test]
fn a_key_of_another_certificate_is_named() {
    let fleet = Fleet::new();
    let (one, other) = (
        fleet.issue("one", Role::Device),
        fleet.issue("other", Role::Device),
    );
    let mixed = TlsFiles {
        key: other.key.clone(),
        ..one
    };
    check(
        tls::client_config(&mixed).unwrap_err(),
        &other.key,
        "is not the key of",
    );
    check(
        tls::server_config(&mixed, None).unwrap_err(),
        &other.key,
        "is not the key of",
    );
}

#[test]
fn a_revocation_list_of_another_authority_is_refused_at_once() {
    // rustls would take it, and then refuse every client.
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let error = tls::server_config(&ours.server, Some(&theirs.crl())).unwrap_err();
    check(error, &theirs.crl(), "is not signed by");
}

#[test]
fn an_authority_whose_files_do_not_fit_is_not_used() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let files = ours.authority.folder().ca_files();
    let open = || Authority::open(Folder::new(ours.root())).unwrap_err();
    fs::copy(theirs.authority.folder().ca_files().key, &files.key).unwrap();
    assert!(matches!(open(), CertsError::KeyMismatch { .. }));
    fs::write(&files.key, "no key").unwrap();
    assert!(matches!(open(), CertsError::Damaged { .. }));
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(open(), CertsError::File { .. }));
    fs::copy(&ours.server.cert, &files.cert).unwrap();
    assert!(open().to_string().contains("may not sign others"));
    fs::remove_file(&files.cert).unwrap();
    assert!(matches!(open(), CertsError::NoAuthority(_)));
}
