//! The way to the broker, step by step: its name, its port, TLS with its certificate and with ours. Nothing of MQTT is
//! said: a second connection of this device would end the agent's.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use schema::BrokerAddress;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CHECK_TIMEOUT, Finding, Level};
use crate::clock::AgentClock;
use crate::config::Sketch;
use crate::link::Proxy;
use crate::link::proxy::on_the_way;

/// How long a broker that refuses this device's certificate may take to say so, beside the way there and back.
const REFUSAL: Duration = Duration::from_millis(700);

/// The most that it is waited for that.
const REFUSAL_MAX: Duration = Duration::from_secs(3);

/// How many of a name's addresses are tried.
const ADDRESSES_MAX: usize = 4;

pub(super) async fn check(sketch: &Sketch, clock: &AgentClock) -> Vec<Finding> {
    let ways = sketch
        .brokers
        .iter()
        .map(|broker| way(sketch, broker, clock));
    let found = futures_util::future::join_all(ways).await;
    found.into_iter().flatten().collect()
}

/// The way to one broker.
async fn way(sketch: &Sketch, broker: &BrokerAddress, clock: &AgentClock) -> Vec<Finding> {
    let mut findings = Vec::new();
    let proxy = on_the_way(sketch.proxy.as_ref(), &sketch.no_proxy, broker);
    let first = proxy.map_or(broker, |proxy| &proxy.address);
    let (what, key) = match proxy {
        Some(_) => ("proxy", "[mqtt] proxy"),
        None => ("broker", "[mqtt] address"),
    };
    let Some(addresses) = name(&first.host, first.port, key, &mut findings).await else {
        return findings;
    };
    let mend = format!("start the {what}, correct the port of {key}, or let a firewall pass it");
    let Some((mut stream, round_trip)) = connect(&addresses, &mend, &mut findings).await else {
        return findings;
    };
    if let Some(proxy) = proxy {
        let through = passes(proxy, &mut stream, broker).await;
        let is_through = through.level == Level::Ok;
        findings.push(through);
        if !is_through {
            return findings;
        }
    }
    let Some(files) = &sketch.tls else {
        return findings;
    };
    // What is wrong with the files is found where they are looked at.
    let Ok(config) = certs::tls::client_config_floored(files, &clock.servers()) else {
        return findings;
    };
    findings.push(tls(&broker.host, stream, Arc::new(config), round_trip).await);
    findings
}

/// Whether the proxy connects to the broker.
async fn passes(proxy: &Proxy, stream: &mut TcpStream, broker: &BrokerAddress) -> Finding {
    match timeout(CHECK_TIMEOUT, proxy.connect(stream, broker)).await {
        Ok(Ok(())) => Finding::ok("proxy", format!("{proxy} connects to {broker}")),
        Ok(Err(failure)) => Finding::fail("proxy", format!("{proxy}: {failure}"), failure.help()),
        Err(_) => Finding::fail(
            "proxy",
            format!("{proxy} says nothing of {broker} within {CHECK_TIMEOUT:?}"),
            "look whether the proxy reaches the broker: [mqtt] address as the proxy's machine sees it",
        ),
    }
}

async fn name(
    host: &str,
    port: u16,
    key: &str,
    findings: &mut Vec<Finding>,
) -> Option<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        findings.push(Finding::ok("dns", format!("{host} is an address")));
        return Some(vec![SocketAddr::new(address, port)]);
    }
    let mend =
        format!("correct {key}, or mend name resolution (/etc/resolv.conf, resolvectl query)");
    let found = match timeout(CHECK_TIMEOUT, lookup_host((host, port))).await {
        Err(_) => Err(format!("no answer for {host} within {CHECK_TIMEOUT:?}")),
        Ok(Err(error)) => Err(format!("{host} cannot be resolved: {error}")),
        Ok(Ok(addresses)) => Ok(addresses.take(ADDRESSES_MAX).collect::<Vec<_>>()),
    };
    match found {
        Ok(addresses) if !addresses.is_empty() => {
            let list: Vec<String> = addresses.iter().map(|of| of.ip().to_string()).collect();
            findings.push(Finding::ok("dns", format!("{host} is {}", list.join(", "))));
            Some(addresses)
        }
        Ok(_) => {
            findings.push(Finding::fail(
                "dns",
                format!("{host} has no address"),
                &mend,
            ));
            None
        }
        Err(what) => {
            findings.push(Finding::fail("dns", what, &mend));
            None
        }
    }
}

