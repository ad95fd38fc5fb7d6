//! Handshakes: which certificate, which protocol, and how a client is refused.

use super::scene::{
    HOST, Scene, TLS, certificate, client, client_of, echo, handshake, leaf, ping, read_all,
    snapshot, termination, tls_listener, tls_port, within,
};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use std::{future::pending, io, sync::Arc, time::Duration};
use tailway::{
    model::{Certificate, Port},
    proxy::{IssueError, Issuer, Schedule},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::client::TlsStream;

const OTHER_TLS: u16 = 8443;

fn served_leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

/// The alert that ended a handshake.
fn refusal(result: io::Result<TlsStream<TcpStream>>) -> AlertDescription {
    alert(&result.expect_err("the handshake succeeded"))
}

/// The alert that an error tells of.
pub fn alert(error: &io::Error) -> AlertDescription {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    }
}

async fn failed(scene: &Scene, listener: &str, reason: &str) {
    scene
        .until_metric(&format!(
            "tailway_tls_failures_total{{gateway=\"default/web\",listener=\"{listener}\",reason=\"{reason}\"}} 1"
        ))
        .await;
}

/// A proxy with one TLS port in front of a backend that echoes.
async fn scene(port: Port) -> Scene {
    let app = echo().await;
    Scene::new(&snapshot([(TLS, port)], &[("app", &[app])])).await
}

#[tokio::test]
async fn the_certificate_is_that_of_the_most_specific_listener_and_name() {
    let exact = certificate(&["web.example.com"]);
    let wide = certificate(&["*.example.com"]);
    let (first, second) = (certificate(&["a.org"]), certificate(&["b.org", "*.b.org"]));
    let app = echo().await;
    let port = Port::Tls(vec![
        tls_listener("any", None, &[&first, &second]),
        tls_listener("wide", Some("*.example.com"), &[&wide]),
        tls_listener("exact", Some("web.example.com"), &[&exact]),
    ]);
    let scene = Scene::new(&snapshot([(TLS, port)], &[("app", &[app])])).await;
    let config = client(&[&exact, &wide, &first, &second]);
    for (name, expected, listener) in [
        ("web.example.com", &exact, "exact"),
        ("WEB.example.COM", &exact, "exact"),
        ("other.example.com", &wide, "wide"),
        ("a.org", &first, "any"),
        ("b.org", &second, "any"),
        ("x.b.org", &second, "any"),
    ] {
        let before = opened(&scene, listener);
        let mut stream = handshake(scene.address(TLS), &config, name).await.unwrap();
        ping(&mut stream).await.unwrap();
        assert_eq!(served_leaf(&stream), leaf(expected), "{name}");
        assert_eq!(opened(&scene, listener), before + 1, "{name}");
    }
}

fn opened(scene: &Scene, listener: &str) -> u64 {
    let start = format!(
        "tailway_connections_opened_total{{gateway=\"default/web\",listener=\"{listener}\"}} "
    );
    let text = scene.metrics.encode();
    let count = text.lines().find_map(|line| line.strip_prefix(&start));
    count.unwrap().parse().unwrap()
}

/// Issues what it was given, once.
struct Given(Certificate);

impl Issuer for Given {
    async fn issue(&self, _: &str, min_validity: Duration) -> Result<Certificate, IssueError> {
        if min_validity.is_zero() {
            Ok(self.0.clone())
        } else {
            pending().await
        }
    }
}

#[tokio::test]
async fn the_tailnets_certificate_is_served_once_it_was_issued_next_to_those_of_secrets() {
    const NODE: &str = "web.tail1.ts.net";
    let (issued, secret) = (certificate(&[NODE]), certificate(&[HOST]));
    let mut listener = tls_listener("tls", None, &[&secret]);
    termination(&mut listener).certificates.tailnet = true;
    let scene = scene(Port::Tls(vec![listener])).await;
    let config = client(&[&issued, &secret]);

    let early = handshake(scene.address(TLS), &config, NODE).await;
    assert_eq!(refusal(early), AlertDescription::UnrecognisedName);
    failed(&scene, "tls", "unknown_name").await;

    let (tailnet, mut ready) = (Arc::clone(&scene.tailnet), scene.tailnet.watch());
    let issuer = Given(issued.clone());
    let renewal = tokio::spawn(async move {
        tailnet.maintain(NODE, &issuer, &Schedule::default()).await;
    });
    within(ready.wait_for(|state| state.expires.is_some()))
        .await
        .unwrap();
    for (name, expected) in [(NODE, &issued), (HOST, &secret)] {
        let mut stream = handshake(scene.address(TLS), &config, name).await.unwrap();
        ping(&mut stream).await.unwrap();
        assert_eq!(served_leaf(&stream), leaf(expected), "{name}");
    }
    renewal.abort();
}

