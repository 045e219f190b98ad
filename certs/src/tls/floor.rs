//! Servers judged by a clock that may be in 1970.
//!
//! A board without a battery begins far in the past. By that clock every certificate is "not yet
//! valid", and the one who could tell it the time is behind that certificate. Two rules, and no hole:
//! - **Floor.** A date before the program's release, and when the authority signed this machine's own
//!   certificate, have certainly passed: a clock below that is proven wrong, and the floor takes its
//!   place. The last time from somebody who is trusted raises the floor further, but proves no clock
//!   wrong: a wrong answer must not lock out machines whose clocks are right. Nothing lowers it.
//! - **Allowance.** Only while the clock is proven wrong, a server's
//!   certificate that begins after the floor, and at most [`ALLOWANCE_DAYS`] after it, is judged at its
//!   own beginning: authority, name, purpose, end and pins are all looked at anew, at that one time. An
//!   honest authority signs nothing before its time, so the truth is not before it. Each use is logged.
//!
//! What had ended before the floor stays refused. With a right clock nothing differs from plain TLS.
//! Note 0017 says more.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use daemon::{Clock, SystemClock};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A server's certificate may begin this long after the floor, while the clock is proven wrong: a
/// year, which is how long a server's certificate is good, and a month.
pub const ALLOWANCE_DAYS: i64 = 400;

const ALLOWANCE_SECONDS: i64 = ALLOWANCE_DAYS * 86_400;

/// A clock that is never before what has certainly passed. Share one among all connections of a
/// process. All times are seconds since the Unix epoch.
#[derive(Debug)]
pub struct FlooredClock {
    clock: Arc<dyn Clock>,
    /// Has certainly passed: a clock below it is wrong.
    proven: AtomicI64,
    /// Heard from somebody trusted; counts while the clock is wrong.
    learned: AtomicI64,
}

impl FlooredClock {
    /// A clock, and a time that has certainly passed.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, proven: i64) -> Self {
        Self {
            clock,
            proven: AtomicI64::new(proven),
            learned: AtomicI64::new(proven),
        }
    }

    /// This machine's clock, without a floor.
    #[must_use]
    pub fn of_system() -> Self {
        Self::new(Arc::new(SystemClock::default()), 0)
    }

    /// A time that has certainly passed. It lowers nothing.
    pub fn prove(&self, passed: i64) {
        self.proven.fetch_max(passed, Ordering::Relaxed);
    }

    /// A time from somebody who is trusted. It lowers nothing.
    pub fn learn(&self, time: i64) {
        self.learned.fetch_max(time, Ordering::Relaxed);
    }

    /// What is judged by while the clock is proven wrong.
    #[must_use]
    pub fn floor(&self) -> i64 {
        let proven = self.proven.load(Ordering::Relaxed);
        proven.max(self.learned.load(Ordering::Relaxed))
    }

    /// Whether the clock is proven wrong.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.clock_seconds() < self.proven.load(Ordering::Relaxed)
    }

    fn clock_seconds(&self) -> i64 {
        self.clock.now_micros().div_euclid(1_000_000)
    }
}

impl TimeProvider for FlooredClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(match self.is_wrong() {
            true => self.floor(),
            false => self.clock_seconds(),
        })
    }
}

/// The usual verification, with the allowance.
#[derive(Debug)]
pub(super) struct FlooredVerifier {
    inner: Arc<dyn ServerCertVerifier>,
    clock: Arc<FlooredClock>,
}

impl FlooredVerifier {
    pub(super) const fn new(inner: Arc<dyn ServerCertVerifier>, clock: Arc<FlooredClock>) -> Self {
        Self { inner, clock }
    }

