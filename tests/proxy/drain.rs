//! A graceful end.

use super::scene::{
    HOST, Scene, TCP, TLS, accept, backend, certificate, client, expect_reset, pass, read_all,
    snapshot, tcp_port, tls_port, within,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_draining_proxy_accepts_no_more_and_lets_open_connections_finish() {
    let (listener, address) = backend().await;
    let certificate = certificate(&[HOST]);
    let ports = [(TCP, tcp_port()), (TLS, tls_port(&certificate))];
    let scene = Scene::new(&snapshot(ports, &[("app", &[address])])).await;
    let mut plain = scene.connect(TCP).await;
    let mut plain_served = accept(&listener).await;
    let mut secret = scene.connect_tls(TLS, &client(&[&certificate])).await;
    let mut secret_served = accept(&listener).await;

    let drain = scene.drain.clone();
    let ended = tokio::spawn(async move { drain.end(Duration::from_secs(600)).await });
    Scene::until_refused(scene.address(TCP)).await;
    Scene::until_refused(scene.address(TLS)).await;

    pass(&mut plain, &mut plain_served, b"still here").await;
    pass(&mut secret_served, &mut secret, b"so am I").await;
    assert!(!ended.is_finished());
    plain.shutdown().await.unwrap();
    secret.shutdown().await.unwrap();
    drop((plain_served, secret_served));
    assert_eq!(read_all(&mut plain).await.unwrap(), b"");
    assert_eq!(read_all(&mut secret).await.unwrap(), b"");
    assert!(within(ended).await.unwrap(), "nothing had to be forced");
}

#[tokio::test]
async fn what_is_open_at_the_deadline_is_reset_on_both_sides() {
    let (listener, address) = backend().await;
    let certificate = certificate(&[HOST]);
    let ports = [(TCP, tcp_port()), (TLS, tls_port(&certificate))];
    let scene = Scene::new(&snapshot(ports, &[("app", &[address])])).await;
    let mut plain = scene.connect(TCP).await;
    let mut plain_served = accept(&listener).await;
    let mut secret = scene.connect_tls(TLS, &client(&[&certificate])).await;
    let mut secret_served = accept(&listener).await;
    pass(&mut plain, &mut plain_served, b"hello").await;
    pass(&mut secret, &mut secret_served, b"hello").await;

    assert!(!within(scene.drain.end(Duration::ZERO)).await);
    expect_reset(&mut plain).await;
    expect_reset(&mut plain_served).await;
    expect_reset(&mut secret).await;
    expect_reset(&mut secret_served).await;
    for listener in ["tcp", "tls"] {
        scene
            .until_metric(&format!(
                "tailway_connections_closed_total{{gateway=\"default/web\",listener=\"{listener}\",reason=\"aborted\"}} 1"
            ))
            .await;
    }
}
