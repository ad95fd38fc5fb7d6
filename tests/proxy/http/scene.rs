//! Routes as they are written in a test, backends that tell what they got, and clients.

use crate::proxy::scene::{Scene, backend, backend_id, snapshot, within};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr};
use tailway::model::{
    AttachedRoute, HostnamePattern, HttpBackend, HttpFilter, HttpListener, HttpMatch, HttpRoute,
    HttpRouteKind, HttpRule, ObjectName, PathMatch, Port, RouteId, Snapshot, Value as Wanted,
    ValueMatch,
};
use tokio::net::TcpStream;

pub const HTTP: u16 = 80;

// === objects ===

pub fn route_id(name: &str) -> RouteId {
    RouteId {
        kind: HttpRouteKind::Http,
        name: ObjectName::new("default", name),
    }
}

/// A route for hosts; none of them: for all.
pub fn attached(name: &str, hostnames: &[&str]) -> AttachedRoute {
    let hostname = |text: &&str| HostnamePattern::parse(text).unwrap();
    AttachedRoute {
        route: route_id(name),
        hostnames: hostnames.iter().map(hostname).collect(),
    }
}

pub fn listener(name: &str, hostname: Option<&str>, routes: Vec<AttachedRoute>) -> HttpListener {
    HttpListener {
        name: name.into(),
        hostname: hostname.map(|text| HostnamePattern::parse(text).unwrap()),
        routes,
    }
}

/// Everything below a path.
pub fn below(path: &str) -> HttpMatch {
    HttpMatch {
        path: PathMatch::prefix(path),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    }
}

pub fn exact(path: &str) -> HttpMatch {
    HttpMatch {
        path: PathMatch::Exact(path.into()),
        ..below("")
    }
}

pub fn is(name: &str, value: &str) -> ValueMatch {
    ValueMatch {
        name: name.into(),
        value: Wanted::Exact(value.into()),
    }
}

pub fn looks_like(name: &str, regex: &str) -> ValueMatch {
    ValueMatch {
        name: name.into(),
        value: Wanted::Regex(regex.into()),
    }
}

/// Requests that fit go to a backend.
pub fn rule(matches: Vec<HttpMatch>, backend: &str) -> HttpRule {
    HttpRule {
        matches,
        backends: vec![to(backend)],
        ..HttpRule::default()
    }
}

/// All requests are changed by filters, and go to the backend "app".
pub fn filtered(filters: Vec<HttpFilter>) -> HttpRule {
    HttpRule {
        filters,
        ..rule(vec![below("/")], "app")
    }
}

pub fn to(backend: &str) -> HttpBackend {
    HttpBackend {
        weight: 1,
        backend: Some(backend_id(backend)),
        filters: Vec::new(),
    }
}

/// One listener, "http", with routes of these rules for all hosts.
pub fn site(routes: &[(&str, Vec<HttpRule>)], backends: &[(&str, &[SocketAddr])]) -> Snapshot {
    let attached = routes.iter().map(|(name, _)| attached(name, &[]));
    let listener = listener("http", None, attached.collect());
    with_routes(vec![listener], routes, backends)
}

pub fn with_routes(
    listeners: Vec<HttpListener>,
    routes: &[(&str, Vec<HttpRule>)],
    backends: &[(&str, &[SocketAddr])],
) -> Snapshot {
    let mut snapshot = snapshot([(HTTP, Port::Http(listeners))], backends);
    snapshot.http_routes = routes
        .iter()
        .map(|(name, rules)| {
            let rules = rules.clone();
            (route_id(name), HttpRoute { rules })
        })
        .collect();
    snapshot
}

// === backends ===

/// A backend that answers in JSON what it was asked.
pub async fn mirror_of(name: &'static str) -> SocketAddr {
    serve(move |request| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().map(object);
        let body = String::from_utf8(body.to_bytes().into()).unwrap();
        let told = json!({
            "backend": name,
            "method": parts.method.as_str(),
            "target": parts.uri.path_and_query().map(ToString::to_string),
            "version": format!("{:?}", parts.version),
            "authority": parts.uri.authority().map(ToString::to_string),
            "headers": object(&parts.headers),
            "body": body,
            "trailers": trailers,
        });
        Response::new(Full::from(told.to_string()))
    })
    .await
}

fn object(headers: &HeaderMap) -> Value {
    let names = headers.keys().map(|name| {
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        (name.to_string(), Value::from(values.join(", ")))
    });
    Value::Object(names.collect())
}

/// A backend of both versions of HTTP.
pub async fn serve<F, A>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (listener, address) = backend().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let response = answer(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
    });
    address
}

// === clients ===

/// A connection of HTTP/1.1 or HTTP/2.
pub enum Client {
    One(conn::http1::SendRequest<Full<Bytes>>),
    Two(conn::http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub async fn new(scene: &Scene, version: Version) -> Self {
        let stream = TokioIo::new(scene.connect(HTTP).await);
        Self::over(stream, version).await
    }

    pub async fn over(stream: TokioIo<TcpStream>, version: Version) -> Self {
        if version == Version::HTTP_2 {
            let handshake = conn::http2::handshake(TokioExecutor::new(), stream);
            let (sender, connection) = handshake.await.unwrap();
            tokio::spawn(connection);
            return Self::Two(sender);
        }
        let (sender, connection) = conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self::One(sender)
    }

    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Response<Incoming> {
        let response = match self {
            Self::One(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request)
            }
            Self::Two(sender) => {
                let host = request.headers_mut().remove("host").unwrap();
                let target = request.uri().path_and_query().unwrap();
                let uri = format!("http://{}{target}", host.to_str().unwrap());
                *request.uri_mut() = uri.parse().unwrap();
                sender.ready().await.unwrap();
                return within(sender.send_request(request)).await.unwrap();
            }
        };
        within(response).await.unwrap()
    }
}

/// A request without a body to `web.example.com`.
pub fn get(target: &str) -> Request<Full<Bytes>> {
    request(Method::GET, target, &[])
}

pub fn request(method: Method, target: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| *name == "host") {
        builder = builder.header("host", "web.example.com");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::default()).unwrap()
}

/// Asks on a connection of its own.
pub async fn ask(scene: &Scene, request: Request<Full<Bytes>>) -> Response<Incoming> {
    Client::new(scene, Version::HTTP_11)
        .await
        .send(request)
        .await
}

pub async fn text(response: Response<Incoming>) -> String {
    let body = within(response.into_body().collect()).await.unwrap();
    String::from_utf8(body.to_bytes().into()).unwrap()
}

/// What a backend made by [`mirror_of`] tells of a request.
pub async fn told(response: Response<Incoming>) -> Value {
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_str(&text(response).await).unwrap()
}

/// The backend that a request goes to, or the status of our own answer.
pub async fn asked(scene: &Scene, request: Request<Full<Bytes>>) -> String {
    let response = ask(scene, request).await;
    match response.status() {
        StatusCode::OK => told(response).await["backend"].as_str().unwrap().into(),
        status => status.as_u16().to_string(),
    }
}
