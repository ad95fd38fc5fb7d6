//! Works out anew what changes have marked, in the order in which one thing follows from another.

use super::{
    Index, Key, Kind, Outcome,
    backends::Resolved,
    classes::{Class, classes},
    gateways::{Candidate, Known},
    links::Stage,
    nodes::Names,
    routes::Attached,
};
use crate::{
    api::CONTROLLER,
    model::{ObjectName, differences},
};
use std::collections::BTreeMap;

/// What was worked out on the way to the outcome.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluated {
    /// Those of ours.
    classes: BTreeMap<ObjectName, Class>,
    pub(super) candidates: BTreeMap<ObjectName, Candidate>,
    names: Names,
    /// The backends of each route.
    pub(super) resolved: BTreeMap<Key, Resolved>,
    /// By Gateway.
    pub(super) attached: BTreeMap<ObjectName, Attached>,
}

impl Index {
    /// Works out what follows from the objects and reports; only what changed since the last time.
    pub fn evaluate(&mut self) -> Outcome {
        if std::mem::take(&mut self.pending.classes) {
            self.evaluate_classes();
        }
        for gateway in self.pending.at(Stage::Listeners) {
            self.evaluate_candidate(&gateway);
        }
        for route in std::mem::take(&mut self.pending.backends) {
            self.resolve_backends(route);
        }
        for gateway in self.pending.at(Stage::Routes) {
            self.attach_routes(&gateway);
        }
        for gateway in std::mem::take(&mut self.pending.gateways).into_keys() {
            self.conclude_gateway(&gateway);
            let sets = self.objects.sets_of_gateway.of(&gateway).cloned();
            self.pending.listener_sets.extend(sets);
        }
        for set in std::mem::take(&mut self.pending.listener_sets) {
            self.conclude_listener_set(&set);
        }
        for route in std::mem::take(&mut self.pending.route_statuses) {
            self.conclude_route(&route);
        }
        for object in std::mem::take(&mut self.pending.endpoints) {
            self.conclude_endpoints(&object);
        }
        if std::mem::take(&mut self.pending.egress_routes) {
            self.evaluate_egress_routes();
        }
        for policy in std::mem::take(&mut self.pending.policies) {
            self.conclude_policy(&policy);
        }
        self.outcome.clone()
    }

    fn evaluate_classes(&mut self) {
        let now = classes(&self.objects, self.verdicts.as_ref());
        let before = std::mem::replace(&mut self.evaluated.classes, now);
        let now = &self.evaluated.classes;
        for name in differences(&before, now, Class::eq) {
            let gateways = self.links.gateways_of_class.of(name);
            self.pending.gateways(gateways, Stage::Listeners);
            let status = now.get(name).map(|class| class.status(name));
            self.outcome.statuses.classes.settle(name, status);
        }
    }

    /// Whether a Gateway is ours, its listeners, and the node name that it asks for.
    fn evaluate_candidate(&mut self, name: &ObjectName) {
        let gateway = self.objects.gateways.get(name);
        let class = gateway.map(|gateway| ObjectName::new("", &gateway.spec.gateway_class_name));
        // A class that nobody has may become ours.
        let unclaimed = class
            .as_ref()
            .filter(|class| !self.objects.classes.contains_key(*class));
        let message = unclaimed.map(|class| {
            vec![format!(
                "there is no GatewayClass {}: add one with controllerName {CONTROLLER}",
                class.name
            )]
        });
        let class = class.and_then(|class| self.evaluated.classes.get(&class));
        let candidate = gateway.zip(class).map(|(gateway, class)| {
            let has_node = self.reports.contains_key(name);
            Candidate::new(&self.objects, name, gateway, class, has_node)
        });
        let claim = candidate.as_ref().and_then(Candidate::claim);
        let before = match candidate {
            Some(candidate) => self.evaluated.candidates.insert(name.clone(), candidate),
            None => self.evaluated.candidates.remove(name),
        };
        let before = before.as_ref().and_then(Candidate::claim);
        let affected = self.evaluated.names.replace(before, claim);
        self.pending.gateways(&affected, Stage::Result);
        let key = Key {
            kind: Kind::Gateway,
            name: name.clone(),
        };
        self.outcome.statuses.unclaimed.settle(&key, message);
    }

