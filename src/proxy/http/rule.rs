//! Rules, ready to be followed.

use super::filters::Filters;
use crate::{
    model::{HttpRule, Retry, RouteId, Timeouts},
    proxy::balance::{Backends, Balancer, Weights},
};
use std::sync::Arc;

/// What is done with the requests of a rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) route: RouteId,
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
            mirrors: mirrors(&filters, backends),
            filters,
            backends: targets.collect(),
            weights: Weights::new(rule.backends.iter().map(|backend| backend.weight)),
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
        }
    }

    /// The backend of a request, by weight.
    pub(super) fn draw(&self) -> Option<&Target> {
        self.backends.get(self.weights.draw()?)
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
