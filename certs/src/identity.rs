//! Who a certificate speaks for: exactly one common name and exactly one role.
//!
//! ```text
//! CN = the device id, or the service's name      OU = device │ bridge │ observer │ server
//! ```
//!
//! Why the organizational unit: `docs/decisions/0003-identity-in-certificates.md`. Whether the
//! certificate may be believed at all is not decided here, but by rustls in [`crate::tls`].

use std::fmt;
use std::str::FromStr;

use schema::id::IdError;
use schema::{CommonName, DeviceId};
use serde::{Deserialize, Serialize};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

/// A checked identity: what the common name says, in the part that the role allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Identity {
    /// The device's id, or the service's name.
    pub name: CommonName,
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
    /// Is connected to: the broker, the API.
    Server,
}

/// Why a certificate names nobody we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is no X.509 certificate, or more than one.
    #[error("not an X.509 certificate")]
    NoCertificate,
    /// The subject has none, or more than one, of an attribute that must stand once.
    #[error("its subject has {found} {attribute}, exactly one is needed")]
    Attribute {
        /// `common names (CN)` or `organizational units (OU)`.
        attribute: &'static str,
        /// How many it has.
        found: usize,
    },
    /// An attribute is written in an alphabet that other programs read in other ways.
    #[error("its subject has a value among the {0} that is neither UTF-8 nor printable text")]
    Encoding(&'static str),
    /// The common name is no identity.
    #[error("its common name is no identity: {0}")]
    Name(#[from] IdError),
    /// The organizational unit is no role.
    #[error("its organizational unit is no role: {0}")]
    Role(#[from] RoleError),
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is unknown, use one of device, bridge, observer, server")]
pub struct RoleError(String);

impl Identity {
    /// A device's.
    #[must_use]
    pub fn of_device(device: DeviceId) -> Self {
        Self {
            name: device.into(),
            role: Role::Device,
        }
    }

    /// The device that this is, if it is one.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        (self.role == Role::Device).then(|| self.name.device_id())
    }

    /// Reads the identity of a certificate in DER. The chain is checked elsewhere: by rustls.
    ///
    /// # Errors
    /// [`IdentityError`] when it names nobody, or more than one.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Self::of(&certificate),
            Ok(_) | Err(_) => Err(IdentityError::NoCertificate),
        }
    }

    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let subject = certificate.subject();
        let name = only("common names (CN)", subject.iter_common_name())?;
        let role = only(
            "organizational units (OU)",
            subject.iter_organizational_unit(),
        )?;
        Ok(Self {
            name: name.parse()?,
            role: role.parse()?,
        })
    }
}

/// The value of an attribute that stands once. Two names for one bearer would let one program
/// read the first and another the last.
fn only<'a, 'b>(
    attribute: &'static str,
    mut values: impl Iterator<Item = &'b AttributeTypeAndValue<'a>>,
) -> Result<&'a str, IdentityError>
where
    'a: 'b,
{
    let (first, more) = (values.next(), values.count());
    match (first, more) {
        (Some(value), 0) => match value.attr_value().tag() {
            Tag::Utf8String | Tag::PrintableString => value
                .as_str()
                .map_err(|_| IdentityError::Encoding(attribute)),
            _ => Err(IdentityError::Encoding(attribute)),
        },
        (first, more) => Err(IdentityError::Attribute {
            attribute,
            found: usize::from(first.is_some()) + more,
        }),
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Device, Self::Bridge, Self::Observer, Self::Server];

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
        Self::ALL
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

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}
