//! The revocation list as the authority keeps it: the file itself is the record.

use std::path::Path;

use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::error::CertsError;
use crate::serial::Serial;
use crate::tls;

/// What a revocation list says.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    /// Counts up with every list.
    pub number: u64,
    /// Whose certificates hold no longer, and since when.
    pub revoked: Vec<(Serial, OffsetDateTime)>,
}

impl Revocations {
    /// Reads a list. Every authority has one from its first day: a list that is missing was lost,
    /// and taking it for an empty one would let in whoever was revoked.
    ///
    /// # Errors
    /// [`CertsError`] when the file cannot be read or holds no list.
    pub fn read(path: &Path) -> Result<Self, CertsError> {
        let der = tls::read_crl(path)?;
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|_| CertsError::damaged(path, "it holds no revocation list"))?;
        let mut revoked = Vec::new();
        for entry in list.iter_revoked_certificates() {
            let serial = Serial::from_der(entry.raw_serial())
                .map_err(|_| CertsError::damaged(path, "a serial number is out of range"))?;
            revoked.push((serial, entry.revocation_date.to_datetime()));
        }
        let number = list.crl_number().map(|number| number.iter_u64_digits());
        Ok(Self {
            number: number.and_then(|mut digits| digits.next()).unwrap_or(0),
            revoked,
        })
    }

    /// Whether a serial number is on the list.
    #[must_use]
    pub fn contains(&self, serial: &Serial) -> bool {
        self.revoked.iter().any(|(known, _)| known == serial)
    }
}