    /// When to judge a certificate that is not valid yet at `now`, if it may be judged otherwise.
    fn allowed(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Option<i64> {
        let floor = self.clock.floor();
        // It was judged by the floor, and not by a clock that was set back since.
        let is_by_floor = self.clock.is_wrong() && i64::try_from(now.as_secs()).ok()? <= floor;
        let begins = begin(certificate)?;
        let is_near = begins > floor && begins <= floor.saturating_add(ALLOWANCE_SECONDS);
        (is_by_floor && is_near).then_some(begins)
    }
}

impl ServerCertVerifier for FlooredVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |at| {
            let inner = &self.inner;
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
        };
        let judged = verify(now);
        let Err(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) = &judged
        else {
            return judged;
        };
        let Some(begins) = self.allowed(end_entity, now) else {
            return judged;
        };
        let Some(at) = unix_time(begins) else {
            return judged;
        };
        let verified = verify(at)?;
        warn!(
            floor_seconds = self.clock.floor(),
            certificate_begins_seconds = begins,
            "this machine's clock is wrong, and the server's certificate begins after the latest \
             time that has certainly passed: it was judged at its own beginning"
        );
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// When the authority signed a client's own certificate, at the earliest; `None` when it did not.
pub(super) fn signed_at(
    chain: &[CertificateDer<'_>],
    authority: &dyn ClientCertVerifier,
) -> Option<i64> {
    let (own, intermediates) = chain.split_first()?;
    let begins = begin(own)?;
    let verified = authority.verify_client_cert(own, intermediates, unix_time(begins)?);
    verified.ok().map(|_| begins)
}

/// When a certificate begins, in seconds since the Unix epoch.
fn begin(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_before.timestamp())
}

fn unix_time(seconds: i64) -> Option<UnixTime> {
    let seconds = u64::try_from(seconds).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
    use time::OffsetDateTime;

    use super::*;
    use crate::tls::{TlsFiles, client_config_floored, server_builder};

    const DAY: i64 = 86_400;

    /// Day 0 of these tests: when the device's certificate was signed.
    const SIGNED: i64 = 1_780_000_000;

    const IN_1970: i64 = 60 - SIGNED;

    #[derive(Debug)]
    struct At(i64);

    impl Clock for At {
        fn now_micros(&self) -> i64 {
            self.0 * 1_000_000
        }
    }

    struct Signer {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    /// A device, and the authority that it trusts.
    struct Rig {
        authority: Signer,
        folder: tempfile::TempDir,
    }

    fn params(from: i64, to: i64) -> CertificateParams {
        let at = |days| OffsetDateTime::from_unix_timestamp(SIGNED + days * DAY).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (at(from), at(to));
        params
    }

    impl Signer {
        fn new() -> Self {
            let mut params = params(-100, 3650);
            params.distinguished_name.push(DnType::CommonName, "fleet");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            let issuer = Issuer::new(params, key);
            Self { pem, issuer }
        }

        fn sign(
            &self,
            from: i64,
            to: i64,
            purpose: ExtendedKeyUsagePurpose,
        ) -> (rcgen::Certificate, KeyPair) {
            let mut params = params(from, to);
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.issuer).unwrap(), key)
        }
    }

    impl Rig {
        fn new() -> Self {
            Self::signed_by(None)
        }

        /// With a device's certificate of another authority than the one it trusts, if there is one.
        fn signed_by(other: Option<&Signer>) -> Self {
            let authority = Signer::new();
            let folder = tempfile::tempdir().unwrap();
            let signer = other.unwrap_or(&authority);
            let (cert, key) = signer.sign(0, 825, ExtendedKeyUsagePurpose::ClientAuth);
            for (name, text) in [
                ("ca", authority.pem.clone()),
                ("cert", cert.pem()),
                ("key", key.serialize_pem()),
            ] {
                fs::write(folder.path().join(name), text).unwrap();
            }
            Self { authority, folder }
        }

        /// What the device says of a server's certificate that is good from one day to another, with
        /// its clock at `now` (seconds after it was signed).
        fn judge(&self, now: i64, learned: i64, server: (&Signer, i64, i64), host: &str) -> Judged {
            let clock = FlooredClock::new(Arc::new(At(SIGNED + now)), 0);
            clock.learn(learned);
            let (signer, from, to) = server;
            let (cert, key) = signer.sign(from, to, ExtendedKeyUsagePurpose::ServerAuth);
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let server = server_builder()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .unwrap();
            self.meet(&Arc::new(clock), server, host)
        }

        fn meet(&self, clock: &Arc<FlooredClock>, server: ServerConfig, host: &str) -> Judged {
            let file = |name| self.folder.path().join(name);
            let files = TlsFiles {
                ca: file("ca"),
                cert: file("cert"),
                key: file("key"),
            };
            let config = client_config_floored(&files, clock).unwrap();
            let name = host.to_owned().try_into().unwrap();
            let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut server = ServerConnection::new(Arc::new(server)).unwrap();
            while client.is_handshaking() {
                let mut bytes = Vec::new();
                client.write_tls(&mut bytes).unwrap();
                server.read_tls(&mut &bytes[..]).unwrap();
                server.process_new_packets().unwrap();
                let mut bytes = Vec::new();
                server.write_tls(&mut bytes).unwrap();
                client.read_tls(&mut &bytes[..]).unwrap();
                match client.process_new_packets() {
                    Ok(_) => {}
                    Err(Error::InvalidCertificate(error)) => return Err(error),
                    Err(other) => panic!("{other}"),
                }
            }
            Ok(())
        }
    }

