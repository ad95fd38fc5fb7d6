//! What is counted of the streams between the controller and its pods.

use super::{GatewayLabels, Metrics, NoLabels};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PushLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    answer: &'static str,
}

#[derive(Clone)]
pub(super) struct Families {
    pushes: Family<PushLabels, Counter>,
    answers: Family<AnswerLabels, Counter>,
    answer_time: Family<AnswerLabels, Histogram>,
    pods: Family<NoLabels, Gauge>,
    keys: Family<AnswerLabels, Counter>,
    copy_written: Family<GatewayLabels, Gauge<f64, AtomicU64>>,
}

/// A pod that is connected. Dropping it counts it out.
#[derive(Debug)]
pub struct PodMeter(Gauge);

// === impl Families ===

impl Families {
    pub(super) fn new() -> Self {
        Self {
            pushes: Family::default(),
            answers: Family::default(),
            // From a change of endpoints to a pod that had to bind ports.
            answer_time: Family::new_with_constructor(|| {
                Histogram::new([0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0])
            }),
            pods: Family::default(),
            keys: Family::default(),
            copy_written: Family::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "discovery_pushes",
            "Snapshots sent to pods, whole or what changed",
            self.pushes.clone(),
        );
        registry.register(
            "discovery_answers",
            "Answers of pods to snapshots",
            self.answers.clone(),
        );
        registry.register_with_unit(
            "discovery_answer_time",
            "From the change of an object to the answer of a pod that was sent what follows",
            Unit::Seconds,
            self.answer_time.clone(),
        );
        registry.register(
            "discovery_pods",
            "Pods that are connected",
            self.pods.clone(),
        );
        registry.register(
            "discovery_keys",
            "Auth keys that pods asked for",
            self.keys.clone(),
        );
        registry.register_with_unit(
            "discovery_copy_written_timestamp",
            "When the copy on disk of the served snapshot was written",
            Unit::Seconds,
            self.copy_written.clone(),
        );
    }
}

// === impl Metrics ===

impl Metrics {
    /// Counts a snapshot that was sent.
    pub fn discovery_push(&self, full: bool) {
        let kind = if full { "full" } else { "delta" };
        let labels = PushLabels { kind };
        self.inner.discovery.pushes.get_or_create(&labels).inc();
    }

    /// Counts an answer, `ack` or `nack`, and how long after its publication it came.
    pub fn discovery_answer(&self, answer: &'static str, after: Option<Duration>) {
        let labels = AnswerLabels { answer };
        self.inner.discovery.answers.get_or_create(&labels).inc();
        if let Some(after) = after {
            let times = &self.inner.discovery.answer_time;
            times.get_or_create(&labels).observe(after.as_secs_f64());
        }
    }

    /// Counts a request for an auth key: `minted`, `refused` or `failed`.
    pub fn discovery_key(&self, answer: &'static str) {
        let labels = AnswerLabels { answer };
        self.inner.discovery.keys.get_or_create(&labels).inc();
    }

    /// Counts a pod as connected.
    pub fn discovery_pod(&self) -> PodMeter {
        let gauge = self.inner.discovery.pods.get_or_create_owned(&NoLabels {});
        gauge.inc();
        PodMeter(gauge)
    }

    /// Notes when the copy on disk was written.
    pub fn discovery_copy(&self, gateway: &str, written: SystemTime) {
        let labels = GatewayLabels {
            gateway: gateway.into(),
        };
        let since_epoch = written.duration_since(UNIX_EPOCH).unwrap_or_default();
        let copies = &self.inner.discovery.copy_written;
        copies.get_or_create(&labels).set(since_epoch.as_secs_f64());
    }
}

// === impl NoLabels ===

// === impl PodMeter ===

impl Drop for PodMeter {
    fn drop(&mut self) {
        self.0.dec();
    }
}
