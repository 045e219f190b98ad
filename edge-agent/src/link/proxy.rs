//! An HTTP proxy on the way to the broker: asked by CONNECT for a connection to it, through which TLS goes from end to end. The proxy
//! sees the broker's host and port, and nothing else.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use schema::BrokerAddress;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest answer of a proxy before its connection counts as one.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// Most header lines in it.
const HEADERS_MAX: usize = 64;

/// Longest part of its reason that is shown.
const REASON_CHARS_MAX: usize = 80;

/// A proxy, and who we are to it. The credentials are in no text that this makes.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its host name or address, and its port.
    pub address: BrokerAddress,
    /// `user:password`, as the header wants it.
    credentials: Option<String>,
}

/// A text that names no proxy that can be used. The text itself is not shown: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Not a URL.
    #[error("is not of the form http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
    Form,
    /// TLS to the proxy itself, or SOCKS.
    #[error(
        "must begin with http://: the broker's TLS goes through it from end to end, and nothing else does"
    )]
    Scheme,
    /// A path or a query.
    #[error("must end behind the port")]
    Path,
}

/// What went wrong with a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFailure {
    /// It cannot be connected to.
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    /// 407.
    #[error("wants other credentials (407)")]
    Credentials,
    /// Another 4xx.
    #[error("does not allow it ({0})")]
    Forbidden(Answer),
    /// 5xx: mostly that it cannot reach the broker.
    #[error("could not connect there itself ({0})")]
    Failed(Answer),
    /// It closed the connection instead of an answer.
    #[error("closed the connection without an answer")]
    Closed,
    /// No answer of HTTP to a CONNECT.
    #[error("did not answer as an HTTP proxy does")]
    Garbled,
    /// The connection to it broke.
    #[error("broke off: {0}")]
    Broken(io::Error),
}

/// Status and reason of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    code: u16,
    reason: String,
}

impl Proxy {
    /// A proxy without credentials.
    #[must_use]
    pub const fn new(address: BrokerAddress) -> Self {
        Self {
            address,
            credentials: None,
        }
    }

    /// The proxy that the environment names for HTTPS, unless it excludes this host.
    ///
    /// # Errors
    /// [`ProxyError`] of the variable's value.
    pub fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        let either = |lower: &str, upper: &str| {
            let found = variable(lower).or_else(|| variable(upper));
            found.filter(|text| !text.is_empty())
        };
        match either("https_proxy", "HTTPS_PROXY") {
            Some(url) => url.parse().map(Some),
            None => Ok(None),
        }
    }

    /// Asks for a connection to the broker.
    ///
    /// # Errors
    /// [`ProxyFailure`]; the connection is of no use then.
    pub(crate) async fn connect(
        &self,
        socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
        broker: &BrokerAddress,
    ) -> Result<(), ProxyFailure> {
        let mut request = format!("CONNECT {broker} HTTP/1.1\r\nHost: {broker}\r\n");
        if let Some(credentials) = &self.credentials {
            request += &format!("Proxy-Authorization: Basic {credentials}\r\n");
        }
        request += "\r\n";
        let broken = ProxyFailure::Broken;
        socket.write_all(request.as_bytes()).await.map_err(broken)?;
        socket.flush().await.map_err(broken)?;
        let mut answer = Vec::new();
        loop {
            let mut part = [0; 512];
            let bytes = match socket.read(&mut part).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(broken(error)),
            };
            if bytes == 0 {
                return Err(ProxyFailure::Closed);
            }
            answer.extend_from_slice(&part[..bytes]);
            if let Some(outcome) = judge(&answer) {
                return outcome;
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(ProxyFailure::Garbled);
            }
        }
    }
}

/// What an answer means, once it is whole.
fn judge(bytes: &[u8]) -> Option<Result<(), ProxyFailure>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(head)) => head,
        Err(_) => return Some(Err(ProxyFailure::Garbled)),
    };
    let code = response.code.unwrap_or_default();
    let reason = response.reason.unwrap_or_default().chars();
    let answer = Answer {
        code,
        reason: reason
            .filter(|c| !c.is_control())
            .take(REASON_CHARS_MAX)
            .collect(),
    };
    Some(match code {
        // The broker says nothing before we do: what follows comes from somebody else.
        200..300 if head == bytes.len() => Ok(()),
        407 => Err(ProxyFailure::Credentials),
        400..500 => Err(ProxyFailure::Forbidden(answer)),
        500..600 => Err(ProxyFailure::Failed(answer)),
        _ => Err(ProxyFailure::Garbled),
    })
}

