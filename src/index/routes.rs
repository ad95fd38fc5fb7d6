//! Routes of all kinds: to which listeners each attaches, and what it says of itself.
//!
//! A kind is read into a [`Route`] when it comes ([`kinds`](super::kinds)), and from there on all
//! are alike: a further kind is one more way to make a `Route`, and what is its own goes into its
//! rules.

use super::{
    backends::Resolved,
    claims::{self, Claim},
    gateways::Candidate,
    listener_sets::Origin,
    listeners::Listener,
    objects::{Key, Objects, Precedence},
    status::{Condition, Finding, ParentRef, ParentStatus, RouteStatus},
};
use crate::{
    api::{
        CONTROLLER, GATEWAY_GROUP, TAILWAY_GROUP, conditions as c,
        gateway_api::httproutes::HttpRouteRules,
    },
    model::{BackendKind, HostnamePattern, ObjectName, ProxyProtocol},
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is read of a route, whatever its kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) precedence: Precedence,
    pub(super) generation: i64,
    pub(super) parents: Vec<ParentRef>,
    pub(super) rules: Rules,
    /// What its backendRefs refer to.
    pub(super) backends: BTreeSet<(BackendKind, ObjectName)>,
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Why no listener can have it.
    pub(super) refused: Option<Finding>,
    /// Why rules of it are left out.
    pub(super) left_out: Option<Finding>,
    /// Why annotations of it have no effect.
    pub(super) ignored: Option<Finding>,
}

/// What is a kind's own.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rules {
    /// TCP, UDP and TLS.
    Bytes {
        /// Of TLS. None of them: all.
        hostnames: Vec<String>,
        /// The backendRefs of each.
        rules: Vec<Vec<BackendRef>>,
    },
    /// HTTP and gRPC.
    Http {
        /// None of them: all.
        hostnames: Vec<String>,
        rules: Vec<HttpRouteRules>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct BackendRef {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<i32>,
    pub(super) weight: Option<i32>,
}

/// What is attached to the listeners of one Gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Attached {
    /// By listener name: the routes of bytes that are served, with the names that are theirs; none
    /// is all that no other has.
    pub(super) forwards: BTreeMap<String, Vec<Named>>,
    /// By listener name: the routes of HTTP, with those of their hostnames that the listener has
    /// names of; none is all.
    pub(super) http: BTreeMap<String, Vec<Named>>,
    /// By listener name: the accepted routes, served or not.
    pub(super) routes: BTreeMap<String, BTreeSet<Key>>,
    /// What became of each route and its parentRef of this number.
    pub(super) results: BTreeMap<(Key, usize), Attachment>,
}

/// A route and hostnames of it.
pub(super) type Named = (Key, Vec<HostnamePattern>);

/// The conflict of a route that is accepted, or why it is not.
pub(super) type Attachment = Result<Option<Finding>, Finding>;

// === impl Route ===

impl Route {
    /// The Gateways that its parentRefs mean, with the number of each parentRef.
    pub(super) fn gateways(&self, key: &Key) -> impl Iterator<Item = (usize, ObjectName)> {
        let parents = self.parents.iter().enumerate();
        parents.filter_map(|(at, reference)| Some((at, reference.gateway(&key.name)?)))
    }

    /// The ListenerSets that its parentRefs mean, with the number of each parentRef.
    pub(super) fn listener_sets(&self, key: &Key) -> impl Iterator<Item = (usize, ObjectName)> {
        let parents = self.parents.iter().enumerate();
        parents.filter_map(|(at, reference)| Some((at, reference.listener_set(&key.name)?)))
    }