    fn resolve_backends(&mut self, key: Key) {
        let Some(route) = self.objects.routes.get(&key) else {
            if let Some(before) = self.evaluated.resolved.remove(&key) {
                self.mark_policies_of(&before);
            }
            return;
        };
        let resolved = self.objects.resolve_backends(&key, route);
        let before = self.evaluated.resolved.get(&key);
        if before == Some(&resolved) {
            return;
        }
        for (_, gateway) in self.objects.gateways_of(&key, route) {
            let attached = self.evaluated.attached.get(&gateway);
            if attached.is_some_and(|attached| attached.served().any(|served| *served == key)) {
                self.pending.gateway(&gateway, Stage::Result);
            }
        }
        if before.is_none_or(|before| before.findings != resolved.findings) {
            self.pending.route_statuses.insert(key.clone());
        }
        // Endpoints that come and go say nothing to policies.
        if before.is_none_or(|before| !before.backends.keys().eq(resolved.backends.keys())) {
            self.mark_policies_of(&resolved);
            if let Some(before) = self.evaluated.resolved.remove(&key) {
                self.mark_policies_of(&before);
            }
        }
        self.evaluated.resolved.insert(key, resolved);
    }

    fn attach_routes(&mut self, gateway: &ObjectName) {
        let keys = self.routes_of(gateway);
        let routes = keys
            .iter()
            .filter_map(|key| Some((key, self.objects.routes.get(key)?)));
        let candidate = self.evaluated.candidates.get(gateway);
        let attached = candidate.map(|candidate| Attached::new(&self.objects, candidate, routes));
        let now = attached.clone().unwrap_or_default();
        let before = match attached {
            Some(attached) => self.evaluated.attached.insert(gateway.clone(), attached),
            None => self.evaluated.attached.remove(gateway),
        };
        let before = before.unwrap_or_default();
        let changed = differences(&before.results, &now.results, PartialEq::eq);
        let routes = changed.into_iter().map(|(route, _)| route.clone());
        self.pending.route_statuses.extend(routes);
        let both = before.results.keys().chain(now.results.keys());
        self.mark_policies_of_routes(both.map(|(route, _)| route));
    }

    /// The Snapshot and the status of a Gateway.
    fn conclude_gateway(&mut self, name: &ObjectName) {
        let known = self.known(name);
        let snapshot = known.as_ref().and_then(Known::snapshot);
        let status = known.as_ref().map(Known::status);
        self.outcome.snapshots.settle(name, snapshot);
        self.outcome.statuses.gateways.settle(name, status);
    }

    /// All that is known of a Gateway of ours.
    pub(super) fn known(&self, name: &ObjectName) -> Option<Known<'_>> {
        let evaluated = &self.evaluated;
        Some(Known {
            candidate: evaluated.candidates.get(name)?,
            names: &evaluated.names,
            attached: evaluated.attached.get(name)?,
            resolved: &evaluated.resolved,
            routes: &self.objects.routes,
            report: self.reports.get(name),
        })
    }

    fn conclude_route(&mut self, key: &Key) {
        let route = self.objects.routes.get(key);
        let resolved = self.evaluated.resolved.get(key);
        let status = route.zip(resolved).and_then(|(route, resolved)| {
            let gateways = self.objects.gateways_of(key, route);
            route.status(key, gateways, resolved, |at, gateway| {
                let attached = self.evaluated.attached.get(gateway)?;
                attached.results.get(&(key.clone(), at))
            })
        });
        self.outcome.statuses.routes.settle(key, status);
        let unclaimed = route.map(|route| route.unclaimed(key, &self.objects));
        let unclaimed = unclaimed.filter(|messages| !messages.is_empty());
        self.outcome.statuses.unclaimed.settle(key, unclaimed);
    }
}
