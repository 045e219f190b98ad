//! Why a connection to the broker could not be made, or ended.

use std::error::Error;

use certs::tls::TlsError;
use daemon::{Class, Fault};

use super::Closed;
use super::proxy::ProxyFailure;

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
    /// It does not get as far as a subscription in time.
    #[error("cannot reach {address}: no connection within {seconds} s")]
    Late {
        /// The broker.
        address: String,
        /// How long connecting may take.
        seconds: f64,
    },
    /// The proxy on the way does not connect us.
    #[error("cannot reach {address}: proxy {proxy} {failure}")]
    Proxy {
        /// The proxy, without credentials.
        proxy: String,
        /// The broker.
        address: String,
        /// What went wrong with it.
        failure: ProxyFailure,
    },
    /// Closed by the device's own rules.
    #[error("the link is closed on purpose: {0}")]
    Closed(Closed),
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
            | Self::Subscription { .. }
            | Self::Proxy {
                failure: ProxyFailure::Credentials,
                ..
            } => Class::Authentication,
            Self::Unreachable { .. }
            | Self::Late { .. }
            | Self::Proxy { .. }
            | Self::Closed(_)
            | Self::Lost { .. } => Class::Network,
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
            | Self::Late { .. }
            | Self::Proxy { .. }
            | Self::Closed(_)
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
            Self::Unreachable { .. } | Self::Late { .. } => {
                "check [mqtt] address, the network and the broker; where only a proxy leads out, \
                 set [mqtt] proxy"
            }
            Self::Proxy { failure, .. } => failure.help(),
            Self::Closed(_) => "nothing: [link] says when it opens again",
            Self::Lost { .. } => "readings are kept on disk until the connection is back",
        }
    }
}

/// The error of rustls, wherever in the chain it stands. An `io::Error` hides its inner error
/// from `source()`, so it is looked into.
pub(crate) fn tls_reason(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref())
            && let Some(tls) = inner.downcast_ref::<rustls::Error>()
        {
            return Some(tls.to_string());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_tls_error_is_found_inside_an_io_error() {
        let tls = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
        assert!(tls_reason(&io).is_some());
        assert!(tls_reason(&Outer(io)).is_some());
        let other = std::io::Error::other("of another kind");
        assert_eq!(tls_reason(&Outer(other)), None);
    }
}
