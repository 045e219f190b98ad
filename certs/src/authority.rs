//! The certificate authority: the only file that names rcgen.
//!
//! ECDSA on P-256, which every TLS library and secure element knows. Serial numbers are random,
//! so that two authorities' lists never mean each other's certificates.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::folder::{CertsError, Folder, Overwrite};
use crate::identity::{Identity, Role};
use crate::tls::TlsFiles;

/// Certificates begin an hour ago: a device whose clock is a little behind must not be refused.
const BACKDATED: Duration = Duration::hours(1);

/// How long the authority itself is good: longer than most devices live.
const AUTHORITY_DAYS: i64 = 3650;

/// How long a revocation list says it is good. It is read again while running; its expiry is not
/// enforced, because a forgotten list must not lock out a whole fleet.
const REVOCATION_LIST_DAYS: i64 = 30;

/// An authority that can sign.
pub struct Authority {
    folder: Folder,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Authority")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// How long a certificate of a role is good, in days, unless the command says otherwise: servers
/// and services are renewed by their operator every year, devices are harder to reach.
#[must_use]
pub const fn default_days(role: Role) -> u32 {
    match role {
        Role::Server | Role::Bridge | Role::Observer => 397,
        Role::Device => 825,
    }
}

impl Authority {
    /// Makes a new authority in the folder.
    ///
    /// # Errors
    /// [`CertsError`] when there is one already and `overwrite` does not allow it, or the folder
    /// cannot be written.
    pub fn init(folder: Folder, name: &str, overwrite: Overwrite) -> Result<Self, CertsError> {
        let mut params = params(name, AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(CertsError::crypto)?;
        let certificate = params.self_signed(&key).map_err(CertsError::crypto)?;
        folder.write_pair(
            &folder.ca_files(),
            &certificate.pem(),
            &key.serialize_pem(),
            overwrite,
        )?;
        Self::open(folder)
    }

    /// Opens the authority of the folder.
    ///
    /// # Errors
    /// [`CertsError`] when its files are missing, unreadable or damaged.
    pub fn open(folder: Folder) -> Result<Self, CertsError> {
        let files = folder.ca_files();
        let damaged = |error: rcgen::Error| CertsError::damaged(&files.cert, &error);
        let key = KeyPair::from_pem(&folder.read(&files.key)?).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_pem(&folder.read(&files.cert)?, key).map_err(damaged)?;
        Ok(Self { folder, issuer })
    }

    /// The folder it lives in.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Issues a certificate and its key. `hosts` are the names and addresses that a server is
    /// reached under; others have none.
    ///
    /// # Errors
    /// [`CertsError`] when a host is no name or address, the pair exists and `overwrite` does not
    /// allow it, or the folder cannot be written.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        days: u32,
        overwrite: Overwrite,
    ) -> Result<TlsFiles, CertsError> {
        let (certificate, key) = self.sign(identity, hosts, days)?;
        let files = self.folder.files_of(identity);
        self.folder
            .write_pair(&files, &certificate, &key, overwrite)?;
        Ok(files)
    }

    /// Issues a certificate without writing it: certificate and key in PEM.
    ///
    /// # Errors
    /// [`CertsError`] when a host is no name or address.
    pub fn sign(
        &self,
        identity: &Identity,
        hosts: &[String],
        days: u32,
    ) -> Result<(String, String), CertsError> {
        let key = KeyPair::generate().map_err(CertsError::crypto)?;
        let mut params = params(identity.name.as_str(), i64::from(days));
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, identity.role.as_str());
        params.subject_alt_names = CertificateParams::new(hosts)
            .map_err(|error| CertsError::Host {
                hosts: hosts.join(", "),
                reason: error.to_string(),
            })?
            .subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match identity.role {
            Role::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Device | Role::Bridge | Role::Observer => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CertsError::crypto)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Adds serial numbers to the revocation list, and returns its path.
    ///
    /// # Errors
    /// [`CertsError`] when the present list cannot be read or the new one cannot be written.
    pub fn revoke(&self, serials: &[Vec<u8>]) -> Result<PathBuf, CertsError> {
        let now = OffsetDateTime::now_utc();
        let mut revoked = self.folder.revoked()?;
        for serial in serials {
            if !revoked.iter().any(|(known, _)| known == serial) {
                revoked.push((serial.clone(), now));
            }
        }
        let list = CertificateRevocationListParams {
            this_update: now - BACKDATED,
            next_update: now + Duration::days(REVOCATION_LIST_DAYS),
            // Seconds grow with every list, as RFC 5280 wants the number to.
            crl_number: SerialNumber::from(now.unix_timestamp().unsigned_abs()),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .into_iter()
                .map(|(serial, at)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&serial),
                    revocation_time: at,
                    reason_code: Some(RevocationReason::Unspecified),
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list
            .signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(CertsError::crypto)?;
        let path = self.folder.crl_file();
        self.folder.replace(&path, &pem)?;
        Ok(path)
    }
}

fn params(common_name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}
