//! TCPRoutes: to which listeners each attaches, and what it says of itself.

use super::{
    backends::Resolved,
    gateways::Candidate,
    listeners::Listener,
    objects::{Kind, Objects, generation, precedence},
    status::{Condition, Finding, ParentRef, ParentStatus, RouteStatus, Unclaimed},
};
use crate::{
    api::{
        CONTROLLER, GATEWAY_GROUP, conditions as c,
        gateway_api::tcproutes::{TcpRoute, TcpRouteParentRefs},
    },
    model::{Backend, BackendId, Forward, ObjectName},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is attached to the listeners of one Gateway.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// By listener name: the route that is served.
    pub(super) forwards: BTreeMap<String, Forward>,
    /// By listener name: the accepted routes, served or not.
    pub(super) routes: BTreeMap<String, BTreeSet<ObjectName>>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
}

/// What became of all routes.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    pub(super) gateways: BTreeMap<ObjectName, Attached>,
    pub(super) statuses: Vec<RouteStatus>,
    pub(super) unclaimed: Vec<Unclaimed>,
}

/// Attaches all routes to the Gateways that are ours.
pub(super) fn attach(
    objects: &Objects,
    gateways: &BTreeMap<ObjectName, Candidate<'_>>,
) -> Attachments {
    let mut attachments = Attachments::default();
    let mut routes: Vec<_> = objects.tcp_routes.iter().collect();
    // The oldest comes first, so that it has a listener before the younger ask for it.
    routes.sort_by_cached_key(|(name, route)| precedence(&route.metadata, name));
    for (name, route) in routes {
        let resolved = resolve(objects, name, route);
        let mut parents = Vec::new();
        for reference in route.spec.parent_refs.iter().flatten() {
            let Some((parent, candidate)) = parent(name, reference, gateways) else {
                continue;
            };
            let attached = attachments.gateways.entry(parent.clone()).or_default();
            let outcome = attach_to(
                objects, name, route, reference, candidate, &resolved, attached,
            );
            parents.push(parent_status(route, reference, outcome, &resolved));
        }
        if !parents.is_empty() {
            attachments.statuses.push(RouteStatus {
                name: name.clone(),
                parents,
            });
        }
        attachments
            .unclaimed
            .extend(unclaimed(objects, name, route));
    }
    attachments.statuses.sort_by(|a, b| a.name.cmp(&b.name));
    attachments
}

/// What in the parentRefs of a route means nothing that is there.
fn unclaimed(objects: &Objects, name: &ObjectName, route: &TcpRoute) -> Vec<Unclaimed> {
    let unclaimed = |message: String| Unclaimed {
        kind: Kind::TcpRoute,
        name: name.clone(),
        message,
    };
    let references = route.spec.parent_refs.as_deref().unwrap_or_default();
    if references.is_empty() {
        return vec![unclaimed(
            "it has no parentRefs: name the Gateway that is to serve it".into(),
        )];
    }
    let missing = references.iter().filter_map(|reference| {
        let (group, kind) = group_and_kind(reference);
        if (group, kind) == ("", "Service") {
            return None; // for a mesh
        }
        if (group, kind) != (GATEWAY_GROUP, "Gateway") {
            let kind = super::qualified(kind, group);
            return Some(unclaimed(format!(
                "parentRef {} is a {kind}: a Gateway can be one",
                reference.name
            )));
        }
        let gateway = parent_name(name, reference);
        (!objects.gateways.contains_key(&gateway))
            .then(|| unclaimed(format!("parentRef: there is no Gateway {gateway}")))
    });
    missing.collect()
}

fn group_and_kind(reference: &TcpRouteParentRefs) -> (&str, &str) {
    (
        reference.group.as_deref().unwrap_or(GATEWAY_GROUP),
        reference.kind.as_deref().unwrap_or("Gateway"),
    )
}

fn parent_name(route: &ObjectName, reference: &TcpRouteParentRefs) -> ObjectName {
    let namespace = reference.namespace.as_ref().unwrap_or(&route.namespace);
    ObjectName::new(namespace, &reference.name)
}

/// The Gateway of ours that a parentRef means.
fn parent<'a, 'b>(
    route: &ObjectName,
    reference: &TcpRouteParentRefs,
    gateways: &'a BTreeMap<ObjectName, Candidate<'b>>,
) -> Option<(&'a ObjectName, &'a Candidate<'b>)> {
    if group_and_kind(reference) != (GATEWAY_GROUP, "Gateway") {
        return None;
    }
    gateways.get_key_value(&parent_name(route, reference))
}

fn resolve(objects: &Objects, name: &ObjectName, route: &TcpRoute) -> Resolved {
    let refs = route
        .spec
        .rules
        .first()
        .map_or(&[][..], |rule| rule.backend_refs.as_slice());
    objects.resolve_backends(name, refs)
}

