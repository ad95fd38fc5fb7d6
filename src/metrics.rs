//! What is counted, and how it is named. Labels are looked up once per connection.

mod controller;
mod discovery;
mod extension;
mod health;
mod http;
mod udp;

pub use discovery::PodMeter;
pub use extension::ExtensionCall;
pub use http::{Ended, HttpLabels, HttpMeter, OpenRequest, WeakHttpMeter};
pub use udp::{FlowMeter, UdpMetrics};

use prometheus_client::{
    encoding::{EncodeLabelSet, LabelSetEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Instant,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    gateway: String,
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    gateway: String,
    listener: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    gateway: String,
    backend: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    gateway: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    gateway: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    gateway: String,
    path: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    operation: &'static str,
    code: String,
}

/// Of what is told only where it is counted at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NoLabels {}

/// All metrics of the process.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    opened: Family<ListenerLabels, Counter>,
    closed: Family<ReasonLabels, Counter>,
    open: Family<ListenerLabels, Gauge>,
    refused: Family<ReasonLabels, Counter>,
    received: Family<ListenerLabels, Counter>,
    sent: Family<ListenerLabels, Counter>,
    duration: Family<ListenerLabels, Histogram>,
    tls_failures: Family<ReasonLabels, Counter>,
    backend_errors: Family<BackendLabels, Counter>,
    certificate_expiry: Family<NameLabels, Gauge<f64, AtomicU64>>,
    node_running: Family<GatewayLabels, Gauge<i64, AtomicI64>>,
    node_peers: Family<PathLabels, Gauge<i64, AtomicI64>>,
    udp: udp::Families,
    discovery: discovery::Families,
    controller: controller::Families,
    extension: extension::Families,
    http: http::Families,
    health: health::Families,
    api_requests: Family<ApiLabels, Counter>,
    live: Mutex<Live>,
}

/// Connections whose bytes are folded into the counters at each scrape.
#[derive(Default)]
struct Live {
    next: u64,
    folds: HashMap<u64, Arc<dyn Fn() + Send + Sync>>,
}

/// The metrics of one listener.
#[derive(Clone)]
pub struct ListenerMetrics {
    metrics: Metrics,
    labels: ListenerLabels,
    opened: Counter,
    open: Gauge,
    received: Counter,
    sent: Counter,
    duration: Histogram,
}

/// One open connection. Dropping it counts it as closed, once, with the reason that was set.
pub struct ConnectionMeter {
    listener: ListenerMetrics,
    started: Instant,
    reason: &'static str,
    id: u64,
    fold: Arc<dyn Fn() + Send + Sync>,
}

/// Bytes moved so far, received and sent, read at any time.
pub type ReadBytes = Box<dyn Fn() -> (u64, u64) + Send + Sync>;

impl EncodeLabelSet for NoLabels {
    fn encode(&self, _: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        Ok(())
    }
}

// === impl ListenerLabels ===

impl ListenerLabels {
    fn new(gateway: &str, listener: &str) -> Self {
        Self {
            gateway: gateway.into(),
            listener: listener.into(),
        }
    }

    fn with(&self, reason: &'static str) -> ReasonLabels {
        let Self { gateway, listener } = self.clone();
        ReasonLabels {
            gateway,
            listener,
            reason,
        }
    }
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tailway");
        let inner = Inner {
            opened: Family::default(),
            closed: Family::default(),
            open: Family::default(),
            refused: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            // From a health check to a connection that stays for an hour.
            duration: Family::new_with_constructor(|| {
                Histogram::new([0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0])
            }),
            tls_failures: Family::default(),
            backend_errors: Family::default(),
            certificate_expiry: Family::default(),
            node_running: Family::default(),
            node_peers: Family::default(),
            udp: udp::Families::default(),
            discovery: discovery::Families::new(),
            controller: controller::Families::new(),
            extension: extension::Families::new(),
            http: http::Families::new(),
            health: health::Families::default(),
            api_requests: Family::default(),
            live: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register(
            "connections_opened",
            "Connections accepted",
            inner.opened.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections ended, by reason",
            inner.closed.clone(),
        );
        registry.register(
            "connections_open",
            "Connections that are open",
            inner.open.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections refused, by reason",
            inner.refused.clone(),
        );
        registry.register_with_unit(
            "received",
            "Bytes from tailnet peers",
            Unit::Bytes,
            inner.received.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes to tailnet peers",
            Unit::Bytes,
            inner.sent.clone(),
        );
        registry.register_with_unit(
            "connection_duration",
            "How long connections were open",
            Unit::Seconds,
            inner.duration.clone(),
        );
        registry.register(
            "tls_failures",
            "TLS handshakes that failed, by reason",
            inner.tls_failures.clone(),
        );
        registry.register(
            "backend_errors",
            "Failed tries to reach a backend, by reason",
            inner.backend_errors.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate served for a name expires, since the epoch",
            Unit::Seconds,
            inner.certificate_expiry.clone(),
        );
        registry.register(
            "node_running",
            "Whether the tailnet node is up",
            inner.node_running.clone(),
        );
        registry.register(
            "node_peers",
            "Peers with recent traffic, by how they are reached",
            inner.node_peers.clone(),
        );
        inner.udp.register(&mut registry);
        inner.discovery.register(&mut registry);
        inner.controller.register(&mut registry);
        inner.extension.register(&mut registry);
        inner.http.register(&mut registry);
        inner.health.register(&mut registry);
        registry.register(
            "tailscale_api_requests",
            "Requests to Tailscale's API, by operation and status code; none is no answer",
            inner.api_requests.clone(),
        );
        registry.register(
            "build",
            "Versions",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            inner: Arc::new(Inner { registry, ..inner }),
        }
    }
}

