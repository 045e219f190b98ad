//! Whom a real handshake over a real socket lets in, and whom it refuses.

use std::sync::Arc;

use certs::tls::{self, PeerError, TlsFiles};
use certs::{Identity, Pin, Role};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::fleet::{Fleet, identity};

/// What both ends saw of one connection.
#[derive(Debug)]
struct Seen {
    server: Result<Result<Identity, PeerError>, String>,
    client: Result<HandshakeKind, String>,
}

impl Seen {
    fn accepted(&self) -> Identity {
        assert!(self.client.is_ok(), "{self:?}");
        self.server.clone().unwrap().unwrap()
    }

    /// Both ends know that there is no connection; one of them says why.
    fn refused(&self, why: &str) {
        assert!(self.server.is_err() && self.client.is_err(), "{self:?}");
        assert!(format!("{self:?}").contains(why), "{why} in {self:?}");
    }
}

async fn connect(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Seen {
    connect_to("localhost", server, client).await
}

async fn connect_to(host: &str, server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Seen {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(socket).await.map_err(|e| e.to_string())?;
        let peer = tls::peer_identity(stream.get_ref().1);
        stream.write_all(b"!").await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        // Until the client has gone.
        let _ = stream.read(&mut [0; 1]).await;
        Ok(peer)
    };
    let name = host.to_owned().try_into().unwrap();
    let connector = TlsConnector::from(Arc::clone(client));
    let connecting = async {
        let socket = TcpStream::connect(address).await.unwrap();
        let connected = connector.connect(name, socket).await;
        let mut stream = connected.map_err(|e| e.to_string())?;
        // In TLS 1.3 the client learns only here whether the server took its certificate.
        let got = stream.read_exact(&mut [0; 1]).await;
        got.map_err(|e| e.to_string())?;
        let kind = stream.get_ref().1.handshake_kind().unwrap();
        let _ = stream.shutdown().await;
        Ok(kind)
    };
    let (server, client) = tokio::join!(serving, connecting);
    Seen { server, client }
}

fn server(fleet: &Fleet) -> Arc<ServerConfig> {
    Arc::new(tls::server_config(&fleet.server, Some(&fleet.crl())).unwrap())
}

fn client(files: &TlsFiles) -> Arc<ClientConfig> {
    Arc::new(tls::client_config(files).unwrap())
}

#[tokio::test]
async fn both_ends_of_one_authority_meet_and_the_server_knows_who_it_is() {
    let fleet = Fleet::new();
    let server = server(&fleet);
    for (name, role) in [
        ("press-7", Role::Device),
        ("north", Role::Bridge),
        ("watcher", Role::Observer),
    ] {
        let client = client(&fleet.issue(name, role));
        assert_eq!(
            connect(&server, &client).await.accepted(),
            identity(name, role)
        );
    }
}

#[tokio::test]
async fn the_empty_revocation_list_of_a_new_authority_and_none_at_all_let_everybody_in() {
    let fleet = Fleet::new();
    let device = client(&fleet.issue("press-7", Role::Device));
    connect(&server(&fleet), &device).await.accepted();
    let without_list = Arc::new(tls::server_config(&fleet.server, None).unwrap());
    connect(&without_list, &device).await.accepted();
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let fleet = Fleet::new();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(tls::read_certs(&fleet.server.ca).unwrap().remove(0))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anonymous = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let anonymous = Arc::new(anonymous);
    let seen = connect(&server(&fleet), &anonymous).await;
    seen.refused("peer sent no certificates");

    // The API's server asks for none, so that nobody is known by it.
    let open = tls::server_config_without_client_auth(&fleet.server.cert, &fleet.server.key);
    let seen = connect(&Arc::new(open.unwrap()), &anonymous).await;
    assert_eq!(seen.server, Ok(Err(PeerError::NoCertificate)));
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let mut stranger = theirs.issue("press-7", Role::Device);
    stranger.ca = ours.server.ca.clone();
    connect(&server(&ours), &client(&stranger))
        .await
        .refused("BadSignature");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let device = ours.issue("press-7", Role::Device);
    let seen = connect(&server(&theirs), &client(&device)).await;
    seen.refused("invalid peer certificate");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_the_others_are_not() {
    let fleet = Fleet::new();
    let (stolen, good) = (
        fleet.issue("stolen", Role::Device),
        fleet.issue("good", Role::Device),
    );
    fleet.revoke(&stolen);
    let server = server(&fleet);
    connect(&server, &client(&stolen)).await.refused("Revoked");
    connect(&server, &client(&good)).await.accepted();
}

#[tokio::test]
async fn a_session_is_resumed_with_its_identity_and_not_beyond_a_new_revocation_list() {
    let fleet = Fleet::new();
    let files = fleet.issue("press-7", Role::Device);
    let (before, device) = (server(&fleet), client(&files));
    let first = connect(&before, &device).await;
    assert_eq!(first.client, Ok(HandshakeKind::Full));
    let second = connect(&before, &device).await;
    assert_eq!(second.client, Ok(HandshakeKind::Resumed));
    assert_eq!(second.accepted(), identity("press-7", Role::Device));

    fleet.revoke(&files);
    connect(&server(&fleet), &device).await.refused("Revoked");
}

#[tokio::test]
async fn a_session_does_not_outlive_its_certificate() {
    let fleet = Fleet::new();
    let files = fleet.issue_between("brief", Duration::minutes(-1), Duration::seconds(2));
    let (server, device) = (server(&fleet), client(&files));
    connect(&server, &device).await.accepted();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let seen = connect(&server, &device).await;
        match &seen.server {
            Ok(Ok(_)) => assert!(std::time::Instant::now() < deadline, "{seen:?}"),
            Ok(Err(error)) => {
                assert_eq!(seen.client, Ok(HandshakeKind::Resumed));
                return assert_eq!(*error, PeerError::Expired);
            }
            Err(error) => panic!("{error}: the session was not resumed"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_expired_certificate_and_one_from_the_future_are_refused() {
    let fleet = Fleet::new();
    let server = server(&fleet);
    let expired = fleet.issue_between("old", Duration::days(-9), Duration::seconds(-2));
    connect(&server, &client(&expired)).await.refused("expired");
    let future = fleet.issue_between("new", Duration::hours(1), Duration::days(9));
    connect(&server, &client(&future))
        .await
        .refused("not valid yet");
}

#[tokio::test]
async fn a_certificate_serves_its_role_alone() {
    let fleet = Fleet::new();
    let device = fleet.issue("press-7", Role::Device);
    // The broker's certificate does not let one in as a client …
    let seen = connect(&server(&fleet), &client(&fleet.server)).await;
    seen.refused("certificate does not allow extended key usage for client authentication");
    // … and a device's does not let one pose as the broker.
    let posing = Arc::new(tls::server_config(&device, None).unwrap());
    let seen = connect(&posing, &client(&device)).await;
    seen.refused("certificate does not allow extended key usage for server authentication");
}

#[tokio::test]
async fn a_server_under_another_name_is_refused() {
    let fleet = Fleet::new();
    let (server, device) = (server(&fleet), client(&fleet.issue("a", Role::Device)));
    connect_to("127.0.0.1", &server, &device).await.accepted();
    let seen = connect_to("other.example.com", &server, &device).await;
    seen.refused("certificate not valid for name");
}

#[tokio::test]
async fn a_pinned_key_is_the_only_one_that_is_trusted() {
    let fleet = Fleet::new();
    let server = server(&fleet);
    let device = fleet.issue("press-7", Role::Device);
    let theirs = Pin::of_certificate(&tls::read_certs(&fleet.server.cert).unwrap()[0]).unwrap();
    let other = Pin::of_certificate(&tls::read_certs(&device.cert).unwrap()[0]).unwrap();
    let pinned = |pins: &[Pin]| Arc::new(tls::client_config_pinned(&device, pins).unwrap());

    connect(&server, &pinned(&[theirs])).await.accepted();
    connect(&server, &pinned(&[other, theirs])).await.accepted();
    let seen = connect(&server, &pinned(&[other])).await;
    seen.refused("is not pinned");
    // The operator sees which pin would have been the right one.
    seen.refused(&theirs.to_string());

    // A pin does not replace the authority's word.
    let strange = Fleet::new();
    let theirs = Pin::of_certificate(&tls::read_certs(&strange.server.cert).unwrap()[0]).unwrap();
    let strange = Arc::new(tls::server_config(&strange.server, None).unwrap());
    let seen = connect(&strange, &pinned(&[theirs])).await;
    seen.refused("invalid peer certificate");
}

#[tokio::test]
async fn pins_survive_a_renewal_that_keeps_the_key_and_no_other() {
    use certs::authority::Key;
    let fleet = Fleet::new();
    let device = fleet.issue("press-7", Role::Device);
    let pin = Pin::of_certificate(&tls::read_certs(&fleet.server.cert).unwrap()[0]).unwrap();
    let pinned = Arc::new(tls::client_config_pinned(&device, &[pin]).unwrap());

    let renew = |key| {
        fleet
            .authority
            .renew(&fleet.server.cert, None, key)
            .unwrap();
    };
    renew(Key::Keep);
    connect(&server(&fleet), &pinned).await.accepted();
    renew(Key::Replace);
    connect(&server(&fleet), &pinned)
        .await
        .refused("is not pinned");
}

#[tokio::test]
async fn a_renewed_authority_still_stands_for_what_it_signed() {
    let fleet = Fleet::new();
    let device = fleet.issue("press-7", Role::Device);
    let (old_ca, revoked) = (
        std::fs::read(&device.ca).unwrap(),
        fleet.issue("stolen", Role::Device),
    );
    fleet.revoke(&revoked);
    fleet
        .authority
        .renew(&device.ca, Some(7300), certs::authority::Key::Keep)
        .unwrap();
    assert_ne!(std::fs::read(&device.ca).unwrap(), old_ca);
    connect(&server(&fleet), &client(&device)).await.accepted();
    connect(&server(&fleet), &client(&revoked))
        .await
        .refused("Revoked");
}