async fn connect(
    addresses: &[SocketAddr],
    mend: &str,
    findings: &mut Vec<Finding>,
) -> Option<(TcpStream, Duration)> {
    let mut last = String::new();
    let each = CHECK_TIMEOUT / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    for address in addresses {
        let begun = Instant::now();
        match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let round_trip = begun.elapsed();
                let ms = round_trip.as_secs_f64() * 1000.0;
                findings.push(Finding::ok(
                    "tcp",
                    format!("{address} answers in {ms:.1} ms"),
                ));
                return Some((stream, round_trip));
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {each:?}"),
        }
    }
    findings.push(Finding::fail("tcp", last, mend));
    None
}

async fn tls(
    host: &str,
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
    round_trip: Duration,
) -> Finding {
    let bare = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let Ok(server) = ServerName::try_from(bare) else {
        let mend = "give a DNS name or an address as [mqtt] address";
        return Finding::fail("tls", format!("{host} can be no certificate's name"), mend);
    };
    let begun = Instant::now();
    let connecting = TlsConnector::from(config).connect(server, stream);
    let mut stream = match timeout(CHECK_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refused(host, &error),
        Err(_) => {
            return Finding::fail(
                "tls",
                format!("{host} takes connections and says nothing within {CHECK_TIMEOUT:?}"),
                "look whether the broker hangs, or another program has its port",
            );
        }
    };
    // Behind a proxy, the way to the broker is longer than that to the proxy.
    let round_trip = round_trip.max(begun.elapsed());
    let session = described(&stream);
    // In TLS 1.3 a server judges the client's certificate after the handshake; one that is content waits for MQTT.
    let mut byte = [0];
    let patience = REFUSAL.max(3 * round_trip).min(REFUSAL_MAX);
    match timeout(patience, stream.read(&mut byte)).await {
        Err(_) => Finding::ok(
            "tls",
            format!("{session}; this device's certificate is accepted"),
        ),
        Ok(Ok(0)) => Finding::fail(
            "tls",
            format!("{host} ended the connection after the handshake"),
            "look at the broker's log: it does not let this device in",
        ),
        Ok(Ok(_)) => Finding::fail(
            "tls",
            format!("{host} speaks first: it is no MQTT broker"),
            "correct the port of [mqtt] address",
        ),
        Ok(Err(error)) => refused(host, &error),
    }
}

fn described(stream: &TlsStream<TcpStream>) -> String {
    let (_, session) = stream.get_ref();
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    let chain = session.peer_certificates().map_or(0, <[_]>::len);
    format!("{version}, chain of {chain}, from the fleet's authority and for this name")
}

/// Why TLS was refused, by which of both ends.
fn refused(host: &str, error: &io::Error) -> Finding {
    let fail = |what: String, mend: &str| Finding::fail("tls", what, mend);
    let Some(reason) = reason(error) else {
        return fail(
            format!("{host} broke off the handshake: {error}"),
            "is this the port for TLS (8883)? look at the broker's log",
        );
    };
    let its = format!("the certificate of {host}");
    match reason {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => fail(
                format!("{its} has expired"),
                "renew the broker's certificate; if it is in its time, set this machine's clock",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => fail(
                format!("{its} is not valid yet"),
                "set this machine's clock; if it is right, the certificate was made for later",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                fail(
                    format!("{its} is for another name: {error}"),
                    "name the broker in [mqtt] address as its certificate does, or issue one for this name: certs server",
                )
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => fail(
                format!("{its} is of another authority than [tls] ca"),
                "give the ca.pem of the broker's fleet as [tls] ca; if it is right, somebody else answers there",
            ),
            other => fail(
                format!("{its} is refused: {other}"),
                "look at the certificate: certs verify",
            ),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => fail(
                format!("{host} finds this device's certificate expired"),
                "renew it: certs renew; if it is in its time, set the broker's clock",
            ),
            AlertDescription::CertificateRevoked => fail(
                format!("this device's certificate is revoked at {host}"),
                "issue a new one: certs device ID",
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => fail(
                format!("{host} does not accept this device's certificate ({alert:?})"),
                "give a certificate of the authority that the broker trusts",
            ),
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => fail(
                format!("{host} does not speak TLS 1.3 ({alert:?})"),
                "let the broker speak TLS 1.3",
            ),
            other => fail(
                format!("{host} refused TLS: {other:?}"),
                "look at the broker's log",
            ),
        },
        rustls::Error::InvalidMessage(_) => fail(
            format!("what answers at {host} does not speak TLS"),
            "correct the port of [mqtt] address: that for TLS, mostly 8883",
        ),
        other => fail(
            format!("TLS with {host} failed: {other}"),
            "look at the broker's log",
        ),
    }
}

/// The error of rustls inside of one of the system.
fn reason(error: &io::Error) -> Option<&rustls::Error> {
    let inner: &(dyn Error + 'static) = error.get_ref()?;
    inner.downcast_ref::<rustls::Error>()
}
