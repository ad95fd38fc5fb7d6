//! HTTP: from a connection's bytes to requests, and from each to a backend.
//!
//! ```text
//!   connection ─→ hyper ─→ request ─→ site (host) ─→ router ─→ rule ─→ backend drawn ─→ pool
//!                            └── answered here: 404, 421, 500, redirect, preflight
//! ```
//! What a port serves is looked up for each request, so that a change holds for connections that
//! are open already.

mod account;
mod body;
mod client;
mod exchange;
mod filters;
mod framing;
mod headers;
mod pool;
mod refusal;
mod request;
mod router;
mod rule;
mod sending;
mod tunnel;

pub(super) use client::Reset;
pub(super) use pool::Pool;
pub use router::{Asked, MatchError, Matched, Router};
pub(super) use rule::Metering;

use super::{
    balance::Backends,
    connection::{Context, Serving},
    limits::Limits,
};
use crate::{
    drain::Drain,
    metrics::WeakHttpMeter,
    model::{AttachedRoute, HostnamePattern, HttpOptions, HttpRoute, Identity, RouteId},
    net::Progress,
};
use arc_swap::ArcSwap;
use client::{Client, greet};
use exchange::answer;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use refusal::Refusal;
use rule::{Attached, Rule};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// The listeners of a port that speak HTTP.
#[derive(Debug, Default)]
pub(super) struct HttpPort {
    /// As clients name it.
    number: u16,
    /// Most specific hostname first.
    sites: Vec<Site>,
    options: HttpOptions,
    /// Counts the requests that are for no listener; the first one stands for the port.
    unmatched: WeakHttpMeter,
}

/// A listener.
#[derive(Debug)]
pub(super) struct Site {
    listener: String,
    hostname: Option<HostnamePattern>,
    /// Counts the requests that are for no rule.
    unmatched: WeakHttpMeter,
    router: Router<Attached>,
}

/// A listener of the model, plain or in TLS.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listening<'a> {
    pub(super) name: &'a str,
    pub(super) hostname: Option<&'a HostnamePattern>,
    pub(super) routes: &'a [AttachedRoute],
}

/// Who a connection is from, and how its requests find their rules.
pub(super) struct Peer {
    pub(super) context: Arc<Context>,
    pub(super) drain: Drain,
    pub(super) address: IpAddr,
    pub(super) identity: Option<Arc<Identity>>,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    pub(super) port: CurrentPort,
    /// The listener that its server name belongs to, in TLS.
    pub(super) listener: Option<String>,
    /// Of TLS; may be empty.
    pub(super) server_name: String,
    /// Whether a response of HTTP/1 was cut, so that its connection must not end in order.
    pub(super) cut: Arc<AtomicBool>,
}

/// What the rules of a port are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made<'a> {
    pub(super) routes: &'a BTreeMap<RouteId, HttpRoute>,
    pub(super) backends: &'a Backends,
    pub(super) options: &'a HttpOptions,
}

/// What the port of a connection serves at the moment.
pub(super) struct CurrentPort {
    pub(super) serving: Arc<ArcSwap<Serving>>,
}

/// What was agreed on before the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// By ALPN.
    Http1,
    /// By ALPN.
    Http2,
    /// Nothing: the first bytes tell (RFC 9113 §3.3).
    Either,
}

/// What the head of a request may take, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Requests at a time on a connection of HTTP/2.
const MAX_STREAMS: u32 = 250;

// === impl HttpPort ===