impl Metrics {
    /// The OpenMetrics text.
    pub fn encode(&self) -> String {
        let folds: Vec<_> = self.live().folds.values().cloned().collect();
        folds.iter().for_each(|fold| fold());
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.inner.registry);
        text
    }

    pub fn listener(&self, gateway: &str, listener: &str) -> ListenerMetrics {
        let labels = ListenerLabels::new(gateway, listener);
        let inner = &self.inner;
        ListenerMetrics {
            opened: inner.opened.get_or_create_owned(&labels),
            open: inner.open.get_or_create_owned(&labels),
            received: inner.received.get_or_create_owned(&labels),
            sent: inner.sent.get_or_create_owned(&labels),
            duration: inner.duration.get_or_create_owned(&labels),
            metrics: self.clone(),
            labels,
        }
    }

    pub fn backend_error(&self, gateway: &str, backend: &str, reason: &'static str) {
        let labels = BackendLabels {
            gateway: gateway.into(),
            backend: backend.into(),
            reason,
        };
        self.inner.backend_errors.get_or_create(&labels).inc();
    }

    /// `expiry` in seconds since the epoch.
    pub fn certificate(&self, gateway: &str, name: &str, expiry: f64) {
        let labels = NameLabels {
            gateway: gateway.into(),
            name: name.into(),
        };
        self.inner
            .certificate_expiry
            .get_or_create(&labels)
            .set(expiry);
    }

    /// Counts a request to Tailscale's API with the status of its answer.
    pub fn api_request(&self, operation: &'static str, status: Option<u16>) {
        let code = status.map_or_else(|| "none".into(), |status| status.to_string());
        let labels = ApiLabels { operation, code };
        self.inner.api_requests.get_or_create(&labels).inc();
    }

    /// Whether a Gateway's node is up, and how many peers it reaches directly and by relay.
    pub fn node(&self, gateway: &str, running: bool, direct: u64, relayed: u64) {
        let labels = GatewayLabels {
            gateway: gateway.into(),
        };
        self.inner
            .node_running
            .get_or_create(&labels)
            .set(i64::from(running));
        for (path, count) in [("direct", direct), ("relayed", relayed)] {
            let labels = PathLabels {
                gateway: gateway.into(),
                path,
            };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.inner.node_peers.get_or_create(&labels).set(count);
        }
    }

    /// Forgets the gauges of a Gateway that is gone.
    pub fn forget_node(&self, gateway: &str) {
        self.inner.node_running.remove(&GatewayLabels {
            gateway: gateway.into(),
        });
        for path in ["direct", "relayed"] {
            self.inner.node_peers.remove(&PathLabels {
                gateway: gateway.into(),
                path,
            });
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.inner
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

// === impl ListenerMetrics ===

impl ListenerMetrics {
    pub fn refused(&self, reason: &'static str) {
        self.metrics
            .inner
            .refused
            .get_or_create(&self.labels.with(reason))
            .inc();
    }

    pub fn tls_failure(&self, reason: &'static str) {
        self.metrics
            .inner
            .tls_failures
            .get_or_create(&self.labels.with(reason))
            .inc();
    }

    /// Counts a connection as open; `bytes` tells what it moved.
    pub fn open(&self, bytes: ReadBytes) -> ConnectionMeter {
        self.opened.inc();
        self.open.inc();
        let (received, sent) = (self.received.clone(), self.sent.clone());
        let counted = Mutex::new((0, 0));
        let fold: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            let now = bytes();
            received.inc_by(now.0.saturating_sub(counted.0));
            sent.inc_by(now.1.saturating_sub(counted.1));
            *counted = now;
        });
        let id = {
            let mut live = self.metrics.live();
            live.next += 1;
            let id = live.next;
            live.folds.insert(id, Arc::clone(&fold));
            id
        };
        ConnectionMeter {
            listener: self.clone(),
            started: Instant::now(),
            reason: "aborted",
            id,
            fold,
        }
    }
}

impl fmt::Debug for ListenerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.labels.fmt(f)
    }
}

// === impl ConnectionMeter ===

impl ConnectionMeter {
    /// Sets the reason that the end will be counted with; without one it is `aborted`.
    pub fn ended(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for ConnectionMeter {
    fn drop(&mut self) {
        (self.fold)();
        self.listener.metrics.live().folds.remove(&self.id);
        self.listener.open.dec();
        self.listener
            .duration
            .observe(self.started.elapsed().as_secs_f64());
        let labels = self.listener.labels.with(self.reason);
        self.listener
            .metrics
            .inner
            .closed
            .get_or_create(&labels)
            .inc();
    }
}

impl fmt::Debug for ConnectionMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionMeter")
            .field("listener", &self.listener.labels)
            .finish_non_exhaustive()
    }
}
