//! GatewayClasses and Gateways: which are ours, their nodes, their Snapshots and statuses.

use super::{
    Outcome,
    listeners::{Listener, Protocol},
    objects::{Objects, generation, precedence},
    routes::{Attached, attach},
    status::{Address, ClassStatus, Condition, Finding, GatewayStatus, ListenerStatus, Statuses},
};
use crate::{
    api::{
        CONTROLLER, conditions as c,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
    },
    model::{
        NodeName, NodeReport, NodeSpec, ObjectName, Port, Programmed, Snapshot, TcpListener,
        TlsListener, Unready,
    },
};
use std::collections::{BTreeMap, btree_map::Entry};

/// A Gateway of ours, before routes are looked at.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a ObjectName,
    gateway: &'a Gateway,
    pub(super) listeners: Vec<Listener>,
    /// The name of its node, or why it has none.
    node: Result<NodeName, Finding>,
}

/// Works out all Snapshots and statuses.
pub(super) fn evaluate(objects: &Objects, reports: &BTreeMap<ObjectName, NodeReport>) -> Outcome {
    let (classes, class_statuses) = classes(objects);
    let mut candidates = candidates(objects, &classes);
    give_names(&mut candidates);
    let (mut attached, tcp_routes) = attach(objects, &candidates);
    let mut outcome = Outcome {
        statuses: Statuses {
            classes: class_statuses,
            tcp_routes,
            gateways: Vec::new(),
        },
        ..Outcome::default()
    };
    for (name, candidate) in &candidates {
        let attached = attached.remove(name).unwrap_or_default();
        let report = reports.get(name);
        outcome
            .statuses
            .gateways
            .push(candidate.status(&attached, report));
        if let Some(snapshot) = candidate.snapshot(attached) {
            outcome.snapshots.insert(name.clone(), snapshot);
        }
    }
    outcome
}

/// The classes that are ours and accepted, and the statuses of all that are ours.
fn classes(objects: &Objects) -> (Vec<&str>, Vec<ClassStatus>) {
    let mut accepted = Vec::new();
    let mut statuses = Vec::new();
    for (name, class) in &objects.classes {
        if class.spec.controller_name != CONTROLLER {
            continue;
        }
        let finding = parameters(objects, class).err();
        if finding.is_none() {
            accepted.push(name.name.as_str());
        }
        statuses.push(ClassStatus {
            name: name.name.clone(),
            conditions: vec![Condition::of(
                c::ACCEPTED,
                finding,
                generation(&class.metadata),
            )],
        });
    }
    (accepted, statuses)
}

/// Checks what a class refers to. The credentials in it are for the controller; `tailway run` has
/// its own.
fn parameters(objects: &Objects, class: &GatewayClass) -> Result<(), Finding> {
    let Some(reference) = &class.spec.parameters_ref else {
        return Ok(());
    };
    let invalid = |message: String| Err(Finding::new(c::INVALID_PARAMETERS, message));
    if !reference.group.is_empty() || reference.kind != "Secret" {
        return invalid(format!(
            "parametersRef is a {}: a Secret can be one",
            reference.kind
        ));
    }
    let Some(namespace) = &reference.namespace else {
        return invalid(format!(
            "parametersRef to Secret {} needs a namespace",
            reference.name
        ));
    };
    let secret = ObjectName::new(namespace, &reference.name);
    if objects.secrets.contains_key(&secret) {
        Ok(())
    } else {
        invalid(format!("parametersRef: there is no Secret {secret}"))
    }
}

/// The Gateways of accepted classes of ours.
fn candidates<'a>(objects: &'a Objects, classes: &[&str]) -> BTreeMap<ObjectName, Candidate<'a>> {
    objects
        .gateways
        .iter()
        .filter(|(_, gateway)| classes.contains(&gateway.spec.gateway_class_name.as_str()))
        .map(|(name, gateway)| {
            let node = node_name(name, gateway);
            let listeners = objects.listeners(name, gateway, node.as_ref().ok());
            (
                name.clone(),
                Candidate {
                    name,
                    gateway,
                    listeners,
                    node,
                },
            )
        })
        .collect()
}

