//! One connection, from accept to its last byte.

use super::{
    Limits,
    balance::{Balancer, Route},
    limits::Place,
    tls::{ReadAhead, TlsPort},
};
use crate::{
    metrics::{ListenerMetrics, Metrics},
    net::{
        Accepted, End, Flow, Progress, SpliceOptions, Stream, Transfer,
        host::{close_in_order, reset_on_close},
        relay::copy_both,
    },
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a port serves at the moment.
#[derive(Debug)]
pub(super) enum Serving {
    Tcp(Served),
    Tls(TlsPort<Served>),
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

/// Who a connection is from, for its log line.
struct Access {
    flow: Flow,
    peer: String,
    node: String,
    started: Instant,
}

/// Serves one connection of a port. Dropping the future resets it.
pub(super) async fn serve<A: Accepted>(
    accepted: A,
    serving: Arc<Serving>,
    port: ListenerMetrics,
    context: Arc<Context>,
    _place: Place,
) {
    match serving.as_ref() {
        Serving::Tcp(served) => serve_tcp(accepted, served, &context).await,
        Serving::Tls(tls) => Box::pin(serve_tls(accepted, tls, &port, &context)).await,
    }
}

async fn serve_tcp<A: Accepted>(accepted: A, served: &Served, context: &Context) {
    let access = Access::of(&accepted);
    let Some(balancer) = backend_of(served) else {
        return accepted.reset();
    };
    let (backend, connected) = match balancer.connect(context.limits.connect_timeout).await {
        Ok(connected) => connected,
        Err(reason) => {
            unreachable_backend(context, served, balancer, reason.as_str());
            return accepted.reset();
        }
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
    tls: &TlsPort<Served>,
    port: &ListenerMetrics,
    context: &Context,
) {
    let access = Access::of(&accepted);
    let stream = match accepted.open() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(gateway = context.gateway, %error, "connection gone before it was opened");
            return;
        }
    };
    let handshake = tokio::time::timeout(context.limits.handshake_timeout, tls.accept(stream));
    let accepted = match handshake.await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err((served, failure))) => {
            served
                .map_or(port, |served| &served.metrics)
                .tls_failure(failure.as_str());
            return access.log_failure(context, failure.as_str());
        }
        Err(_) => {
            port.tls_failure("timeout");
            return access.log_failure(context, "timeout");
        }
    };
    let served = accepted.serving;
    let Some(balancer) = backend_of(served) else {
        return accepted.stream.into_inner().0.into_inner().reset();
    };
    let (backend, connected) = match balancer.connect(context.limits.connect_timeout).await {
        Ok(connected) => connected,
        Err(reason) => {
            unreachable_backend(context, served, balancer, reason.as_str());
            return accepted.stream.into_inner().0.into_inner().reset();
        }
    };
    let progress = Arc::new(Progress::default());
    let mut meter = served.metrics.open(read(&progress));
    let transfer = relay_tls(accepted.stream, backend, context, &progress).await;
    meter.ended(transfer.end.as_str());
    access.log(
        context,
        served,
        &connected.endpoint().to_string(),
        &transfer,
        &accepted.server_name,
    );
}

/// Copies between a TLS peer and a plain backend. A peer that ends without `close_notify` did not
/// end (RFC 8446 §6.1): the backend is reset, so that it does not take a cut message for a whole.
async fn relay_tls<S: Stream>(
    mut peer: TlsStream<ReadAhead<S>>,
    mut backend: TcpStream,
    context: &Context,
    progress: &Progress,
) -> Transfer {
    reset_on_close(&backend);
    let end = copy_both(
        &mut peer,
        &mut backend,
        context.limits.idle_timeout,
        progress,
    )
    .await;
    match end {
        End::Eof => close_in_order(&backend),
        _ => peer.into_inner().0.into_inner().reset(),
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

fn unreachable_backend(
    context: &Context,
    served: &Served,
    balancer: &Balancer,
    reason: &'static str,
) {
    context
        .metrics
        .backend_error(&context.gateway, &balancer.name, reason);
    served.metrics.refused("backend_unreachable");
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