    /// Its status; `None` when no Gateway of ours is its parent. `attachment` tells what became of
    /// a parentRef.
    pub(super) fn status<'a>(
        &self,
        key: &Key,
        gateways: Vec<(usize, ObjectName)>,
        resolved: &Resolved,
        attachment: impl Fn(usize, &ObjectName) -> Option<&'a Attachment>,
    ) -> Option<RouteStatus> {
        let parents = gateways.into_iter().filter_map(|(at, gateway)| {
            let attachment = attachment(at, &gateway)?;
            Some(self.parent_status(&self.parents[at], attachment, resolved))
        });
        let parents: Vec<_> = parents.collect();
        (!parents.is_empty()).then(|| RouteStatus {
            name: key.name.clone(),
            parents,
        })
    }

    fn parent_status(
        &self,
        reference: &ParentRef,
        attachment: &Attachment,
        resolved: &Resolved,
    ) -> ParentStatus {
        let (refused, conflict) = match attachment.clone() {
            Ok(conflict) => (None, conflict),
            Err(refused) => (Some(refused), None),
        };
        let unresolved = Finding::join(resolved.findings.clone());
        let mut conditions = vec![
            Condition::of(c::ACCEPTED, refused, self.generation),
            Condition::of(c::RESOLVED_REFS, unresolved, self.generation),
        ];
        let conflict = conflict
            .map(|finding| Condition::negative(c::ROUTE_CONFLICTED, finding, self.generation));
        conditions.extend(conflict);
        // Of a route that is not accepted, nothing is served anyway.
        let left_out = self.left_out.clone().filter(|_| attachment.is_ok());
        let ignored = self.ignored.clone();
        let others = [
            (c::PARTIALLY_INVALID, left_out),
            (c::INVALID_ANNOTATIONS, ignored),
        ];
        conditions.extend(others.into_iter().filter_map(|(kind, finding)| {
            Some(Condition::negative(kind, finding?, self.generation))
        }));
        ParentStatus {
            parent_ref: reference.clone(),
            controller_name: CONTROLLER,
            conditions,
        }
    }

    /// What in its parentRefs means nothing that is there, sorted.
    pub(super) fn unclaimed(&self, key: &Key, objects: &Objects) -> Vec<String> {
        if self.parents.is_empty() {
            return vec!["it has no parentRefs: name the Gateway that is to serve it".into()];
        }
        let missing = self.parents.iter().filter_map(|reference| {
            let (group, kind) = reference.group_and_kind();
            if (group, kind) == ("", "Service") {
                return None; // for a mesh
            }
            if let Some(set) = reference.listener_set(&key.name) {
                return (!objects.sets.contains_key(&set))
                    .then(|| format!("parentRef: there is no ListenerSet {set}"));
            }
            let Some(gateway) = reference.gateway(&key.name) else {
                let kind = super::qualified(kind, group);
                return Some(format!(
                    "parentRef {} is a {kind}: a Gateway can be one",
                    reference.name
                ));
            };
            (!objects.gateways.contains_key(&gateway))
                .then(|| format!("parentRef: there is no Gateway {gateway}"))
        });
        let mut missing: Vec<_> = missing.collect();
        missing.sort();
        missing
    }
}

// === impl Rules ===

impl Rules {
    /// What backendRefs of it refer to. `namespace`: of the route.
    pub(super) fn backends(&self, namespace: &str) -> BTreeSet<(BackendKind, ObjectName)> {
        let references = self.references().into_iter();
        let backends = references
            .filter_map(|reference| Some((reference.kind()?, reference.target(namespace))));
        backends.collect()
    }

    fn references(&self) -> Vec<BackendRef> {
        match self {
            Self::Bytes { rules, .. } => rules.iter().flatten().cloned().collect(),
            Self::Http { rules, .. } => {
                let backends = rules
                    .iter()
                    .flat_map(|rule| rule.backend_refs.iter().flatten());
                let own = backends
                    .clone()
                    .filter_map(|backend| super::same(Some(backend)));
                let filters = rules.iter().flat_map(|rule| rule.filters.iter().flatten());
                let mirrors = filters.filter_map(|filter| filter.request_mirror.as_ref());
                let mirrors = mirrors.filter_map(|mirror| super::same(Some(&mirror.backend_ref)));
                let nested = backends.flat_map(|backend| backend.filters.iter().flatten());
                let nested = nested.filter_map(|filter| filter.request_mirror.as_ref());
                let nested = nested.filter_map(|mirror| super::same(Some(&mirror.backend_ref)));
                own.chain(mirrors).chain(nested).collect()
            }
        }
    }
}

// === impl ParentRef ===

impl ParentRef {
    fn group_and_kind(&self) -> (&str, &str) {
        (
            self.group.as_deref().unwrap_or(GATEWAY_GROUP),
            self.kind.as_deref().unwrap_or("Gateway"),
        )
    }

    /// The Gateway that it means, if it means one.
    fn gateway(&self, route: &ObjectName) -> Option<ObjectName> {
        let namespace = self.namespace.as_ref().unwrap_or(&route.namespace);
        (self.group_and_kind() == (GATEWAY_GROUP, "Gateway"))
            .then(|| ObjectName::new(namespace, &self.name))
    }
}

impl ParentRef {
    /// The ListenerSet that it means, if it means one.
    fn listener_set(&self, route: &ObjectName) -> Option<ObjectName> {
        let namespace = self.namespace.as_ref().unwrap_or(&route.namespace);
        (self.group_and_kind() == (GATEWAY_GROUP, "ListenerSet"))
            .then(|| ObjectName::new(namespace, &self.name))
    }

    /// The object whose listeners it means.
    fn origin(&self, route: &ObjectName) -> Origin {
        let set = self.listener_set(route);
        set.map_or(Origin::Gateway, Origin::Set)
    }
}

// === impl BackendRef ===

impl BackendRef {
    /// Namespace and name of what it refers to. `namespace`: of the route.
    pub(super) fn target(&self, namespace: &str) -> ObjectName {
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        ObjectName::new(namespace, &self.name)
    }