/// Attaches a route to every listener that its parentRef means, or says why it cannot be. Gives
/// the listeners that serve an older route, which does not keep this one from being accepted.
fn attach_to(
    objects: &Objects,
    name: &ObjectName,
    route: &TcpRoute,
    reference: &TcpRouteParentRefs,
    gateway: &Candidate<'_>,
    resolved: &Resolved,
    attached: &mut Attached,
) -> Result<Option<Finding>, Finding> {
    if route.spec.rules.len() > 1 {
        return Err(Finding::new(
            c::UNSUPPORTED_VALUE,
            format!(
                "the route has {} rules, of which TCP can tell none apart: leave one",
                route.spec.rules.len()
            ),
        ));
    }
    let listeners = allowing_listeners(objects, name, reference, gateway)?;
    let mut taken = Vec::new();
    for listener in listeners {
        // Counted whether or not the listener is accepted (Gateway API, `attachedRoutes`).
        attached
            .routes
            .entry(listener.name.clone())
            .or_default()
            .insert(name.clone());
        if !listener.is_accepted() {
            continue;
        }
        match attached.forwards.get(&listener.name) {
            Some(forward) if forward.route != *name => {
                taken.push(format!(
                    "listener {} serves TCPRoute {}",
                    listener.name, forward.route
                ));
            }
            Some(_) => {} // by another parentRef of the same route
            None => {
                let forward = Forward {
                    route: name.clone(),
                    backends: resolved.weighted.clone(),
                };
                attached.forwards.insert(listener.name.clone(), forward);
                attached.backends.extend(resolved.backends.clone());
            }
        }
    }
    Ok((!taken.is_empty()).then(|| {
        let message = format!(
            "{}, which comes first by age, then name: this route takes no connections there",
            taken.join("; ")
        );
        Finding::new(c::OLDER_ROUTE, message)
    }))
}

/// The listeners that a parentRef means and that let the route in, of which one is accepted.
fn allowing_listeners<'a>(
    objects: &Objects,
    name: &ObjectName,
    reference: &TcpRouteParentRefs,
    gateway: &'a Candidate<'_>,
) -> Result<Vec<&'a Listener>, Finding> {
    let named = named_listeners(reference, gateway)?;
    let names = |listeners: &[&Listener]| {
        let names: Vec<_> = listeners.iter().map(|l| l.name.as_str()).collect();
        names.join(", ")
    };
    let allowing: Vec<_> = named
        .iter()
        .copied()
        .filter(|listener| listener.allows(objects, gateway.name, &name.namespace))
        .collect();
    if allowing.is_empty() {
        let message = format!(
            "listener {} takes no TCPRoutes of namespace {}: see its protocol and allowedRoutes",
            names(&named),
            name.namespace
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
    reference: &TcpRouteParentRefs,
    gateway: &'a Candidate<'_>,
) -> Result<Vec<&'a Listener>, Finding> {
    // An empty name means the whole Gateway, as an absent one does (`parentRefs.sectionName`).
    let section = reference
        .section_name
        .as_ref()
        .filter(|section| !section.is_empty());
    let port = reference.port;
    let named: Vec<_> = gateway
        .listeners
        .iter()
        .filter(|listener| section.is_none_or(|section| *section == listener.name))
        .filter(|listener| port.is_none_or(|port| port == i32::from(listener.port)))
        .collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let message = match (section, port) {
        (Some(section), Some(port)) => {
            format!("the Gateway has no listener {section} on port {port}")
        }
        (Some(section), None) => format!("the Gateway has no listener {section}"),
        (None, Some(port)) => format!("the Gateway has no listener on port {port}"),
        (None, None) => "the Gateway has no listener".into(),
    };
    Err(Finding::new(c::NO_MATCHING_PARENT, message))
}

fn parent_status(
    route: &TcpRoute,
    reference: &TcpRouteParentRefs,
    outcome: Result<Option<Finding>, Finding>,
    resolved: &Resolved,
) -> ParentStatus {
    let generation = generation(&route.metadata);
    let (refused, conflict) = match outcome {
        Ok(conflict) => (None, conflict),
        Err(refused) => (Some(refused), None),
    };
    let mut conditions = vec![
        Condition::of(c::ACCEPTED, refused, generation),
        Condition::of(
            c::RESOLVED_REFS,
            Finding::join(resolved.findings.clone()),
            generation,
        ),
    ];
    conditions.extend(
        conflict.map(|finding| Condition::negative(c::ROUTE_CONFLICTED, finding, generation)),
    );
    ParentStatus {
        parent_ref: ParentRef {
            group: reference.group.clone(),
            kind: reference.kind.clone(),
            namespace: reference.namespace.clone(),
            name: reference.name.clone(),
            section_name: reference.section_name.clone(),
            port: reference.port,
        },
        controller_name: CONTROLLER,
        conditions,
    }
}
