//! One connection, from accept to its last byte.

use super::{
    Limits,
    balance::{Balancer, Connected, Route, Unreachable},
    http::{self, CurrentPort, HttpPort, Peer, Version},
    limits::Place,
    tls::{self, ReadAhead, TlsPort},
};
use crate::{
    drain::Drain,
    metrics::{ListenerMetrics, Metrics},
    net::{
        Accepted, End, Flow, Progress, SpliceOptions, Stream, Transfer,
        host::{close_in_order, reset_on_close},
        relay::copy_both,
    },
};
use arc_swap::ArcSwap;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// What a port serves at the moment.
#[derive(Debug)]
pub(super) enum Serving {
    Tcp(Served),
    Http(Arc<HttpPort>),
    Tls {
        tls: TlsPort<Then>,
        /// Of the listeners whose bytes are HTTP.
        http: Arc<HttpPort>,
    },
}

/// What becomes of the plain bytes of a TLS listener.
#[derive(Debug)]
pub(super) enum Then {
    Forward(Served),
    Http(Served),
}

/// Where a connection came in.
pub(super) struct Connection {
    pub(super) port: Arc<ArcSwap<Serving>>,
    pub(super) context: Arc<Context>,
    pub(super) drain: Drain,
}

/// A listener and the route that it has.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) listener: String,
    pub(super) metrics: ListenerMetrics,
    pub(super) route: Option<Arc<Route>>,
}

/// What all connections of a Gateway share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) gateway: String,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
}

/// A TLS peer; unless it ended in order, dropping it resets it.
struct TlsPeer<S: Stream> {
    stream: TlsStream<ReadAhead<S>>,
    server_name: String,
    in_order: bool,
}

/// Who a connection is from, for its log line.
struct Access {
    flow: Flow,
    peer: String,
    node: String,
    started: Instant,
}

/// Serves one connection of a port. Dropping the future resets it.
pub(super) async fn serve<A: Accepted>(accepted: A, connection: Connection, place: Place) {
    let serving = connection.port.load_full();
    match serving.as_ref() {
        Serving::Tcp(served) => serve_tcp(accepted, served, &connection.context).await,
        // On the heap: hyper needs several times what passing bytes on does.
        Serving::Http(_) => Box::pin(serve_http(accepted, &connection, &place)).await,
        Serving::Tls { tls, .. } => serve_tls(accepted, tls, &place, &connection).await,
    }
}

impl Connection {
    fn peer<A: Accepted>(&self, accepted: &A, scheme: &'static str) -> Peer {
        Peer {
            context: Arc::clone(&self.context),
            drain: self.drain.clone(),
            address: accepted.flow().source.ip(),
            identity: accepted.identity(),
            scheme,
            port: CurrentPort {
                serving: Arc::clone(&self.port),
            },
            listener: None,
            server_name: String::new(),
            cut: Arc::default(),
        }
    }
}

async fn serve_http<A: Accepted>(accepted: A, connection: &Connection, place: &Place) {
    let peer = Arc::new(connection.peer(&accepted, "http"));
    let progress = Arc::new(Progress::default());
    let mut meter = place.port_metrics().open(read(&progress));
    let stream = match accepted.open() {
        Ok(stream) => stream,
        Err(error) => {
            let gateway = &connection.context.gateway;
            tracing::debug!(gateway, %error, "connection gone before it was opened");
            return;
        }
    };
    let ended = http::serve(stream, peer, Version::Either, progress).await;
    meter.ended(if ended.is_ok() { "eof" } else { "error" });
}

