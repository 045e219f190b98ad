//! The certificate authority: the only file that names rcgen.
//!
//! ECDSA on P-256, which every TLS library and secure element knows. A certificate is copied to
//! the folder's `issued` before anybody gets it: what is not known cannot be revoked.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

use crate::certificate::Certificate;
use crate::error::CertsError;
use crate::folder::{Folder, Lock, Overwrite};
use crate::identity::{Identity, Role};
use crate::profile::{AUTHORITY_DAYS, BACKDATED, SERVER_NAME, Validity, check_hosts, default_days};
use crate::revocation::Revocations;
use crate::serial::Serial;
use crate::tls::TlsFiles;
use crate::verify::{Problem, Verifier};
use crate::whole;

/// An authority that can sign.
pub struct Authority {
    folder: Folder,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What becomes of the key when a certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// It stays: pins hold, and nothing secret has to travel to the device again.
    Keep,
    /// A new one is made, because the old one may be known to others.
    Replace,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Authority")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A name for an authority that nobody named: no two are alike, so that a certificate of another
/// one is reported as foreign rather than as forged.
#[must_use]
pub fn default_name() -> String {
    format!("Tideline authority {:06x}", rand::random::<u32>() >> 8)
}

impl Authority {
    /// Makes a new authority in the folder, and an empty revocation list.
    ///
    /// # Errors
    /// [`CertsError`] when there is one already and `overwrite` does not allow it, or the folder
    /// cannot be written.
    pub fn init(folder: Folder, name: &str, overwrite: Overwrite) -> Result<Self, CertsError> {
        Self::init_for_days(folder, name, AUTHORITY_DAYS, overwrite)
    }

    /// As [`Self::init`], for another time than ten years.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub fn init_for_days(
        folder: Folder,
        name: &str,
        days: u32,
        overwrite: Overwrite,
    ) -> Result<Self, CertsError> {
        let lock = folder.lock()?;
        Self::init_locked(&lock, folder, name, days, overwrite)
    }

    pub(crate) fn init_locked(
        _lock: &Lock,
        folder: Folder,
        name: &str,
        days: u32,
        overwrite: Overwrite,
    ) -> Result<Self, CertsError> {
        let files = folder.ca_files();
        files.check_free(overwrite)?;
        let key = KeyPair::generate().map_err(CertsError::crypto)?;
        let validity = Validity::starting(OffsetDateTime::now_utc(), days);
        let params = authority_params(name, validity);
        let certificate = params.self_signed(&key).map_err(CertsError::crypto)?;
        let list = sign_list(
            &Revocations::default(),
            validity.not_after,
            &Issuer::from_params(&params, &key),
        )?;
        // The certificate comes last: with it the authority exists, before it nothing was signed.
        whole::write(&files.key, &key.serialize_pem(), whole::SECRET, overwrite)?;
        whole::write(&folder.crl_file(), &list, whole::PUBLIC, overwrite)?;
        whole::write(&files.cert, &certificate.pem(), whole::PUBLIC, overwrite)?;
        Self::open(folder)
    }

    /// Opens the authority of the folder.
    ///
    /// # Errors
    /// [`CertsError`] when its files are missing, unreadable, damaged or not each other's.
    pub fn open(folder: Folder) -> Result<Self, CertsError> {
        let files = folder.ca_files();
        if !files.cert.exists() {
            return Err(CertsError::NoAuthority(folder.root().to_owned()));
        }
        let certificate = Certificate::read(&files.cert)?;
        if !certificate.is_authority {
            return Err(CertsError::damaged(
                &files.cert,
                "its certificate may not sign others",
            ));
        }
        let text = std::fs::read_to_string(&files.key)
            .map_err(|error| CertsError::file("read", &files.key, error))?;
        let key = KeyPair::from_pem(&text)
            .map_err(|_| CertsError::damaged(&files.key, "it holds no private key"))?;
        if key.subject_public_key_info() != certificate.public_key {
            let TlsFiles { cert, key, .. } = files;
            return Err(CertsError::KeyMismatch { cert, key });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.der, key)
            .map_err(|error| CertsError::damaged(&files.cert, error))?;
        Ok(Self {
            folder,
            certificate,
            issuer,
        })
    }

