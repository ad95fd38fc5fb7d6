use super::{ListenerLabels, Metrics, ReasonLabels};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::fmt;

/// Counts of datagrams. Their bytes are counted with those of connections.
#[derive(Default)]
pub(super) struct Families {
    opened: Family<ListenerLabels, Counter>,
    closed: Family<ReasonLabels, Counter>,
    open: Family<ListenerLabels, Gauge>,
    dropped: Family<ReasonLabels, Counter>,
}

/// The metrics of one listener of UDP.
#[derive(Clone)]
pub struct UdpMetrics {
    metrics: Metrics,
    labels: ListenerLabels,
    opened: Counter,
    open: Gauge,
    received: Counter,
    sent: Counter,
}

/// One open flow. Dropping it counts it as closed, once, with the reason that was set.
#[derive(Debug)]
pub struct FlowMeter {
    listener: UdpMetrics,
    reason: &'static str,
}

// === impl Families ===

impl Families {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "udp_flows_opened",
            "Flows of datagrams that began",
            self.opened.clone(),
        );
        registry.register(
            "udp_flows_closed",
            "Flows of datagrams that ended, by reason",
            self.closed.clone(),
        );
        registry.register(
            "udp_flows_open",
            "Flows of datagrams that are open",
            self.open.clone(),
        );
        registry.register(
            "udp_datagrams_dropped",
            "Datagrams that were not passed on, by reason",
            self.dropped.clone(),
        );
    }
}

// === impl Metrics ===

impl Metrics {
    pub fn udp_listener(&self, gateway: &str, listener: &str) -> UdpMetrics {
        let labels = ListenerLabels::new(gateway, listener);
        let inner = &self.inner;
        UdpMetrics {
            opened: inner.udp.opened.get_or_create_owned(&labels),
            open: inner.udp.open.get_or_create_owned(&labels),
            received: inner.received.get_or_create_owned(&labels),
            sent: inner.sent.get_or_create_owned(&labels),
            metrics: self.clone(),
            labels,
        }
    }
}

// === impl UdpMetrics ===

impl UdpMetrics {
    /// Counts a datagram that was not passed on.
    pub fn dropped(&self, reason: &'static str) {
        let labels = self.labels.with(reason);
        self.metrics.inner.udp.dropped.get_or_create(&labels).inc();
    }

    /// Counts the payload of a datagram from a peer.
    pub fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    /// Counts the payload of a datagram to a peer.
    pub fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// Counts a flow as open.
    pub fn open(&self) -> FlowMeter {
        self.opened.inc();
        self.open.inc();
        FlowMeter {
            listener: self.clone(),
            reason: "aborted",
        }
    }
}

impl fmt::Debug for UdpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.labels.fmt(f)
    }
}

// === impl FlowMeter ===

impl FlowMeter {
    /// Sets the reason that the end will be counted with; without one it is `aborted`.
    pub fn ended(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for FlowMeter {
    fn drop(&mut self) {
        self.listener.open.dec();
        let labels = self.listener.labels.with(self.reason);
        let udp = &self.listener.metrics.inner.udp;
        udp.closed.get_or_create(&labels).inc();
    }
}