/// What the wire has when a client with this configuration begins.
pub fn client_hello(config: &Arc<ClientConfig>, name: &'static str) -> Vec<u8> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn an_unknown_server_name_is_refused_with_that_alert_and_nothing_else() {
    let certificate = certificate(&[HOST]);
    let unnamed = tls_port(&certificate);
    let named = Port::Tls(vec![tls_listener("tls", Some(HOST), &[&certificate])]);
    for port in [unnamed, named] {
        for version in [&TLS12, &TLS13] {
            let scene = scene(port.clone()).await;
            let config = Arc::new(client_of(&[&certificate], &[version]));
            let mut stream = scene.connect(TLS).await;
            stream
                .write_all(&client_hello(&config, "unknown.example.com"))
                .await
                .unwrap();
            assert_eq!(
                read_all(&mut stream).await.unwrap(),
                [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70]
            );
            failed(&scene, "tls", "unknown_name").await;
        }
    }
}

#[tokio::test]
async fn a_client_without_a_server_name_gets_the_listener_without_a_hostname() {
    let certificate = certificate(&[HOST, "127.0.0.1"]);
    let scene = scene(tls_port(&certificate)).await;
    let config = client(&[&certificate]);
    let mut stream = handshake(scene.address(TLS), &config, "127.0.0.1")
        .await
        .unwrap();
    ping(&mut stream).await.unwrap();
    assert_eq!(served_leaf(&stream), leaf(&certificate));
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_refused_without_waiting() {
    let certificate = certificate(&[HOST]);
    let scene = scene(tls_port(&certificate)).await;
    let mut stream = scene.connect(TLS).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        .await
        .unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    // A fatal alert, whichever.
    assert_eq!(answer.len(), 7, "{answer:?}");
    assert_eq!((answer[0], answer[5]), (0x15, 2), "{answer:?}");
    failed(&scene, "tls", "not_tls").await;
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let certificate = certificate(&[HOST]);
    let scene = scene(tls_port(&certificate)).await;
    for (version, expected) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = Arc::new(client_of(&[&certificate], &[version]));
        let mut stream = scene.connect_tls(TLS, &config).await;
        ping(&mut stream).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
    }
}

async fn handshake_kind(scene: &Scene, port: u16, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = scene.connect_tls(port, config).await;
    // Tickets come after the handshake.
    ping(&mut stream).await.unwrap();
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn a_session_is_resumed_also_after_its_listener_got_another_certificate() {
    for version in [&TLS12, &TLS13] {
        let (old, new) = (certificate(&[HOST]), certificate(&[HOST]));
        let app = echo().await;
        let config = Arc::new(client_of(&[&old, &new], &[version]));
        let before = snapshot([(TLS, tls_port(&old))], &[("app", &[app])]);
        let mut scene = Scene::new(&before).await;
        let kind = handshake_kind(&scene, TLS, &config).await;
        assert_eq!(kind, HandshakeKind::Full);
        let kind = handshake_kind(&scene, TLS, &config).await;
        assert_eq!(kind, HandshakeKind::Resumed);
        let after = snapshot([(TLS, tls_port(&new))], &[("app", &[app])]);
        scene.apply(&after).await;
        let kind = handshake_kind(&scene, TLS, &config).await;
        assert_eq!(kind, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn a_session_is_not_resumed_at_another_listener() {
    for version in [&TLS12, &TLS13] {
        let certificate = certificate(&[HOST]);
        let app = echo().await;
        let config = Arc::new(client_of(&[&certificate], &[version]));
        let ports = [
            (TLS, tls_port(&certificate)),
            (
                OTHER_TLS,
                Port::Tls(vec![tls_listener("other", None, &[&certificate])]),
            ),
        ];
        let scene = Scene::new(&snapshot(ports, &[("app", &[app])])).await;
        handshake_kind(&scene, TLS, &config).await;
        let kind = handshake_kind(&scene, OTHER_TLS, &config).await;
        assert_eq!(kind, HandshakeKind::Full);
    }
}

fn speaking(certificate: &Certificate, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut config = client_of(&[certificate], rustls::ALL_VERSIONS);
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Arc::new(config)
}

#[tokio::test]
async fn the_protocol_is_the_first_of_the_listeners_that_the_client_speaks() {
    let certificate = certificate(&[HOST]);
    let mut listener = tls_listener("tls", None, &[&certificate]);
    termination(&mut listener).alpn = vec!["h2".into(), "http/1.1".into()];
    let scene = scene(Port::Tls(vec![listener])).await;
    for (offered, agreed) in [
        (&["http/1.1", "h2"][..], Some(&b"h2"[..])),
        (&["imap", "http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let config = speaking(&certificate, offered);
        let mut stream = scene.connect_tls(TLS, &config).await;
        ping(&mut stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed, "{offered:?}");
    }
    let config = speaking(&certificate, &["imap"]);
    let refused = handshake(scene.address(TLS), &config, HOST).await;
    assert_eq!(refusal(refused), AlertDescription::NoApplicationProtocol);
    failed(&scene, "tls", "no_common_alpn").await;
}

#[tokio::test]
async fn a_listener_without_protocols_passes_over_those_of_the_client() {
    let certificate = certificate(&[HOST]);
    let scene = scene(tls_port(&certificate)).await;
    let config = speaking(&certificate, &["h2"]);
    let mut stream = scene.connect_tls(TLS, &config).await;
    ping(&mut stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
}
