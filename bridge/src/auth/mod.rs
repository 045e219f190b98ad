//! Who may ask the API for what: signed tokens, the keys that sign them, and roles.
//!
//! A token is a JWT (RFC 7519) signed with Ed25519 (`EdDSA`, RFC 8037), and nothing else: what a
//! token says of its own algorithm is compared, never followed. Keys are files, one for each
//! `kid`: whoever issues tokens has `KID.key`, a bridge needs `KID.pub` alone.
//!
//! Reading order: [`api::access`] (roles) → [`token`] (texts and their check, pure) → [`keys`] (the folder).

pub mod keys;
mod meters;
pub mod token;

pub use api::{Access, Role};
pub use keys::{KeyFolder, KeyFolderError};
pub(crate) use meters::AuthMeters;
pub use token::{Claims, Refused, SigningKey, VerifyingKey};
