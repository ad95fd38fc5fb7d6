//! gRPC: HTTP/2 to backends whatever they say of themselves, streams both ways, and statuses of
//! our own.

use super::scene::{HTTP, below, exact, listener, route_id, rule, with_routes};
use crate::proxy::scene::{Scene, backend, within};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http2, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, net::SocketAddr};
use tailway::model::{AttachedRoute, HttpBackend, HttpRoute, HttpRouteKind, HttpRule, Snapshot};
use tokio::sync::mpsc;

type Frames = mpsc::UnboundedSender<Frame<Bytes>>;
type StreamedBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body that a test sends piece by piece; it ends with its sender.
fn streamed() -> (Frames, StreamedBody) {
    let (frames, received) = mpsc::unbounded_channel();
    let stream = futures_util::stream::unfold(received, |mut received| async {
        let frame = received.recv().await?;
        Some((Ok(frame), received))
    });
    (frames, StreamBody::new(stream).boxed_unsync())
}

fn trailers(name: &'static str, value: &'static str) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(
        name.parse().unwrap(),
        value.parse().unwrap(),
    )]))
}

/// A server of HTTP/2 alone, which sends every message back with "re: " before it, and in its
/// trailers the version, what the call's trailers were, and that all is well.
pub async fn server_of_calls() -> SocketAddr {
    let (listener, address) = backend().await;
    let answer = |request: Request<Incoming>| async move {
        let (frames, body) = streamed();
        let version = format!("{:?}", request.version());
        let target = request.uri().to_string();
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut last = HeaderMap::new();
            while let Some(Ok(frame)) = body.frame().await {
                match frame.into_data() {
                    // An end without trailers is an empty frame.
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        let back = [b"re: ".as_slice(), &data].concat();
                        let _ = frames.send(Frame::data(back.into()));
                    }
                    Err(frame) => last = frame.into_trailers().unwrap(),
                }
            }
            last.insert("grpc-status", "0".parse().unwrap());
            last.insert("x-version", version.parse().unwrap());
            last.insert("x-target", target.parse().unwrap());
            let _ = frames.send(Frame::trailers(last));
        });
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

/// A GRPCRoute with these rules on a listener of all hosts.
fn calls(rules: Vec<HttpRule>, backends: &[(&str, &[SocketAddr])]) -> Snapshot {
    let mut id = route_id("calls");
    id.kind = HttpRouteKind::Grpc;
    let attached = AttachedRoute {
        route: id.clone(),
        hostnames: Vec::new(),
    };
    let listeners = vec![listener("http", None, vec![attached])];
    let mut snapshot = with_routes(listeners, &[], backends);
    snapshot.http_routes.insert(id, HttpRoute { rules });
    snapshot
}

async fn client(scene: &Scene) -> http2::SendRequest<StreamedBody> {
    let stream = TokioIo::new(scene.connect(HTTP).await);
    let handshake = http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(path: &str, body: StreamedBody) -> Request<StreamedBody> {
    Request::post(format!("http://grpc.example.com{path}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

async fn message(body: &mut Incoming) -> Frame<Bytes> {
    within(body.frame()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_call_streams_both_ways_and_its_trailers_arrive_on_both_sides() {
    let app = server_of_calls().await;
    // The Service says nothing of its protocol.
    let rules = vec![rule(vec![exact("/echo.Echo/Chat")], "app")];
    let scene = Scene::new(&calls(rules, &[("app", &[app])])).await;
    let mut client = client(&scene).await;
    let (frames, body) = streamed();
    let response = client.send_request(call("/echo.Echo/Chat", body));
    frames.send(Frame::data("one".into())).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut answers = response.into_body();
    // Each message is answered before the next one is sent.
    let data = |frame: Frame<Bytes>| frame.into_data().unwrap();
    assert_eq!(data(message(&mut answers).await), "re: one");
    frames.send(Frame::data("two".into())).unwrap();
    assert_eq!(data(message(&mut answers).await), "re: two");
    frames.send(trailers("x-client", "said")).unwrap();
    drop(frames);
    let last = message(&mut answers).await.into_trailers().unwrap();
    assert_eq!(last["x-client"], "said");
    assert_eq!(last["grpc-status"], "0");
    assert_eq!(last["x-version"], "HTTP/2.0");
    assert_eq!(last["x-target"], "http://grpc.example.com/echo.Echo/Chat");
}

#[tokio::test]
async fn many_calls_share_few_connections_and_none_waits_for_another() {
    let app = server_of_calls().await;
    let scene = Scene::new(&calls(
        vec![rule(vec![below("/")], "app")],
        &[("app", &[app])],
    ))
    .await;
    let mut client = client(&scene).await;
    let mut open = Vec::new();
    // More than one connection takes at a time.
    for _ in 0..230 {
        let (frames, body) = streamed();
        let response = client.send_request(call("/echo.Echo/Chat", body));
        frames.send(Frame::data("one".into())).unwrap();
        open.push((frames, within(response).await.unwrap()));
    }
    for (frames, response) in open {
        let mut body = response.into_body();
        let first = message(&mut body).await.into_data().unwrap();
        assert_eq!(first, "re: one");
        drop(frames);
        let last = message(&mut body).await.into_trailers().unwrap();
        assert_eq!(last["grpc-status"], "0");
    }
    let opened = r#"tailway_http_backend_connections_total{gateway="default/web",listener="http",route="GRPCRoute default/calls",backend="default/app:80",kind="opened"} 3"#;
    scene.until_metric(opened).await;
}

#[tokio::test]
async fn what_is_answered_here_is_trailers_only_with_the_status_of_the_specification() {
    let rules = vec![
        rule(vec![below("/empty")], "empty"),
        HttpRule {
            backends: vec![HttpBackend {
                weight: 1,
                backend: None,
                filters: Vec::new(),
            }],
            ..rule(vec![below("/invalid")], "empty")
        },
    ];
    let scene = Scene::new(&calls(rules, &[("empty", &[])])).await;
    let mut client = client(&scene).await;
    for (path, status) in [
        // UNIMPLEMENTED, and UNAVAILABLE twice.
        ("/no.Such/Method", "12"),
        ("/empty", "14"),
        ("/invalid", "14"),
    ] {
        let (frames, body) = streamed();
        drop(frames);
        let response = within(client.send_request(call(path, body))).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers();
        assert_eq!(headers["grpc-status"], status, "{path}");
        assert_eq!(headers["content-type"], "application/grpc");
        assert!(headers.contains_key("grpc-message"));
        let body = response.into_body();
        assert!(body.is_end_stream(), "{path}: headers are all there is");
    }
    // What is no call is told in HTTP.
    let (_, body) = streamed();
    let mut plain = call("/no.Such/Method", body);
    let kind = "application/grpc-web".parse().unwrap();
    plain.headers_mut().insert("content-type", kind);
    let response = within(client.send_request(plain)).await.unwrap();
    assert_eq!(response.status(), 404);
}
