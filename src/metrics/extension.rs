//! What is counted of the calls of Envoy Gateway.

use super::{Metrics, NoLabels};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookLabels {
    hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    hook: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SkipLabels {
    reason: &'static str,
}

#[derive(Clone)]
pub(super) struct Families {
    calls: Family<CallLabels, Counter>,
    time: Family<HookLabels, Histogram>,
    received: Family<HookLabels, Counter>,
    sent: Family<HookLabels, Counter>,
    routes: Family<HookLabels, Counter>,
    clusters: Family<HookLabels, Counter>,
    skipped: Family<SkipLabels, Counter>,
    resyncs: Family<NoLabels, Counter>,
}

/// A call that has been answered.
#[derive(Clone, Copy, Debug)]
pub struct ExtensionCall<'a> {
    /// As the configuration of Envoy Gateway calls it.
    pub hook: &'static str,
    /// `changed`, `unchanged`, `untouched` (something was wrong with what came) or `failed`.
    pub result: &'static str,
    pub took: Duration,
    /// Of the request and of the answer, in bytes.
    pub sizes: (usize, usize),
    /// What was put in.
    pub routes: usize,
    pub clusters: usize,
    /// Why services were left out, one for each.
    pub skipped: &'a [&'static str],
}

// === impl Families ===

impl Families {
    pub(super) fn new() -> Self {
        Self {
            calls: Family::default(),
            // A Gateway without routes, up to some thousand services on a busy machine.
            time: Family::new_with_constructor(|| {
                Histogram::new([0.0005, 0.002, 0.01, 0.05, 0.25, 1.0, 5.0])
            }),
            received: Family::default(),
            sent: Family::default(),
            routes: Family::default(),
            clusters: Family::default(),
            skipped: Family::default(),
            resyncs: Family::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "extension_calls",
            "Calls of Envoy Gateway, by hook and result",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "extension_call_duration",
            "How long calls took",
            Unit::Seconds,
            self.time.clone(),
        );
        registry.register_with_unit(
            "extension_received",
            "Size of the requests of Envoy Gateway",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "extension_sent",
            "Size of the answers to Envoy Gateway",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "extension_routes",
            "Routes that were put into virtual hosts",
            self.routes.clone(),
        );
        registry.register(
            "extension_clusters",
            "Clusters that were added or filled",
            self.clusters.clone(),
        );
        registry.register(
            "extension_skipped",
            "Services that were left out of an answer, by reason",
            self.skipped.clone(),
        );
        registry.register(
            "extension_resyncs",
            "TailscaleEgressSets that were changed to have them translated again",
            self.resyncs.clone(),
        );
    }
}

// === impl Metrics ===

impl Metrics {
    pub fn extension_call(&self, call: &ExtensionCall<'_>) {
        let families = &self.inner.extension;
        let (hook, result) = (call.hook, call.result);
        let labels = HookLabels { hook };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let add = |family: &Family<HookLabels, Counter>, number: usize| {
            family.get_or_create(&labels).inc_by(count(number));
        };
        families
            .calls
            .get_or_create(&CallLabels { hook, result })
            .inc();
        let time = families.time.get_or_create_owned(&labels);
        time.observe(call.took.as_secs_f64());
        add(&families.received, call.sizes.0);
        add(&families.sent, call.sizes.1);
        add(&families.routes, call.routes);
        add(&families.clusters, call.clusters);
        for &reason in call.skipped {
            families.skipped.get_or_create(&SkipLabels { reason }).inc();
        }
    }

    /// Counts a set that was changed to have it translated again.
    pub fn extension_resync(&self) {
        self.inner
            .extension
            .resyncs
            .get_or_create(&NoLabels {})
            .inc();
    }
}
