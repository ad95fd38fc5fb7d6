//! What is counted of the controller's work.

use super::{Metrics, NoLabels};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone)]
pub(super) struct Families {
    steps: Family<StepLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    gateways: Family<StateLabels, Gauge>,
    nodes: Family<NoLabels, Gauge>,
    pending: Family<NoLabels, Gauge>,
    leading: Family<NoLabels, Gauge>,
    evaluation: Family<NoLabels, Histogram>,
}

// === impl Families ===

impl Families {
    pub(super) fn new() -> Self {
        Self {
            steps: Family::default(),
            writes: Family::default(),
            gateways: Family::default(),
            nodes: Family::default(),
            pending: Family::default(),
            leading: Family::default(),
            evaluation: Family::new_with_constructor(|| {
                Histogram::new([0.0005, 0.002, 0.01, 0.05, 0.2, 1.0])
            }),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "reconciles",
            "Steps taken for Gateways, by step and result",
            self.steps.clone(),
        );
        registry.register(
            "status_writes",
            "Statuses written, by kind and result",
            self.writes.clone(),
        );
        registry.register("gateways", "Gateways, by state", self.gateways.clone());
        registry.register(
            "devices",
            "Devices that Gateways have in their tailnets",
            self.nodes.clone(),
        );
        registry.register(
            "reconciles_pending",
            "Gateways that are worked on or wait to be tried again",
            self.pending.clone(),
        );
        registry.register(
            "leading",
            "Whether this replica holds the lease",
            self.leading.clone(),
        );
        registry.register_with_unit(
            "index_evaluation",
            "How long it took to work out what follows from a burst of changes",
            Unit::Seconds,
            self.evaluation.clone(),
        );
    }
}

impl Metrics {
    /// Counts a step that was taken for a Gateway.
    pub fn reconciled(&self, step: &'static str, succeeded: bool) {
        let result = result(succeeded);
        let labels = StepLabels { step, result };
        self.inner.controller.steps.get_or_create(&labels).inc();
    }

    pub fn status_written(&self, kind: String, succeeded: bool) {
        let result = result(succeeded);
        let labels = WriteLabels { kind, result };
        self.inner.controller.writes.get_or_create(&labels).inc();
    }

    /// Gateways that are worked on or wait to be tried again.
    pub fn reconciles_pending(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let pending = &self.inner.controller.pending;
        pending.get_or_create(&NoLabels {}).set(count);
    }

    /// Devices that Gateways have in their tailnets.
    pub fn nodes(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let nodes = &self.inner.controller.nodes;
        nodes.get_or_create(&NoLabels {}).set(count);
    }

    pub fn leading(&self, leads: bool) {
        let leading = &self.inner.controller.leading;
        leading.get_or_create(&NoLabels {}).set(i64::from(leads));
    }

    pub fn evaluated(&self, took: Duration, programmed: usize, total: usize) {
        let families = &self.inner.controller;
        let evaluation = families.evaluation.get_or_create(&NoLabels {});
        evaluation.observe(took.as_secs_f64());
        let waiting = total.saturating_sub(programmed);
        for (state, count) in [("programmed", programmed), ("waiting", waiting)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let labels = StateLabels { state };
            families.gateways.get_or_create(&labels).set(count);
        }
    }
}

fn result(succeeded: bool) -> &'static str {
    if succeeded { "ok" } else { "error" }
}
