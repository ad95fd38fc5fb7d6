//! What is let in, and what is waited for.

use super::scene::{
    HOST, Scene, TCP, TLS, accept, backend, certificate, client, echo, expect_reset, pass, ping,
    snapshot, tcp_port, tls_port, within,
};
use std::{net::SocketAddr, time::Duration};
use tailway::proxy::Limits;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

async fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    within(socket.connect(to)).await.unwrap()
}

#[tokio::test]
async fn a_full_listener_refuses_and_lets_in_again_when_one_ends() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let app = echo().await;
    let scene = Scene::with(limits, &snapshot([(TCP, tcp_port())], &[("app", &[app])])).await;
    let (mut first, mut second) = (scene.connect(TCP).await, scene.connect(TCP).await);
    ping(&mut first).await.unwrap();
    ping(&mut second).await.unwrap();
    expect_reset(&mut scene.connect(TCP).await).await;
    scene
        .until_metric(
            r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="listener_limit"} 1"#,
        )
        .await;
    drop(first);
    within(async {
        while ping(&mut scene.connect(TCP).await).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    ping(&mut second).await.unwrap();
}

#[tokio::test]
async fn a_peer_with_all_its_places_taken_is_refused_and_others_are_not() {
    let limits = Limits {
        connections_per_peer: 1,
        ..Limits::default()
    };
    let app = echo().await;
    let scene = Scene::with(limits, &snapshot([(TCP, tcp_port())], &[("app", &[app])])).await;
    let address = scene.address(TCP);
    let mut one = connect_from([127, 0, 0, 2], address).await;
    ping(&mut one).await.unwrap();
    expect_reset(&mut connect_from([127, 0, 0, 2], address).await).await;
    let mut other = connect_from([127, 0, 0, 3], address).await;
    ping(&mut other).await.unwrap();
    scene
        .until_metric(
            r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="peer_limit"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let certificate = certificate(&[HOST]);
    let scene = Scene::with(limits, &snapshot([(TLS, tls_port(&certificate))], &[])).await;
    let mut slow = scene.connect(TLS).await;
    // The head of a record that never comes.
    slow.write_all(&[0x16, 0x03, 0x01, 0x00, 0xff])
        .await
        .unwrap();
    let mut nothing = Vec::new();
    let _ = within(slow.read_to_end(&mut nothing)).await;
    assert_eq!(nothing, b"");
    scene
        .until_metric(
            r#"tailway_tls_failures_total{gateway="default/web",listener="tls",reason="timeout"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_reset_on_both_sides() {
    let limits = Limits {
        idle_timeout: Some(Duration::from_millis(100)),
        ..Limits::default()
    };
    let (listener, address) = backend().await;
    let certificate = certificate(&[HOST]);
    let ports = [(TCP, tcp_port()), (TLS, tls_port(&certificate))];
    let scene = Scene::with(limits, &snapshot(ports, &[("app", &[address])])).await;

    let mut plain = scene.connect(TCP).await;
    let mut served = accept(&listener).await;
    pass(&mut plain, &mut served, b"hello").await;
    expect_reset(&mut plain).await;
    expect_reset(&mut served).await;

    let mut secret = scene.connect_tls(TLS, &client(&[&certificate])).await;
    let mut served = accept(&listener).await;
    pass(&mut secret, &mut served, b"hello").await;
    expect_reset(&mut secret).await;
    expect_reset(&mut served).await;
    for listener in ["tcp", "tls"] {
        scene
            .until_metric(&format!(
                "tailway_connections_closed_total{{gateway=\"default/web\",listener=\"{listener}\",reason=\"idle_timeout\"}} 1"
            ))
            .await;
    }
}
