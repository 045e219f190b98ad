//! Where a broker is, as people write it: `host`, `host:port`, `[IPv6]:port`, or an IPv6 address alone.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// MQTT over TLS, as registered with IANA.
const MQTT_PORT: u16 = 8883;

/// What stands behind the last colon of an IPv6 address without brackets when a port was meant.
const MQTT_PORTS: [&str; 2] = ["8883", "1883"];

/// A broker's host name or address, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// The name or address that the broker's certificate must hold; an IPv6 address without brackets.
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
    /// Brackets stand around an IPv6 address and nothing else, and close.
    #[error("is not of the form [IPv6 address]:port: {0:?}")]
    Ipv6(String),
    /// Without brackets nobody can tell the last part of the address from a port.
    #[error("is an IPv6 address whose end may be a port; write [ADDRESS] or [ADDRESS]:PORT: {0:?}")]
    Ambiguous(String),
}

impl BrokerAddress {
    /// Reads an address, with another port where none is given.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn with_default_port(text: &str, default: u16) -> Result<Self, AddressError> {
        let port_of = |port: &str| -> Result<u16, AddressError> {
            let port = port.parse().ok().filter(|port| *port > 0);
            port.ok_or_else(|| AddressError::Port(text.into()))
        };
        if let Some(bracketed) = text.strip_prefix('[') {
            let ipv6 = || AddressError::Ipv6(text.into());
            let (address, rest) = bracketed.split_once(']').ok_or_else(ipv6)?;
            let address: Ipv6Addr = address.parse().map_err(|_| ipv6())?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port_of(port)?,
                None if rest.is_empty() => default,
                None => return Err(ipv6()),
            };
            return Ok(Self {
                host: address.to_string(),
                port,
            });
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            let end = text.rsplit(':').next().unwrap_or_default();
            if MQTT_PORTS.contains(&end) {
                return Err(AddressError::Ambiguous(text.into()));
            }
            return Ok(Self {
                host: address.to_string(),
                port: default,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, default),
            Some((host, port)) => (host, port_of(port)?),
        };
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "/@[]".contains(c);
        if host.is_empty() || host.contains(is_odd) {
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

impl FromStr for BrokerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::with_default_port(text, MQTT_PORT)
    }
}

impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
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
            ("[::1]", 8883),
            ("[2001:db8::7]:1883", 1883),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(address.port, port, "{text}");
            assert!(address.to_string().starts_with(text));
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }

    #[test]
    fn an_ipv6_address_needs_brackets_for_its_port_alone() {
        for (text, host) in [
            ("::1", "::1"),
            ("[::1]:8883", "::1"),
            ("2001:DB8:0::7", "2001:db8::7"),
            ("2001:db8::8884", "2001:db8::8884"),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, 8883),
                "{text}"
            );
            assert_eq!(address.to_string(), format!("[{host}]:8883"));
        }
    }

    #[test]
    fn another_port_may_be_the_default() {
        for (text, port) in [
            ("a", 1883),
            ("::1", 1883),
            ("[::1]", 1883),
            ("[::1]:7", 7),
            ("a:7", 7),
        ] {
            let address = BrokerAddress::with_default_port(text, 1883).unwrap();
            assert_eq!(address.port, port, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_said_to_be_none() {
        let parse = |text: &str| text.parse::<BrokerAddress>().unwrap_err();
        for text in ["", ":1", "a b:1", "mqtts://a:1", "u@a:1", "a]:1"] {
            assert_eq!(parse(text), AddressError::Host(text.into()));
        }
        for text in [
            "a:",
            "a:65536",
            "a:-1",
            "a:b",
            "a:0",
            "mqtts://a",
            "[::1]:",
            "[::1]:x",
        ] {
            assert_eq!(parse(text), AddressError::Port(text.into()));
        }
        for text in [
            "[::1",
            "[a]:1",
            "[]:1",
            "[::1]8883",
            "1:2:3",
            "fe80::1%eth0:1",
            "[fe80::1%eth0]:1",
        ] {
            assert_eq!(parse(text), AddressError::Ipv6(text.into()), "{text}");
        }
        for text in ["::1:8883", "2001:db8::1:1883"] {
            assert_eq!(parse(text), AddressError::Ambiguous(text.into()));
        }
    }
}
