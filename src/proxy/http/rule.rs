//! Rules, ready to be followed.

use super::{filters::Filters, pool::Speech};
use crate::{
    metrics::{HttpLabels, HttpMeter, Metrics, WeakHttpMeter},
    model::{BackendProtocol, HttpRouteKind, HttpRule, Retry, RouteId, Timeouts},
    proxy::balance::{Backends, Balancer, Weights},
};
use std::sync::Arc;

/// What is done with the requests of a rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) route: RouteId,
    /// As the route calls it; may be empty.
    pub(super) name: String,
    pub(super) filters: Filters,
    /// Beside each of the rule's mirrors: where it goes.
    pub(super) mirrors: Vec<Mirror>,
    pub(super) backends: Vec<Target>,
    pub(super) weights: Weights,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<Retry>,
}

/// A backend of a rule.
#[derive(Debug)]
pub(super) struct Target {
    /// `None`: the reference is invalid.
    pub(super) backend: Option<Arc<Balancer>>,
    pub(super) filters: Filters,
    pub(super) mirrors: Vec<Mirror>,
}

/// Where a share of the requests is copied to.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) backend: Arc<Balancer>,
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

impl Rule {
    pub(super) fn new(route: &RouteId, rule: &HttpRule, backends: &Backends) -> Self {
        let filters = Filters::new(&rule.filters);
        let targets = rule.backends.iter().map(|wanted| {
            let filters = Filters::new(&wanted.filters);
            Target {
                backend: wanted.backend.as_ref().and_then(|id| backends.find(id)),
                mirrors: mirrors(&filters, backends),
                filters,
            }
        });
        Self {
            route: route.clone(),
            name: rule.name.clone(),
            mirrors: mirrors(&filters, backends),
            filters,
            backends: targets.collect(),
            weights: Weights::new(rule.backends.iter().map(|backend| backend.weight)),
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
        }
    }

    /// The backend of a request, by weight, and which one that is.
    pub(super) fn draw(&self) -> Option<(usize, &Target)> {
        let index = self.weights.draw()?;
        Some((index, self.backends.get(index)?))
    }

    /// What is spoken to a backend: gRPC is HTTP/2, whatever the backend says of itself.
    pub(super) fn speech(&self, backend: &Balancer) -> Speech {
        match (self.route.kind, backend.protocol) {
            (HttpRouteKind::Grpc, _) | (_, BackendProtocol::H2c) => Speech::Http2,
            (_, BackendProtocol::Http1) if backend.is_plain() => Speech::Http1,
            (_, BackendProtocol::Http1) => Speech::Either,
        }
    }
}

/// A rule as one listener has it.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) rule: Arc<Rule>,
    pub(super) meters: Arc<Meters>,
}

/// What counts the requests of a rule.
#[derive(Debug)]
pub(super) struct Meters {
    /// Of those that come to no backend.
    pub(super) own: WeakHttpMeter,
    /// Beside each of its backends; those of invalid references are its own.
    backends: Vec<WeakHttpMeter>,
}

/// Makes meters, and keeps them.
#[derive(Debug)]
pub(in crate::proxy) struct Metering<'a> {
    pub(in crate::proxy) metrics: &'a Metrics,
    pub(in crate::proxy) gateway: &'a str,
    pub(in crate::proxy) kept: &'a mut Vec<HttpMeter>,
}

impl Metering<'_> {
    pub(super) fn of(&mut self, listener: &str, route: &str, backend: &str) -> WeakHttpMeter {
        let meter = self.metrics.http(&HttpLabels {
            gateway: self.gateway.to_owned(),
            listener: listener.to_owned(),
            route: route.to_owned(),
            backend: backend.to_owned(),
        });
        let weak = meter.downgrade();
        self.kept.push(meter);
        weak
    }

    pub(super) fn of_rule(&mut self, listener: &str, rule: &Rule) -> Arc<Meters> {
        let route = rule.route.to_string();
        let own = self.of(listener, &route, "");
        let backends = rule.backends.iter().map(|target| match &target.backend {
            Some(backend) => self.of(listener, &route, &backend.name),
            None => own.clone(),
        });
        Arc::new(Meters {
            backends: backends.collect(),
            own,
        })
    }
}

impl Meters {
    /// Of the backend at `index` of the rule.
    pub(super) fn backend(&self, index: usize) -> Option<HttpMeter> {
        self.backends.get(index)?.upgrade()
    }
}

fn mirrors(filters: &Filters, backends: &Backends) -> Vec<Mirror> {
    let mirror = |mirror: &crate::model::Mirror| {
        Some(Mirror {
            backend: backends.find(mirror.backend.as_ref()?)?,
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        })
    };
    filters.mirrors.iter().filter_map(mirror).collect()
}
