//! Certificates: an authority of one's own for a fleet, and the one place where PEM files become
//! rustls configurations.
//!
//! Promises kept here: a private key is never readable by anyone but its owner, not for a moment;
//! nothing is overwritten unasked; a certificate speaks for exactly one name in exactly one role;
//! every certificate ever issued stays known, so that it can be revoked.
//!
//! Reading order: [`identity`] → [`profile`] → [`folder`] → [`authority`] → [`set`] →
//! [`certificate`], [`revocation`], [`verify`], [`inventory`] → [`tls`] and [`pin`] → [`cli`].

pub mod authority;
pub mod certificate;
pub mod cli;
pub mod error;
pub mod folder;
pub mod identity;
pub mod inventory;
pub mod pin;
pub mod profile;
pub mod revocation;
pub mod serial;
pub mod set;
pub mod tls;
pub mod verify;
mod whole;

pub use authority::Authority;
pub use error::CertsError;
pub use folder::{Folder, Overwrite};
pub use identity::{Identity, Role};
pub use pin::Pin;
pub use serial::Serial;
pub use set::MachineSet;
pub use tls::{TlsError, TlsFiles};
