//! One connection, from accept to its last byte.

use super::{
    Limits,
    access::{Access, Course},
    backend_tls::{BackendStream, Offer, socket},
    balance::{Balancer, Connected, Route},
    forwards::Forwards,
    http::{self, CurrentPort, HttpPort, Peer, Version},
    limits::Place,
    peer::{Passed, TlsPeer, Transport},
    proxy_protocol::Client,
    reach::Unreachable,
    read_ahead::ReadAhead,
    tls::{self, Secured, Serves, TlsPort},
};
use crate::{
    drain::Drain,
    metrics::{ListenerMetrics, Metrics},
    model::Identity,
    net::{Accepted, End, Flow, Outbound, Progress, SpliceOptions, Stream, relay::copy_both},
};
use arc_swap::ArcSwap;
use std::sync::{Arc, atomic::Ordering};
use tokio::io::AsyncWriteExt;
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

/// What becomes of the bytes of a TLS listener.
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

/// A listener and the routes that it has for bytes.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) listener: String,
    pub(super) metrics: ListenerMetrics,
    pub(super) forwards: Forwards,
}

/// What all connections of a Gateway share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) gateway: String,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
}

/// A connection to the backend of a route.
struct Reached<'a> {
    route: &'a Arc<Route>,
    balancer: &'a Arc<Balancer>,
    stream: Outbound,
    connected: Connected,
}

