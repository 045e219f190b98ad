//! Certificates that nobody should have made: an identity or an error, never a panic.

use certs::identity::IdentityError;
use certs::{Identity, Pin, Role};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, PKCS_ECDSA_P256_SHA256,
};

use crate::fleet::identity;

const CN: DnType = DnType::CommonName;
const OU: DnType = DnType::OrganizationalUnitName;

fn text(value: &str) -> DnValue {
    DnValue::Utf8String(value.to_owned())
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A self-signed certificate with this subject.
fn certificate(subject: Vec<(DnType, DnValue)>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind, value);
    }
    params.self_signed(&key()).unwrap().der().to_vec()
}

/// rcgen keeps one value a kind: a second one goes in under a kind of the same length, and its
/// object identifier is then changed in the bytes (nobody checks the signature here).
fn with_second(kind: &[u8; 3], subject: Vec<(DnType, DnValue)>, value: &str) -> Vec<u8> {
    let mut subject = subject;
    subject.push((DnType::LocalityName, text(value)));
    let mut der = certificate(subject);
    let locality = [0x55, 0x04, 0x07];
    for start in 0..der.len() - 3 {
        if der[start..start + 3] == locality {
            der[start..start + 3].copy_from_slice(kind);
        }
    }
    der
}

fn check(subject: Vec<(DnType, DnValue)>, expected: Result<Identity, &str>) {
    let found = Identity::from_der(&certificate(subject));
    match expected {
        Ok(identity) => assert_eq!(found, Ok(identity)),
        Err(why) => {
            let error = found.unwrap_err().to_string();
            assert!(error.contains(why), "{why:?} in {error:?}");
        }
    }
}

#[test]
fn exactly_one_name_and_one_role_make_an_identity() {
    for role in Role::ALL {
        check(
            vec![(OU, text(role.as_str())), (CN, text("a.b_c-7"))],
            Ok(identity("a.b_c-7", role)),
        );
    }
    // The order does not matter, nor does what else the subject says.
    check(
        vec![
            (CN, text("a")),
            (DnType::OrganizationName, text("Acme")),
            (OU, text("device")),
        ],
        Ok(identity("a", Role::Device)),
    );
    check(vec![], Err("0 common names"));
    check(vec![(OU, text("device"))], Err("0 common names"));
    check(vec![(CN, text("a"))], Err("0 organizational units"));
}

#[test]
fn two_names_or_two_roles_are_nobody() {
    let subject = || vec![(OU, text("device")), (CN, text("a"))];
    for (kind, value, what) in [
        (&[0x55, 0x04, 0x03], "b", "2 common names"),
        (&[0x55, 0x04, 0x03], "a", "2 common names"),
        (&[0x55, 0x04, 0x0b], "bridge", "2 organizational units"),
        (&[0x55, 0x04, 0x0b], "device", "2 organizational units"),
    ] {
        let error = Identity::from_der(&with_second(kind, subject(), value)).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn names_and_roles_are_taken_literally() {
    for name in [
        "",
        "a b",
        "a/b",
        "+",
        "#",
        "a\0b",
        "bröker",
        "a,OU=bridge",
        &"x".repeat(65),
    ] {
        check(
            vec![(OU, text("device")), (CN, text(name))],
            Err("no identity"),
        );
    }
    for role in [
        "",
        "Device",
        "device ",
        "admin",
        "bridge\0",
        "device,bridge",
    ] {
        check(vec![(OU, text(role)), (CN, text("a"))], Err("no role"));
    }
    check(
        vec![(OU, text("device")), (CN, text(&"x".repeat(64)))],
        Ok(identity(&"x".repeat(64), Role::Device)),
    );
}

#[test]
fn other_alphabets_are_refused() {
    // Each of these says "a" or "device" to a program that reads it as such.
    let values = [
        DnValue::BmpString("a".try_into().unwrap()),
        DnValue::UniversalString("a".try_into().unwrap()),
        DnValue::TeletexString("a".try_into().unwrap()),
        DnValue::Ia5String("a".try_into().unwrap()),
    ];
    for value in values {
        check(
            vec![(OU, text("device")), (CN, value)],
            Err("neither UTF-8 nor printable"),
        );
    }
    let printable = |value: &str| DnValue::PrintableString(value.try_into().unwrap());
    check(
        vec![(OU, printable("device")), (CN, printable("a"))],
        Ok(identity("a", Role::Device)),
    );
}

#[test]
fn bytes_after_the_certificate_are_refused() {
    let mut der = certificate(vec![(OU, text("device")), (CN, text("a"))]);
    assert!(Identity::from_der(&der).is_ok());
    der.push(0);
    assert_eq!(Identity::from_der(&der), Err(IdentityError::NoCertificate));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn changed_certificates_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        // One certificate for all cases: making keys is slow.
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            certificate(vec![(OU, text("device")), (CN, text("press-7"))])
        });
        let mut der = GOOD.clone();
        for (index, byte) in changes {
            let at = index.index(der.len());
            der[at] = byte;
        }
        if let Some(index) = cut {
            der.truncate(index.index(der.len()));
        }
        let _ = Pin::of_certificate(&der);
        if let Ok(identity) = Identity::from_der(&der) {
            // Whatever came through keeps the rules of a name.
            prop_assert!(identity.name.as_str().parse::<schema::DeviceId>().is_ok());
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Identity::from_der(&bytes);
        let _ = Pin::of_certificate(&bytes);
    }

    #[test]
    fn any_text_is_a_pin_or_an_error(text in "\\PC*|[0-9a-fA-F]{62,66}") {
        if let Ok(pin) = text.parse::<Pin>() {
            prop_assert_eq!(pin.to_string(), text.to_lowercase());
        }
    }
}