/// The proxy on the way to a broker.
pub(crate) fn on_the_way<'a>(
    proxy: Option<&'a Proxy>,
    no_proxy: &str,
    broker: &BrokerAddress,
) -> Option<&'a Proxy> {
    proxy.filter(|_| !is_excluded(no_proxy, &broker.host))
}

/// Whether `NO_PROXY` excludes a host: names with what is below them, addresses, networks, `*`.
#[must_use]
pub fn is_excluded(no_proxy: &str, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    no_proxy.split([',', ' ']).any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" || (!entry.is_empty() && entry == host) {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            let network: Option<IpAddr> = network.parse().ok();
            let bits: Option<u32> = bits.parse().ok();
            return network
                .zip(bits)
                .is_some_and(|(network, bits)| is_within(address, network, bits));
        }
        let name = entry.trim_start_matches("*.").trim_start_matches('.');
        !name.is_empty()
            && address.is_none()
            && (host == name
                || host
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.')))
    })
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let shifted = |value: u128, width: u32| value.checked_shr(width - bits.min(width)).unwrap_or(0);
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let [a, b] = [address, network].map(|ip| shifted(u128::from(ip.to_bits()), 32));
            a == b
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let [a, b] = [address, network].map(|ip| shifted(ip.to_bits(), 128));
            a == b
        }
        _ => false,
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, _) = text.split_once("://").ok_or(ProxyError::Form)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(ProxyError::Scheme);
        }
        let url = Url::parse(text).map_err(|_| ProxyError::Form)?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyError::Path);
        }
        let host = url.host_str().ok_or(ProxyError::Form)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        let user = decoded(url.username());
        let credentials = url.password().map(decoded).map_or_else(
            || (!user.is_empty()).then(|| [&user[..], b":"].concat()),
            |password| Some([&user[..], b":", &password[..]].concat()),
        );
        Ok(Self {
            address: BrokerAddress {
                host: host.to_owned(),
                port: url.port_or_known_default().ok_or(ProxyError::Form)?,
            },
            credentials: credentials.map(|bytes| STANDARD.encode(bytes)),
        })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("has_credentials", &self.credentials.is_some())
            .finish()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.reason)
    }
}

impl ProxyFailure {
    /// What the operator can do.
    pub(crate) const fn help(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "check [mqtt] proxy: its host, its port, and whether it runs",
            Self::Credentials => {
                "give its user and password: proxy = \"http://USER:PASSWORD@HOST:PORT\""
            }
            Self::Forbidden(_) => {
                "let the proxy connect to the broker's port: ConnectPort of tinyproxy, SSL_ports of \
                 squid, and who may use it"
            }
            Self::Failed(_) => {
                "the proxy is there and the broker is not: check [mqtt] address as the proxy's machine \
                 sees it"
            }
            Self::Closed | Self::Garbled => {
                "what listens at [mqtt] proxy must be an HTTP proxy that knows CONNECT"
            }
            Self::Broken(_) => "readings are kept on disk until the connection is back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_from_its_url_and_its_password_is_shown_nowhere() {
        let proxy: Proxy = "http://plant:p%40ss%3aword@proxy.example:3128"
            .parse()
            .unwrap();
        assert_eq!(proxy.to_string(), "proxy.example:3128");
        assert_eq!(proxy.credentials, Some(STANDARD.encode("plant:p@ss:word")));
        let shown = format!("{proxy:?} {proxy:#?}");
        let secret = proxy.credentials.as_deref().unwrap();
        assert!(
            !shown.contains("word") && !shown.contains("plant") && !shown.contains(secret),
            "{shown}"
        );
        let plain: Proxy = "http://[::1]:3128/".parse().unwrap();
        assert_eq!(
            (plain.to_string().as_str(), plain.credentials),
            ("[::1]:3128", None)
        );
        let nameless: Proxy = "http://token@p".parse().unwrap();
        assert_eq!(nameless.credentials, Some(STANDARD.encode("token:")));
        assert_eq!(nameless.address.port, 80);
    }