impl HttpPort {
    /// Rules are made once, however many listeners have them.
    pub(super) fn new(
        number: u16,
        listeners: &[Listening<'_>],
        made: Made<'_>,
        mut metering: Metering<'_>,
    ) -> Self {
        let attached = listeners.iter().flat_map(|listener| listener.routes);
        let mut rules: BTreeMap<&RouteId, Vec<Arc<Rule>>> = BTreeMap::new();
        for AttachedRoute { route, .. } in attached {
            rules.entry(route).or_insert_with(|| {
                let wanted = made.routes.get(route).into_iter();
                wanted
                    .flat_map(|route| &route.rules)
                    .map(|rule| Arc::new(Rule::new(route, rule, made.backends)))
                    .collect()
            });
        }
        let sites = listeners
            .iter()
            .map(|listener| Site::new(listener, &rules, made, &mut metering));
        let mut sites: Vec<_> = sites.collect();
        let first = sites.first();
        let unmatched = first.map(|site: &Site| site.unmatched.clone());
        sites.sort_by_key(|site| Reverse(site.hostname.as_ref().map(HostnamePattern::specificity)));
        Self {
            number,
            sites,
            options: made.options.clone(),
            unmatched: unmatched.unwrap_or_default(),
        }
    }

    /// The listener for a host (Gateway API, listener isolation).
    fn site(&self, host: &str) -> Option<&Site> {
        self.sites.iter().find(|site| {
            let hostname = site.hostname.as_ref();
            hostname.is_none_or(|hostname| hostname.matches(host))
        })
    }
}

// === impl Site ===

impl Site {
    fn new(
        listener: &Listening<'_>,
        rules: &BTreeMap<&RouteId, Vec<Arc<Rule>>>,
        made: Made<'_>,
        metering: &mut Metering<'_>,
    ) -> Self {
        let mut attached: BTreeMap<&RouteId, Vec<Attached>> = BTreeMap::new();
        for (route, rules) in rules {
            if listener.routes.iter().any(|of| of.route == **route) {
                let rules = rules.iter().map(|rule| Attached {
                    rule: Arc::clone(rule),
                    meters: metering.of_rule(listener.name, rule),
                });
                attached.insert(route, rules.collect());
            }
        }
        let of = |route: &RouteId| -> Vec<_> {
            let wanted = made.routes.get(route).into_iter();
            let wanted = wanted.flat_map(|route| &route.rules);
            let ready = attached.get(route).into_iter().flatten().cloned();
            wanted.zip(ready).collect()
        };
        let (router, errors) = Router::new(listener.routes, of);
        for error in errors {
            tracing::warn!(listener = listener.name, %error, "a match is left out");
        }
        Self {
            listener: listener.name.into(),
            hostname: listener.hostname.cloned(),
            unmatched: metering.of(listener.name, "", ""),
            router,
        }
    }
}

// === impl Peer ===

impl Peer {
    /// The listener for a host on this connection.
    fn site<'a>(&self, port: &'a HttpPort, host: &str) -> Result<&'a Site, Refusal> {
        let site = port.site(host).ok_or(Refusal::NoListener)?;
        match &self.listener {
            Some(listener) if *listener != site.listener => Err(Refusal::Misdirected),
            _ => Ok(site),
        }
    }
}

// === impl CurrentPort ===

impl CurrentPort {
    fn load(&self) -> Arc<HttpPort> {
        match self.serving.load().as_ref() {
            Serving::Http(port) | Serving::Tls { http: port, .. } => Arc::clone(port),
            Serving::Tcp(_) => Arc::default(),
        }
    }
}

/// Serves the requests of a connection until it ends, or until the process does: requests that
/// are open then are finished. Its bytes are counted in `progress`.
pub(super) async fn serve<S>(
    stream: S,
    peer: Arc<Peer>,
    version: Version,
    progress: Arc<Progress>,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
{
    let limits = &peer.context.limits;
    let stream = Client::new(stream, Arc::clone(&peer.cut), progress, limits.body_timeout);
    let greeting = tokio::time::timeout(limits.head_timeout, greet(stream, version));
    let (stream, version) = tokio::select! {
        greeted = greeting => greeted??,
        () = peer.drain.stopping() => return Ok(()),
    };
    let builder = builder(version, limits);
    let (this, drain) = (Arc::clone(&peer), peer.drain.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let peer = Arc::clone(&this);
        // On the heap while it lasts: hyper has room for one as long as its connection is open.
        Box::pin(async move { Ok::<_, Infallible>(answer(&peer, request).await) })
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain.stopping() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

fn builder(version: Version, limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(request::MAX_FIELDS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(Duration::from_secs(30));
    match version {
        Version::Http1 => builder.http1_only(),
        Version::Http2 => builder.http2_only(),
        Version::Either => builder,
    }
}
