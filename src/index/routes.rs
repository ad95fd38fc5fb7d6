//! TCPRoutes: to which listeners each attaches, and what it says of itself.

use super::{
    backends::Resolved,
    gateways::Candidate,
    listeners::{Listener, TCP_ROUTE},
    objects::{Objects, generation, precedence},
    status::{Condition, Finding, ParentRef, ParentStatus, RouteStatus},
};
use crate::{
    api::{
        CONTROLLER, GATEWAY_GROUP, conditions as c,
        gateway_api::tcproutes::{TcpRoute, TcpRouteParentRefs},
    },
    model::{Backend, BackendId, Forward, ObjectName},
};
use std::collections::BTreeMap;

/// What is attached to the listeners of one Gateway.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// By listener name: the route that is served.
    pub(super) forwards: BTreeMap<String, Forward>,
    /// By listener name: how many routes are attached.
    pub(super) counts: BTreeMap<String, i32>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
}

/// Attaches all routes to the Gateways that are ours.
pub(super) fn attach(
    objects: &Objects,
    gateways: &BTreeMap<ObjectName, Candidate<'_>>,
) -> (BTreeMap<ObjectName, Attached>, Vec<RouteStatus>) {
    let mut attached: BTreeMap<ObjectName, Attached> = BTreeMap::new();
    let mut statuses = BTreeMap::new();
    let mut routes: Vec<_> = objects.tcp_routes.iter().collect();
    // The oldest comes first, so that it has a listener before the younger ask for it.
    routes.sort_by_key(|(name, route)| precedence(&route.metadata, name));
    for (name, route) in routes {
        let resolved = resolve(objects, name, route);
        let mut parents = Vec::new();
        for reference in route.spec.parent_refs.iter().flatten() {
            let Some((parent, candidate)) = parent(name, reference, gateways) else {
                continue;
            };
            let attached = attached.entry(parent.clone()).or_default();
            let refused = attach_to(
                objects, name, route, reference, candidate, &resolved, attached,
            )
            .err();
            parents.push(parent_status(route, reference, refused, &resolved));
        }
        if !parents.is_empty() {
            statuses.insert(
                name.clone(),
                RouteStatus {
                    name: name.clone(),
                    parents,
                },
            );
        }
    }
    (attached, statuses.into_values().collect())
}

/// The Gateway of ours that a parentRef means.
fn parent<'a, 'b>(
    route: &ObjectName,
    reference: &TcpRouteParentRefs,
    gateways: &'a BTreeMap<ObjectName, Candidate<'b>>,
) -> Option<(&'a ObjectName, &'a Candidate<'b>)> {
    let group = reference.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = reference.kind.as_deref().unwrap_or("Gateway");
    if group != GATEWAY_GROUP || kind != "Gateway" {
        return None;
    }
    let namespace = reference.namespace.as_ref().unwrap_or(&route.namespace);
    gateways.get_key_value(&ObjectName::new(namespace, &reference.name))
}

fn resolve(objects: &Objects, name: &ObjectName, route: &TcpRoute) -> Resolved {
    let refs = route
        .spec
        .rules
        .first()
        .map_or(&[][..], |rule| rule.backend_refs.as_slice());
    objects.resolve_backends(name, refs)
}

/// Attaches a route to every listener that its parentRef means, or says why it cannot be.
fn attach_to(
    objects: &Objects,
    name: &ObjectName,
    route: &TcpRoute,
    reference: &TcpRouteParentRefs,
    gateway: &Candidate<'_>,
    resolved: &Resolved,
    attached: &mut Attached,
) -> Result<(), Finding> {
    if route.spec.rules.len() > 1 {
        return Err(Finding::new(
            c::UNSUPPORTED_VALUE,
            format!(
                "the route has {} rules, of which TCP can tell none apart: leave one",
                route.spec.rules.len()
            ),
        ));
    }
    let mut taken = Vec::new();
    let mut any = false;
    for listener in allowed_listeners(objects, name, reference, gateway)? {
        match attached.forwards.get(&listener.name) {
            Some(forward) if forward.route != *name => {
                taken.push(format!(
                    "listener {} has the older TCPRoute {}",
                    listener.name, forward.route
                ));
            }
            Some(_) => any = true, // by another parentRef of the same route
            None => {
                any = true;
                let forward = Forward {
                    route: name.clone(),
                    backends: resolved.weighted.clone(),
                };
                attached.forwards.insert(listener.name.clone(), forward);
                *attached.counts.entry(listener.name.clone()).or_default() += 1;
                attached.backends.extend(resolved.backends.clone());
            }
        }
    }
    if any {
        Ok(())
    } else {
        Err(Finding::new(c::ROUTE_CONFLICT, taken.join("; ")))
    }
}

/// The listeners that a parentRef means and that let the route in.
fn allowed_listeners<'a>(
    objects: &Objects,
    name: &ObjectName,
    reference: &TcpRouteParentRefs,
    gateway: &'a Candidate<'_>,
) -> Result<Vec<&'a Listener>, Finding> {
    let named: Vec<_> = gateway
        .listeners
        .iter()
        .filter(|listener| {
            reference
                .section_name
                .as_ref()
                .is_none_or(|section| *section == listener.name)
                && reference
                    .port
                    .is_none_or(|port| port == i32::from(listener.port))
        })
        .collect();
    if named.is_empty() {
        let message = match (&reference.section_name, reference.port) {
            (Some(section), Some(port)) => {
                format!("the Gateway has no listener {section} on port {port}")
            }
            (Some(section), None) => format!("the Gateway has no listener {section}"),
            (None, Some(port)) => format!("the Gateway has no listener on port {port}"),
            (None, None) => "the Gateway has no listener".into(),
        };
        return Err(Finding::new(c::NO_MATCHING_PARENT, message));
    }
    let open: Vec<_> = named
        .iter()
        .copied()
        .filter(|listener| listener.allows(objects, gateway.name, &name.namespace))
        .filter(|listener| {
            listener.protocol.is_none() || listener.supported_kinds.contains(&TCP_ROUTE)
        })
        .collect();
    if open.is_empty() {
        let message = format!(
            "no listener allows TCPRoutes of namespace {}: see allowedRoutes",
            name.namespace
        );
        return Err(Finding::new(c::NOT_ALLOWED_BY_LISTENERS, message));
    }
    let accepted: Vec<_> = open
        .iter()
        .copied()
        .filter(|listener| listener.is_accepted())
        .collect();
    if accepted.is_empty() {
        let names: Vec<_> = open.iter().map(|listener| listener.name.as_str()).collect();
        let message = format!("listener {} is not accepted", names.join(", "));
        return Err(Finding::new(c::NO_MATCHING_PARENT, message));
    }
    Ok(accepted)
}

fn parent_status(
    route: &TcpRoute,
    reference: &TcpRouteParentRefs,
    refused: Option<Finding>,
    resolved: &Resolved,
) -> ParentStatus {
    let generation = generation(&route.metadata);
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
        conditions: vec![
            Condition::of(c::ACCEPTED, refused, generation),
            Condition::of(
                c::RESOLVED_REFS,
                Finding::join(resolved.findings.clone()),
                generation,
            ),
        ],
    }
}
