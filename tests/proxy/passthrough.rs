//! TLS that ends at the backend, which the server name finds.

use super::scene::{
    HOST, Scene, TLS, accept, backend, certificate, client, client_of, connect, echo, expect_reset,
    handshake, named, pass, passing_listener, ping, read_all, reset, snapshot, termination,
    tls_listener, within,
};
use rustls::{
    ClientConfig, ServerConfig,
    version::{TLS12, TLS13},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tailway::{
    model::{Certificate, Port, TlsRoutes},
    proxy::Limits,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// A backend that ends TLS itself and tells its name, then what it gets.
async fn secure(name: &'static str, certificate: &Certificate) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = Arc::clone(certificate.certified_key());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"of-the-backend".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = backend().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// Ends TLS with `name` and gives what the backend says of itself.
async fn greeting(address: SocketAddr, config: &Arc<ClientConfig>, name: &'static str) -> String {
    let mut stream = handshake(address, config, name).await.unwrap();
    stream.write_all(b"!").await.unwrap();
    stream.shutdown().await.unwrap();
    let said = read_all(&mut stream).await.unwrap();
    String::from_utf8(said).unwrap()
}

fn client_hello(name: &'static str) -> Vec<u8> {
    super::tls::client_hello(&client(&[]), name)
}

/// The same in records of one byte of the message each.
fn in_small_records(hello: &[u8]) -> Vec<u8> {
    let records = hello[5..].iter().map(|&byte| [22, 3, 1, 0, 1, byte]);
    records.flatten().collect()
}

#[tokio::test]
async fn the_backend_is_that_of_the_most_specific_listener_and_route() {
    let own = certificate(&["a.example.com", "b.example.com", "c.org", "127.0.0.1"]);
    let (exact, wide, rest) = (
        secure("exact", &own).await,
        secure("wide", &own).await,
        secure("rest", &own).await,
    );
    let port = Port::Tls(vec![
        passing_listener("any", None, vec![named("rest", &[])]),
        passing_listener(
            "org",
            Some("*.example.com"),
            vec![
                named("wide", &["*.example.com"]),
                named("exact", &["a.example.com"]),
            ],
        ),
    ]);
    let backends: &[(&str, &[_])] = &[("exact", &[exact]), ("wide", &[wide]), ("rest", &[rest])];
    let scene = Scene::new(&snapshot([(TLS, port)], backends)).await;
    for version in [&TLS12, &TLS13] {
        let mut config = client_of(&[&own], &[version]);
        config.alpn_protocols = vec![b"of-the-backend".to_vec()];
        let config = Arc::new(config);
        for (name, expected) in [
            ("a.example.com", "exact!"),
            ("A.Example.com", "exact!"),
            ("b.example.com", "wide!"),
            ("c.org", "rest!"),
            ("127.0.0.1", "rest!"),
        ] {
            let said = greeting(scene.address(TLS), &config, name).await;
            assert_eq!(said, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn one_port_ends_tls_for_some_names_and_passes_it_on_for_others() {
    let (theirs, ours) = (certificate(&["their.example.com"]), certificate(&[HOST]));
    let (secure, plain) = (secure("theirs", &theirs).await, echo().await);
    let mut terminated = tls_listener("tls", Some(HOST), &[&ours]);
    termination(&mut terminated).routes = TlsRoutes::Forwards(vec![named("plain", &[HOST])]);
    let port = Port::Tls(vec![
        passing_listener(
            "passed",
            Some("their.example.com"),
            vec![named("secure", &[])],
        ),
        terminated,
    ]);
    let backends: &[(&str, &[_])] = &[("secure", &[secure]), ("plain", &[plain])];
    let scene = Scene::new(&snapshot([(TLS, port)], backends)).await;
    let config = client(&[&theirs, &ours]);
    let said = greeting(scene.address(TLS), &config, "their.example.com").await;
    assert_eq!(said, "theirs!");
    ping(&mut scene.connect_tls(TLS, &config).await)
        .await
        .unwrap();
    // Pieces of a hello reach rustls as they reach a backend.
    let mut stream = scene.connect(TLS).await;
    for piece in in_small_records(&client_hello(HOST)).chunks(700) {
        stream.write_all(piece).await.unwrap();
    }
    let answer = within(stream.read_u8()).await.unwrap();
    assert_eq!(answer, 22, "a handshake record");
}

#[tokio::test]
async fn names_that_no_listener_or_route_is_for_are_refused_with_that_alert() {
    let certificate = certificate(&[HOST]);
    let mut terminated = tls_listener("tls", Some("*.example.com"), &[&certificate]);
    termination(&mut terminated).routes = TlsRoutes::Forwards(vec![named("app", &[HOST])]);
    let port = Port::Tls(vec![
        passing_listener("passed", Some("*.org"), vec![named("app", &["a.org"])]),
        terminated,
    ]);
    let scene = Scene::new(&snapshot([(TLS, port)], &[])).await;
    for name in ["b.org", "b.example.com", "example.net", "127.0.0.1"] {
        let mut stream = scene.connect(TLS).await;
        stream.write_all(&client_hello(name)).await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert_eq!(answer, UNRECOGNIZED_NAME, "{name}");
    }
    for (listener, reason, count) in [
        ("passed", "no_route", 1),
        ("tls", "no_route", 1),
        ("passed", "unknown_name", 2),
    ] {
        scene
            .until_metric(&format!(
                "tailway_tls_failures_total{{gateway=\"default/web\",listener=\"{listener}\",reason=\"{reason}\"}} {count}"
            ))
            .await;
    }
}

/// A passthrough listener "passed" in front of a backend that the test plays.
async fn passed(limits: Limits) -> (Scene, tokio::net::TcpListener) {
    let (listener, address) = backend().await;
    let port = Port::Tls(vec![passing_listener(
        "passed",
        None,
        vec![named("app", &[])],
    )]);
    let snapshot = snapshot([(TLS, port)], &[("app", &[address])]);
    (Scene::with(limits, &snapshot).await, listener)
}

/// A client that said its hello, and the backend's side, which got it.
async fn passed_pair(
    scene: &Scene,
    listener: &tokio::net::TcpListener,
    hello: &[u8],
) -> (TcpStream, TcpStream) {
    let mut client = scene.connect(TLS).await;
    client.write_all(hello).await.unwrap();
    let mut served = accept(listener).await;
    let mut got = vec![0; hello.len()];
    within(served.read_exact(&mut got)).await.unwrap();
    assert!(got == hello, "the backend got another hello");
    (client, served)
}

#[tokio::test]
async fn every_byte_reaches_the_backend_unchanged_and_ends_are_carried() {
    let (scene, listener) = passed(Limits::default()).await;
    let whole = client_hello(HOST);
    let early = [&whole[..], b"and more at once"].concat();
    let small = in_small_records(&whole);
    for hello in [&whole, &early, &small] {
        let (mut client, mut served) = passed_pair(&scene, &listener, hello).await;
        pass(&mut client, &mut served, b"up").await;
        pass(&mut served, &mut client, b"down").await;
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut served).await.unwrap(), b"");
        served.write_all(b"still heard").await.unwrap();
        drop(served);
        assert_eq!(read_all(&mut client).await.unwrap(), b"still heard");
    }
    let received = whole.len() + early.len() + small.len() + 3 * 2;
    for line in [
        r#"tailway_connections_closed_total{gateway="default/web",listener="passed",reason="eof"} 3"#.into(),
        format!(r#"tailway_received_bytes_total{{gateway="default/web",listener="passed"}} {received}"#),
        format!(r#"tailway_sent_bytes_total{{gateway="default/web",listener="passed"}} {}"#, 3 * (4 + 11)),
    ] {
        scene.until_metric(&line).await;
    }
}

#[tokio::test]
async fn a_hello_in_any_number_of_segments_finds_its_backend() {
    let (scene, listener) = passed(Limits::default()).await;
    let hello = client_hello(HOST);
    let mut client = scene.connect(TLS).await;
    client.set_nodelay(true).unwrap();
    for byte in &hello {
        client.write_all(std::slice::from_ref(byte)).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut served = accept(&listener).await;
    let mut got = vec![0; hello.len()];
    within(served.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, hello);
}

#[tokio::test]
async fn resets_are_carried_both_ways() {
    let (scene, listener) = passed(Limits::default()).await;
    let hello = client_hello(HOST);
    let (client, mut served) = passed_pair(&scene, &listener, &hello).await;
    reset(client);
    expect_reset(&mut served).await;
    let (mut client, served) = passed_pair(&scene, &listener, &hello).await;
    reset(served);
    expect_reset(&mut client).await;
    for reason in ["peer_reset", "backend_reset"] {
        scene
            .until_metric(&format!(
                "tailway_connections_closed_total{{gateway=\"default/web\",listener=\"passed\",reason=\"{reason}\"}} 1"
            ))
            .await;
    }
}

#[tokio::test]
async fn idle_connections_are_reset_and_a_drain_lets_open_ones_finish() {
    let limits = Limits {
        idle_timeout: Some(Duration::from_millis(100)),
        ..Limits::default()
    };
    let (scene, listener) = passed(limits).await;
    let hello = client_hello(HOST);
    let (mut client, mut served) = passed_pair(&scene, &listener, &hello).await;
    expect_reset(&mut client).await;
    expect_reset(&mut served).await;

    let (scene, listener) = passed(Limits::default()).await;
    let (mut client, mut served) = passed_pair(&scene, &listener, &hello).await;
    let drain = scene.drain.clone();
    let ended = tokio::spawn(async move { drain.end(Duration::from_secs(600)).await });
    Scene::until_refused(scene.address(TLS)).await;
    pass(&mut client, &mut served, b"still here").await;
    client.shutdown().await.unwrap();
    drop(served);
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    assert!(within(ended).await.unwrap(), "nothing had to be forced");
}

#[tokio::test]
async fn who_does_not_say_hello_is_refused_or_ended() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let (scene, _listener) = passed(limits).await;
    let mut plain = scene.connect(TLS).await;
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        .await
        .unwrap();
    let answer = read_all(&mut plain).await.unwrap();
    assert_eq!((answer[0], answer[5]), (0x15, 2), "{answer:?}");

    let mut slow = scene.connect(TLS).await;
    slow.write_all(&client_hello(HOST)[..20]).await.unwrap();
    let mut nothing = Vec::new();
    let _ = within(slow.read_to_end(&mut nothing)).await;
    assert_eq!(nothing, b"");

    let mut gone = scene.connect(TLS).await;
    gone.write_all(&client_hello(HOST)[..20]).await.unwrap();
    drop(gone);
    for reason in ["not_tls", "timeout", "closed_by_peer"] {
        scene
            .until_metric(&format!(
                "tailway_tls_failures_total{{gateway=\"default/web\",listener=\"passed\",reason=\"{reason}\"}} 1"
            ))
            .await;
    }
}

#[tokio::test]
async fn a_backend_that_is_not_there_resets_the_client() {
    let port = Port::Tls(vec![passing_listener(
        "passed",
        None,
        vec![named("app", &[])],
    )]);
    let scene = Scene::new(&snapshot([(TLS, port)], &[("app", &[])])).await;
    let mut client = connect(scene.address(TLS)).await;
    client.write_all(&client_hello(HOST)).await.unwrap();
    expect_reset(&mut client).await;
    scene
        .until_metric(
            r#"tailway_connections_refused_total{gateway="default/web",listener="passed",reason="backend_unreachable"} 1"#,
        )
        .await;
}
