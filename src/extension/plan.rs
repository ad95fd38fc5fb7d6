//! What several sets are together: the routes of each Gateway, and the clusters of all.

use super::{
    cluster::Settings,
    refusal::{Refusal, check_service},
    route::{Rendered, RenderedRoute, render},
    set::{EgressSet, Skipped},
};
use crate::{api::upstream::egress::RoutedService, model::ObjectName};
use bytes::Bytes;
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// The same sets are always the same plan, in whatever order they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they are tried. A Gateway with a set without services is there too.
    pub(super) routes: BTreeMap<ObjectName, Vec<RenderedRoute>>,
    /// By name.
    pub(super) clusters: BTreeMap<String, Bytes>,
    /// By the name of the set.
    pub(super) served: BTreeMap<ObjectName, Served>,
}

/// How a set is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub gateway: ObjectName,
    pub revision: String,
    pub resync: i64,
    /// Services that have a route.
    pub services: Vec<Routed>,
    pub skipped: Vec<Skipped>,
}

/// A service that has a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Routed {
    pub service: String,
    /// `namespace/name` of its TailscaleEndpoints.
    pub source: String,
    pub path_prefix: String,
    pub route: String,
    pub cluster: String,
}

impl Plan {
    /// `foreign` are clusters that are there and not ours.
    pub(super) fn new<'a>(
        sets: impl IntoIterator<Item = &'a EgressSet>,
        foreign: &BTreeSet<String>,
        settings: &Settings,
    ) -> Self {
        let sets: BTreeMap<_, _> = sets.into_iter().map(|set| (&set.name, set)).collect();
        let mut plan = Self::default();
        let mut names = BTreeMap::new();
        for set in sets.into_values() {
            let names = names.entry(&set.gateway).or_default();
            plan.add(set, names, foreign, settings);
        }
        for routes in plan.routes.values_mut() {
            // Of one prefix inside another the longer is tried first; that of gRPC before its
            // sibling, as the sort is stable.
            routes.sort_by(|one, other| {
                let order = |route: &RenderedRoute| Reverse(route.prefix.matches('/').count());
                (order(one), &one.prefix).cmp(&(order(other), &other.prefix))
            });
        }
        plan
    }

    fn add<'a>(
        &mut self,
        set: &'a EgressSet,
        names: &mut Names<'a>,
        foreign: &BTreeSet<String>,
        settings: &Settings,
    ) {
        let mut skipped = set.skipped.clone();
        let mut services = Vec::new();
        self.routes.entry(set.gateway.clone()).or_default();
        for service in &set.services {
            let rendered = names
                .take(service)
                .and_then(|()| self.render(service, &set.gateway, foreign, settings));
            match rendered {
                Ok(rendered) => {
                    services.push(Routed {
                        service: service.name.clone(),
                        source: service.source.clone(),
                        path_prefix: service.path_prefix.clone(),
                        route: service.route.clone(),
                        cluster: rendered.cluster,
                    });
                    self.clusters.extend(rendered.clusters);
                    let routes = self.routes.entry(set.gateway.clone()).or_default();
                    routes.extend(rendered.routes);
                }
                Err(refusal) => skipped.push(Skipped {
                    service: service.name.clone(),
                    source: service.source.clone(),
                    refusal,
                }),
            }
        }
        let served = Served {
            gateway: set.gateway.clone(),
            revision: set.revision.clone(),
            resync: set.resync,
            services,
            skipped,
        };
        self.served.insert(set.name.clone(), served);
    }

    /// Two Gateways may have different clusters of one name: that of the second gets another one.
    fn render(
        &self,
        service: &RoutedService,
        gateway: &ObjectName,
        foreign: &BTreeSet<String>,
        settings: &Settings,
    ) -> Result<Rendered, Refusal> {
        let own = render(service, &service.cluster, settings)?;
        if let Some((name, _)) = own.clusters.iter().find(|(name, _)| foreign.contains(name)) {
            return Err(Refusal::Taken(name.clone()));
        }
        if self.has_room(&own) {
            return Ok(own);
        }
        let other = render(service, &format!("{}/{gateway}", service.cluster), settings)?;
        let is_free = |name: &String| !foreign.contains(name);
        match self.has_room(&other) && other.clusters.iter().all(|(name, _)| is_free(name)) {
            true => Ok(other),
            false => Err(Refusal::Twice {
                what: "cluster",
                name: service.cluster.clone(),
            }),
        }
    }

    fn has_room(&self, rendered: &Rendered) -> bool {
        let mut clusters = rendered.clusters.iter();
        clusters.all(|(name, cluster)| self.clusters.get(name).is_none_or(|there| there == cluster))
    }
}

/// What may be there once for a Gateway.
#[derive(Default)]
struct Names<'a> {
    taken: BTreeSet<(&'static str, &'a str)>,
}

impl<'a> Names<'a> {
    fn take(&mut self, service: &'a RoutedService) -> Result<(), Refusal> {
        check_service(service)?;
        let names = [
            ("route", service.route.as_str()),
            ("cluster", &service.cluster),
            ("path prefix", &service.path_prefix),
        ];
        match names.iter().find(|name| self.taken.contains(*name)) {
            Some(&(what, name)) => Err(Refusal::Twice {
                what,
                name: name.into(),
            }),
            None => {
                self.taken.extend(names);
                Ok(())
            }
        }
    }
}
