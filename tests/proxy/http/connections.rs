//! Connections on both sides: versions, pools, upgrades, ends.

use super::scene::{
    Client, HTTP, ask, below, filtered, get, mirror_of, request, rule, serve, site, text, to, told,
};
use crate::proxy::scene::{Scene, accept, backend, dead, read_all, within};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tailway::model::{BackendProtocol, HttpRule, Retry, Timeouts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn both_versions_are_understood_and_backends_get_the_one_they_speak() {
    let (plain, h2c) = (mirror_of("plain").await, mirror_of("h2c").await);
    let rules = vec![
        rule(vec![below("/")], "plain"),
        rule(vec![below("/h2c")], "h2c"),
    ];
    let mut snapshot = site(&[("route", rules)], &[("plain", &[plain]), ("h2c", &[h2c])]);
    let id = crate::proxy::scene::backend_id("h2c");
    snapshot.backends.get_mut(&id).unwrap().protocol = BackendProtocol::H2c;
    let scene = Scene::new(&snapshot).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::new(&scene, version).await;
        let one = told(client.send(get("/a?b=c")).await).await;
        assert_eq!(one["version"], "HTTP/1.1");
        assert_eq!(one["headers"]["host"], "web.example.com");
        assert_eq!(one["target"], "/a?b=c");
        let two = told(client.send(get("/h2c/a?b=c")).await).await;
        assert_eq!(two["version"], "HTTP/2.0");
        assert_eq!(two["authority"], "web.example.com");
        assert_eq!(two["headers"]["host"], serde_json::Value::Null);
        assert_eq!(two["target"], "/h2c/a?b=c");
    }
}

#[tokio::test]
async fn a_backend_is_told_who_asks_and_nothing_of_the_clients_connection() {
    let app = mirror_of("app").await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[app])],
    ))
    .await;
    let asked = request(
        Method::GET,
        "/",
        &[
            ("x-forwarded-for", "10.9.9.9"),
            ("tailscale-user-login", "admin@example.com"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("x-mine", "2"),
        ],
    );
    let headers = told(ask(&scene, asked).await).await["headers"].take();
    let expected = serde_json::json!({
        "host": "web.example.com",
        "x-mine": "2",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "web.example.com",
        "x-forwarded-proto": "http",
    });
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn bodies_pass_both_ways_as_they_come() {
    let app = mirror_of("app").await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[app])],
    ))
    .await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::new(&scene, version).await;
        let body = "x".repeat(1 << 20);
        let mut post = request(Method::POST, "/", &[]);
        *post.body_mut() = Full::from(body.clone());
        let told = told(client.send(post).await).await;
        assert_eq!(told["body"], body);
        assert_eq!(told["method"], "POST");
    }
}

#[tokio::test]
async fn a_connection_to_a_backend_is_kept_and_shared_by_turns() {
    let (listener, address) = backend().await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[address])],
    ))
    .await;
    let served = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        for answer in ["one", "two", "three"] {
            let head = read_head(&mut stream).await;
            assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
            let response = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    for answer in ["one", "two", "three"] {
        assert_eq!(text(ask(&scene, get("/")).await).await, answer);
    }
    within(served).await.unwrap();
}

/// The head of a request, as it is on the wire.
async fn read_head(stream: &mut tokio::net::TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_kept_connection_that_has_ended_costs_nobody_a_request() {
    let (listener, address) = backend().await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[address])],
    ))
    .await;
    let served = tokio::spawn(async move {
        for _ in 0..3 {
            let mut stream = accept(&listener).await;
            read_head(&mut stream).await;
            let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(response).await.unwrap();
            // Ended without a word, as servers do with connections that were idle.
        }
    });
    for _ in 0..3 {
        assert_eq!(text(ask(&scene, get("/")).await).await, "ok");
    }
    within(served).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_served_has_the_status_the_specification_asks_for() {
    let (_socket, nobody) = dead();
    let rules = vec![
        HttpRule {
            backends: Vec::new(),
            ..rule(vec![below("/none")], "app")
        },
        HttpRule {
            backends: vec![tailway::model::HttpBackend {
                backend: None,
                ..to("app")
            }],
            ..rule(vec![below("/invalid")], "app")
        },
        rule(vec![below("/empty")], "empty"),
        rule(vec![below("/dead")], "dead"),
    ];
    let snapshot = site(&[("route", rules)], &[("empty", &[]), ("dead", &[nobody])]);
    let scene = Scene::new(&snapshot).await;
    let table = [
        ("/none", 500),
        ("/invalid", 500),
        ("/empty", 503),
        ("/dead", 503),
        ("/", 404),
    ];
    for (path, status) in table {
        let response = ask(&scene, get(path)).await;
        assert_eq!(response.status(), status, "{path}");
        let call = request(Method::POST, path, &[("content-type", "application/grpc")]);
        let response = Client::new(&scene, Version::HTTP_2).await.send(call).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let code = if status == 404 { "12" } else { "14" };
        assert_eq!(response.headers()["grpc-status"], code, "{path}");
    }
    for (raw, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "405"),
    ] {
        let mut stream = scene.connect(HTTP).await;
        stream.write_all(raw.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{raw}: {head}"
        );
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let never = serve(|_| std::future::pending()).await;
    let rules = [
        Timeouts {
            request: Some(Duration::from_millis(100)),
            backend_request: None,
        },
        Timeouts {
            request: None,
            backend_request: Some(Duration::from_millis(100)),
        },
    ];
    for timeouts in rules {
        let rule = HttpRule {
            timeouts,
            ..rule(vec![below("/")], "app")
        };
        let scene = Scene::new(&site(&[("route", vec![rule])], &[("app", &[never])])).await;
        let response = ask(&scene, get("/")).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    }
}

