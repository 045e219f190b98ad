//! Where a broker is, as people write it: `host:port` or `host`.

use std::fmt;
use std::str::FromStr;

/// MQTT over TLS, as registered with IANA.
const MQTT_PORT: u16 = 8883;

/// A broker's host name or IPv4 address, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// The name that the broker's certificate must hold.
    pub host: String,
    /// The port; 8883 unless given.
    pub port: u16,
}

/// A text that is no address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// After the last colon.
    #[error("has no port number after its colon: {0:?}")]
    Port(String),
    /// No host, or one with characters that no host has.
    #[error("is not of the form host:port: {0:?}")]
    Host(String),
    /// The MQTT client builds `host:port` without brackets.
    #[error("is an IPv6 address, which the MQTT client cannot take; give a host name: {0:?}")]
    Ipv6(String),
}

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.rsplit_once(':') {
            None => (text, MQTT_PORT),
            Some((host, port)) => {
                let port = port.parse().map_err(|_| AddressError::Port(text.into()))?;
                (host, port)
            }
        };
        if host.is_empty() || host.contains(char::is_whitespace) || host.contains('/') {
            return Err(AddressError::Host(text.into()));
        }
        if host.contains(':') {
            return Err(AddressError::Ipv6(text.into()));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        for (text, port) in [
            ("broker.example", 8883),
            ("127.0.0.1:1", 1),
            ("b:65535", 65_535),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.port, port, "{text}");
            assert!(address.to_string().starts_with(text));
        }
    }

    #[test]
    fn what_is_no_address_is_said_to_be_none() {
        let parse = |text: &str| text.parse::<BrokerAddress>().unwrap_err();
        for text in ["", ":1", "a b:1", "mqtts://a:1"] {
            assert_eq!(parse(text), AddressError::Host(text.into()));
        }
        for text in ["a:", "a:65536", "a:-1", "a:b", "mqtts://a"] {
            assert_eq!(parse(text), AddressError::Port(text.into()));
        }
        for text in ["::1:8883", "[::1]:8883"] {
            assert_eq!(parse(text), AddressError::Ipv6(text.into()));
        }
    }
}
