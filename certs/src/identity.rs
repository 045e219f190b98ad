//! Who a certificate speaks for: exactly one common name and exactly one role.
//!
//! ```text
//! CN = the device id, or the service's name      OU = device │ bridge │ observer │ server
//! ```
//!
//! Why the organizational unit: `docs/decisions/0003-identity-in-certificates.md`.

use std::fmt;
use std::str::FromStr;

use schema::DeviceId;
use schema::id::IdError;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A checked identity: what the common name says, in the part that the role allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Identity {
    /// The common name; of the same characters as a device id, whatever the role.
    pub name: DeviceId,
    /// What the bearer may do.
    pub role: Role,
}

/// What the bearer of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Speaks for itself alone.
    Device,
    /// Hears all devices and answers them.
    Bridge,
    /// Hears everything, says nothing.
    Observer,
    /// Is connected to: the broker.
    Server,
}

/// Why a certificate names nobody we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is no X.509 certificate.
    #[error("not an X.509 certificate")]
    NoCertificate,
    /// The subject has none, or more than one, of an attribute that must stand once.
    #[error("certificate subject has {found} {attribute}, exactly one is needed")]
    Attribute {
        /// `common names (CN)` or `organizational units (OU)`.
        attribute: &'static str,
        /// How many it has.
        found: usize,
    },
    /// The common name is no identity.
    #[error("certificate's common name is no identity: {0}")]
    Name(#[from] IdError),
    /// The organizational unit is no role.
    #[error("certificate's organizational unit is no role: {0}")]
    Role(#[from] RoleError),
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is unknown, use one of device, bridge, observer, server")]
pub struct RoleError(String);

impl Identity {
    /// Reads the identity of a certificate in DER. The chain is checked elsewhere: by rustls.
    ///
    /// # Errors
    /// [`IdentityError`] when it names nobody, or more than one.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NoCertificate)?;
        let subject = certificate.subject();
        let name = only(
            "common names (CN)",
            subject.iter_common_name().map(|a| a.as_str().ok()),
        )?;
        let role = only(
            "organizational units (OU)",
            subject.iter_organizational_unit().map(|a| a.as_str().ok()),
        )?;
        Ok(Self {
            name: name.parse()?,
            role: role.parse()?,
        })
    }
}

fn only<'a>(
    attribute: &'static str,
    mut values: impl Iterator<Item = Option<&'a str>>,
) -> Result<&'a str, IdentityError> {
    let (first, more) = (values.next(), values.count());
    match (first, more) {
        (Some(Some(value)), 0) => Ok(value),
        (first, more) => Err(IdentityError::Attribute {
            attribute,
            found: usize::from(first.is_some()) + more,
        }),
    }
}

impl Role {
    /// The role as it stands in certificates, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Bridge => "bridge",
            Self::Observer => "observer",
            Self::Server => "server",
        }
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        [Self::Device, Self::Bridge, Self::Observer, Self::Server]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.to_owned()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