    /// The folder it lives in.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its own certificate.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Issues a certificate and its key. `hosts` are the names and addresses that a server is
    /// reached under; others have none.
    ///
    /// # Errors
    /// [`CertsError`] when a host is no name or address, another role has the name, the pair
    /// exists and `overwrite` does not allow it, or the folder cannot be written.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        days: u32,
        overwrite: Overwrite,
    ) -> Result<TlsFiles, CertsError> {
        let validity = Validity::starting(OffsetDateTime::now_utc(), days);
        self.issue_within(identity, hosts, validity, overwrite)
    }

    /// As [`Self::issue`], with a beginning and an end; never beyond the authority's own.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_within(
        &self,
        identity: &Identity,
        hosts: &[String],
        validity: Validity,
        overwrite: Overwrite,
    ) -> Result<TlsFiles, CertsError> {
        let lock = self.folder.lock()?;
        self.issue_locked(&lock, identity, hosts, validity, overwrite)
    }

    pub(crate) fn issue_locked(
        &self,
        lock: &Lock,
        identity: &Identity,
        hosts: &[String],
        validity: Validity,
        overwrite: Overwrite,
    ) -> Result<TlsFiles, CertsError> {
        let files = self.folder.files_of(identity);
        files.check_free(overwrite)?;
        self.check_name(identity)?;
        let key = KeyPair::generate().map_err(CertsError::crypto)?;
        let certificate = self.sign(lock, identity, hosts, validity, &key)?;
        self.folder
            .write_pair(&files, &certificate, &key.serialize_pem(), overwrite)?;
        Ok(files)
    }

    /// Issues a certificate again, for the same identity and hosts, and puts it in the place of
    /// the old one. `days` default to those of its role. The old one holds until it ends or is
    /// revoked.
    ///
    /// The authority's own certificate can be renewed too; it keeps its key, or all that it
    /// signed would be worthless.
    ///
    /// # Errors
    /// [`CertsError`] when the certificate is not of this authority, revoked or names nobody,
    /// and when its place cannot be written.
    pub fn renew(&self, path: &Path, days: Option<u32>, key: Key) -> Result<(), CertsError> {
        let lock = self.folder.lock()?;
        self.renew_locked(&lock, path, days, key)
    }

    pub(crate) fn renew_locked(
        &self,
        lock: &Lock,
        path: &Path,
        days: Option<u32>,
        key: Key,
    ) -> Result<(), CertsError> {
        let old = Certificate::read(path)?;
        if old.der == self.certificate.der {
            return self.renew_self(lock, days, key);
        }
        let refused = |reason: String| CertsError::NotRenewable {
            path: path.to_owned(),
            reason,
        };
        let verifier = Verifier::of(&self.folder)?;
        for problem in verifier.problems(&old, OffsetDateTime::now_utc()) {
            match problem {
                // What a renewal is for.
                Problem::Expired(_) => {}
                problem => return Err(refused(problem.to_string())),
            }
        }
        let identity = old.identity.as_ref().map_err(|e| refused(e.to_string()))?;
        if path == self.folder.issued_file(identity, &old.serial) {
            let place = self.folder.files_of(identity).cert;
            return Err(refused(format!(
                "it is the copy kept for revocation, renew {}",
                place.display()
            )));
        }
        let days = days.unwrap_or_else(|| default_days(identity.role));
        let validity = Validity::starting(OffsetDateTime::now_utc(), days);
        let overwrite = Overwrite::Allow;
        match key {
            Key::Keep => {
                let public = SubjectPublicKeyInfo::from_der(&old.public_key)
                    .map_err(|error| refused(error.to_string()))?;
                let pem = self.sign(lock, identity, &old.hosts, validity, &public)?;
                whole::write(path, &pem, whole::PUBLIC, overwrite)
            }
            Key::Replace => {
                let key = KeyPair::generate().map_err(CertsError::crypto)?;
                let pem = self.sign(lock, identity, &old.hosts, validity, &key)?;
                let files = TlsFiles {
                    ca: self.folder.ca_files().cert,
                    cert: path.to_owned(),
                    key: path.with_extension("key"),
                };
                self.folder
                    .write_pair(&files, &pem, &key.serialize_pem(), overwrite)
            }
        }
    }

    fn renew_self(&self, lock: &Lock, days: Option<u32>, key: Key) -> Result<(), CertsError> {
        let path = self.folder.ca_files().cert;
        let refused = |reason: &str| CertsError::NotRenewable {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if key == Key::Replace {
            return Err(refused(
                "with a new key it would be another authority; `certs init --force` makes one",
            ));
        }
        let days = days.unwrap_or(AUTHORITY_DAYS);
        let validity = Validity::starting(OffsetDateTime::now_utc(), days);
        let pem = authority_params(&self.certificate.common_name, validity)
            .self_signed(self.issuer.key())
            .map_err(CertsError::crypto)?
            .pem();
        let renewed = Certificate::from_pem(&pem).map_err(CertsError::crypto)?;
        if renewed.subject != self.certificate.subject {
            return Err(refused(
                "its subject has more than a common name; renew it where it was made",
            ));
        }
        whole::write(&path, &pem, whole::PUBLIC, Overwrite::Allow)?;
        // The list promises to hold as long as the authority does.
        Self::open(self.folder.clone())?.publish(lock, &[])?;
        Ok(())
    }

    /// Adds serial numbers to the revocation list, and returns its path.
    ///
    /// # Errors
    /// [`CertsError`] when a serial number was never issued here, the present list cannot be
    /// read, or the new one cannot be written.
    pub fn revoke(&self, serials: &[Serial]) -> Result<PathBuf, CertsError> {
        let lock = self.folder.lock()?;
        let mut known = std::collections::HashSet::new();
        for role in Role::ALL {
            known.extend(self.folder.issued(role)?.into_iter().map(|i| i.serial));
        }
        match serials.iter().find(|serial| !known.contains(*serial)) {
            Some(unknown) => Err(CertsError::UnknownSerial(unknown.clone())),
            None => self.publish(&lock, serials),
        }
    }

    /// Writes the revocation list anew, with `more` on it.
    pub(crate) fn publish(&self, _lock: &Lock, more: &[Serial]) -> Result<PathBuf, CertsError> {
        let path = self.folder.crl_file();
        let mut list = Revocations::read(&path)?;
        let now = OffsetDateTime::now_utc();
        for serial in more {
            if !list.contains(serial) {
                list.revoked.push((serial.clone(), now));
            }
        }
        let pem = sign_list(&list, self.certificate.validity.not_after, &self.issuer)?;
        whole::write(&path, &pem, whole::PUBLIC, Overwrite::Allow)?;
        Ok(path)
    }

    /// One name has one role, for ever: where only the common name is read (Mosquitto's
    /// `use_identity_as_username`), a device called like a service would pass as it.
    fn check_name(&self, identity: &Identity) -> Result<(), CertsError> {
        let name = identity.name.as_str();
        let taken = |holder| CertsError::NameTaken {
            name: name.to_owned(),
            holder,
            wanted: identity.role,
        };
        if name == SERVER_NAME && identity.role != Role::Server {
            return Err(taken(Role::Server));
        }
        for role in Role::ALL.into_iter().filter(|role| *role != identity.role) {
            if self.folder.issued(role)?.iter().any(|i| i.name == name) {
                return Err(taken(role));
            }
        }
        Ok(())
    }

    /// Signs a certificate and keeps a copy of it.
    fn sign(
        &self,
        _lock: &Lock,
        identity: &Identity,
        hosts: &[String],
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<String, CertsError> {
        if self.certificate.validity.not_after <= OffsetDateTime::now_utc() {
            return Err(CertsError::AuthorityExpired(self.folder.ca_files().cert));
        }
        let serial = Serial::random();
        let validity = validity.within(self.certificate.validity);
        let pem = leaf_params(identity, hosts, validity, &serial)?
            .signed_by(key, &self.issuer)
            .map_err(CertsError::crypto)?
            .pem();
        let copy = self.folder.issued_file(identity, &serial);
        whole::make_folder(copy.parent().unwrap_or(self.folder.root()))?;
        whole::write(&copy, &pem, whole::PUBLIC, Overwrite::Refuse)?;
        Ok(pem)
    }
}

fn authority_params(name: &str, validity: Validity) -> CertificateParams {
    let mut params = params(&Serial::random(), validity);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(
    identity: &Identity,
    hosts: &[String],
    validity: Validity,
    serial: &Serial,
) -> Result<CertificateParams, CertsError> {
    let mut params = params(serial, validity);
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationalUnitName, identity.role.as_str());
    subject.push(DnType::CommonName, identity.name.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match identity.role {
        Role::Server => {
            check_hosts(hosts)?;
            params.subject_alt_names = CertificateParams::new(hosts)
                .map_err(CertsError::crypto)?
                .subject_alt_names;
            ExtendedKeyUsagePurpose::ServerAuth
        }
        Role::Device | Role::Bridge | Role::Observer => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(serial: &Serial, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params
}

/// A list that holds until `until`. It comes as a file, with no promise to be renewed in time,
/// and OpenSSL refuses everybody once a list has ended.
fn sign_list<Key: rcgen::SigningKey>(
    list: &Revocations,
    until: OffsetDateTime,
    issuer: &Issuer<'_, Key>,
) -> Result<String, CertsError> {
    let now = OffsetDateTime::now_utc();
    let revoked = |(serial, at): &(Serial, OffsetDateTime)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial.as_bytes()),
        revocation_time: *at,
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: now - BACKDATED,
        next_update: until,
        crl_number: SerialNumber::from(list.number + 1),
        issuing_distribution_point: None,
        revoked_certs: list.revoked.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(issuer)
    .and_then(|list| list.pem())
    .map_err(CertsError::crypto)
}
