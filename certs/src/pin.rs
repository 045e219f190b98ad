//! Pinning: beside the authority's signature, the server's public key must be one of a known few.
//!
//! A pin is SHA-256 over the certificate's SubjectPublicKeyInfo in DER, as RFC 7469 has it; it
//! outlives a renewed certificate with the same key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// SHA-256 of a public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A text that is no pin, or bytes that are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a pin: use the 64 hexadecimal digits that `certs verify FILE` prints as `pin`")]
pub struct PinError;

impl Pin {
    /// The pin of a certificate in DER.
    ///
    /// # Errors
    /// [`PinError`] when the bytes are no certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, PinError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PinError)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
        digest.as_ref().try_into().map(Self).map_err(|_| PinError)
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let mut pin = [0; 32];
        hex::decode_to_slice(text, &mut pin).map_err(|_| PinError)?;
        Ok(Self(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A server whose key is none of the pinned ones.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's public key {seen} is not pinned: this is another server, or its key was \
     replaced and the pin was not"
)]
pub struct PinMismatch {
    /// The pin of the key that the server has.
    pub seen: Pin,
}

impl fmt::Debug for PinMismatch {
    /// As for people: rustls puts this, not the other, into the error that the client logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The usual verification, and then the pins.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    inner: Arc<WebPkiServerVerifier>,
    pins: Vec<Pin>,
}

impl PinnedVerifier {
    pub(crate) const fn new(inner: Arc<WebPkiServerVerifier>, pins: Vec<Pin>) -> Self {
        Self { inner, pins }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let seen = Pin::of_certificate(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.pins.contains(&seen) {
            return Ok(verified);
        }
        let mismatch = OtherError(Arc::new(PinMismatch { seen }));
        Err(Error::InvalidCertificate(CertificateError::Other(mismatch)))
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
