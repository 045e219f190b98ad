//! PEM files → rustls: the one place where it happens, for every process.
//!
//! TLS 1.3 only, ring only, no ALPN for MQTT. Both ends of MQTT show certificates; the REST API
//! does without the client's. rustls-pemfile reads PEM because rumqttc brings it along anyway
//! (`deny.toml` says more).
//!
//! **Resumption.** A server remembers sessions rather than handing out sealed tickets: a ticket
//! carries the client's certificate back and forth, 1,793 bytes in all against 1,777 of a full
//! handshake and 725 with a remembered session. rustls does not verify a resumed session again. So
//! - a new revocation list means a new [`ServerConfig`], whose memory is empty: every device,
//!   revoked or not, comes through a full handshake the next time;
//! - [`peer_identity`] looks at the end of the certificate's time, whatever the handshake was.
//!
//! [`floor`] is for clients whose clock may be in 1970.

pub mod floor;

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::{Class, Failure, Fault};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{
    ClientConfig, ConfigBuilder, InconsistentKeys, RootCertStore, ServerConfig, ServerConnection,
    WantsVerifier,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use self::floor::{FlooredClock, FlooredVerifier};
use crate::identity::{Identity, IdentityError};
use crate::pin::{Pin, PinnedVerifier};

/// Sessions that a server remembers, about 1 KB each: a fleet of 10,000 devices with room to
/// spare. Beyond it the oldest are forgotten, and their devices make a full handshake.
const RESUMABLE_SESSIONS: usize = 16_384;

/// Sessions that a client may take up again later: it uses one a connection.
const SESSIONS_OFFERED: usize = 1;

/// What HTTPS says it speaks.
const HTTP: &[u8] = b"http/1.1";

/// The files that one end of a mutual TLS connection needs, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that the other end's certificate must come from.
    pub ca: PathBuf,
    /// This end's certificate chain.
    pub cert: PathBuf,
    /// This end's private key.
    pub key: PathBuf,
}

/// Why files do not make a TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A key that is not the certificate's.
    #[error("{} is not the key of {}", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A revocation list of another authority.
    #[error("{} is not signed by {}", crl.display(), ca.display())]
    ForeignList {
        /// The list.
        crl: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// Something that rustls refuses.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        reason: String,
    },
}

/// Why the other end of an accepted connection is nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It showed no certificate, or the handshake is not done.
    #[error("the client showed no certificate")]
    NoCertificate,
    /// The session that it resumed has outlived its certificate.
    #[error("the client's certificate has expired")]
    Expired,
    /// Its certificate names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl TlsError {
    /// What the error is about: files that the settings or the command line name.
    #[must_use]
    pub const fn class(&self) -> Class {
        Class::Configuration
    }

    /// A process cannot start without TLS. One that runs and reads its files again goes on with
    /// what it has.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Halt
    }

    fn help(&self) -> &'static str {
        match self {
            Self::Read { .. } => {
                "check the path in the [tls] section, and that this user may read the file"
            }
            Self::Empty { .. } | Self::Unusable { .. } => {
                "give a PEM file as `certs` writes it; `certs verify FILE` tells more"
            }
            Self::KeyMismatch { .. } => "give the certificate and key that were issued together",
            Self::ForeignList { .. } => "give the crl.pem that lies beside that ca.pem",
        }
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        let help = error.help();
        Self::new(error.class(), "set up TLS")
            .because(error)
            .help(help)
    }
}

/// Makes ring the provider of cryptography for the whole process; later calls change nothing.
pub fn install_crypto_provider() {
    // An error says that one is installed already, and there is only one to install.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A server that asks every client for a certificate of its authority, and refuses those in the
/// revocation list. Make a new one when the list has changed.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn server_config(files: &TlsFiles, crl: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let builder = server_builder().with_client_cert_verifier(client_verifier(&files.ca, crl)?);
    let mut config = builder
        .with_single_cert(read_certs(&files.cert)?, read_key(&files.key)?)
        .map_err(|error| refused(&files.cert, &files.key, &error))?;
    config.session_storage = ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
    config.send_tls13_tickets = SESSIONS_OFFERED;
    Ok(config)
}

/// A server that asks for no certificate: HTTPS for people and their tokens.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn server_config_without_client_auth(
    cert: &Path,
    key: &Path,
) -> Result<ServerConfig, TlsError> {
    let mut config = server_builder()
        .with_no_client_auth()
        .with_single_cert(read_certs(cert)?, read_key(key)?)
        .map_err(|error| refused(cert, key, &error))?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}

/// A client that shows its certificate and trusts its authority alone. Share one configuration
/// among all connections of a process: it holds the sessions to resume.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    client_config_pinned(files, &[])
}

/// As [`client_config`]; with pins, the server must in addition have one of these public keys.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn client_config_pinned(files: &TlsFiles, pins: &[Pin]) -> Result<ClientConfig, TlsError> {
    let verifier = server_verifier(&files.ca, None)?;
    let builder = client_builder(Arc::new(DefaultTimeProvider));
    let builder = if pins.is_empty() {
        builder.with_webpki_verifier(verifier)
    } else {
        let verifier = PinnedVerifier::new(verifier, pins.to_vec());
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
    };
    builder
        .with_client_auth_cert(read_certs(&files.cert)?, read_key(&files.key)?)
        .map_err(|error| refused(&files.cert, &files.key, &error))
}

