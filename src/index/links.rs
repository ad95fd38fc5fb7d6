//! Who refers to whom, and what is to be worked out anew after a change.

use super::{routes::parent_gateways, table::in_namespace};
use crate::{
    api::gateway_api::{gateways::Gateway, tcproutes::TcpRoute},
    model::ObjectName,
};
use std::collections::{BTreeMap, BTreeSet};

/// The references between objects, from their targets, whether those are there or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    pub(super) gateways_of_class: Relation,
    pub(super) gateways_of_secret: Relation,
    pub(super) routes_of_gateway: Relation,
    pub(super) routes_of_service: Relation,
}

/// Objects by the name of what they refer to.
#[derive(Clone, Debug, Default)]
pub(super) struct Relation(BTreeMap<ObjectName, BTreeSet<ObjectName>>);

/// What is to be worked out anew.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// All classes: they are few.
    pub(super) classes: bool,
    pub(super) gateways: BTreeMap<ObjectName, Stage>,
    /// Routes whose backends may have changed.
    pub(super) routes: BTreeSet<ObjectName>,
    /// Routes whose statuses may have changed.
    pub(super) route_statuses: BTreeSet<ObjectName>,
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

/// The Secrets that the listeners of a Gateway refer to.
fn secrets(name: &ObjectName, gateway: &Gateway) -> BTreeSet<ObjectName> {
    let tls = gateway.spec.listeners.iter().flat_map(|listener| &listener.tls);
    tls.flat_map(|tls| tls.certificate_refs.iter().flatten())
        .map(|reference| {
            let namespace = reference.namespace.as_ref().unwrap_or(&name.namespace);
            ObjectName::new(namespace, &reference.name)
        })
        .collect()
}

/// The Services that a route refers to.
fn services(name: &ObjectName, route: &TcpRoute) -> BTreeSet<ObjectName> {
    let rules = route.spec.rules.iter();
    rules
        .flat_map(|rule| &rule.backend_refs)
        .map(|reference| {
            let namespace = reference.namespace.as_ref().unwrap_or(&name.namespace);
            ObjectName::new(namespace, &reference.name)
        })
        .collect()
}

// === impl Links ===

impl Links {
    pub(super) fn replace_gateway(
        &mut self,
        name: &ObjectName,
        old: Option<&Gateway>,
        new: Option<&Gateway>,
    ) {
        let class = |gateway: &Gateway| ObjectName::new("", &gateway.spec.gateway_class_name);
        self.gateways_of_class
            .replace(name, old.map(class), new.map(class));
        let secrets = |gateway: Option<&Gateway>| gateway.map(|gateway| secrets(name, gateway));
        self.gateways_of_secret.replace(
            name,
            secrets(old).unwrap_or_default(),
            secrets(new).unwrap_or_default(),
        );
    }

    pub(super) fn replace_route(
        &mut self,
        name: &ObjectName,
        old: Option<&TcpRoute>,
        new: Option<&TcpRoute>,
    ) {
        let parents = |route: Option<&TcpRoute>| route.map(|route| parent_gateways(name, route));
        self.routes_of_gateway.replace(
            name,
            parents(old).unwrap_or_default(),
            parents(new).unwrap_or_default(),
        );
        let services = |route: Option<&TcpRoute>| route.map(|route| services(name, route));
        self.routes_of_service.replace(
            name,
            services(old).unwrap_or_default(),
            services(new).unwrap_or_default(),
        );
    }
}

// === impl Relation ===

impl Relation {
    /// What refers to `target`.
    pub(super) fn of(&self, target: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.0.get(target).into_iter().flatten()
    }

    /// What refers to anything of a namespace.
    pub(super) fn of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a ObjectName> {
        in_namespace(&self.0, namespace).flat_map(|(_, referrers)| referrers)
    }

    /// Lets `referrer` refer to the new targets rather than to the old ones.
    pub(super) fn replace(
        &mut self,
        referrer: &ObjectName,
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
        let at = self.gateways.iter().filter(|(_, pending)| **pending >= stage);
        at.map(|(name, _)| name.clone()).collect()
    }
}
