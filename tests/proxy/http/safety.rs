//! Requests that nobody means well with, as bytes: what their senders are told, what others notice
//! and what a backend gets to see of them.

use super::scene::{Client, HTTP, below, get, mirror_of, rule, site, told};
use crate::proxy::scene::{Scene, accept, backend, read_all, within};
use http::Version;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::{
    model::{HeaderChange, HttpFilter, HttpRule},
    proxy::Limits,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A backend that keeps all bytes it gets, and answers each connection once with `ok`.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Vec<u8>>>);

impl Witness {
    async fn start() -> (Self, SocketAddr) {
        let (listener, address) = backend().await;
        let witness = Self::default();
        let this = witness.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(this.clone().watch(stream));
            }
        });
        (witness, address)
    }

    async fn watch(self, mut stream: TcpStream) {
        let mut buffer = [0; 4096];
        let mut is_answered = false;
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            self.0.lock().unwrap().extend_from_slice(&buffer[..length]);
            if !is_answered {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                let _ = stream.write_all(answer).await;
            }
            is_answered = true;
        }
    }

    fn saw(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Requests go to the witness, those below `/other` to a backend of the test's other clients.
struct Stage {
    scene: Scene,
    witness: Witness,
    /// A connection that has nothing to do with the rest.
    neighbour: Client,
}

impl Stage {
    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let (witness, address) = Witness::start().await;
        let other = mirror_of("other").await;
        let rules = vec![
            rule(vec![below("/")], "app"),
            rule(vec![below("/other")], "other"),
        ];
        let snapshot = site(
            &[("route", rules)],
            &[("app", &[address]), ("other", &[other])],
        );
        let scene = Scene::with(limits, &snapshot).await;
        let mut neighbour = Client::new(&scene, Version::HTTP_11).await;
        told(neighbour.send(get("/other")).await).await;
        Self {
            scene,
            witness,
            neighbour,
        }
    }

    /// All that a client gets that sends this and waits for the end.
    async fn answer(&self, bytes: &[u8]) -> String {
        let mut stream = self.scene.connect(HTTP).await;
        // It may be refused before the last byte.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = within(stream.read(&mut buffer)).await {
            answer.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The connection of others still works.
    async fn is_calm(&mut self) {
        let told = told(self.neighbour.send(get("/other")).await).await;
        assert_eq!(told["backend"], "other");
    }
}

// === HTTP/1.1 ===

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_not_read_at_all() {
    let mut stage = Stage::new().await;
    let table = [
        ("content-length: 4\r\ntransfer-encoding: chunked\r\n", "400"),
        ("transfer-encoding: chunked\r\ncontent-length: 4\r\n", "400"),
        ("content-length: 4\r\ncontent-length: 5\r\n", "400"),
        ("content-length: 4, 5\r\n", "400"),
        ("content-length: +4\r\n", "400"),
        ("content-length: -1\r\n", "400"),
        ("content-length: 0x4\r\n", "400"),
        ("content-length:\r\n", "400"),
        ("content-length : 4\r\n", "400"),
        ("transfer-encoding : chunked\r\n", "400"),
        ("transfer-encoding: xchunked\r\n", "400"),
        ("transfer-encoding: chunked, identity\r\n", "400"),
        ("transfer-encoding: identity\r\n", "400"),
        ("transfer-encoding:\x0bchunked\r\n", "400"),
        ("transfer-encoding: \"chunked\"\r\n", "400"),
        ("transfer-encoding: gzip, chunked\r\n", "501"),
        ("transfer-encoding: chunked, chunked\r\n", "501"),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "501",
        ),
        (
            "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            "501",
        ),
        ("x-folded: a\r\n b\r\n", "400"),
        (" x-first: a\r\n", "400"),
        ("x-line: a\n", "400"),
        ("x-line: a\nx-next: b\r\n", "400"),
        ("x-return: a\rb\r\n", "400"),
        ("x-null: a\0b\r\n", "400"),
        ("x-null\0: a\r\n", "400"),
        ("x y: a\r\n", "400"),
        ("no colon\r\n", "400"),
        (": no name\r\n", "400"),
        ("host: b\r\n", "400"),
    ];
    for (lines, status) in table {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n0\r\n\r\n");
        let answer = stage.answer(request.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{lines:?}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{lines:?}: {answer}"
        );
        stage.is_calm().await;
    }
    assert_eq!(stage.witness.saw(), "");
}

