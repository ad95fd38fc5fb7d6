//! BackendTLSPolicies and ConfigMaps that come, change and go, and what policies have for statuses.

use super::{
    Index, Key, Kind, authorities::Bundle, backend_tls::Policy, backends::Resolved,
    changes::replace, links::Stage,
};
use crate::{
    api::gateway_api::backendtlspolicies::BackendTlsPolicy,
    model::{BackendKind, ObjectName},
};
use std::{collections::BTreeSet, sync::Arc};

impl Index {
    pub(super) fn set_policy(&mut self, name: &ObjectName, policy: Option<Arc<BackendTlsPolicy>>) {
        let new = policy.as_deref().map(|policy| Policy::of(name, policy));
        self.objects.backend_tls_policies.set(name, policy);
        let Some(old) = replace(&mut self.objects.policies, name, new.clone()) else {
            return;
        };
        let services = |policy: Option<&Policy>| -> BTreeSet<_> {
            let targets = policy.into_iter().flat_map(|policy| policy.targets(name));
            targets.map(|(service, _)| service).collect()
        };
        let (before, now) = (services(old.as_ref()), services(new.as_ref()));
        let of_service = &mut self.objects.policies_of_service;
        of_service.replace(name, before.clone(), now.clone());
        let config_maps = |policy: Option<&Policy>| -> Vec<_> {
            let policy = policy.into_iter();
            policy.flat_map(|policy| policy.config_maps(name)).collect()
        };
        self.links.policies_of_config_map.replace(
            name,
            config_maps(old.as_ref()),
            config_maps(new.as_ref()),
        );
        self.pending.policies.insert(name.clone());
        for service in before.union(&now) {
            self.policies_changed(service);
        }
    }

    pub(super) fn set_config_map(&mut self, name: &ObjectName, bundle: Option<Bundle>) {
        if replace(&mut self.objects.config_maps, name, bundle).is_none() {
            return;
        }
        let gateways = self.links.gateways_of_config_map.of(name);
        self.pending.gateways(gateways, Stage::Listeners);
        let policies: Vec<_> = self
            .links
            .policies_of_config_map
            .of(name)
            .cloned()
            .collect();
        for policy in &policies {
            let targets = self.objects.policies.get(policy).into_iter();
            let targets = targets.flat_map(|of| of.targets(policy));
            let services: BTreeSet<_> = targets.map(|(service, _)| service).collect();
            for service in &services {
                self.policies_changed(service);
            }
        }
        self.pending.policies.extend(policies);
        let endpoints = self.links.endpoints_of_config_map.of(name).cloned();
        for object in endpoints.collect::<Vec<_>>() {
            self.read_endpoints(&object);
        }
    }

    /// What the policies of a Service say may be something else now, or which of them is followed.
    fn policies_changed(&mut self, service: &ObjectName) {
        self.mark_policies(service);
        self.endpoints_changed(service);
    }

    /// Marks the policies of a Service: whose backend it is may have changed.
    pub(super) fn mark_policies(&mut self, service: &ObjectName) {
        let policies = self.objects.policies_of_service.of(service).cloned();
        self.pending.policies.extend(policies);
    }

    /// Marks the policies of the backends of a route.
    pub(super) fn mark_policies_of(&mut self, resolved: &Resolved) {
        for service in services_of(resolved) {
            self.mark_policies(&service);
        }
    }

    /// Marks the policies of the backends of routes that are, or were, attached to a Gateway.
    pub(super) fn mark_policies_of_routes<'a>(&mut self, routes: impl Iterator<Item = &'a Key>) {
        if self.objects.policies.is_empty() {
            return;
        }
        let routes: BTreeSet<_> = routes.collect();
        for route in routes {
            let resolved = self.evaluated.resolved.get(route);
            for service in resolved.map(services_of).unwrap_or_default() {
                self.mark_policies(&service);
            }
        }
    }

    /// The status of a policy; none while no Gateway of ours has a backend of it.
    pub(super) fn conclude_policy(&mut self, name: &ObjectName) {
        let policy = self.objects.policies.get(name);
        let gateways = policy.map(|policy| self.ancestors(name, policy));
        let followed = policy.zip(gateways.as_ref());
        let followed = followed.filter(|(_, gateways)| !gateways.is_empty());
        let status =
            followed.map(|(policy, gateways)| policy.status(name, &self.objects, gateways));
        let missing = policy.map(|policy| policy.missing(name, &self.objects));
        self.outcome.statuses.policies.settle(name, status);
        let key = Key {
            kind: Kind::BackendTlsPolicy,
            name: name.clone(),
        };
        let missing = missing.filter(|missing| !missing.is_empty());
        self.outcome.statuses.unclaimed.settle(&key, missing);
    }

    /// The Gateways of ours with a route that sends to what the policy is for.
    fn ancestors(&self, name: &ObjectName, policy: &Policy) -> BTreeSet<ObjectName> {
        let mut gateways = BTreeSet::new();
        for (service, section) in policy.targets(name) {
            let ports = self.objects.services.get(&service);
            let is_meant = |port: u16| {
                section.is_none_or(|name| ports.is_some_and(|ports| ports.port_name(port) == name))
            };
            for key in self.links.routes_of_service.of(&service) {
                let resolved = self.evaluated.resolved.get(key);
                let mut backends = resolved.into_iter().flat_map(|of| of.backends.keys());
                if backends.any(|id| id.is_service(&service) && is_meant(id.port)) {
                    gateways.extend(self.speaking(key));
                }
            }
        }
        gateways
    }

    /// The Gateways that a route is attached to and that speak to its backends themselves, rather
    /// than passing on what somebody else says.
    fn speaking(&self, key: &Key) -> Vec<ObjectName> {
        let Some(route) = self.objects.routes.get(key) else {
            return Vec::new();
        };
        let gateways = self.objects.gateways_of(key, route).into_iter();
        let attached = gateways.filter(|(at, gateway)| {
            let attached = self.evaluated.attached.get(gateway);
            let result = attached.and_then(|attached| attached.results.get(&(key.clone(), *at)));
            matches!(result, Some(Ok(_))) && self.speaks(gateway, key)
        });
        attached.map(|(_, gateway)| gateway).collect()
    }

    fn speaks(&self, gateway: &ObjectName, route: &Key) -> bool {
        let candidate = self.evaluated.candidates.get(gateway);
        let attached = self.evaluated.attached.get(gateway);
        let Some((candidate, attached)) = candidate.zip(attached) else {
            return false;
        };
        candidate.listeners.iter().any(|listener| {
            let routes = attached.routes.get(&listener.name);
            routes.is_some_and(|routes| routes.contains(route))
                && listener.protocol.as_ref().is_some_and(|p| p.ends_here())
        })
    }
}

fn services_of(resolved: &Resolved) -> BTreeSet<ObjectName> {
    let backends = resolved.backends.keys();
    let services = backends.filter(|id| id.kind == BackendKind::Service);
    services.map(|id| id.object.clone()).collect()
}
