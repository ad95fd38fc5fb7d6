//! Bytes arrive as they were sent, and so do ends and resets.

use super::scene::{
    HOST, Scene, TCP, TLS, accept, backend, certificate, client, expect_reset, pass, read_all,
    reset, snapshot, tcp_port, tls_port, within,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// Over the size of any buffer on the way, and no multiple of one.
const LENGTH: usize = 16 * 1024 * 1024 + 4321;

/// A client and the backend's side of its connection.
async fn tcp_pair() -> (Scene, TcpStream, TcpStream) {
    let (listener, address) = backend().await;
    let scene = Scene::new(&snapshot([(TCP, tcp_port())], &[("app", &[address])])).await;
    let client = scene.connect(TCP).await;
    let served = accept(&listener).await;
    (scene, client, served)
}

async fn tls_pair() -> (Scene, TlsStream<TcpStream>, TcpStream) {
    let (listener, address) = backend().await;
    let certificate = certificate(&[HOST]);
    let port = tls_port(&certificate);
    let scene = Scene::new(&snapshot([(TLS, port)], &[("app", &[address])])).await;
    let client = scene.connect_tls(TLS, &client(&[&certificate])).await;
    let served = accept(&listener).await;
    (scene, client, served)
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(LENGTH + 8);
    while bytes.len() < LENGTH {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(LENGTH);
    bytes
}

async fn exchange<S>(stream: S, bytes: &[u8]) -> Vec<u8>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_all(&mut read), send);
    got.unwrap()
}

async fn bytes_cross(client: impl AsyncRead + AsyncWrite + Unpin, served: TcpStream) {
    let (up, down) = (noise(1), noise(2));
    let (got_down, got_up) =
        within(async { tokio::join!(exchange(client, &up), exchange(served, &down)) }).await;
    assert!(got_up == up, "the backend got other bytes");
    assert!(got_down == down, "the client got other bytes");
}

#[tokio::test]
async fn every_byte_crosses_a_tcp_listener_both_ways() {
    let (scene, client, served) = tcp_pair().await;
    bytes_cross(client, served).await;
    for direction in ["received", "sent"] {
        scene
            .until_metric(&format!(
                "tailway_{direction}_bytes_total{{gateway=\"default/web\",listener=\"tcp\"}} {LENGTH}"
            ))
            .await;
    }
}

#[tokio::test]
async fn every_byte_crosses_a_tls_listener_both_ways() {
    let (scene, client, served) = tls_pair().await;
    bytes_cross(client, served).await;
    for direction in ["received", "sent"] {
        scene
            .until_metric(&format!(
                "tailway_{direction}_bytes_total{{gateway=\"default/web\",listener=\"tls\"}} {LENGTH}"
            ))
            .await;
    }
}

async fn client_ends_first(
    scene: &Scene,
    listener: &str,
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut served: TcpStream,
) {
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut served).await.unwrap(), b"question");
    pass(&mut served, client, b"ans").await;
    pass(&mut served, client, b"wer").await;
    drop(served);
    assert_eq!(read_all(client).await.unwrap(), b"");
    closed(scene, listener, "eof").await;
}

async fn backend_ends_first(
    scene: &Scene,
    listener: &str,
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut served: TcpStream,
) {
    served.write_all(b"greeting").await.unwrap();
    served.shutdown().await.unwrap();
    assert_eq!(read_all(client).await.unwrap(), b"greeting");
    pass(client, &mut served, b"ans").await;
    pass(client, &mut served, b"wer").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut served).await.unwrap(), b"");
    closed(scene, listener, "eof").await;
}

async fn closed(scene: &Scene, listener: &str, reason: &str) {
    scene
        .until_metric(&format!(
            "tailway_connections_closed_total{{gateway=\"default/web\",listener=\"{listener}\",reason=\"{reason}\"}} 1"
        ))
        .await;
}

#[tokio::test]
async fn a_tcp_client_that_ended_still_gets_its_answer() {
    let (scene, mut client, served) = tcp_pair().await;
    client_ends_first(&scene, "tcp", &mut client, served).await;
}

#[tokio::test]
async fn a_tls_client_that_ended_still_gets_its_answer() {
    let (scene, mut client, served) = tls_pair().await;
    client_ends_first(&scene, "tls", &mut client, served).await;
}

#[tokio::test]
async fn a_backend_that_ended_still_hears_a_tcp_client() {
    let (scene, mut client, served) = tcp_pair().await;
    backend_ends_first(&scene, "tcp", &mut client, served).await;
}

#[tokio::test]
async fn a_backend_that_ended_still_hears_a_tls_client() {
    let (scene, mut client, served) = tls_pair().await;
    backend_ends_first(&scene, "tls", &mut client, served).await;
}

#[tokio::test]
async fn a_reset_by_a_tcp_client_resets_the_backend() {
    let (scene, mut client, mut served) = tcp_pair().await;
    pass(&mut client, &mut served, b"hello").await;
    reset(client);
    expect_reset(&mut served).await;
    closed(&scene, "tcp", "peer_reset").await;
}

#[tokio::test]
async fn a_reset_by_a_tls_client_resets_the_backend() {
    let (scene, mut client, mut served) = tls_pair().await;
    pass(&mut client, &mut served, b"hello").await;
    reset(client.into_inner().0);
    expect_reset(&mut served).await;
    closed(&scene, "tls", "peer_reset").await;
}

#[tokio::test]
async fn a_reset_by_the_backend_resets_a_tcp_client() {
    let (scene, mut client, mut served) = tcp_pair().await;
    pass(&mut client, &mut served, b"hello").await;
    reset(served);
    expect_reset(&mut client).await;
    closed(&scene, "tcp", "backend_reset").await;
}

#[tokio::test]
async fn a_reset_by_the_backend_resets_a_tls_client() {
    let (scene, mut client, mut served) = tls_pair().await;
    pass(&mut client, &mut served, b"hello").await;
    reset(served);
    expect_reset(&mut client).await;
    closed(&scene, "tls", "backend_reset").await;
}

#[tokio::test]
async fn a_tls_client_that_ends_without_close_notify_resets_the_backend() {
    let (scene, mut client, mut served) = tls_pair().await;
    pass(&mut client, &mut served, b"half a messa").await;
    let (mut socket, _) = client.into_inner();
    socket.shutdown().await.unwrap();
    expect_reset(&mut served).await;
    closed(&scene, "tls", "peer_reset").await;
}
