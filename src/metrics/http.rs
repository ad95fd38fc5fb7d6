//! What is counted of requests: rate, errors and duration by listener, route and backend. Labels
//! name objects, never clients, so that there are only as many as the configuration makes; what
//! was counted of an object goes with it.

use super::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

/// What a request came through. What it did not come to is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpLabels {
    pub gateway: String,
    pub listener: String,
    pub route: String,
    pub backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    of: HttpLabels,
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    #[prometheus(flatten)]
    of: HttpLabels,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    #[prometheus(flatten)]
    of: HttpLabels,
    kind: &'static str,
}

#[derive(Clone)]
pub(super) struct Families {
    requests: Family<RequestLabels, Counter>,
    open: Family<HttpLabels, Gauge>,
    duration: Family<HttpLabels, Histogram>,
    received: Family<HttpLabels, Counter>,
    sent: Family<HttpLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    retries: Family<HttpLabels, Counter>,
    mirrored: Family<HttpLabels, Counter>,
    connections: Family<ConnectionLabels, Counter>,
    meters: Arc<Mutex<HashMap<HttpLabels, Weak<Inner>>>>,
}

/// Counts the requests of a listener, route and backend. All meters of the same labels are one;
/// when the last one goes, so does what it counted.
#[derive(Clone)]
pub struct HttpMeter(Arc<Inner>);

/// A meter that somebody else keeps.
#[derive(Clone, Debug, Default)]
pub struct WeakHttpMeter(Weak<Inner>);

struct Inner {
    metrics: Metrics,
    labels: HttpLabels,
    /// Made when the first request comes.
    live: OnceLock<Live>,
    reasons: Mutex<BTreeSet<&'static str>>,
}

struct Live {
    requests: [[OnceLock<Counter>; CODES.len()]; METHODS.len()],
    open: Gauge,
    duration: Histogram,
    received: Counter,
    sent: Counter,
    connections: [OnceLock<Counter>; KINDS.len()],
}

/// A request that is open. Dropping it counts it out of those.
#[derive(Debug)]
pub struct OpenRequest(HttpMeter);

/// What a request came to.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub method: &'a str,
    /// `None`: the client went before it was told one.
    pub status: Option<u16>,
    /// Bytes of bodies.
    pub received: u64,
    pub sent: u64,
    pub duration: Duration,
}

/// Methods that are told apart; the last stands for all others.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "other",
];

/// Classes of statuses; the first stands for none.
const CODES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Connections to backends.
const KINDS: [&str; 2] = ["opened", "reused"];

// === impl Families ===

impl Families {
    pub(super) fn new() -> Self {
        Self {
            requests: Family::default(),
            open: Family::default(),
            // From an answer of a cache next door to a long poll.
            duration: Family::new_with_constructor(|| {
                Histogram::new([
                    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
                ])
            }),
            received: Family::default(),
            sent: Family::default(),
            refusals: Family::default(),
            retries: Family::default(),
            mirrored: Family::default(),
            connections: Family::default(),
            meters: Arc::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "Requests that ended, by method and class of status",
            self.requests.clone(),
        );
        registry.register(
            "http_requests_open",
            "Requests whose responses have not ended",
            self.open.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "From the head of a request to the end of its response",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "http_received",
            "Bytes of the bodies of requests",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "http_sent",
            "Bytes of the bodies of responses",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "http_refusals",
            "Requests that no backend answered, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "http_retries",
            "Requests sent again as their route asks",
            self.retries.clone(),
        );
        registry.register(
            "http_mirrored",
            "Copies of requests sent to a mirror",
            self.mirrored.clone(),
        );
        registry.register(
            "http_backend_connections",
            "Connections that requests were sent on, opened for them or reused",
            self.connections.clone(),
        );
    }