    /// Its group and kind, with their defaults.
    pub(super) fn group_and_kind(&self) -> (&str, &str) {
        let group = self.group.as_deref().unwrap_or_default();
        (group, self.kind.as_deref().unwrap_or("Service"))
    }

    /// What it refers to, if that can be a backend.
    pub(super) fn kind(&self) -> Option<BackendKind> {
        match self.group_and_kind() {
            ("", "Service") => Some(BackendKind::Service),
            (TAILWAY_GROUP, "TailscaleEndpoints") => Some(BackendKind::Endpoints),
            _ => None,
        }
    }
}

// === impl Attached ===

impl Attached {
    /// Attaches routes to a Gateway of ours.
    pub(super) fn new<'a>(
        objects: &Objects,
        gateway: &Candidate,
        routes: impl IntoIterator<Item = (&'a Key, &'a Route)>,
    ) -> Self {
        let mut attached = Self::default();
        let mut claims = Vec::new();
        let mut routes: Vec<_> = routes.into_iter().collect();
        // The oldest comes first, so that it has a listener before the younger ask for it.
        routes.sort_by_key(|(key, route)| (&route.precedence, key.kind));
        for (key, route) in routes {
            for (at, parent) in objects.gateways_of(key, route) {
                if parent == gateway.name {
                    let result = attached.attach(objects, gateway, key, route, at, &mut claims);
                    attached.results.insert((key.clone(), at), result);
                }
            }
        }
        attached.forwards = claims::settle(&claims, &mut attached.results);
        attached
    }

    /// The routes that listeners serve.
    pub(super) fn served(&self) -> impl Iterator<Item = &Key> {
        let named = self.forwards.values().chain(self.http.values());
        named.flatten().map(|(served, _)| served)
    }

    /// Attaches a route to every listener that its parentRef means and with which it has a name in
    /// common, or says why it cannot be. Of a route of bytes, `claims` tell what it asks for.
    fn attach(
        &mut self,
        objects: &Objects,
        gateway: &Candidate,
        key: &Key,
        route: &Route,
        parent: usize,
        claims: &mut Vec<Claim>,
    ) -> Attachment {
        if let Some(refused) = &route.refused {
            return Err(refused.clone());
        }
        let allowing = allowing_listeners(objects, key, &route.parents[parent], gateway)?;
        let (Rules::Bytes { hostnames, .. } | Rules::Http { hostnames, .. }) = &route.rules;
        let (mut found, mut conflicts) = (false, Vec::new());
        for listener in &allowing {
            let Some(common) = common(listener.hostname(), hostnames) else {
                continue;
            };
            match &route.rules {
                Rules::Bytes { .. } if listener.is_accepted() => {
                    claims.extend(asked(listener, key, parent, common));
                }
                Rules::Bytes { .. } => {}
                Rules::Http { .. } => {
                    let names = common.into_iter().map(|(own, _)| own).collect();
                    if let Err(conflict) = self.attach_http(listener, key, names) {
                        conflicts.push(conflict);
                        continue;
                    }
                }
            }
            found = true;
            // Counted whether or not the listener is accepted (Gateway API, `attachedRoutes`).
            let routes = self.routes.entry(listener.name.clone()).or_default();
            routes.insert(key.clone());
        }
        let conflict = Finding::join(conflicts);
        if found {
            return Ok(conflict);
        }
        Err(conflict.unwrap_or_else(|| no_hostname(&allowing, hostnames)))
    }

    /// Attaches a route of HTTP, unless an older one of the other kind has hostnames of its: then
    /// only one of them can be accepted (Gateway API `GRPCRouteSpec.hostnames`).
    fn attach_http(
        &mut self,
        listener: &Listener,
        key: &Key,
        names: Vec<HostnamePattern>,
    ) -> Result<(), Finding> {
        if !listener.is_accepted() {
            return Ok(());
        }
        let attached = self.http.entry(listener.name.clone()).or_default();
        let of_other_kind = attached.iter().filter(|(known, _)| known.kind != key.kind);
        let older = of_other_kind
            .filter(|(_, of_other)| meet(of_other, &names))
            .map(|(older, _)| older)
            .next();
        if let Some(older) = older {
            let message = format!(
                "listener {} serves {older} for the same hostnames, which comes first by age, then name: set other hostnames, as those of a {} and a {} must differ",
                listener.name, key.kind, older.kind
            );
            return Err(Finding::new(c::HOSTNAME_CONFLICT, message));
        }
        if !attached.iter().any(|(known, _)| known == key) {
            attached.push((key.clone(), names));
        }
        Ok(())
    }
}

