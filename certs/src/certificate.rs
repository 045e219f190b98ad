//! What a certificate says about itself. Whether that may be believed: [`crate::verify`].

use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::error::CertsError;
use crate::identity::{Identity, IdentityError};
use crate::pin::Pin;
use crate::profile::Validity;
use crate::serial::Serial;
use crate::tls;

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The whole of it.
    pub der: CertificateDer<'static>,
    /// Whom it speaks for.
    pub identity: Result<Identity, IdentityError>,
    /// Its subject in DER.
    pub subject: Vec<u8>,
    /// Its common names, however many, for people.
    pub common_name: String,
    /// The authority's number for it.
    pub serial: Serial,
    /// From when to when it holds.
    pub validity: Validity,
    /// Names and addresses that a server is reached under.
    pub hosts: Vec<String>,
    /// SHA-256 of its public key.
    pub pin: Pin,
    /// Its public key, as SubjectPublicKeyInfo in DER.
    pub public_key: Vec<u8>,
    /// Whether it may sign others.
    pub is_authority: bool,
}

impl Certificate {
    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    /// [`CertsError`] when the file cannot be read or holds no certificate.
    pub fn read(path: &Path) -> Result<Self, CertsError> {
        let mut chain = tls::read_certs(path)?;
        let der = chain.swap_remove(0);
        Self::from_der(der).map_err(|reason| CertsError::damaged(path, reason))
    }

    pub(crate) fn from_pem(pem: &str) -> Result<Self, &'static str> {
        tls::first_cert(pem.as_bytes()).map_or(Err("it holds no certificate"), Self::from_der)
    }

    fn from_der(der: CertificateDer<'static>) -> Result<Self, &'static str> {
        let (rest, parsed) =
            X509Certificate::from_der(&der).map_err(|_| "it holds no X.509 certificate")?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate");
        }
        let validity = Validity {
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        };
        let common_names: Vec<&str> = parsed
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .collect();
        Ok(Self {
            identity: Identity::of(&parsed),
            subject: parsed.subject().as_raw().to_vec(),
            common_name: common_names.join(", "),
            serial: Serial::from_der(parsed.raw_serial())
                .map_err(|_| "its serial number is out of range")?,
            validity,
            hosts: hosts(&parsed),
            pin: Pin::of_certificate(&der).map_err(|_| "it has no public key")?,
            public_key: parsed.public_key().raw.to_vec(),
            is_authority: parsed.is_ca(),
            der: der.clone(),
        })
    }
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names[..],
        Ok(None) | Err(_) => &[],
    };
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
