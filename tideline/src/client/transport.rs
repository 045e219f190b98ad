//! One HTTP/1.1 connection to a bridge, with or without TLS: opened when it is needed, kept for the
//! next request, opened again when the bridge has closed it.
//!
//! It is hyper's own client over the TLS of `certs::tls`: larger clients bring a second crypto
//! provider along, which `deny.toml` forbids.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a bridge may take to take a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// How long it may take to answer: verifying a ledger reads every row.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Longest answer that is taken: a page of the longest readings there can be, and some more.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tideline/", env!("CARGO_PKG_VERSION")));

/// Where a bridge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    host: String,
    port: u16,
    is_encrypted: bool,
    authority: HeaderValue,
    /// What stands before each path, without a slash at its end.
    prefix: String,
}

/// Asks one bridge.
pub(super) struct Transport {
    root: Root,
    tls: Option<TlsConnector>,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("{0}")]
    Connect(#[source] io::Error),
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes; ask for less with --limit")]
    TooLong,
    #[error("the answer ended too early")]
    Cut,
    #[error("the path {0:?} cannot be asked for")]
    Path(String),
}

impl Root {
    /// Reads `http://HOST[:PORT][/PREFIX]`, or https.
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("must begin with http:// or https://"),
        };
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("must not hold a name or password: tokens go into --token-file");
        }
        if uri.query().is_some() {
            return Err("must not hold a query");
        }
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err("names no host");
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority
                .port_u16()
                .unwrap_or(if is_encrypted { 443 } else { 80 }),
            is_encrypted,
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| "is no URL")?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Whether what is sent there leaves this machine as it is.
    pub(super) fn is_open_to_others(&self) -> bool {
        let here = self.host.eq_ignore_ascii_case("localhost")
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        !self.is_encrypted && !here
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Transport")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Nothing is opened yet.
    pub(super) fn new(root: Root, tls: Option<ClientConfig>) -> Self {
        Self {
            root,
            tls: tls.map(|config| TlsConnector::from(Arc::new(config))),
            open: None,
        }
    }

    /// Asks, and reads the whole answer.
    pub(super) async fn ask(&mut self, ask: &Ask) -> Result<Answer, TransportError> {
        let is_kept = self.open.is_some();
        match timeout(ANSWER_TIME_MAX, self.once(ask)).await {
            Err(_) => {
                self.open = None;
                Err(TransportError::Late(ANSWER_TIME_MAX))
            }
            // A bridge may close a connection that it kept, at the moment when it is used again.
            Ok(Err(TransportError::Broken(_))) if is_kept && ask.method == Method::GET => {
                self.open = None;
                timeout(ANSWER_TIME_MAX, self.once(ask))
                    .await
                    .unwrap_or(Err(TransportError::Late(ANSWER_TIME_MAX)))
            }
            Ok(outcome) => outcome,
        }
    }

    async fn once(&mut self, ask: &Ask) -> Result<Answer, TransportError> {
        let path = format!("{}{}", self.root.prefix, ask.path);
        let mut request = Request::builder()
            .method(&ask.method)
            .uri(&path)
            .body(Full::new(ask.body.clone()))
            .map_err(|_| TransportError::Path(path))?;
        *request.headers_mut() = ask.headers.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.root.authority.clone());
        headers.insert(USER_AGENT, AGENT);
        let mut sender = match self.kept().await {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let answer = sender
            .send_request(request)
            .await
            .map_err(TransportError::Broken)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| match error.is::<LengthLimitError>() {
                true => TransportError::TooLong,
                false => TransportError::Cut,
            })?;
        self.open = Some(sender);
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    /// The connection of the last request, if it still stands.
    async fn kept(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut sender = self.open.take()?;
        sender.ready().await.ok().map(|()| sender)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, TransportError> {
        let connecting = async {
            let address = (self.root.host.as_str(), self.root.port);
            let stream = TcpStream::connect(address)
                .await
                .map_err(TransportError::Connect)?;
            // Small requests, each of which waits for its answer.
            let _ = stream.set_nodelay(true);
            let Some(tls) = &self.tls else {
                return open(stream).await;
            };
            let name = ServerName::try_from(self.root.host.clone())
                .map_err(|error| TransportError::Tls(io::Error::other(error)))?;
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(TransportError::Tls)?;
            open(stream).await
        };
        timeout(CONNECT_TIME_MAX, connecting)
            .await
            .unwrap_or(Err(TransportError::Late(CONNECT_TIME_MAX)))
    }
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<SendRequest<Full<Bytes>>, TransportError> {
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(TransportError::Broken)?;
    // Ends with the connection; what went wrong with it the sender is told too.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_bridges_are_read() {
        let check = |url: &str, host: &str, port: u16, prefix: &str| {
            let root = Root::parse(url).unwrap();
            assert_eq!(
                (root.host.as_str(), root.port, root.prefix.as_str()),
                (host, port, prefix),
                "{url}"
            );
        };
        check("http://127.0.0.1:8080", "127.0.0.1", 8080, "");
        check("http://bridge/", "bridge", 80, "");
        check(
            "https://fleet.example/tideline/",
            "fleet.example",
            443,
            "/tideline",
        );
        check("https://[::1]:8443", "::1", 8443, "");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (url, says) in [
            ("127.0.0.1:8080", "http"),
            ("ftp://bridge", "http"),
            ("http://", "URL"),
            ("http://me:secret@bridge", "token"),
            ("http://bridge?x=1", "query"),
            ("http://a b", "URL"),
        ] {
            let said = Root::parse(url).unwrap_err();
            assert!(said.contains(says), "{url}: {said}");
        }
    }

    #[test]
    fn what_leaves_the_machine_unencrypted_is_known() {
        for (url, open) in [
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1", false),
            ("http://localhost", false),
            ("https://bridge", false),
            ("http://bridge", true),
            ("http://10.0.0.1:8080", true),
        ] {
            assert_eq!(Root::parse(url).unwrap().is_open_to_others(), open, "{url}");
        }
    }

    /// Answers each request with `hello`, on a connection of its own that is closed afterwards
    /// without saying so before.
    async fn serve(tls: Option<rustls::ServerConfig>) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                heard.push(stream.read_u8().await.unwrap());
            }
            let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
            stream.write_all(text).await.unwrap();
            stream.shutdown().await.unwrap();
        }

        let acceptor = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                match &acceptor {
                    // A client that does not trust us hangs up.
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => answer(stream).await,
                        Err(_) => continue,
                    },
                    None => answer(stream).await,
                }
            }
        });
        port
    }

    fn ask() -> Ask {
        Ask {
            method: Method::GET,
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_is_opened_again() {
        let port = serve(None).await;
        let root = Root::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let mut transport = Transport::new(root, None);
        for _ in 0..20 {
            let answer = transport.ask(&ask()).await.unwrap();
            assert_eq!(
                (answer.status, &*answer.body),
                (StatusCode::OK, &b"hello"[..])
            );
        }
    }

    #[tokio::test]
    async fn https_is_spoken_with_whom_the_authority_vouches_for() {
        let folder = tempfile::tempdir().unwrap();
        let device = "press-7".parse().unwrap();
        let ensure = |name: &str| {
            let place = certs::Folder::new(folder.path().join(name));
            certs::set::MachineSet::ensure(&place, &device, &["localhost".to_owned()]).unwrap()
        };
        let (ours, other) = (ensure("ours"), ensure("other"));
        let server = &ours.server;
        let config =
            certs::tls::server_config_without_client_auth(&server.cert, &server.key).unwrap();
        let port = serve(Some(config)).await;
        let attempt = async |host: &str, ca: &std::path::Path| {
            let root = Root::parse(&format!("https://{host}:{port}")).unwrap();
            let tls = certs::tls::client_config_without_certificate(ca).unwrap();
            Transport::new(root, Some(tls)).ask(&ask()).await
        };
        let answer = attempt("localhost", &server.ca).await.unwrap();
        assert_eq!(&*answer.body, b"hello");
        for wrong in [
            attempt("localhost", &other.server.ca).await,
            attempt("127.0.0.1", &server.ca).await,
        ] {
            assert!(matches!(wrong, Err(TransportError::Tls(_))), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let root = Root::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let error = Transport::new(root, None).ask(&ask()).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
    }
}