/// As [`client_config`], for a machine whose clock may be far behind: servers are judged by
/// `clock`, for which the time when the authority signed this client's own certificate has passed.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn client_config_floored(
    files: &TlsFiles,
    clock: &Arc<FlooredClock>,
) -> Result<ClientConfig, TlsError> {
    let own = read_certs(&files.cert)?;
    if let Some(at) = floor::signed_at(&own, client_verifier(&files.ca, None)?.as_ref()) {
        clock.prove(at);
    }
    let verifier: Arc<dyn ServerCertVerifier> = server_verifier(&files.ca, None)?;
    let verifier = FlooredVerifier::new(verifier, Arc::clone(clock));
    client_builder(Arc::clone(clock) as Arc<dyn TimeProvider>)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(own, read_key(&files.key)?)
        .map_err(|error| refused(&files.cert, &files.key, &error))
}

/// A client that shows no certificate, and trusts this authority alone: HTTPS with a token.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn client_config_without_certificate(ca: &Path) -> Result<ClientConfig, TlsError> {
    let mut config = client_builder(Arc::new(DefaultTimeProvider))
        .with_webpki_verifier(server_verifier(ca, None)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}

/// Who is at the other end of a connection whose handshake is done: the identity in its
/// certificate, which rustls has verified, or had when the session began.
///
/// # Errors
/// [`PeerError`] when there is no certificate, it has ended since, or it names nobody.
pub fn peer_identity(connection: &ServerConnection) -> Result<Identity, PeerError> {
    let leaf = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(PeerError::NoCertificate)?;
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| IdentityError::NoCertificate)?;
    // A clock before 1970 finds nothing expired, and has refused the handshake already.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_seconds = now.map_or(0, |since| since.as_secs());
    if i128::from(certificate.validity().not_after.timestamp()) < i128::from(now_seconds) {
        return Err(PeerError::Expired);
    }
    Ok(Identity::of(&certificate)?)
}

/// The certificates of a PEM file, the end entity's first.
///
/// # Errors
/// [`TlsError`] when the file cannot be read or holds none.
pub fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let certs: Vec<_> = rustls_pemfile::certs(&mut BufReader::new(&bytes[..]))
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, &error))?;
    if certs.is_empty() {
        return Err(empty(path, "certificate"));
    }
    Ok(certs)
}

pub(crate) fn first_cert(pem: &[u8]) -> Option<CertificateDer<'static>> {
    rustls_pemfile::certs(&mut BufReader::new(pem)).next()?.ok()
}

pub(crate) fn read_crl(path: &Path) -> Result<CertificateRevocationListDer<'static>, TlsError> {
    let bytes = read(path)?;
    rustls_pemfile::crls(&mut BufReader::new(&bytes[..]))
        .next()
        .ok_or_else(|| empty(path, "revocation list"))?
        .map_err(|error| unusable(path, &error))
}

/// Checks that a key is the one of a certificate.
pub(crate) fn check_pair(cert: &Path, key: &Path) -> Result<(), TlsError> {
    let signer = provider()
        .key_provider
        .load_private_key(read_key(key)?)
        .map_err(|error| unusable(key, &error))?;
    CertifiedKey::new(read_certs(cert)?, signer)
        .keys_match()
        .map_err(|error| refused(cert, key, &error))
}

/// What judges clients: the authority, and its revocation list if there is one.
pub(crate) fn client_verifier(
    ca: &Path,
    crl: Option<&Path>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let lists = read_lists(ca, crl)?;
    // The list is of the authority that signs the end entities; there is no other level.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .with_crls(lists)
        .only_check_end_entity_revocation()
        .build()
        .map_err(|error| bad_trust(ca, crl, &error))
}

/// What judges servers.
pub(crate) fn server_verifier(
    ca: &Path,
    crl: Option<&Path>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let lists = read_lists(ca, crl)?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .with_crls(lists)
        .only_check_end_entity_revocation()
        .build()
        .map_err(|error| bad_trust(ca, crl, &error))
}

/// The revocation list, if it is of one of the authorities in the file.
fn read_lists(
    ca: &Path,
    crl: Option<&Path>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let Some(path) = crl else {
        return Ok(Vec::new());
    };
    let list = read_crl(path)?;
    let authorities = read_certs(ca)?;
    if !authorities
        .iter()
        .any(|authority| is_signed_by(&list, authority))
    {
        return Err(TlsError::ForeignList {
            crl: path.to_owned(),
            ca: ca.to_owned(),
        });
    }
    Ok(vec![list])
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    rustls_pemfile::private_key(&mut BufReader::new(&bytes[..]))
        .map_err(|error| unusable(path, &error))?
        .ok_or_else(|| empty(path, "private key"))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in read_certs(path)? {
        roots.add(cert).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn server_builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3 suites")
}

fn client_builder(clock: Arc<dyn TimeProvider>) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3 suites")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn empty(path: &Path, what: &'static str) -> TlsError {
    TlsError::Empty {
        path: path.to_owned(),
        what,
    }
}

fn refused(cert: &Path, key: &Path, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
        // The builders load the key last, and say no more than this of one they cannot use.
        rustls::Error::General(_) => unusable(key, error),
        _ => unusable(cert, error),
    }
}

fn bad_trust(ca: &Path, crl: Option<&Path>, error: &VerifierBuilderError) -> TlsError {
    match (error, crl) {
        (VerifierBuilderError::InvalidCrl(_), Some(crl)) => unusable(crl, error),
        _ => unusable(ca, error),
    }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
/// Whether the authority signed the list. With another's list nobody's status would be known,
/// and everybody refused.
fn is_signed_by(list: &[u8], authority: &[u8]) -> bool {
    match (
        CertificateRevocationList::from_der(list),
        X509Certificate::from_der(authority),
    ) {
        (Ok((_, list)), Ok((_, authority))) => {
            list.issuer().as_raw() == authority.subject().as_raw()
                && list.verify_signature(authority.public_key()).is_ok()
        }
        _ => false,
    }
}