/// The name that a Gateway asks for: the first label of its one Hostname, else
/// `<name>-<namespace>`.
fn node_name(name: &ObjectName, gateway: &Gateway) -> Result<NodeName, Finding> {
    let unsupported = |message: String| Err(Finding::new(c::UNSUPPORTED_ADDRESS, message));
    let wanted = match gateway.spec.addresses.as_deref().unwrap_or_default() {
        [] => format!("{}-{}", name.name, name.namespace),
        [address] => {
            let kind = address.r#type.as_deref().unwrap_or("IPAddress");
            let value = address.value.as_deref().unwrap_or_default();
            if kind != "Hostname" {
                return unsupported(format!(
                    "address {value:?} is of type {kind}: the tailnet chooses IP addresses, a Hostname names the node"
                ));
            }
            value.split('.').next().unwrap_or_default().to_owned()
        }
        several => {
            return unsupported(format!(
                "{} addresses: a node has one name, so give one Hostname",
                several.len()
            ));
        }
    };
    NodeName::parse(&wanted).map_err(|error| Finding::new(c::INVALID, error.to_string()))
}

/// Gives each name to the oldest Gateway that asks for it.
fn give_names(candidates: &mut BTreeMap<ObjectName, Candidate<'_>>) {
    let mut order: Vec<_> = candidates
        .iter()
        .map(|(name, candidate)| precedence(&candidate.gateway.metadata, name))
        .collect();
    order.sort();
    let mut owners: BTreeMap<NodeName, ObjectName> = BTreeMap::new();
    for (_, name) in order {
        let Some(candidate) = candidates.get_mut(&name) else {
            continue;
        };
        let Ok(node) = &candidate.node else { continue };
        match owners.entry(node.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(name)),
            Entry::Occupied(entry) => {
                let message = format!(
                    "the node name {node} is taken by the older Gateway {}: set another Hostname in spec.addresses",
                    entry.get()
                );
                candidate.node = Err(Finding::new(c::ADDRESS_NOT_USABLE, message));
            }
        }
    }
}

// === impl Candidate ===