    #[test]
    fn what_is_no_proxy_is_said_to_be_none_without_its_password() {
        for (text, error) in [
            ("proxy:3128", ProxyError::Form),
            ("http://", ProxyError::Form),
            ("http://u:secret@:1", ProxyError::Form),
            ("http://u:secret@h:99999", ProxyError::Form),
            ("https://u:secret@h:1", ProxyError::Scheme),
            ("socks5://h:1080", ProxyError::Scheme),
            ("http://u:secret@h:1/path", ProxyError::Path),
            ("http://h:1?x", ProxyError::Path),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn an_answer_counts_when_it_is_whole() {
        let kind = |text: &str| match judge(text.as_bytes()) {
            None => "more".to_owned(),
            Some(Ok(())) => "open".to_owned(),
            Some(Err(failure)) => failure.to_string(),
        };
        for (text, expected) in [
            ("", "more"),
            ("HTTP/1.1 200 OK\r\n", "more"),
            ("HTTP/1.1 200 Connection established\r\n\r\n", "open"),
            ("HTTP/1.0 200\r\nVia: x\r\n\r\n", "open"),
            (
                "HTTP/1.1 200 OK\r\n\r\nextra",
                "did not answer as an HTTP proxy does",
            ),
            ("HTTP/1.1 407 Who?\r\n\r\n", "wants other credentials (407)"),
            (
                "HTTP/1.1 403 No\r\n\r\n<html>",
                "does not allow it (403 No)",
            ),
            (
                "HTTP/1.1 502 Bad\r\n\r\n",
                "could not connect there itself (502 Bad)",
            ),
            (
                "HTTP/1.1 301 Elsewhere\r\n\r\n",
                "did not answer as an HTTP proxy does",
            ),
            (
                "SSH-2.0-OpenSSH\r\n",
                "did not answer as an HTTP proxy does",
            ),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
        let long = format!("HTTP/1.1 503 {}\r\n\r\n", "x".repeat(500));
        assert!(kind(&long).len() < 150);
    }

    #[test]
    fn the_environment_names_a_proxy_for_all_hosts_but_some() {
        let found = |pairs: &[(&str, &str)]| {
            Proxy::of_environment(|name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(found(&[("http_proxy", "http://a:1")]), Ok(None));
        assert_eq!(found(&[("https_proxy", "")]), Ok(None));
        let proxy = found(&[("HTTPS_PROXY", "http://a:1")]).unwrap().unwrap();
        assert_eq!(proxy.to_string(), "a:1");
        assert_eq!(found(&[("HTTPS_PROXY", "a:1")]), Err(ProxyError::Form));
        let list = "localhost, .plant.example,10.0.0.0/8,192.0.2.7,2001:db8::/32";
        for host in [
            "LOCALHOST",
            "plant.example",
            "a.plant.example",
            "10.9.8.7",
            "192.0.2.7",
            "2001:db8::1",
        ] {
            assert!(is_excluded(list, host), "{host}");
        }
        for host in [
            "b.localhost.example",
            "implant.example",
            "11.0.0.1",
            "192.0.2.8",
            "2001:db9::1",
        ] {
            assert!(!is_excluded(list, host), "{host}");
        }
        assert!(is_excluded("*", "any") && is_excluded("0.0.0.0/0", "1.2.3.4"));
        assert!(!is_excluded("", "any") && !is_excluded("10.0.0.0/99", "10.0.0.1"));
    }

    #[tokio::test]
    async fn an_answer_without_end_is_given_up() {
        let (near, mut far) = tokio::io::duplex(1024);
        let endless = tokio::spawn(async move {
            far.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            while far.write_all(b"A: b\r\n").await.is_ok() {}
        });
        let proxy: Proxy = "http://p:1".parse().unwrap();
        let mut near = near;
        let failed = proxy.connect(&mut near, &"b:1".parse().unwrap()).await;
        assert!(matches!(failed, Err(ProxyFailure::Garbled)), "{failed:?}");
        drop(near);
        endless.await.unwrap();
    }
}
