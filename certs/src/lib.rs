//! Certificates: an authority of one's own for a fleet, and the one place where PEM files become
//! rustls configurations.
//!
//! Reading order: [`identity`] → [`folder`] → [`authority`] → [`set`] → [`inventory`] → [`tls`]
//! and [`pin`].

pub mod authority;
pub mod cli;
pub mod folder;
pub mod identity;
pub mod inventory;
pub mod pin;
pub mod set;
pub mod tls;

pub use authority::Authority;
pub use folder::{CertsError, Folder, Overwrite};
pub use identity::{Identity, Role};
pub use tls::TlsFiles;
