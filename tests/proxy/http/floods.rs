//! HTTP/2 in frames: what a server has to bear, and what it does not.

use super::scene::{Client, HTTP, below, get, mirror_of, request, rule, serve, site, told};
use crate::proxy::scene::{Scene, accept, backend, read_all, within};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http2, ext::Protocol};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET http://a/`, in fields of the static table (RFC 7541 appendix A).
const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x01, 0x01, b'a'];

/// A connection whose frames the test writes.
async fn open(scene: &Scene) -> TcpStream {
    let mut stream = scene.connect(HTTP).await;
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(SETTINGS, 0, 0, &[]));
    stream.write_all(&start).await.unwrap();
    stream
}

/// The next frame of these kinds: its kind, stream and payload.
async fn next(stream: &mut TcpStream, kinds: &[u8]) -> Option<(u8, u32, Vec<u8>)> {
    loop {
        let mut head = [0; 9];
        within(stream.read_exact(&mut head)).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        within(stream.read_exact(&mut payload)).await.ok()?;
        if kinds.contains(&head[3]) {
            return Some((head[3], id, payload));
        }
    }
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// Expects that the connection is ended for being a flood.
async fn expect_calm(stream: &mut TcpStream) {
    let goaway = next(stream, &[GOAWAY]).await;
    // A reset may overtake it.
    if let Some((_, _, payload)) = goaway {
        assert_eq!(code(&payload[4..8]), ENHANCE_YOUR_CALM);
    }
    let mut rest = Vec::new();
    let _ = within(stream.read_to_end(&mut rest)).await;
}

async fn stage() -> (Scene, Client, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let never = serve(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::pending()
    })
    .await;
    let other = mirror_of("other").await;
    let rules = vec![
        rule(vec![below("/")], "never"),
        rule(vec![below("/other")], "other"),
    ];
    let backends: [(&str, &[std::net::SocketAddr]); 2] = [("never", &[never]), ("other", &[other])];
    let scene = Scene::new(&site(&[("route", rules)], &backends)).await;
    let mut neighbour = Client::new(&scene, Version::HTTP_2).await;
    told(neighbour.send(get("/other")).await).await;
    (scene, neighbour, count)
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_their_connection() {
    let (scene, mut neighbour, count) = stage().await;
    let mut stream = open(&scene).await;
    let mut flood = Vec::new();
    for at in 0..5000 {
        let id = 2 * at + 1;
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &GET));
        flood.extend(frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes()));
    }
    // It is ended before all of it is read.
    let _ = stream.write_all(&flood).await;
    expect_calm(&mut stream).await;
    told(neighbour.send(get("/other")).await).await;
    let count = count.load(Ordering::Relaxed);
    assert!(count < 1000, "{count} requests reached the backend");
}

#[tokio::test]
async fn a_head_without_end_ends_its_connection() {
    let (scene, mut neighbour, count) = stage().await;
    let mut stream = open(&scene).await;
    stream
        .write_all(&frame(HEADERS, END_STREAM, 1, &GET))
        .await
        .unwrap();
    // A field that is not indexed: "x: a".
    let piece = frame(
        CONTINUATION,
        0,
        1,
        &[0x00, 0x01, b'x', 0x01, b'a'].repeat(100),
    );
    for _ in 0..10_000 {
        if stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    expect_calm(&mut stream).await;
    told(neighbour.send(get("/other")).await).await;
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_connection_has_so_many_requests_at_a_time() {
    let (scene, mut neighbour, count) = stage().await;
    let mut stream = open(&scene).await;
    let (_, _, settings) = next(&mut stream, &[SETTINGS]).await.unwrap();
    let most = settings
        .chunks(6)
        .find(|setting| setting[..2] == [0, 3])
        .map(|setting| code(&setting[2..]));
    assert_eq!(most, Some(250));
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    for at in 0..251 {
        let request = frame(HEADERS, END_STREAM | END_HEADERS, 2 * at + 1, &GET);
        stream.write_all(&request).await.unwrap();
    }
    let (_, id, payload) = next(&mut stream, &[RST_STREAM]).await.unwrap();
    assert_eq!((id, code(&payload)), (501, REFUSED_STREAM));
    within(async {
        while count.load(Ordering::Relaxed) < 250 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    told(neighbour.send(get("/other")).await).await;
    assert_eq!(count.load(Ordering::Relaxed), 250);
}

#[tokio::test]
async fn what_is_too_much_or_has_two_hosts_is_refused_by_its_stream_alone() {
    let (scene, _, count) = stage().await;
    let mut client = Client::new(&scene, Version::HTTP_2).await;
    let value = "a".repeat(1000);
    let names: Vec<_> = (0..101).map(|at| format!("x-{at}")).collect();
    let fields = |count: usize, value| -> Vec<_> {
        let names = names[..count].iter();
        names.map(|name| (name.as_str(), value)).collect()
    };
    for many in [fields(80, &*value), fields(101, "a")] {
        let response = client.send(request(Method::GET, "/", &many)).await;
        let status = response.status();
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let long = format!("/{}", "a".repeat(20_000));
    let response = client.send(get(&long)).await;
    assert_eq!(response.status(), StatusCode::URI_TOO_LONG);
    // The same connection goes on.
    told(client.send(get("/other")).await).await;
    // :authority a, host b.
    let mut stream = open(&scene).await;
    let host = [&GET[..], &[0x0f, 0x17, 0x01, b'b']].concat();
    let both = frame(HEADERS, END_STREAM | END_HEADERS, 1, &host);
    stream.write_all(&both).await.unwrap();
    let (_, _, head) = next(&mut stream, &[HEADERS]).await.unwrap();
    // :status 400 in the static table.
    assert_eq!(head[0], 0x8c);
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_websocket_over_http2_is_a_tunnel_to_one_over_http1() {
    let (listener, address) = backend().await;
    let rules = vec![rule(vec![below("/chat")], "app")];
    let scene = Scene::new(&site(&[("route", rules)], &[("app", &[address])])).await;
    let server = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(within(stream.read_u8()).await.unwrap()));
        }
        let mut lines = head.lines();
        let key = lines.find_map(|line| line.strip_prefix("sec-websocket-key: "));
        // A nonce of 16 bytes (RFC 6455 §4.2.1): strict servers look at its length.
        let nonce = STANDARD.decode(key.unwrap()).unwrap();
        assert_eq!(nonce.len(), 16, "{head}");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get /chat http/1.1\r\n"), "{head}");
        for line in ["upgrade: websocket", "connection: upgrade", "host: a"] {
            assert!(head.contains(&format!("\r\n{line}")), "{head}");
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        assert_eq!(read_all(&mut stream).await.unwrap(), b"there");
        stream.write_all(b"bye").await.unwrap();
    });
    let stream = TokioIo::new(scene.connect(HTTP).await);
    let handshake = http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    // The settings that allow it come before the first answer.
    let plain = Request::get("http://a/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = within(sender.send_request(plain)).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let connect = Request::connect("http://a/chat")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = within(sender.send_request(connect)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    let mut hi = [0; 2];
    within(tunnel.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
    tunnel.write_all(b"there").await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(read_all(&mut tunnel).await.unwrap(), b"bye");
    within(server).await.unwrap();
}