async fn serve_tcp<A: Accepted>(accepted: A, served: &Served, context: &Context) {
    let access = Access::of(&accepted);
    let Some((backend, connected)) = connect(context, served).await else {
        return accepted.reset();
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    let options = SpliceOptions {
        prefix: Vec::new(),
        idle_timeout: context.limits.idle_timeout,
        progress,
    };
    let transfer = accepted.splice(backend, options).await;
    meter.ended(transfer.end.as_str());
    access.log(
        context,
        served,
        &connected.endpoint().to_string(),
        &transfer,
        "",
    );
}

async fn serve_tls<A: Accepted>(
    accepted: A,
    tls: &TlsPort<Then>,
    place: &Place,
    connection: &Connection,
) {
    let context = &*connection.context;
    let access = Access::of(&accepted);
    let peer_of = connection.peer(&accepted, "https");
    // On the heap while it lasts: it is several times what remains afterwards.
    let greeting = Box::pin(greet(accepted, tls, place, context));
    let (mut peer, then) = match greeting.await {
        Ok(greeted) => greeted,
        Err(reason) => return access.log_failure(context, reason),
    };
    let served = match then {
        Then::Forward(served) => served,
        Then::Http(served) => return Box::pin(serve_https(peer, served, peer_of)).await,
    };
    let Some((backend, connected)) = connect(context, served).await else {
        return;
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    let transfer = relay_tls(&mut peer, backend, context, &progress).await;
    meter.ended(transfer.end.as_str());
    access.log(
        context,
        served,
        &connected.endpoint().to_string(),
        &transfer,
        &peer.server_name,
    );
}

async fn serve_https<S: Stream>(mut tls: Box<TlsPeer<S>>, served: &Served, mut peer: Peer) {
    peer.listener = Some(served.listener.clone());
    peer.server_name.clone_from(&tls.server_name);
    let version = match tls.stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Version::Http2,
        _ => Version::Http1,
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    // HTTP has an end of its own.
    tls.in_order = true;
    let ended = http::serve(tls, Arc::new(peer), version, progress).await;
    meter.ended(if ended.is_ok() { "eof" } else { "error" });
}

/// Takes a peer through its handshake, or counts why not and says so.
async fn greet<'a, A: Accepted>(
    accepted: A,
    tls: &'a TlsPort<Then>,
    place: &Place,
    context: &Context,
) -> Result<(Box<TlsPeer<A::Stream>>, &'a Then), &'static str> {
    let stream = accepted.open().map_err(|error| {
        tracing::debug!(gateway = context.gateway, %error, "connection gone before it was opened");
        tls::Failure::Closed.as_str()
    })?;
    let handshake = tokio::time::timeout(context.limits.handshake_timeout, tls.accept(stream));
    let (served, reason) = match handshake.await {
        Ok(Ok(accepted)) => {
            let peer = TlsPeer {
                stream: accepted.stream,
                server_name: accepted.server_name,
                in_order: false,
            };
            return Ok((Box::new(peer), accepted.serving));
        }
        Ok(Err((served, failure))) => (served, failure.as_str()),
        Err(_) => (None, "timeout"),
    };
    match served {
        Some(Then::Forward(served) | Then::Http(served)) => served.metrics.tls_failure(reason),
        None => place.port_metrics().tls_failure(reason),
    }
    Err(reason)
}

/// Copies between a TLS peer and a plain backend. A peer that ends without `close_notify` did not
/// end (RFC 8446 §6.1): the backend is reset, so that it does not take a cut message for a whole.
async fn relay_tls<S: Stream>(
    peer: &mut TlsPeer<S>,
    mut backend: TcpStream,
    context: &Context,
    progress: &Progress,
) -> Transfer {
    reset_on_close(&backend);
    let end = copy_both(
        &mut peer.stream,
        &mut backend,
        context.limits.idle_timeout,
        progress,
    )
    .await;
    if end == End::Eof {
        close_in_order(&backend);
        peer.in_order = true;
    }
    Transfer {
        received: progress.received.load(Ordering::Relaxed),
        sent: progress.sent.load(Ordering::Relaxed),
        end,
    }
}

/// The backend drawn for a connection; what is refused is counted.
fn backend_of(served: &Served) -> Option<&Arc<Balancer>> {
    let Some(route) = &served.route else {
        served.metrics.refused("no_route");
        return None;
    };
    let drawn = route.draw();
    if drawn.is_none() {
        served.metrics.refused("invalid_backend");
    }
    drawn
}

/// Connects to the backend drawn for a connection; what fails is counted.
async fn connect(context: &Context, served: &Served) -> Option<(TcpStream, Connected)> {
    let balancer = backend_of(served)?;
    let failed = |reason: Unreachable| {
        let reason = reason.as_str();
        context
            .metrics
            .backend_error(&context.gateway, &balancer.name, reason);
        tracing::warn!(
            gateway = context.gateway,
            listener = served.listener,
            backend = balancer.name,
            reason,
            "backend not reached"
        );
    };
    let connected = balancer
        .connect(context.limits.connect_timeout, failed)
        .await;
    if connected.is_none() {
        served.metrics.refused("backend_unreachable");
    }
    connected
}

fn read(progress: &Arc<Progress>) -> crate::metrics::ReadBytes {
    let progress = Arc::clone(progress);
    Box::new(move || {
        (
            progress.received.load(Ordering::Relaxed),
            progress.sent.load(Ordering::Relaxed),
        )
    })
}

// === impl Reset ===

impl<S: Stream> http::Reset for S {
    fn reset(&self) {
        Stream::reset(self);
    }
}

impl<S: Stream> http::Reset for Box<TlsPeer<S>> {
    fn reset(&self) {
        self.stream.get_ref().0.stream().reset();
    }
}

// === impl TlsPeer ===

impl<S: Stream> Drop for TlsPeer<S> {
    fn drop(&mut self) {
        if !self.in_order {
            self.stream.get_ref().0.stream().reset();
        }
    }
}

impl<S: Stream> AsyncRead for TlsPeer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: Stream> AsyncWrite for TlsPeer<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl Access ===

/// Whether anybody reads the log of connections: making its texts costs.
fn logged() -> bool {
    tracing::enabled!(target: "tailway::access", tracing::Level::DEBUG)
}

impl Access {
    fn of(accepted: &impl Accepted) -> Self {
        let identity = if logged() { accepted.identity() } else { None };
        Self {
            flow: accepted.flow(),
            peer: identity
                .as_ref()
                .map(|identity| identity.principal())
                .unwrap_or_default(),
            node: identity
                .map(|identity| identity.node.clone())
                .unwrap_or_default(),
            started: Instant::now(),
        }
    }

    fn log(
        &self,
        context: &Context,
        served: &Served,
        endpoint: &str,
        transfer: &Transfer,
        server_name: &str,
    ) {
        tracing::debug!(
            target: "tailway::access",
            gateway = context.gateway,
            listener = served.listener,
            route = served.route.as_ref().map(|route| route.name.as_str()),
            source = %self.flow.source,
            peer = self.peer,
            node = self.node,
            server_name,
            endpoint,
            received = transfer.received,
            sent = transfer.sent,
            milliseconds = self.started.elapsed().as_millis() as u64,
            end = %transfer.end,
            "connection"
        );
    }

    fn log_failure(&self, context: &Context, reason: &str) {
        tracing::debug!(
            target: "tailway::access",
            gateway = context.gateway,
            source = %self.flow.source,
            peer = self.peer,
            node = self.node,
            reason,
            "TLS handshake failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::host::{HostAccepted, HostStream};

    /// The size of what a function of three arguments returns, without calling it.
    fn size_of_future<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What an open connection costs before the system's buffers and what rustls allocates. The
    /// bounds have little room, so that a future that doubles is noticed.
    #[test]
    fn the_future_and_the_session_of_a_connection_are_small() {
        let future = size_of_future(serve::<HostAccepted>);
        assert!(future <= 1536, "{future} bytes");
        let session = size_of::<TlsPeer<HostStream>>();
        assert!(session <= 1536, "{session} bytes");
    }
}
