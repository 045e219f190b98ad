//! Why a connection to the broker could not be made, or ended.

use std::error::Error;

use certs::tls::TlsError;
use daemon::{Class, Fault};

/// A connection that failed. Each is tried again: the world may heal, and a person may mend a
/// certificate while the agent keeps collecting.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The certificate files cannot be used.
    #[error("cannot use the certificate files: {0}")]
    Files(#[from] TlsError),
    /// TLS was refused by one of both ends.
    #[error("TLS with {address} was refused: {reason}")]
    Tls {
        /// The broker.
        address: String,
        /// The reason, as the end that refused gives it.
        reason: String,
    },
    /// The broker answered, and did not let us in.
    #[error("broker {address} refused the connection: {reason}")]
    Refused {
        /// The broker.
        address: String,
        /// The reason that it gave.
        reason: String,
    },
    /// The broker did not grant the subscription to our own topics.
    #[error("broker {address} refused the subscription to {filter}")]
    Subscription {
        /// The broker.
        address: String,
        /// The filter that was to be subscribed to.
        filter: String,
    },
    /// Nobody answers, or not in time.
    #[error("cannot reach {address}: {source}")]
    Unreachable {
        /// The broker.
        address: String,
        /// The error of the network.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An established connection broke.
    #[error("connection to {address} was lost: {source}")]
    Lost {
        /// The broker.
        address: String,
        /// The error of the MQTT client.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl LinkError {
    /// What the error is about.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Files(_)
            | Self::Tls { .. }
            | Self::Refused { .. }
            | Self::Subscription { .. } => Class::Authentication,
            Self::Unreachable { .. } | Self::Lost { .. } => Class::Network,
        }
    }

    /// Always worth another attempt.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Files(_)
            | Self::Tls { .. }
            | Self::Refused { .. }
            | Self::Subscription { .. }
            | Self::Unreachable { .. }
            | Self::Lost { .. } => Fault::Retry,
        }
    }

    /// What the operator can do.
    #[must_use]
    pub const fn help(&self) -> &'static str {
        match self {
            Self::Files(_) => "mend the files of the [tls] section; they are read again",
            Self::Tls { .. } => {
                "this device's certificate and the broker's must come from the same authority, be \
                 valid now, and the broker's must hold the host that [mqtt] address names"
            }
            Self::Refused { .. } => {
                "the device id must equal the certificate's common name and must not be revoked"
            }
            Self::Subscription { .. } => "the broker's rules must let a device hear its own topics",
            Self::Unreachable { .. } => "check [mqtt] address, the network and the broker",
            Self::Lost { .. } => "readings are kept on disk until the connection is back",
        }
    }
}
