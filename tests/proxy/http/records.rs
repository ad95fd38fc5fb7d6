//! What is counted of requests, and what is logged.

use super::scene::{
    Client, HTTP, ask, below, get, mirror_of, request, rule, serve, site, text, told,
};
use crate::proxy::scene::{Scene, accept, backend, dead, within};
use bytes::Bytes;
use http::{Method, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::model::{HttpFilter, HttpRule, Mirror, Redirect, Retry, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

// === metrics ===

/// What is counted of requests, but for what depends on the clock.
fn counted(scene: &Scene) -> Vec<String> {
    let text = scene.metrics.encode();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("tailway_http_"));
    let lines = lines.filter(|line| !line.contains("_sum{") && !line.contains("_bucket{"));
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn line(name: &str, route: &str, backend: &str, more: &str, value: u64) -> String {
    format!(
        r#"tailway_http_{name}{{gateway="default/web",listener="http",route="{route}",backend="{backend}"{more}}} {value}"#
    )
}

#[tokio::test]
async fn a_known_course_of_requests_has_known_metrics() {
    let app = serve(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Full::from(format!("got {}", body.len())))
    })
    .await;
    let (_socket, nobody) = dead();
    let rules = vec![
        rule(vec![below("/")], "app"),
        rule(vec![below("/dead")], "dead"),
        HttpRule {
            filters: vec![HttpFilter::Redirect(Redirect {
                scheme: Some("https".into()),
                hostname: None,
                path: None,
                port: None,
                status: 301,
            })],
            backends: Vec::new(),
            ..rule(vec![below("/moved")], "app")
        },
    ];
    let mut snapshot = site(&[("route", rules)], &[("app", &[app]), ("dead", &[nobody])]);
    let mut scene = Scene::new(&snapshot).await;
    let mut client = Client::new(&scene, Version::HTTP_11).await;
    let mut post = request(Method::POST, "/", &[]);
    *post.body_mut() = Full::from("12345");
    assert_eq!(text(client.send(post).await).await, "got 5");
    for _ in 0..2 {
        assert_eq!(text(client.send(get("/")).await).await, "got 0");
    }
    // A method that nobody knows has no label of its own.
    let brew = request(Method::from_bytes(b"BREW").unwrap(), "/", &[]);
    assert_eq!(text(client.send(brew).await).await, "got 0");
    let moved = client.send(get("/moved")).await;
    assert_eq!(moved.status(), StatusCode::MOVED_PERMANENTLY);
    text(moved).await;
    let dead = client.send(get("/dead")).await;
    assert_eq!(dead.status(), StatusCode::SERVICE_UNAVAILABLE);
    text(dead).await;
    let route = "HTTPRoute default/route";
    let (app, dead) = ("default/app:80", "default/dead:80");
    let code = |method: &str, code: &str| format!(r#",method="{method}",code="{code}""#);
    let last = line("requests_total", route, dead, &code("GET", "5xx"), 1);
    scene.until_metric(&last).await;
    let text_of_dead = "the backend could not be reached\n".len() as u64;
    let mut expected = vec![
        line("requests_total", route, app, &code("POST", "2xx"), 1),
        line("requests_total", route, app, &code("GET", "2xx"), 2),
        line("requests_total", route, app, &code("other", "2xx"), 1),
        line("requests_total", route, "", &code("GET", "3xx"), 1),
        last,
        line(
            "refusals_total",
            route,
            dead,
            r#",reason="connection_refused""#,
            1,
        ),
        line(
            "backend_connections_total",
            route,
            app,
            r#",kind="opened""#,
            1,
        ),
        line(
            "backend_connections_total",
            route,
            app,
            r#",kind="reused""#,
            3,
        ),
    ];
    for (backend, requests, received, sent) in
        [(app, 4, 5, 20), (dead, 1, 0, text_of_dead), ("", 1, 0, 0)]
    {
        expected.push(line("requests_open", route, backend, "", 0));
        expected.push(line(
            "request_duration_seconds_count",
            route,
            backend,
            "",
            requests,
        ));
        expected.push(line("received_bytes_total", route, backend, "", received));
        expected.push(line("sent_bytes_total", route, backend, "", sent));
    }
    expected.sort_unstable();
    assert_eq!(counted(&scene), expected);

    // What comes to no route is the listener's.
    snapshot.http_routes.clear();
    scene.apply(&snapshot).await;
    assert_eq!(client.send(get("/")).await.status(), StatusCode::NOT_FOUND);
    let last = line("requests_total", "", "", &code("GET", "4xx"), 1);
    scene.until_metric(&last).await;
    let gone = counted(&scene);
    assert!(!gone.iter().any(|line| line.contains(route)), "{gone:#?}");
    assert!(gone.contains(&line("refusals_total", "", "", r#",reason="no_route""#, 1)));
}

#[tokio::test]
async fn what_stays_in_a_snapshot_keeps_its_counts_and_what_is_open_is_counted() {
    let (listener, address) = backend().await;
    let routes = [("route", vec![rule(vec![below("/")], "app")])];
    let snapshot = site(&routes, &[("app", &[address])]);
    let mut scene = Scene::new(&snapshot).await;
    let mut client = Client::new(&scene, Version::HTTP_11).await;
    let open = tokio::spawn(async move { text(client.send(get("/")).await).await });
    let mut stream = accept(&listener).await;
    let (route, app) = ("HTTPRoute default/route", "default/app:80");
    scene
        .until_metric(&line("requests_open", route, app, "", 1))
        .await;
    scene.apply(&snapshot).await;
    let opened = line(
        "backend_connections_total",
        route,
        app,
        r#",kind="opened""#,
        1,
    );
    scene.until_metric(&opened).await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    stream.write_all(answer).await.unwrap();
    assert_eq!(within(open).await.unwrap(), "ok");
    let ended = r#",method="GET",code="2xx""#;
    scene
        .until_metric(&line("requests_total", route, app, ended, 1))
        .await;
    scene
        .until_metric(&line("requests_open", route, app, "", 0))
        .await;
}

#[tokio::test]
async fn retries_and_copies_are_counted() {
    let failing = serve(|_| async {
        let mut response = Response::new(Full::<Bytes>::default());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    })
    .await;
    let copy = mirror_of("copy").await;
    let mirror = Mirror {
        backend: Some(crate::proxy::scene::backend_id("copy")),
        numerator: 1,
        denominator: 1,
    };
    let rule = HttpRule {
        filters: vec![HttpFilter::Mirror(mirror)],
        retry: Some(Retry {
            codes: vec![502],
            attempts: 2,
            backoff: Duration::from_millis(1),
        }),
        ..rule(vec![below("/")], "app")
    };
    let backends: [(&str, &[SocketAddr]); 2] = [("app", &[failing]), ("copy", &[copy])];
    let scene = Scene::new(&site(&[("route", vec![rule])], &backends)).await;
    let response = ask(&scene, get("/")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let (route, app) = ("HTTPRoute default/route", "default/app:80");
    scene
        .until_metric(&line("retries_total", route, app, "", 2))
        .await;
    scene
        .until_metric(&line("mirrored_total", route, app, "", 1))
        .await;
}

// === log ===

/// Lines that were logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let layer = layer.with_writer(lines.clone());
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        (lines, guard)
    }

    fn requests(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["target"] == "tailway::requests")
            .collect()
    }

    /// Waits for the first line; its times are taken out, and were there.
    async fn first(&self) -> Value {
        let mut line = within(async {
            loop {
                if let Some(line) = self.requests().into_iter().next() {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let fields = line.as_object_mut().unwrap();
        assert!(fields.remove("timestamp").unwrap().is_string());
        assert!(fields.remove("microseconds").unwrap().is_u64());
        line
    }
}

fn logged(address: SocketAddr, one_in: u32) -> Snapshot {
    let rule = HttpRule {
        name: "all".into(),
        ..rule(vec![below("/")], "app")
    };
    let mut snapshot = site(&[("route", vec![rule])], &[("app", &[address])]);
    snapshot.http_options.access_log = NonZeroU32::new(one_in);
    snapshot
}

#[tokio::test]
async fn a_request_is_a_line_of_the_log_without_what_may_be_secret() {
    let app = serve(|_| async { Response::new(Full::<Bytes>::from("hello")) }).await;
    let scene = Scene::new(&logged(app, 1)).await;
    let (lines, _guard) = Lines::start();
    let headers = [
        ("authorization", "Bearer secret"),
        ("cookie", "session=secret"),
    ];
    let mut post = request(Method::POST, "/a/b?token=secret", &headers);
    *post.body_mut() = Full::from("123");
    assert_eq!(text(ask(&scene, post).await).await, "hello");
    let mut line = lines.first().await;
    let first_byte = line
        .as_object_mut()
        .unwrap()
        .remove("first_byte_microseconds");
    assert!(first_byte.unwrap().is_u64());
    let expected = json!({
        "level": "INFO",
        "target": "tailway::requests",
        "message": "request",
        "gateway": "default/web",
        "listener": "http",
        "route": "HTTPRoute default/route",
        "rule": "all",
        "backend": "default/app:80",
        "endpoint": app.to_string(),
        "peer": "127.0.0.1",
        "protocol": "HTTP/1.1",
        "method": "POST",
        "host": "web.example.com",
        "path": "/a/b",
        "status": 200,
        "received": 3,
        "sent": 5,
        "outcome": "complete",
    });
    assert_eq!(line, expected);
    assert!(!String::from_utf8_lossy(&lines.0.lock().unwrap()).contains("secret"));
}

#[tokio::test]
async fn the_log_says_how_a_request_ended_that_did_not_end_well() {
    // A response that is cut by the backend.
    let (listener, address) = backend().await;
    let scene = Scene::new(&logged(address, 1)).await;
    let (lines, _guard) = Lines::start();
    let mut client = scene.connect(HTTP).await;
    let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(head).await.unwrap();
    let mut stream = accept(&listener).await;
    stream.read_u8().await.unwrap();
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
    stream.write_all(answer).await.unwrap();
    drop(stream);
    let line = lines.first().await;
    assert_eq!(
        (&line["outcome"], &line["sent"]),
        (&json!("backend_cut"), &json!(4))
    );
    drop(_guard);

    // One that no rule is for, and one that its client gave up.
    let mut snapshot = logged(address, 1);
    snapshot.http_routes.clear();
    let scene = Scene::new(&snapshot).await;
    let (lines, _guard) = Lines::start();
    ask(&scene, get("/x")).await;
    let line = lines.first().await;
    assert_eq!(
        (&line["outcome"], &line["status"]),
        (&json!("no_route"), &json!(404))
    );
    assert_eq!(line.get("route"), None);
    drop(_guard);

    let scene = Scene::new(&logged(address, 1)).await;
    let (lines, _guard) = Lines::start();
    let mut client = scene.connect(HTTP).await;
    client.write_all(head).await.unwrap();
    let _stream = accept(&listener).await;
    drop(client);
    let line = lines.first().await;
    assert_eq!(line["outcome"], "client_gone");
    assert_eq!(line.get("status"), None);
}

#[tokio::test]
async fn one_in_so_many_requests_is_logged_or_none() {
    let app = mirror_of("app").await;
    let scene = Scene::new(&logged(app, 4)).await;
    let (lines, guard) = Lines::start();
    let mut client = Client::new(&scene, Version::HTTP_11).await;
    for _ in 0..400 {
        told(client.send(get("/")).await).await;
    }
    let count = lines.requests().len();
    assert!((50..150).contains(&count), "{count} of 400");
    drop(guard);
    let mut silent = logged(app, 1);
    silent.http_options.access_log = None;
    let scene = Scene::new(&silent).await;
    let (lines, _guard) = Lines::start();
    told(ask(&scene, get("/")).await).await;
    assert_eq!(lines.requests(), Vec::<Value>::new());
}
