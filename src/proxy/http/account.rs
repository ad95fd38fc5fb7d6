//! What a request came to: told to the metrics, and to the log by choice, once the last byte of
//! its response has gone or the request was cut.

use super::Peer;
use crate::{
    metrics::{Ended, HttpMeter, OpenRequest},
    model::{HttpOptions, RouteId},
    proxy::balance::below,
};
use http::{Method, Request, Version};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// One request, shared by its two bodies. It has ended when the last of them is gone.
#[derive(Debug)]
pub(super) struct Account {
    started: Instant,
    method: Method,
    /// Of a request that comes to no route.
    fallback: Option<HttpMeter>,
    open: OnceLock<OpenRequest>,
    /// 0: none.
    status: AtomicU16,
    received: AtomicU64,
    sent: AtomicU64,
    /// When a byte of a body moved last, in milliseconds since the start.
    moved: AtomicU64,
    /// When there was a response, likewise in microseconds; 0: there is none.
    answered: AtomicU64,
    outcome: Mutex<&'static str>,
    /// `None`: it is not logged.
    line: Option<Mutex<Line>>,
}

/// What the log tells beyond what is counted.
#[derive(Debug, Default)]
pub(super) struct Line {
    gateway: String,
    peer: Option<IpAddr>,
    user: String,
    tags: String,
    node: String,
    protocol: &'static str,
    server_name: String,
    path: String,
    pub(super) host: String,
    pub(super) listener: String,
    pub(super) route: String,
    pub(super) rule: String,
    pub(super) backend: String,
    pub(super) endpoint: String,
}

/// How a request ends unless something else is said.
const GONE: &str = "client_gone";
/// A whole response has gone to the client.
pub(super) const COMPLETE: &str = "complete";

// === impl Account ===

impl Account {
    pub(super) fn open(
        peer: &Peer,
        options: &HttpOptions,
        fallback: Option<HttpMeter>,
        request: &Request<impl Sized>,
    ) -> Arc<Self> {
        let sampled = options.access_log.is_some_and(|one_in| {
            tracing::enabled!(target: "tailway::requests", tracing::Level::INFO)
                && below(u64::from(one_in.get())) == 0
        });
        Arc::new(Self {
            started: Instant::now(),
            method: request.method().clone(),
            fallback,
            open: OnceLock::new(),
            status: AtomicU16::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            outcome: Mutex::new(GONE),
            line: sampled.then(|| Mutex::new(Line::new(peer, request))),
        })
    }

    /// Whose request it turned out to be.
    pub(super) fn of(&self, meter: Option<HttpMeter>) {
        if let Some(meter) = meter {
            // Of several tries the first one counts.
            let _ = self.open.set(meter.request());
        }
    }

    pub(super) fn meter(&self) -> Option<&HttpMeter> {
        self.open
            .get()
            .map(OpenRequest::meter)
            .or(self.fallback.as_ref())
    }

    /// Adds to the log line, if there is to be one.
    pub(super) fn note(&self, add: impl FnOnce(&mut Line)) {
        if let Some(line) = &self.line {
            add(&mut line.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(super) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
        let after = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.answered.store(after.max(1), Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    /// Bytes of a tunnel.
    pub(super) fn tunnelled(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    fn touch(&self) {
        self.moved.store(self.milliseconds(), Ordering::Relaxed);
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// For how long no byte of a body has moved.
    pub(super) fn idle(&self) -> Duration {
        let moved = self.moved.load(Ordering::Relaxed);
        Duration::from_millis(self.milliseconds().saturating_sub(moved))
    }

    /// The first thing that goes wrong is why it ended.
    pub(super) fn ends(&self, outcome: &'static str) {
        let mut known = self.outcome();
        if *known == GONE {
            *known = outcome;
        }
    }

    pub(super) fn is_ended_by(&self, outcome: &'static str) -> bool {
        *self.outcome() == outcome
    }

    fn outcome(&self) -> MutexGuard<'_, &'static str> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let status = Some(*self.status.get_mut()).filter(|status| *status != 0);
        let ended = Ended {
            method: self.method.as_str(),
            status,
            received: *self.received.get_mut(),
            sent: *self.sent.get_mut(),
            duration: self.started.elapsed(),
        };
        let open = self.open.take();
        let open = open.or_else(|| Some(self.fallback.as_ref()?.request()));
        if let Some(open) = open {
            open.ended(&ended);
        }
        let outcome = *self
            .outcome
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let first = *self.answered.get_mut();
        if let Some(line) = self.line.take() {
            let line = line.into_inner().unwrap_or_else(PoisonError::into_inner);
            line.write(&ended, (first != 0).then_some(first), outcome);
        }
    }
}

// === impl Line ===

impl Line {
    fn new(peer: &Peer, request: &Request<impl Sized>) -> Self {
        let identity = peer.identity.as_deref();
        Self {
            gateway: peer.context.gateway.clone(),
            peer: Some(peer.address),
            user: identity.map_or_else(String::new, |identity| match identity.tags.is_empty() {
                true => identity.login.clone(),
                false => String::new(),
            }),
            tags: identity.map_or_else(String::new, |identity| identity.tags.join(",")),
            node: identity.map_or_else(String::new, |identity| identity.node.clone()),
            protocol: match request.version() {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            server_name: peer.server_name.clone(),
            // A query may hold what is secret.
            path: request.uri().path().to_owned(),
            ..Self::default()
        }
    }

    /// Whose rule it is.
    pub(super) fn follows(&mut self, listener: &str, route: &RouteId, rule: &str) {
        self.listener = listener.to_owned();
        self.route = route.to_string();
        self.rule = rule.to_owned();
    }

    fn write(&self, ended: &Ended<'_>, first: Option<u64>, outcome: &'static str) {
        let known = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
        tracing::info!(
            target: "tailway::requests",
            gateway = self.gateway,
            listener = known(&self.listener),
            route = known(&self.route),
            rule = known(&self.rule),
            backend = known(&self.backend),
            endpoint = known(&self.endpoint),
            peer = self.peer.map(|peer| peer.to_string()),
            user = known(&self.user),
            tags = known(&self.tags),
            node = known(&self.node),
            protocol = self.protocol,
            server_name = known(&self.server_name),
            method = ended.method,
            host = known(&self.host),
            path = self.path,
            status = ended.status,
            received = ended.received,
            sent = ended.sent,
            first_byte_microseconds = first,
            microseconds = u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX),
            outcome,
            "request"
        );
    }
}