impl Candidate<'_> {
    fn generation(&self) -> i64 {
        generation(&self.gateway.metadata)
    }

    /// Why the Gateway is not accepted as a whole.
    fn unaccepted(&self) -> Option<Finding> {
        match &self.node {
            // The reason of a name that is taken belongs to Programmed.
            Err(finding) if finding.reason == c::ADDRESS_NOT_USABLE => {
                return Some(Finding::new(c::INVALID, finding.message.clone()));
            }
            Err(finding) => return Some(finding.clone()),
            Ok(_) => {}
        }
        if self.listeners.iter().any(Listener::is_accepted) {
            return None;
        }
        Some(Finding::new(
            c::LISTENERS_NOT_VALID,
            "no listener is accepted",
        ))
    }

    /// What is served: the listeners that are accepted.
    fn snapshot(&self, mut attached: Attached) -> Option<Snapshot> {
        let node = self.node.as_ref().ok()?;
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        for listener in self
            .listeners
            .iter()
            .filter(|listener| listener.is_accepted())
        {
            let route = attached.forwards.remove(&listener.name);
            let name = listener.name.clone();
            match &listener.protocol {
                Some(Protocol::Tcp) => {
                    ports.insert(listener.port, Port::Tcp(TcpListener { name, route }));
                }
                Some(Protocol::Tls {
                    hostname,
                    certificates,
                    alpn,
                }) => {
                    let tls = TlsListener {
                        name,
                        hostname: hostname.clone(),
                        certificates: certificates.clone(),
                        alpn: alpn.clone(),
                        route,
                    };
                    match ports
                        .entry(listener.port)
                        .or_insert_with(|| Port::Tls(Vec::new()))
                    {
                        Port::Tls(listeners) => listeners.push(tls),
                        Port::Tcp(_) => {} // a conflict: neither is accepted
                    }
                }
                None => {}
            }
        }
        if ports.is_empty() {
            return None;
        }
        for port in ports.values_mut() {
            if let Port::Tls(listeners) = port {
                listeners.sort_by_key(|listener| {
                    std::cmp::Reverse(
                        listener
                            .hostname
                            .as_ref()
                            .map(|pattern| pattern.specificity()),
                    )
                });
            }
        }
        Some(Snapshot {
            gateway: self.name.clone(),
            generation: self.generation(),
            node: NodeSpec { name: node.clone() },
            ports,
            backends: attached.backends,
        })
    }

    fn status(&self, attached: &Attached, report: Option<&NodeReport>) -> GatewayStatus {
        let unaccepted = self.unaccepted();
        let programmed = self.unprogrammed(unaccepted.as_ref(), report);
        let listeners = self
            .listeners
            .iter()
            .map(|listener| self.listener_status(listener, attached, programmed.as_ref()))
            .collect();
        let mut addresses = Vec::new();
        if let Some(report) = report.filter(|_| unaccepted.is_none()) {
            if !report.dns_name.is_empty() {
                addresses.push(Address {
                    kind: "Hostname",
                    value: report.dns_name.clone(),
                });
            }
            let ips = report.addresses.iter();
            addresses.extend(ips.map(|ip| Address {
                kind: "IPAddress",
                value: ip.to_string(),
            }));
        }
        GatewayStatus {
            name: self.name.clone(),
            addresses,
            conditions: vec![
                self.accepted(unaccepted),
                Condition::of(c::PROGRAMMED, programmed, self.generation()),
            ],
            listeners,
        }
    }

    fn accepted(&self, unaccepted: Option<Finding>) -> Condition {
        let invalid: Vec<_> = self
            .listeners
            .iter()
            .filter(|listener| !listener.is_accepted())
            .map(|listener| listener.name.as_str())
            .collect();
        if unaccepted.is_none() && !invalid.is_empty() {
            let message = format!(
                "listener {} is not accepted, the others are",
                invalid.join(", ")
            );
            return Condition::new(
                c::ACCEPTED,
                true,
                c::LISTENERS_NOT_VALID,
                message,
                self.generation(),
            );
        }
        Condition::of(c::ACCEPTED, unaccepted, self.generation())
    }

    /// Why this generation of the Gateway is not served.
    fn unprogrammed(
        &self,
        unaccepted: Option<&Finding>,
        report: Option<&NodeReport>,
    ) -> Option<Finding> {
        match (&self.node, unaccepted) {
            (Err(finding), _) if finding.reason == c::ADDRESS_NOT_USABLE => {
                return Some(finding.clone());
            }
            (_, Some(finding)) => return Some(Finding::new(c::INVALID, finding.message.clone())),
            _ => {}
        }
        match report.map(|report| &report.programmed) {
            Some(Programmed::Generation(generation)) if *generation == self.generation() => None,
            Some(Programmed::Generation(generation)) => Some(Finding::new(
                c::PENDING,
                format!("generation {generation} is served, this one is on its way"),
            )),
            Some(Programmed::No { reason, message }) => {
                let reason = match reason {
                    Unready::Pending => c::PENDING,
                    Unready::AddressNotAssigned => c::ADDRESS_NOT_ASSIGNED,
                    Unready::AddressNotUsable => c::ADDRESS_NOT_USABLE,
                    Unready::Invalid => c::INVALID,
                };
                Some(Finding::new(reason, message.clone()))
            }
            None => Some(Finding::new(
                c::PENDING,
                "the tailnet node has not been started",
            )),
        }
    }

    fn listener_status(
        &self,
        listener: &Listener,
        attached: &Attached,
        unprogrammed: Option<&Finding>,
    ) -> ListenerStatus {
        let generation = self.generation();
        let programmed = match (&listener.unaccepted, unprogrammed) {
            (Some(finding), _) => Some(Finding::new(c::INVALID, finding.message.clone())),
            (None, Some(finding)) => {
                let reason = if finding.reason == c::INVALID {
                    c::INVALID
                } else {
                    c::PENDING
                };
                Some(Finding::new(reason, finding.message.clone()))
            }
            (None, None) => None,
        };
        let conflicted = match &listener.conflict {
            Some(Finding { reason, message }) => {
                Condition::new(c::CONFLICTED, true, reason, message.clone(), generation)
            }
            None => Condition::new(c::CONFLICTED, false, c::NO_CONFLICTS, "", generation),
        };
        ListenerStatus {
            name: listener.name.clone(),
            supported_kinds: listener.supported_kinds.clone(),
            attached_routes: attached.counts.get(&listener.name).copied().unwrap_or(0),
            conditions: vec![
                Condition::of(c::ACCEPTED, listener.unaccepted.clone(), generation),
                Condition::of(c::PROGRAMMED, programmed, generation),
                Condition::of(c::RESOLVED_REFS, listener.unresolved.clone(), generation),
                conflicted,
            ],
        }
    }
}
