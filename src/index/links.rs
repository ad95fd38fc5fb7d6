//! Who refers to whom, and what is to be worked out anew after a change.

use super::{Key, frontend, routes::Route};
use crate::{
    api::gateway_api::gateways::{
        Gateway, GatewayTlsBackendClientCertificateRef as ClientCertificateRef,
    },
    model::{BackendKind, ObjectName},
};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

/// The references between objects, from their targets, whether those are there or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    pub(super) gateways_of_class: Relation<ObjectName>,
    pub(super) gateways_of_secret: Relation<ObjectName>,
    pub(super) sets_of_secret: Relation<ObjectName>,
    pub(super) gateways_of_config_map: Relation<ObjectName>,
    pub(super) policies_of_config_map: Relation<ObjectName>,
    pub(super) endpoints_of_config_map: Relation<ObjectName>,
    pub(super) routes_of_gateway: Relation<Key>,
    pub(super) routes_of_listener_set: Relation<Key>,
    pub(super) routes_of_service: Relation<Key>,
    pub(super) routes_of_endpoints: Relation<Key>,
    /// Those that live there: listeners choose routes by the labels of their namespace.
    pub(super) routes_of_namespace: Relation<Key>,
}

/// Objects by the name of what they refer to.
#[derive(Clone, Debug)]
pub(super) struct Relation<R>(BTreeMap<ObjectName, BTreeSet<R>>);

/// What is to be worked out anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// All classes: they are few.
    pub(super) classes: bool,
    pub(super) gateways: BTreeMap<ObjectName, Stage>,
    /// Routes whose backends may have changed.
    pub(super) backends: BTreeSet<Key>,
    /// Routes whose statuses may have changed.
    pub(super) route_statuses: BTreeSet<Key>,
    /// ListenerSets whose statuses may have changed.
    pub(super) listener_sets: BTreeSet<ObjectName>,
    /// BackendTLSPolicies whose statuses may have changed.
    pub(super) policies: BTreeSet<ObjectName>,
    /// TailscaleEndpoints that changed, or whose pods say something new.
    pub(super) endpoints: BTreeSet<ObjectName>,
    /// The routes of all Gateways of Envoy Gateway: they are few.
    pub(super) egress_routes: bool,
}

/// How much of a Gateway is to be worked out anew; a later stage includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Its Snapshot and its status.
    Result,
    /// Which routes are attached to it.
    Routes,
    /// Whether it is ours, its listeners and the node it asks for.
    Listeners,
}

/// A cluster-scoped object.
pub(super) fn unscoped(name: &str) -> ObjectName {
    ObjectName::new("", name)
}

/// The entries of a map whose names are of a namespace.
pub(super) fn in_namespace<'a, K, V>(
    map: &'a BTreeMap<K, V>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a K, &'a V)>
where
    K: Borrow<ObjectName> + Ord,
{
    map.range(ObjectName::new(namespace, "")..)
        .take_while(move |(name, _)| (*name).borrow().namespace == namespace)
}

fn class(gateway: &Gateway) -> ObjectName {
    unscoped(&gateway.spec.gateway_class_name)
}

/// The Secrets that a Gateway refers to, for its listeners and for its backends.
fn secrets(name: &ObjectName, gateway: &Gateway) -> Vec<ObjectName> {
    let listeners = gateway.spec.listeners.iter();
    let tls = listeners.flat_map(|listener| &listener.tls);
    let secret = |namespace: &Option<String>, secret: &str| {
        ObjectName::new(namespace.as_ref().unwrap_or(&name.namespace), secret)
    };
    let own = tls.flat_map(|tls| tls.certificate_refs.iter().flatten());
    let own = own.map(|reference| secret(&reference.namespace, &reference.name));
    let backend = client_certificate(gateway);
    let backend = backend.map(|reference| secret(&reference.namespace, &reference.name));
    own.chain(backend).collect()
}

/// What a Gateway shows of itself to its backends.
pub(super) fn client_certificate(gateway: &Gateway) -> Option<&ClientCertificateRef> {
    let backend = gateway.spec.tls.as_ref()?.backend.as_ref()?;
    backend.client_certificate_ref.as_ref()
}