#[tokio::test]
async fn a_request_is_tried_again_for_the_statuses_that_were_named() {
    use std::sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    };
    let count = Arc::new(AtomicU16::new(0));
    let counted = Arc::clone(&count);
    let app = serve(move |_| {
        let count = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut response = Response::new(Full::<Bytes>::from(count.to_string()));
            if count % 3 != 2 {
                *response.status_mut() = StatusCode::BAD_GATEWAY;
            }
            response
        }
    })
    .await;
    let rule = HttpRule {
        retry: Some(Retry {
            codes: vec![502],
            attempts: 2,
            backoff: Duration::from_millis(1),
        }),
        ..rule(vec![below("/")], "app")
    };
    let scene = Scene::new(&site(&[("route", vec![rule])], &[("app", &[app])])).await;
    assert_eq!(text(ask(&scene, get("/")).await).await, "2");
    let mut post = request(Method::POST, "/", &[]);
    *post.body_mut() = Full::from("once");
    let response = ask(&scene, post).await;
    assert_eq!(
        response.status(),
        StatusCode::BAD_GATEWAY,
        "a body is sent once"
    );
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_request_whose_backend_could_not_be_reached_is_tried_again_elsewhere() {
    let app = mirror_of("app").await;
    let (_one, dead) = crate::proxy::scene::dead();
    let (_two, gone) = crate::proxy::scene::dead();
    let rule = HttpRule {
        retry: Some(Retry {
            codes: Vec::new(),
            attempts: 2,
            backoff: Duration::from_millis(1),
        }),
        ..rule(vec![below("/")], "app")
    };
    // A try reaches for two endpoints, so that the first may find the dead ones alone.
    let backends = [("app", &[dead, gone, app][..])];
    for _ in 0..8 {
        let scene = Scene::new(&site(&[("route", vec![rule.clone()])], &backends)).await;
        let told = told(ask(&scene, get("/")).await).await;
        assert_eq!(told["backend"], "app");
    }
}

#[tokio::test]
async fn a_websocket_is_a_tunnel_from_then_on() {
    let (listener, address) = backend().await;
    let scene = Scene::new(&site(
        &[("route", vec![filtered(Vec::new())])],
        &[("app", &[address])],
    ))
    .await;
    let server = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        assert_eq!(read_all(&mut stream).await.unwrap(), b"there");
        stream.write_all(b"bye").await.unwrap();
    });
    let mut client = Client::new(&scene, Version::HTTP_11).await;
    let headers = [("connection", "upgrade"), ("upgrade", "websocket")];
    let response = client.send(request(Method::GET, "/", &headers)).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    let mut hi = [0; 2];
    within(tunnel.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
    tunnel.write_all(b"there").await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(read_all(&mut tunnel).await.unwrap(), b"bye");
    within(server).await.unwrap();
}

#[tokio::test]
async fn a_change_of_routes_holds_for_the_next_request_of_an_open_connection() {
    let (a, b) = (mirror_of("a").await, mirror_of("b").await);
    let to = |backend: &str| {
        let routes = [("route", vec![rule(vec![below("/")], backend)])];
        site(&routes, &[("a", &[a]), ("b", &[b])])
    };
    let mut scene = Scene::new(&to("a")).await;
    let mut client = Client::new(&scene, Version::HTTP_11).await;
    assert_eq!(told(client.send(get("/")).await).await["backend"], "a");
    scene.apply(&to("b")).await;
    assert_eq!(told(client.send(get("/")).await).await["backend"], "b");
}

#[tokio::test]
async fn requests_that_are_open_finish_when_the_process_ends() {
    let (listener, address) = backend().await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[address])],
    ))
    .await;
    let mut busy = Client::new(&scene, Version::HTTP_11).await;
    let mut idle = scene.connect(HTTP).await;
    idle.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut first = accept(&listener).await;
    read_head(&mut first).await;
    first
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    read_head(&mut idle).await;
    let open = tokio::spawn(async move { text(busy.send(get("/")).await).await });
    read_head(&mut first).await;
    let drain = scene.drain.clone();
    let ended = tokio::spawn(async move { drain.end(Duration::from_secs(20)).await });
    assert_eq!(
        read_all(&mut idle).await.unwrap(),
        b"",
        "an idle one ends at once"
    );
    first
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")
        .await
        .unwrap();
    assert_eq!(within(open).await.unwrap(), "done");
    assert!(within(ended).await.unwrap(), "nothing was forced");
}

#[tokio::test]
async fn trailers_reach_the_client() {
    let (listener, address) = backend().await;
    let scene = Scene::new(&site(
        &[("route", vec![rule(vec![below("/")], "app")])],
        &[("app", &[address])],
    ))
    .await;
    tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_head(&mut stream).await;
        let response = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
        stream.write_all(response).await.unwrap();
    });
    let asked: Request<Full<Bytes>> = request(Method::GET, "/", &[("te", "trailers")]);
    let response = Client::new(&scene, Version::HTTP_2).await.send(asked).await;
    let body = within(response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "7");
    assert_eq!(body.to_bytes(), "ok");
}
