//! PEM files → rustls: the one place where it happens, for every process.
//!
//! TLS 1.3 only, ring only. Both ends of MQTT show certificates; the REST API may do without the
//! client's. rustls-pemfile reads PEM because rumqttc brings it along anyway (`deny.toml` says
//! more).

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemon::{Class, Failure, Fault};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::pin::{Pin, PinnedVerifier};

/// Sessions that a server remembers for resumption, some 4 KB each at most. A fleet that lost its
/// broker returns with full handshakes beyond this number.
const RESUMABLE_SESSIONS: usize = 4_096;

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
    #[error("cannot read {}: {source}", path.display())]
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
    /// Certificate and key, or the authority, are refused by rustls.
    #[error("{} is not usable: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        reason: String,
    },
}

impl TlsError {
    /// What the error is about.
    #[must_use]
    pub const fn class(&self) -> Class {
        Class::Authentication
    }

    /// A file that is being replaced is whole again soon; a process that starts cannot wait.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Halt
    }

    fn help(&self) -> &'static str {
        match self {
            Self::Read { .. } => {
                "check the path in the [tls] section and that this user may read the file"
            }
            Self::Empty { .. } => "give a PEM file, as `certs` writes it",
            Self::Unusable { .. } => {
                "certificate and key must belong together; `certs verify FILE` tells more"
            }
        }
    }
}

impl From<TlsError> for Failure {
    /// A file named by the settings is configuration: exit code 2.
    fn from(error: TlsError) -> Self {
        let help = error.help();
        Self::new(Class::Configuration, "set up TLS")
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
/// revocation list.
///
/// # Errors
/// [`TlsError`] that names the file.
pub fn server_config(files: &TlsFiles, crl: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let roots = Arc::new(roots(&files.ca)?);
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
    if let Some(path) = crl {
        verifier = verifier
            .with_crls([read_crl(path)?])
            // The list is of the authority that signs the end entities; there is no other level.
            .only_check_end_entity_revocation();
    }
    let verifier = verifier
        .build()
        .map_err(|error| unusable(crl.unwrap_or(&files.ca), &error))?;
    let mut config = server_builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(read_certs(&files.cert)?, read_key(&files.key)?)
        .map_err(|error| unusable(&files.cert, &error))?;
    // Resumption restores the client's certificates along with the session, so that the identity
    // of a resumed connection is still known. Stateful: a revoked device's session can be dropped
    // by starting a new configuration, which a stateless ticket would outlive.
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(RESUMABLE_SESSIONS);
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
    server_builder()
        .with_no_client_auth()
        .with_single_cert(read_certs(cert)?, read_key(key)?)
        .map_err(|error| unusable(cert, &error))
}

/// A client that shows its certificate and trusts its authority alone.
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
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&files.ca)?), provider())
            .build()
            .map_err(|error| unusable(&files.ca, &error))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3 suites");
    let builder = if pins.is_empty() {
        builder.with_webpki_verifier(verifier)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedVerifier::new(
                verifier,
                pins.to_vec(),
            )))
    };
    builder
        .with_client_auth_cert(read_certs(&files.cert)?, read_key(&files.key)?)
        .map_err(|error| unusable(&files.cert, &error))
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

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    rustls_pemfile::private_key(&mut BufReader::new(&bytes[..]))
        .map_err(|error| unusable(path, &error))?
        .ok_or_else(|| empty(path, "private key"))
}

fn read_crl(path: &Path) -> Result<CertificateRevocationListDer<'static>, TlsError> {
    let bytes = read(path)?;
    rustls_pemfile::crls(&mut BufReader::new(&bytes[..]))
        .next()
        .ok_or_else(|| empty(path, "revocation list"))?
        .map_err(|error| unusable(path, &error))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in read_certs(path)? {
        roots.add(cert).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn server_builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
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

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
