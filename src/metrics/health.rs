use super::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    gateway: String,
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    gateway: String,
    endpoint: String,
    result: &'static str,
}

/// Of endpoints that are checked.
#[derive(Default)]
pub(super) struct Families {
    checks: Family<CheckLabels, Counter>,
    healthy: Family<EndpointLabels, Gauge>,
}

const RESULTS: [&str; 2] = ["failed", "good"];

// === impl Families ===

impl Families {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "health_checks",
            "Health checks of endpoints, by result",
            self.checks.clone(),
        );
        registry.register(
            "endpoint_healthy",
            "Whether an endpoint is healthy; those of which nothing is known yet are left out",
            self.healthy.clone(),
        );
    }
}

impl Metrics {
    /// Counts a check of an endpoint.
    pub fn health_check(&self, gateway: &str, endpoint: &str, is_good: bool) {
        let labels = CheckLabels {
            gateway: gateway.into(),
            endpoint: endpoint.into(),
            result: RESULTS[usize::from(is_good)],
        };
        self.inner.health.checks.get_or_create(&labels).inc();
    }

    /// What became of the checks of an endpoint.
    pub fn health(&self, gateway: &str, endpoint: &str, is_healthy: bool) {
        let labels = EndpointLabels {
            gateway: gateway.into(),
            endpoint: endpoint.into(),
        };
        let healthy = self.inner.health.healthy.get_or_create(&labels);
        healthy.set(i64::from(is_healthy));
    }

    /// The endpoint is not checked any more.
    pub fn forget_health(&self, gateway: &str, endpoint: &str) {
        let families = &self.inner.health;
        families.healthy.remove(&EndpointLabels {
            gateway: gateway.into(),
            endpoint: endpoint.into(),
        });
        for result in RESULTS {
            families.checks.remove(&CheckLabels {
                gateway: gateway.into(),
                endpoint: endpoint.into(),
                result,
            });
        }
    }
}
