//! WebSocket and gRPC through Envoy.

use super::{
    scene::{Scene, Wiring, routed},
    upstream::HERE,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
#[ignore = "make envoy"]
async fn a_websocket_reaches_a_service_and_carries_bytes_both_ways() {
    for wiring in [Wiring::Policies, Wiring::Held] {
        let shared = Scene::shared(wiring).await;
        let scene = shared.scene();
        let chat = scene.service("chat").await;
        let site = scene.site(
            "websocket",
            &super::scene::route("users", "/users", chat.address),
        );
        site.set(&[routed("chat", "chat.example.com", chat.address)]);
        site.until("/users", 200, "chat").await;
        site.added("chat").await;

        let address = site.address();
        let talk = async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = "GET /api/chat/room HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"there and back").await.unwrap();
            let mut back = [0; 14];
            stream.read_exact(&mut back).await.unwrap();
            (String::from_utf8(head).unwrap(), back)
        };
        let (head, back) = scene.network().run(talk).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(&back, b"there and back");
        assert_eq!(chat.last().line, "GET /room HTTP/1.1");
        assert_eq!(chat.last().header("upgrade"), Some("websocket"));
    }
}

/// A server of HTTP/2 alone, which answers calls with what it was asked for, in its trailers too.
async fn calls() -> SocketAddr {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |request: Request<Incoming>| async move {
        let target = request.uri().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let trailers = HeaderMap::from_iter([
            ("grpc-status".parse().unwrap(), "0".parse().unwrap()),
            (
                "x-target".parse().unwrap(),
                target.to_string().parse().unwrap(),
            ),
        ]);
        let body = Full::new(body).with_trailers(async { Some(Ok(trailers)) });
        let response = Response::builder().header("content-type", "application/grpc");
        Ok::<_, Infallible>(response.body(body).unwrap())
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let builder = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_call_of_grpc_reaches_a_service_and_its_trailers_come_back() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (target, web) = (
        scene.network().run(calls()).await,
        scene.service("web").await,
    );
    let site = scene.site("grpc", "");
    site.set(&[
        routed("calls", "calls.example.com", target),
        routed("web", "web.example.com", web.address),
    ]);
    site.until("/api/web", 200, "web").await;

    let address = site.address();
    let call = async move {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let handshake = http2::handshake(TokioExecutor::new(), stream);
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://a/api/calls/echo.Echo/Say")
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::<Bytes>::from("\0\0\0\0\u{2}hi"));
        let response = sender.send_request(request.unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap();
        (status, body.trailers().cloned(), body.to_bytes())
    };
    let (status, trailers, body) = scene.network().run(call).await;
    assert_eq!(
        (status.as_u16(), &*body),
        (200, b"\0\0\0\0\x02hi".as_slice())
    );
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(
        trailers["x-target"],
        "http://calls.example.com/echo.Echo/Say"
    );
}