    fn meters(&self) -> MutexGuard<'_, HashMap<HttpLabels, Weak<Inner>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, labels: &HttpLabels, reasons: &BTreeSet<&'static str>) {
        for method in METHODS {
            for code in CODES {
                self.requests.remove(&RequestLabels {
                    of: labels.clone(),
                    method,
                    code,
                });
            }
        }
        self.open.remove(labels);
        self.duration.remove(labels);
        self.received.remove(labels);
        self.sent.remove(labels);
        for &reason in reasons {
            let of = labels.clone();
            self.refusals.remove(&RefusalLabels { of, reason });
        }
        self.retries.remove(labels);
        self.mirrored.remove(labels);
        for kind in KINDS {
            let of = labels.clone();
            self.connections.remove(&ConnectionLabels { of, kind });
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// The meter of these labels.
    pub fn http(&self, labels: &HttpLabels) -> HttpMeter {
        let mut meters = self.inner.http.meters();
        if let Some(known) = meters.get(labels).and_then(Weak::upgrade) {
            return HttpMeter(known);
        }
        let meter = Arc::new(Inner {
            metrics: self.clone(),
            labels: labels.clone(),
            live: OnceLock::new(),
            reasons: Mutex::default(),
        });
        meters.insert(labels.clone(), Arc::downgrade(&meter));
        HttpMeter(meter)
    }
}

// === impl HttpMeter ===

impl HttpMeter {
    pub fn downgrade(&self) -> WeakHttpMeter {
        WeakHttpMeter(Arc::downgrade(&self.0))
    }

    /// Counts a request as open.
    pub fn request(&self) -> OpenRequest {
        self.0.live().open.inc();
        OpenRequest(self.clone())
    }

    /// Counts a request that no backend answered.
    pub fn refused(&self, reason: &'static str) {
        let reasons = self.0.reasons.lock();
        reasons
            .unwrap_or_else(PoisonError::into_inner)
            .insert(reason);
        let of = self.0.labels.clone();
        let labels = RefusalLabels { of, reason };
        self.0.families().refusals.get_or_create(&labels).inc();
    }

    pub fn retried(&self) {
        let retries = &self.0.families().retries;
        retries.get_or_create(&self.0.labels).inc();
    }

    pub fn mirrored(&self) {
        let mirrored = &self.0.families().mirrored;
        mirrored.get_or_create(&self.0.labels).inc();
    }

    /// Counts a connection to the backend that a request was given.
    pub fn connected(&self, reused: bool) {
        let kind = usize::from(reused);
        let counter = self.0.live().connections[kind].get_or_init(|| {
            let labels = ConnectionLabels {
                of: self.0.labels.clone(),
                kind: KINDS[kind],
            };
            self.0.families().connections.get_or_create_owned(&labels)
        });
        counter.inc();
    }
}

impl WeakHttpMeter {
    /// The meter; `None` once what it counts for is gone.
    pub fn upgrade(&self) -> Option<HttpMeter> {
        self.0.upgrade().map(HttpMeter)
    }
}

impl fmt::Debug for HttpMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.labels.fmt(f)
    }
}

// === impl Inner ===

impl Inner {
    fn families(&self) -> &Families {
        &self.metrics.inner.http
    }

    fn live(&self) -> &Live {
        self.live.get_or_init(|| {
            let (families, labels) = (self.families(), &self.labels);
            Live {
                requests: Default::default(),
                open: families.open.get_or_create_owned(labels),
                duration: families.duration.get_or_create_owned(labels),
                received: families.received.get_or_create_owned(labels),
                sent: families.sent.get_or_create_owned(labels),
                connections: Default::default(),
            }
        })
    }

    fn requests(&self, method: &str, status: Option<u16>) -> &Counter {
        let known = METHODS.iter().position(|known| *known == method);
        let method = known.unwrap_or(METHODS.len() - 1);
        let code = usize::from(status.unwrap_or(0) / 100).min(CODES.len() - 1);
        self.live().requests[method][code].get_or_init(|| {
            let labels = RequestLabels {
                of: self.labels.clone(),
                method: METHODS[method],
                code: CODES[code],
            };
            self.families().requests.get_or_create_owned(&labels)
        })
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.labels.fmt(f)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let families = self.metrics.inner.http.clone();
        let mut meters = families.meters();
        // Another one with the same labels may have been made since.
        let is_last = meters
            .get(&self.labels)
            .is_some_and(|meter| meter.strong_count() == 0);
        if is_last {
            meters.remove(&self.labels);
            let reasons = self.reasons.lock();
            let reasons = reasons.unwrap_or_else(PoisonError::into_inner);
            families.forget(&self.labels, &reasons);
        }
    }
}

// === impl OpenRequest ===

impl OpenRequest {
    /// What it is counted with.
    pub fn meter(&self) -> &HttpMeter {
        &self.0
    }

    pub fn ended(self, ended: &Ended<'_>) {
        let inner = &self.0.0;
        inner.requests(ended.method, ended.status).inc();
        let live = inner.live();
        live.duration.observe(ended.duration.as_secs_f64());
        live.received.inc_by(ended.received);
        live.sent.inc_by(ended.sent);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.live().open.dec();
    }
}