#[tokio::test]
async fn what_is_no_request_for_a_gateway_is_refused_and_ends_its_connection() {
    let mut stage = Stage::new().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(20_000));
    let many: String = (0..101).map(|at| format!("x-{at}: a\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n");
    let large = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    let table = [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: user@a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: \r\n\r\n", "400"),
        ("GET http://user@a/ HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\nhost: a\n\n", "400"),
        ("GET / HTTP/3.0\r\nhost: a\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("G\u{0}T / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        (
            "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("\u{16}\u{3}\u{1}\u{0}\u{5}hello", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "405"),
        (&long, "414"),
        (&many, "431"),
        (&large, "431"),
    ];
    for (request, status) in table {
        let shown: String = request.chars().take(60).collect();
        let answer = stage.answer(request.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{shown:?}: {answer}");
        stage.is_calm().await;
    }
    assert_eq!(stage.witness.saw(), "");
}

#[tokio::test]
async fn garbage_after_a_request_is_no_further_request() {
    let stage = Stage::new().await;
    let good = "GET /other HTTP/1.1\r\nhost: a\r\n\r\n";
    for garbage in [
        "GARBAGE\0\r\n\r\n",
        "GET /\r\n\r\n",
        "0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = stage
            .answer(format!("{good}{good}{garbage}").as_bytes())
            .await;
        let statuses: Vec<_> = answer
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| &answer[at + 9..at + 12])
            .filter(|status| status.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        assert_eq!(statuses, ["200", "200", "400"], "{garbage:?}: {answer}");
    }
    assert_eq!(stage.witness.saw(), "");
}

/// What a backend gets of a request, up to its end or its being cut.
async fn seen(listener: &TcpListener) -> String {
    let mut stream = accept(listener).await;
    let mut bytes = Vec::new();
    // It may be reset.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn to_listener() -> (Scene, TcpListener) {
    to_listener_with(Limits::default()).await
}

async fn to_listener_with(limits: Limits) -> (Scene, TcpListener) {
    let (listener, address) = backend().await;
    let rules = vec![rule(vec![below("/")], "app")];
    let snapshot = site(&[("route", rules)], &[("app", &[address])]);
    (Scene::with(limits, &snapshot).await, listener)
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn a_body_that_cannot_be_read_is_cut_at_the_backend() {
    let (scene, listener) = to_listener().await;
    let trailers = format!("3\r\nabc\r\n0\r\nx: {}\r\n\r\n", "a".repeat(70_000));
    for body in [
        "zz\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\na\r\n0\r\n\r\n",
        "1\na\r\n0\r\n\r\n",
        "1;x=\ny\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\naX\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        &trailers,
    ] {
        let mut client = scene.connect(HTTP).await;
        let request = format!("{CHUNKED}{body}");
        let _ = client.write_all(request.as_bytes()).await;
        let shown: String = body.chars().take(40).collect();
        let seen = seen(&listener).await;
        // A head at most, and what came before the bad piece.
        let is_cut = seen.is_empty() || seen.starts_with("POST / HTTP/1.1\r\n");
        assert!(is_cut, "{shown:?}: {seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{shown:?}: {seen}");
        let mut answer = Vec::new();
        let _ = within(client.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 400 ");
        assert!(is_refused, "{shown:?}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_its_client_cuts_is_cut_at_the_backend() {
    let (scene, listener) = to_listener().await;
    let sized = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    let chunked = format!("{CHUNKED}4\r\nhalf\r\n");
    for request in [sized, &chunked] {
        let mut client = scene.connect(HTTP).await;
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let seen = seen(&listener).await;
        assert!(seen.contains("half"), "{seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn a_response_that_its_backend_cuts_is_cut_at_the_client() {
    let (scene, listener) = to_listener().await;
    let sized = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    for (version, answer) in [("1.1", sized), ("1.1", chunked), ("1.0", chunked)] {
        let mut client = scene.connect(HTTP).await;
        let request = format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut stream = accept(&listener).await;
        stream.read_u8().await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 1024];
        while !got.windows(4).any(|window| window == b"half") {
            let length = within(client.read(&mut buffer)).await.unwrap();
            assert!(length > 0);
            got.extend_from_slice(&buffer[..length]);
        }
        drop(stream);
        let ended = read_all(&mut client).await;
        let got = String::from_utf8_lossy(&got).into_owned();
        let said_more = got.contains("content-length: 10") || got.contains("chunked");
        // Without a length, an end in order would be the end of the body.
        assert!(said_more || ended.is_err(), "{version} {got} {ended:?}");
        assert!(!ended.unwrap_or_default().ends_with(b"0\r\n\r\n"));
    }
}

#[tokio::test]
async fn a_target_with_a_host_counts_more_than_the_header() {
    let app = mirror_of("app").await;
    let changed = HeaderChange {
        set: vec![("x-set".into(), "1".into())],
        ..HeaderChange::default()
    };
    // Also where filters touch headers.
    for filters in [Vec::new(), vec![HttpFilter::RequestHeaders(changed)]] {
        let rule = HttpRule {
            filters,
            ..rule(vec![below("/")], "app")
        };
        let scene = Scene::new(&site(&[("route", vec![rule])], &[("app", &[app])])).await;
        let mut stream = scene.connect(HTTP).await;
        let request = "GET http://right.example.com/x HTTP/1.1\r\nhost: wrong.example.com\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = String::from_utf8(read_all(&mut stream).await.unwrap()).unwrap();
        assert!(answer.contains(r#""host":"right.example.com""#), "{answer}");
        assert!(!answer.contains("wrong"), "{answer}");
        assert!(answer.contains(r#""target":"/x""#), "{answer}");
    }
}

#[tokio::test]
async fn an_upgrade_to_http2_is_passed_over_and_none_is_passed_on_with_a_body() {
    let (scene, listener) = to_listener().await;
    let h2c = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let body = "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n\r\n12345";
    for (request, end) in [(h2c, "\r\n\r\n"), (body, "\r\n\r\n12345")] {
        let mut client = scene.connect(HTTP).await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut stream = accept(&listener).await;
        let mut seen = String::new();
        while !seen.ends_with(end) {
            seen.push(char::from(within(stream.read_u8()).await.unwrap()));
        }
        assert!(!seen.to_ascii_lowercase().contains("upgrade"), "{seen}");
        assert!(!seen.contains("http2-settings"), "{seen}");
        // A switch that was not asked for is none.
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        drop(stream);
        let mut status = [0; 13];
        within(client.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 502 ");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_before_its_body_gets_it() {
    let (scene, listener) = to_listener().await;
    let mut client = scene.connect(HTTP).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut stream = accept(&listener).await;
    let mut word = [0; 25];
    within(client.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"12345").await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\n12345") {
        seen.push(char::from(within(stream.read_u8()).await.unwrap()));
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    stream.write_all(answer).await.unwrap();
    let mut status = [0; 13];
    within(client.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 ");
    // One that is refused is told so at once.
    let mut snapshot = site(&[], &[]);
    snapshot.http_routes.clear();
    let scene = Scene::new(&snapshot).await;
    let mut client = scene.connect(HTTP).await;
    client.write_all(head.as_bytes()).await.unwrap();
    within(client.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 404 ");
}

#[tokio::test]
async fn a_response_may_come_before_the_end_of_its_request() {
    let (scene, listener) = to_listener().await;
    let mut client = scene.connect(HTTP).await;
    let start = format!("{CHUNKED}4\r\nhalf\r\n");
    client.write_all(start.as_bytes()).await.unwrap();
    let mut stream = accept(&listener).await;
    let mut seen = String::new();
    while !seen.ends_with("half\r\n") {
        seen.push(char::from(within(stream.read_u8()).await.unwrap()));
    }
    let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno\n";
    stream.write_all(answer).await.unwrap();
    let mut got = String::new();
    while !got.ends_with("\r\n\r\nno\n") {
        got.push(char::from(within(client.read_u8()).await.unwrap()));
    }
    assert!(got.starts_with("HTTP/1.1 413 "), "{got}");
}

// === time ===

fn impatient() -> Limits {
    Limits {
        head_timeout: Duration::from_millis(200),
        body_timeout: Some(Duration::from_millis(200)),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let mut stage = Stage::with(impatient()).await;
    for start in [
        "",
        "G",
        "GET / HTTP/1.1\r\nhost: a\r\nx",
        "PRI * HTTP/2.0\r\n\r\nS",
    ] {
        let answer = stage.answer(start.as_bytes()).await;
        assert_eq!(answer, "", "{start:?}");
    }
    assert_eq!(stage.witness.saw(), "");
    // Its own head came in time; the connection may have been idle for too long meanwhile.
    stage.neighbour = Client::new(&stage.scene, Version::HTTP_11).await;
    stage.is_calm().await;
}

#[tokio::test]
async fn a_body_that_stops_is_given_up_on_both_sides() {
    let (scene, listener) = to_listener_with(impatient()).await;
    let mut client = scene.connect(HTTP).await;
    let request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    client.write_all(request).await.unwrap();
    let seen = seen(&listener).await;
    assert!(seen.ends_with("\r\n\r\nhalf"), "{seen}");
    let mut status = [0; 13];
    within(client.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 408 ");

    let mut client = scene.connect(HTTP).await;
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut stream = accept(&listener).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
    stream.write_all(answer).await.unwrap();
    let mut got = Vec::new();
    // A reset, or an end before the length that was said.
    let _ = within(client.read_to_end(&mut got)).await;
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(got.is_empty() || got.ends_with("\r\n\r\nhalf"), "{got}");
    drop(stream);
}