// === impl Links ===

impl Links {
    pub(super) fn replace_gateway(
        &mut self,
        name: &ObjectName,
        old: Option<&Gateway>,
        new: Option<&Gateway>,
    ) {
        self.gateways_of_class
            .replace(name, old.map(class), new.map(class));
        let secrets = |gateway: Option<&Gateway>| {
            let secrets = gateway.map(|gateway| secrets(name, gateway));
            secrets.unwrap_or_default()
        };
        self.gateways_of_secret
            .replace(name, secrets(old), secrets(new));
        let config_maps = |gateway: Option<&Gateway>| {
            let config_maps = gateway.map(|gateway| frontend::config_maps(name, gateway));
            config_maps.unwrap_or_default()
        };
        self.gateways_of_config_map
            .replace(name, config_maps(old), config_maps(new));
    }

    pub(super) fn replace_route(&mut self, key: &Key, old: Option<&Route>, new: Option<&Route>) {
        let gateways = |route: Option<&Route>| -> Vec<_> {
            let parents = route.into_iter().flat_map(|route| route.gateways(key));
            parents.map(|(_, gateway)| gateway).collect()
        };
        self.routes_of_gateway
            .replace(key, gateways(old), gateways(new));
        let sets = |route: Option<&Route>| -> Vec<_> {
            let parents = route.into_iter().flat_map(|route| route.listener_sets(key));
            parents.map(|(_, set)| set).collect()
        };
        self.routes_of_listener_set
            .replace(key, sets(old), sets(new));
        let backends = |route: Option<&Route>, wanted| -> Vec<_> {
            let backends = route.into_iter().flat_map(|route| &route.backends);
            let backends = backends.filter(|(kind, _)| *kind == wanted);
            backends.map(|(_, name)| name.clone()).collect()
        };
        for (kind, routes) in [
            (BackendKind::Service, &mut self.routes_of_service),
            (BackendKind::Endpoints, &mut self.routes_of_endpoints),
        ] {
            routes.replace(key, backends(old, kind), backends(new, kind));
        }
        let namespace = |route: Option<&Route>| route.map(|_| unscoped(&key.name.namespace));
        self.routes_of_namespace
            .replace(key, namespace(old), namespace(new));
    }
}

// === impl Relation ===

impl<R: Ord + Clone> Relation<R> {
    /// What refers to `target`.
    pub(super) fn of(&self, target: &ObjectName) -> impl Iterator<Item = &R> {
        self.0.get(target).into_iter().flatten()
    }

    /// What refers to anything of a namespace.
    pub(super) fn of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a R> {
        in_namespace(&self.0, namespace).flat_map(|(_, referrers)| referrers)
    }

    /// Lets `referrer` refer to the new targets rather than to the old ones.
    pub(super) fn replace(
        &mut self,
        referrer: &R,
        old: impl IntoIterator<Item = ObjectName>,
        new: impl IntoIterator<Item = ObjectName>,
    ) {
        for target in old {
            if let Some(referrers) = self.0.get_mut(&target) {
                referrers.remove(referrer);
                if referrers.is_empty() {
                    self.0.remove(&target);
                }
            }
        }
        for target in new {
            self.0.entry(target).or_default().insert(referrer.clone());
        }
    }
}

impl<R> Default for Relation<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

// === impl Pending ===

impl Pending {
    pub(super) fn gateway(&mut self, name: &ObjectName, stage: Stage) {
        match self.gateways.get_mut(name) {
            Some(pending) => *pending = stage.max(*pending),
            None => drop(self.gateways.insert(name.clone(), stage)),
        }
    }

    pub(super) fn gateways<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a ObjectName>,
        stage: Stage,
    ) {
        names.into_iter().for_each(|name| self.gateway(name, stage));
    }

    /// The Gateways that are at a stage or a later one.
    pub(super) fn at(&self, stage: Stage) -> Vec<ObjectName> {
        let gateways = self.gateways.iter();
        let at = gateways.filter(|(_, pending)| **pending >= stage);
        at.map(|(name, _)| name.clone()).collect()
    }
}