/// Whether there are hosts that both mean; none of them is all.
fn meet(one: &[HostnamePattern], other: &[HostnamePattern]) -> bool {
    let meets = |name: &HostnamePattern| other.iter().any(|of| of.intersection(name).is_some());
    one.is_empty() || other.is_empty() || one.iter().any(meets)
}

/// What a route asks of a listener, for names that both have.
fn asked(
    listener: &Listener,
    route: &Key,
    parent: usize,
    common: Vec<(HostnamePattern, HostnamePattern)>,
) -> Vec<Claim> {
    let claim = |name, specificity| Claim {
        listener: listener.name.clone(),
        route: route.clone(),
        parent,
        name,
        specificity,
    };
    if common.is_empty() {
        return vec![claim(None, None)];
    }
    let claims = common.into_iter();
    let claims = claims.map(|(own, common)| claim(Some(common), Some(own.specificity())));
    claims.collect()
}

/// Those of a route's hostnames that a listener has names of, each with these names; none of them
/// stands for all of the listener's. `None`: there is no common one (Gateway API
/// `HTTPRouteSpec.hostnames`).
fn common(
    listener: Option<&HostnamePattern>,
    hostnames: &[String],
) -> Option<Vec<(HostnamePattern, HostnamePattern)>> {
    if hostnames.is_empty() {
        return Some(Vec::new());
    }
    let own = hostnames.iter();
    let own = own.filter_map(|text| HostnamePattern::parse(text).ok());
    let common = own.filter_map(|own| {
        let common = match listener {
            None => own.clone(),
            Some(listener) => own.intersection(listener)?,
        };
        Some((own, common))
    });
    let common: Vec<_> = common.collect();
    (!common.is_empty()).then_some(common)
}

fn no_hostname(listeners: &[&Listener], hostnames: &[String]) -> Finding {
    let names: Vec<_> = listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .collect();
    let message = format!(
        "hostname {} is none of listener {}",
        hostnames.join(", "),
        names.join(", ")
    );
    Finding::new(c::NO_MATCHING_LISTENER_HOSTNAME, message)
}

/// The listeners that a parentRef means and that let the route in, of which one is accepted.
fn allowing_listeners<'a>(
    objects: &Objects,
    route: &Key,
    reference: &ParentRef,
    gateway: &'a Candidate,
) -> Result<Vec<&'a Listener>, Finding> {
    let namespace = &route.name.namespace;
    let named = named_listeners(reference, &route.name, gateway)?;
    let names = |listeners: &[&Listener]| {
        let names: Vec<_> = listeners.iter().map(|l| l.name.as_str()).collect();
        names.join(", ")
    };
    let allowing: Vec<_> = named
        .iter()
        .copied()
        .filter(|listener| listener.allows(objects, &gateway.name, route))
        .collect();
    if allowing.is_empty() {
        let message = format!(
            "listener {} takes no {}s of namespace {namespace}: see its protocol and allowedRoutes",
            names(&named),
            route.kind,
        );
        return Err(Finding::new(c::NOT_ALLOWED_BY_LISTENERS, message));
    }
    if !allowing.iter().any(|listener| listener.is_accepted()) {
        let message = format!("listener {} is not accepted", names(&allowing));
        return Err(Finding::new(c::NO_MATCHING_PARENT, message));
    }
    Ok(allowing)
}

/// The listeners that a parentRef means; at least one.
fn named_listeners<'a>(
    reference: &ParentRef,
    route: &ObjectName,
    gateway: &'a Candidate,
) -> Result<Vec<&'a Listener>, Finding> {
    let origin = reference.origin(route);
    let parent = match &origin {
        Origin::Gateway => "Gateway",
        Origin::Set(set) if gateway.lets_in(set) => "ListenerSet",
        Origin::Set(set) => {
            let message = format!("Gateway {} does not let ListenerSet {set} in", gateway.name);
            return Err(Finding::new(c::NO_MATCHING_PARENT, message));
        }
    };
    // An empty name means the whole Gateway, as an absent one does (`parentRefs.sectionName`).
    let section = reference
        .section_name
        .as_ref()
        .filter(|section| !section.is_empty());
    let port = reference.port;
    let named: Vec<_> = gateway
        .listeners
        .iter()
        .filter(|listener| listener.origin == origin)
        .filter(|listener| section.is_none_or(|section| *section == listener.section))
        .filter(|listener| port.is_none_or(|port| port == i32::from(listener.port)))
        .collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let message = match (section, port) {
        (Some(section), Some(port)) => {
            format!("the {parent} has no listener {section} on port {port}")
        }
        (Some(section), None) => format!("the {parent} has no listener {section}"),
        (None, Some(port)) => format!("the {parent} has no listener on port {port}"),
        (None, None) => format!("the {parent} has no listener"),
    };
    Err(Finding::new(c::NO_MATCHING_PARENT, message))
}