    type Judged = Result<(), CertificateError>;

    fn is_early(judged: &Judged) -> bool {
        matches!(judged, Err(CertificateError::NotValidYetContext { .. }))
    }

    fn is_over(judged: &Judged) -> bool {
        matches!(judged, Err(CertificateError::ExpiredContext { .. }))
    }

    #[test]
    fn a_clock_in_1970_finds_the_server_by_when_its_own_certificate_was_signed() {
        let rig = Rig::new();
        let judge = |from, to| rig.judge(IN_1970, 0, (&rig.authority, from, to), "localhost");
        assert_eq!(judge(-30, 367), Ok(()));
        // What had ended by then stays refused.
        let over = judge(-30, -1);
        assert!(is_over(&over), "{over:?}");
    }

    #[test]
    fn what_begins_after_the_floor_is_allowed_to_a_clock_that_is_proven_wrong() {
        let rig = Rig::new();
        let judge = |now, from| rig.judge(now, 0, (&rig.authority, from, from + 9), "localhost");
        for from in [1, ALLOWANCE_DAYS] {
            assert_eq!(judge(IN_1970, from), Ok(()));
            assert_eq!(judge(-1, from), Ok(()));
            // Then the clock may be right.
            for now in [0, 1] {
                let early = judge(now, from);
                assert!(is_early(&early), "{early:?}");
            }
            assert_eq!(judge(from * DAY, from), Ok(()));
        }
        let far = judge(IN_1970, ALLOWANCE_DAYS + 1);
        assert!(is_early(&far), "{far:?}");
    }

    #[test]
    fn nothing_else_is_allowed() {
        let rig = Rig::new();
        let other = Signer::new();
        for from in [-1, 1] {
            for now in [IN_1970, 2 * DAY] {
                let foreign = rig.judge(now, 0, (&other, from, 367), "localhost");
                let is_foreign = matches!(
                    foreign,
                    Err(CertificateError::UnknownIssuer | CertificateError::BadSignature)
                );
                assert!(is_foreign, "{foreign:?}");
                let misnamed = rig.judge(now, 0, (&rig.authority, from, 367), "example.com");
                let is_misnamed = matches!(
                    misnamed,
                    Err(CertificateError::NotValidForNameContext { .. })
                );
                assert!(is_misnamed, "{misnamed:?}");
            }
        }
    }

    #[test]
    fn a_floor_that_was_learned_ends_what_had_ended_before_it() {
        let rig = Rig::new();
        let by_clock = |now, learned, from, to| {
            let server = (&rig.authority, from, to);
            rig.judge(now, SIGNED + learned * DAY, server, "localhost")
        };
        let judge = |learned, from, to| by_clock(IN_1970, learned, from, to);
        assert_eq!(judge(0, -1, 30), Ok(()));
        assert!(is_over(&judge(31, -1, 30)));
        assert_eq!(judge(31, -1, 60), Ok(()));
        // The bound counts from there.
        assert_eq!(judge(31, 31 + ALLOWANCE_DAYS, 500), Ok(()));
        // What is learned locks out nobody whose clock may be right.
        assert_eq!(by_clock(0, 31, -1, 30), Ok(()));
        assert!(is_early(&by_clock(0, 31, 1, 30)));
    }

    #[test]
    fn a_right_clock_is_judged_by_alone() {
        let rig = Rig::new();
        let judge = |now, from, to| rig.judge(now, 0, (&rig.authority, from, to), "localhost");
        assert_eq!(judge(10 * DAY, -1, 30), Ok(()));
        assert!(is_over(&judge(31 * DAY, -1, 30)));
        assert!(is_early(&judge(10 * DAY, 11, 30)));
    }

    #[test]
    fn a_floor_is_only_raised_and_a_foreign_certificate_raises_none() {
        let clock = FlooredClock::new(Arc::new(At(60)), SIGNED);
        clock.prove(SIGNED - 1);
        clock.learn(SIGNED - 2);
        assert_eq!((clock.floor(), clock.is_wrong()), (SIGNED, true));
        clock.prove(SIGNED + 1);
        assert_eq!(clock.current_time(), unix_time(SIGNED + 1));
        clock.learn(SIGNED + 2);
        assert_eq!(clock.current_time(), unix_time(SIGNED + 2));
        assert!(!FlooredClock::of_system().is_wrong());

        let rig = Rig::signed_by(Some(&Signer::new()));
        let far = rig.judge(IN_1970, 0, (&rig.authority, -1, 30), "localhost");
        assert!(is_early(&far), "{far:?}");
    }
}
