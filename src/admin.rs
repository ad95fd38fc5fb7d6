//! The admin server: is it alive, is it ready, what does it serve, what does it count.

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};

/// What the admin server shows.
pub trait View: Send + Sync + 'static {
    /// `Err` says, a line each, what is not ready.
    fn ready(&self) -> Result<(), String>;
    /// OpenMetrics text.
    fn metrics(&self) -> String;
    /// The snapshots as YAML, secrets redacted.
    fn config(&self) -> String;
    /// The statuses of all objects as YAML.
    fn status(&self) -> String;
}

/// A bound admin server that does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot serve admin pages at {address}: {error}; choose another --admin-addr")]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
}

/// A client that sends its headers more slowly than this is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

// === impl Admin ===

impl Admin {
    /// # Errors
    /// When the address is taken or not this host's.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = TcpListener::bind(address).await.and_then(|listener| {
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        });
        bound.map_err(|error| BindError { address, error })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until dropped.
    pub async fn serve(self, view: Arc<dyn View>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve_connection(stream, Arc::clone(&view)));
                }
                Err(error) => {
                    tracing::warn!(%error, "admin server cannot accept");
                    // Out of file descriptors, most likely: trying again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, view: Arc<dyn View>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), view.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection ended early");
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const YAML: &str = "application/yaml";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn answer(method: &Method, path: &str, view: &dyn View) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n");
        response
            .headers_mut()
            .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => match view.ready() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ready\n"),
            Err(reasons) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons),
        },
        "/metrics" => respond(StatusCode::OK, OPEN_METRICS, view.metrics()),
        "/config" => respond(StatusCode::OK, YAML, view.config()),
        "/status" => respond(StatusCode::OK, YAML, view.status()),
        "/" => respond(
            StatusCode::OK,
            TEXT,
            "/healthz\n/readyz\n/metrics\n/config\n/status\n",
        ),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "no such page; / lists them\n"),
    }
}

fn respond(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(media_type),
    );
    response
}