/// A peer and what its listener serves.
enum Greeted<'a, S: Stream> {
    Plain(Box<TlsPeer<TlsStream<ReadAhead<S>>>>, &'a Then),
    Passed(Box<TlsPeer<Passed<S>>>, &'a Served),
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

impl Context {
    /// Counts that a backend was of no use.
    pub(super) fn backend_failed(&self, backend: &str, reason: &'static str) {
        self.metrics.backend_error(&self.gateway, backend, reason);
    }
}

impl Connection {
    fn peer(&self, flow: Flow, identity: Option<Arc<Identity>>, scheme: &'static str) -> Peer {
        Peer {
            context: Arc::clone(&self.context),
            drain: self.drain.clone(),
            address: flow.source.ip(),
            identity,
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

impl Serves for Then {
    fn is_for(&self, server_name: &str) -> bool {
        match self {
            Self::Forward(served) => served.forwards.find(server_name).is_some(),
            Self::Http(_) => true,
        }
    }
}

async fn serve_http<A: Accepted>(accepted: A, connection: &Connection, place: &Place) {
    let peer = Arc::new(connection.peer(accepted.flow(), accepted.identity(), "http"));
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
    let access = Access::of(accepted.flow(), || accepted.identity());
    let reached = connect(context, served, "").await;
    let Some(Reached {
        route,
        stream: backend,
        connected,
        ..
    }) = reached
    else {
        return accepted.reset();
    };
    let prefix = match route.proxy_protocol {
        Some(version) => {
            let identity = accepted.identity();
            Client::of(access.flow, identity.as_deref()).header(version)
        }
        None => Vec::new(),
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    let options = SpliceOptions {
        prefix,
        idle_timeout: context.limits.idle_timeout,
        progress,
    };
    let transfer = accepted.splice(backend, options).await;
    meter.ended(transfer.end.as_str());
    let course = Course {
        listener: &served.listener,
        route,
        endpoint: connected.endpoint().to_string(),
        server_name: "",
        received: transfer.received,
        sent: transfer.sent,
        end: transfer.end.as_str(),
    };
    access.log(context, "connection", &course);
}

async fn serve_tls<A: Accepted>(
    accepted: A,
    tls: &TlsPort<Then>,
    place: &Place,
    connection: &Connection,
) {
    let context = &*connection.context;
    let identity = accepted.identity();
    let access = Access::of(accepted.flow(), || identity.clone());
    // On the heap while it lasts: it is several times what remains afterwards.
    let greeting = Box::pin(greet(accepted, tls, place, context));
    match greeting.await {
        Ok(Greeted::Plain(peer, Then::Http(served))) => {
            let peer_of = connection.peer(access.flow, identity, "https");
            Box::pin(serve_https(peer, served, peer_of)).await;
        }
        Ok(Greeted::Plain(peer, Then::Forward(served))) => {
            pass_on(peer, served, context, &access, identity).await;
        }
        Ok(Greeted::Passed(peer, served)) => {
            pass_on(peer, served, context, &access, identity).await;
        }
        Err(reason) => access.log_failure(context, reason),
    }
}

async fn serve_https<S: Stream>(
    mut tls: Box<TlsPeer<TlsStream<ReadAhead<S>>>>,
    served: &Served,
    mut peer: Peer,
) {
    peer.listener = Some(served.listener.clone());
    peer.server_name.clone_from(&tls.server_name);
    let version = match tls.stream.protocol() {
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
) -> Result<Greeted<'a, A::Stream>, &'static str> {
    let stream = accepted.open().map_err(|error| {
        tracing::debug!(gateway = context.gateway, %error, "connection gone before it was opened");
        tls::Failure::Closed.as_str()
    })?;
    let handshake = tokio::time::timeout(context.limits.handshake_timeout, tls.accept(stream));
    let (served, reason) = match handshake.await {
        Ok(Ok(accepted)) => return Ok(Greeted::of(accepted)),
        Ok(Err((served, failure))) => (served, failure.as_str()),
        Err(_) => (None, "timeout"),
    };
    match served {
        Some(Then::Forward(served) | Then::Http(served)) => served.metrics.tls_failure(reason),
        None => place.port_metrics().tls_failure(reason),
    }
    Err(reason)
}

/// Passes the bytes of a peer on to the backend of its server name.
async fn pass_on<T: Transport>(
    mut peer: Box<TlsPeer<T>>,
    served: &Served,
    context: &Context,
    access: &Access,
    identity: Option<Arc<Identity>>,
) {
    // On the heap while it lasts: it may be a handshake.
    let beginning = Box::pin(begin(&mut peer, served, context, access, identity));
    let Some((route, connected, mut backend)) = beginning.await else {
        return;
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    let end = relay(&mut peer, &mut backend, context, &progress).await;
    meter.ended(end.as_str());
    let course = Course {
        listener: &served.listener,
        route,
        endpoint: connected.endpoint().to_string(),
        server_name: &peer.server_name,
        received: progress.received.load(Ordering::Relaxed),
        sent: progress.sent.load(Ordering::Relaxed),
        end: end.as_str(),
    };
    access.log(context, "connection", &course);
}

/// Connects to the backend of a peer, tells it who calls, and takes it through a handshake of its
/// own where that of the peer has ended here.
async fn begin<'a, T: Transport>(
    peer: &mut TlsPeer<T>,
    served: &'a Served,
    context: &Context,
    access: &Access,
    identity: Option<Arc<Identity>>,
) -> Option<(&'a Arc<Route>, Connected, BackendStream)> {
    let Reached {
        route,
        balancer,
        mut stream,
        connected,
    } = connect(context, served, &peer.server_name).await?;
    stream.reset_on_close();
    let header = route.proxy_protocol.map(|version| {
        let client = Client {
            server_name: &peer.server_name,
            protocol: peer.stream.protocol(),
            ..Client::of(access.flow, identity.as_deref())
        };
        client.header(version)
    });
    let beginning = async {
        if let Some(header) = header {
            let told = stream.write_all(&header).await;
            told.map_err(|_| Unreachable::Other)?;
        }
        match T::ENDS_HERE {
            true => connected.link().secure(stream, Offer::Nothing).await,
            false => Ok(BackendStream::Left(stream)),
        }
    };
    let begun = tokio::time::timeout(context.limits.connect_timeout, beginning);
    match begun.await.unwrap_or(Err(Unreachable::Timeout)) {
        Ok(backend) => Some((route, connected, backend)),
        Err(reason) => {
            not_reached(context, served, balancer, reason);
            served.metrics.refused("backend_unreachable");
            None
        }
    }
}

/// Copies between a peer and its backend. A peer whose TLS ends here without `close_notify` did not
/// end (RFC 8446 §6.1): the backend is reset, so that it does not take a cut message for a whole.
async fn relay<T: Transport>(
    peer: &mut TlsPeer<T>,
    backend: &mut BackendStream,
    context: &Context,
    progress: &Progress,
) -> End {
    let idle_timeout = context.limits.idle_timeout;
    let end = copy_both(&mut peer.stream, backend, idle_timeout, progress).await;
    if end == End::Eof {
        socket(backend).close_in_order();
        peer.in_order = true;
    }
    end
}

/// The route for a server name and the backend drawn from it; what is refused is counted.
fn backend_of<'a>(
    served: &'a Served,
    server_name: &str,
) -> Option<(&'a Arc<Route>, &'a Arc<Balancer>)> {
    let Some(route) = served.forwards.find(server_name) else {
        served.metrics.refused("no_route");
        return None;
    };
    let drawn = route.draw();
    if drawn.is_none() {
        served.metrics.refused("invalid_backend");
    }
    Some((route, drawn?))
}

/// Connects to the backend drawn for a connection; what fails is counted.
async fn connect<'a>(
    context: &Context,
    served: &'a Served,
    server_name: &str,
) -> Option<Reached<'a>> {
    let (route, balancer) = backend_of(served, server_name)?;
    let failed = |reason| not_reached(context, served, balancer, reason);
    let connected = balancer
        .connect(context.limits.connect_timeout, failed)
        .await;
    if connected.is_none() {
        served.metrics.refused("backend_unreachable");
    }
    let (stream, connected) = connected?;
    Some(Reached {
        route,
        balancer,
        stream,
        connected,
    })
}

fn not_reached(context: &Context, served: &Served, balancer: &Balancer, reason: Unreachable) {
    let reason = reason.as_str();
    context.backend_failed(&balancer.name, reason);
    tracing::warn!(
        gateway = context.gateway,
        listener = served.listener,
        backend = balancer.name,
        reason,
        "backend not reached"
    );
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

// === impl Greeted ===

impl<'a, S: Stream> Greeted<'a, S> {
    fn of(accepted: tls::Accepted<'a, S, Then>) -> Self {
        let (server_name, in_order) = (accepted.server_name, false);
        match (accepted.stream, accepted.serving) {
            (Secured::Plain(stream), then) => {
                let peer = TlsPeer {
                    stream,
                    server_name,
                    in_order,
                };
                Self::Plain(Box::new(peer), then)
            }
            (Secured::Passed(stream), Then::Forward(served) | Then::Http(served)) => {
                let peer = TlsPeer {
                    stream: Passed(stream),
                    server_name,
                    in_order,
                };
                Self::Passed(Box::new(peer), served)
            }
        }
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
        let session = size_of::<TlsPeer<TlsStream<ReadAhead<HostStream>>>>();
        assert!(session <= 1536, "{session} bytes");
    }
}
