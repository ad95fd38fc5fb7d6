//! GatewayClasses and Gateways: which are ours, their nodes, their Snapshots and statuses.

use super::{
    Outcome, Verdict,
    certificates::WantedNode,
    listeners::{Listener, Protocol},
    objects::{Kind, Objects, generation, precedence},
    routes::{Attached, attach},
    status::{
        Address, ClassStatus, Condition, Finding, GatewayStatus, ListenerStatus, Statuses,
        Unclaimed,
    },
};
use crate::{
    api::{
        CONTROLLER, TAILWAY_GROUP, conditions as c,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
    },
    model::{
        CertificateReport, Forward, HostnamePattern, Issuance, NodeName, NodeNameError, NodeReport,
        NodeSpec, ObjectName, Port, Programmed, Snapshot, TailnetState, TcpListener, TlsListener,
        Unready,
    },
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

/// A Gateway of ours, before routes are looked at.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a ObjectName,
    gateway: &'a Gateway,
    pub(super) listeners: Vec<Listener>,
    /// What is wrong with the parameters, of its class or its own.
    parameters: Result<(), Finding>,
    /// Whether its node is there already. What keeps new nodes from being made, such as
    /// credentials that were revoked, does not end this one.
    has_node: bool,
    /// The node it is to be, or why it can be none.
    node: Result<WantedNode, Finding>,
}

/// Works out all Snapshots and statuses.
pub(super) fn evaluate(
    objects: &Objects,
    reports: &BTreeMap<ObjectName, NodeReport>,
    verdicts: Option<&BTreeMap<String, Verdict>>,
) -> Outcome {
    let (classes, class_statuses) = classes(objects, verdicts);
    let mut candidates = candidates(objects, &classes, reports);
    give_names(&mut candidates);
    let mut attachments = attach(objects, &candidates);
    let mut outcome = Outcome {
        statuses: Statuses {
            classes: class_statuses,
            tcp_routes: attachments.statuses,
            gateways: Vec::new(),
            unclaimed: without_class(objects)
                .chain(attachments.unclaimed)
                .collect(),
        },
        ..Outcome::default()
    };
    outcome.statuses.unclaimed.sort();
    for (name, candidate) in &candidates {
        let attached = attachments.gateways.remove(name).unwrap_or_default();
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

/// The classes that are ours, with what is wrong with their parameters, and their statuses.
fn classes<'a>(
    objects: &'a Objects,
    verdicts: Option<&BTreeMap<String, Verdict>>,
) -> (BTreeMap<&'a str, Result<(), Finding>>, Vec<ClassStatus>) {
    let mut ours = BTreeMap::new();
    let mut statuses = Vec::new();
    for (name, class) in &objects.classes {
        if class.spec.controller_name != CONTROLLER {
            continue;
        }
        let parameters = match verdicts {
            None => parameters(objects, class),
            Some(verdicts) => judged(verdicts.get(&name.name)),
        };
        statuses.push(ClassStatus {
            name: name.name.clone(),
            conditions: vec![Condition::of(
                c::ACCEPTED,
                parameters.clone().err(),
                generation(&class.metadata),
            )],
        });
        ours.insert(name.name.as_str(), parameters);
    }
    (ours, statuses)
}

/// What a verdict means for a class.
fn judged(verdict: Option<&Verdict>) -> Result<(), Finding> {
    match verdict {
        Some(Verdict::Accepted) => Ok(()),
        Some(Verdict::Refused { reason, message }) => Err(Finding::new(reason, message.clone())),
        None => Err(Finding::new(c::PENDING, "its parameters are being tried")),
    }
}

/// Gateways whose class nobody has: it may become ours.
fn without_class(objects: &Objects) -> impl Iterator<Item = Unclaimed> {
    objects.gateways.iter().filter_map(|(name, gateway)| {
        let class = &gateway.spec.gateway_class_name;
        let known = objects.classes.contains_key(&ObjectName::new("", class));
        (!known).then(|| Unclaimed {
            kind: Kind::Gateway,
            name: name.clone(),
            message: format!(
                "there is no GatewayClass {class}: add one with controllerName {CONTROLLER}"
            ),
        })
    })
}

/// Checks what a class refers to. The credentials in it are for the controller; `tailway run` has
/// its own.
fn parameters(objects: &Objects, class: &GatewayClass) -> Result<(), Finding> {
    let Some(reference) = &class.spec.parameters_ref else {
        return Ok(());
    };
    let invalid = |message: String| Err(Finding::new(c::INVALID_PARAMETERS, message));
    if (reference.group.as_str(), reference.kind.as_str()) == (TAILWAY_GROUP, "TailscaleTailnet") {
        let name = &reference.name;
        return match objects.tailnets.get(&ObjectName::new("", name)) {
            Some(_) => Ok(()),
            None => invalid(format!(
                "parametersRef: there is no TailscaleTailnet {name}"
            )),
        };
    }
    if !reference.group.is_empty() || reference.kind != "Secret" {
        return invalid(format!(
            "parametersRef is a {}: a Secret or a TailscaleTailnet can be one",
            super::qualified(&reference.kind, &reference.group)
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

/// The Gateways of classes of ours.
fn candidates<'a>(
    objects: &'a Objects,
    classes: &BTreeMap<&str, Result<(), Finding>>,
    reports: &BTreeMap<ObjectName, NodeReport>,
) -> BTreeMap<ObjectName, Candidate<'a>> {
    let candidate = |(name, gateway): (&'a ObjectName, &'a Arc<Gateway>)| {
        let class = gateway.spec.gateway_class_name.as_str();
        let parameters =
            class_parameters(class, classes.get(class)?).and_then(|()| own_parameters(gateway));
        let node = wanted_node(name, gateway);
        let listeners = objects.listeners(name, gateway, node.as_ref().ok());
        let candidate = Candidate {
            name,
            gateway,
            listeners,
            parameters,
            node,
            has_node: reports.contains_key(name),
        };
        Some((name.clone(), candidate))
    };
    objects.gateways.iter().filter_map(candidate).collect()
}

fn class_parameters(class: &str, parameters: &Result<(), Finding>) -> Result<(), Finding> {
    parameters.clone().map_err(|finding| {
        let message = format!("GatewayClass {class} is not accepted: {}", finding.message);
        let reason = match finding.reason {
            c::PENDING => c::PENDING,
            _ => c::INVALID_PARAMETERS,
        };
        Finding::new(reason, message)
    })
}

fn own_parameters(gateway: &Gateway) -> Result<(), Finding> {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    match infrastructure.and_then(|infrastructure| infrastructure.parameters_ref.as_ref()) {
        None => Ok(()),
        Some(reference) => Err(Finding::new(
            c::INVALID_PARAMETERS,
            format!(
                "infrastructure.parametersRef is a {}: a Gateway takes no parameters",
                super::qualified(&reference.kind, &reference.group)
            ),
        )),
    }
}

/// The node that a Gateway asks for: the first label of its Hostname, else `<name>-<namespace>`.
/// An address without a value leaves the choice to the tailnet.
fn wanted_node(name: &ObjectName, gateway: &Gateway) -> Result<WantedNode, Finding> {
    let mut hostnames = Vec::new();
    for address in gateway.spec.addresses.iter().flatten() {
        let kind = address.r#type.as_deref().unwrap_or("IPAddress");
        let value = address.value.as_deref().unwrap_or_default();
        match (kind, value) {
            ("Hostname" | "IPAddress", "") => {}
            ("Hostname", value) => hostnames.push(value),
            (kind, value) => {
                return Err(Finding::new(
                    c::UNSUPPORTED_ADDRESS,
                    format!(
                        "address {value:?} is of type {kind}: the tailnet chooses IP addresses, a Hostname names the node"
                    ),
                ));
            }
        }
    }
    let invalid = |error: NodeNameError| Finding::new(c::INVALID, error.to_string());
    let (wanted, full) = match hostnames.as_slice() {
        [] => (format!("{}-{}", name.name, name.namespace), None),
        [hostname] => {
            let full = hostname.trim_end_matches('.').to_ascii_lowercase();
            match full.split_once('.') {
                Some((label, _)) => (label.to_owned(), Some(full)),
                None => (full, None),
            }
        }
        several => {
            return Err(Finding::new(
                c::ADDRESS_NOT_USABLE,
                format!(
                    "a node has one name, but the Gateway asks for {}: leave one Hostname in spec.addresses",
                    several.join(", ")
                ),
            ));
        }
    };
    let name = NodeName::parse(&wanted).map_err(invalid)?;
    Ok(WantedNode { name, full })
}

/// Gives each name to the oldest Gateway that asks for it; one that would not be served anyway
/// asks for none.
fn give_names(candidates: &mut BTreeMap<ObjectName, Candidate<'_>>) {
    let mut order: Vec<_> = candidates
        .iter()
        .filter(|(_, candidate)| candidate.is_served())
        .map(|(name, candidate)| precedence(&candidate.gateway.metadata, name))
        .collect();
    order.sort();
    let mut owners: BTreeMap<NodeName, ObjectName> = BTreeMap::new();
    for (_, name) in order {
        let Some(candidate) = candidates.get_mut(&name) else {
            continue;
        };
        let Ok(node) = &candidate.node else { continue };
        match owners.entry(node.name.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(name)),
            Entry::Occupied(entry) => {
                let message = format!(
                    "the node name {} is that of Gateway {}, which comes first by age, then name: set another Hostname in spec.addresses",
                    node.name,
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
        let parameters = self.parameters.as_ref().err().cloned();
        parameters.or_else(|| self.unservable())
    }

    fn is_served(&self) -> bool {
        (self.has_node || self.parameters.is_ok()) && self.unservable().is_none()
    }

    /// Why it could not be served, whatever its parameters are.
    fn unservable(&self) -> Option<Finding> {
        match &self.node {
            // Asked for rightly, but not to be had: that is for Programmed to tell.
            Err(finding) if finding.reason == c::ADDRESS_NOT_USABLE => {}
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
    fn snapshot(&self, attached: Attached) -> Option<Snapshot> {
        let node = self.node.as_ref().ok()?;
        if !self.is_served() {
            return None;
        }
        Some(Snapshot {
            gateway: self.name.clone(),
            generation: self.generation(),
            node: NodeSpec {
                name: node.name.clone(),
            },
            ports: self.ports(attached.forwards),
            backends: attached.backends,
        })
    }

    /// The accepted listeners by port, those of TLS with the most specific hostname first.
    fn ports(&self, mut forwards: BTreeMap<String, Forward>) -> BTreeMap<u16, Port> {
        let mut ports = BTreeMap::new();
        let accepted = self.listeners.iter().filter(|l| l.is_accepted());
        for listener in accepted {
            let route = forwards.remove(&listener.name);
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
        for port in ports.values_mut() {
            if let Port::Tls(listeners) = port {
                let specificity = |listener: &TlsListener| {
                    let hostname = listener.hostname.as_ref();
                    Reverse(hostname.map(HostnamePattern::specificity))
                };
                listeners.sort_by_key(specificity);
            }
        }
        ports
    }

    fn status(&self, attached: &Attached, report: Option<&NodeReport>) -> GatewayStatus {
        let unaccepted = self.unaccepted();
        // What is served is told, also when it would not be made any more.
        let unserved = unaccepted.clone().filter(|_| !self.is_served());
        let programmed = self.unprogrammed(unserved.as_ref(), report);
        let listeners = self
            .listeners
            .iter()
            .map(|listener| self.listener_status(listener, attached, programmed.as_ref()))
            .collect();
        let mut addresses = Vec::new();
        if let Some(report) = report.filter(|_| unserved.is_none()) {
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
        let mut conditions = vec![
            self.accepted(unaccepted),
            Condition::of(c::PROGRAMMED, programmed, self.generation()),
        ];
        conditions.extend(
            report
                .into_iter()
                .flat_map(|report| node_conditions(report, self.generation())),
        );
        GatewayStatus {
            name: self.name.clone(),
            addresses,
            conditions,
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
        if let Some(finding) = unaccepted {
            let reason = match finding.reason {
                c::PENDING => c::PENDING,
                _ => c::INVALID,
            };
            return Some(Finding::new(reason, finding.message.clone()));
        }
        let node = match &self.node {
            Ok(node) => node,
            Err(finding) => return Some(finding.clone()),
        };
        match report.map(|report| &report.programmed) {
            Some(Programmed::Generation(generation)) if *generation == self.generation() => {
                other_name(node, report)
            }
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
        let conflicted = match &listener.conflict {
            Some(finding) => Condition::negative(c::CONFLICTED, finding.clone(), generation),
            None => Condition::new(c::CONFLICTED, false, c::NO_CONFLICTS, "", generation),
        };
        let accepted = match &listener.unaccepted {
            Some(finding) => Condition::of(c::ACCEPTED, Some(finding.clone()), generation),
            None => Condition::new(c::ACCEPTED, true, c::ACCEPTED, &listener.note, generation),
        };
        let mut conditions = vec![
            accepted,
            Condition::of(
                c::PROGRAMMED,
                listener_unprogrammed(listener, unprogrammed),
                generation,
            ),
            Condition::of(c::RESOLVED_REFS, listener.unresolved.clone(), generation),
            conflicted,
        ];
        conditions.extend(
            listener
                .overlap
                .clone()
                .map(|finding| Condition::negative(c::OVERLAPPING_TLS_CONFIG, finding, generation)),
        );
        ListenerStatus {
            name: listener.name.clone(),
            supported_kinds: listener.supported_kinds.clone(),
            attached_routes: attached
                .routes
                .get(&listener.name)
                .map_or(0, |routes| i32::try_from(routes.len()).unwrap_or(i32::MAX)),
            conditions,
        }
    }
}

/// What the node of a Gateway says of its tailnet and its certificate.
fn node_conditions(report: &NodeReport, generation: i64) -> impl Iterator<Item = Condition> {
    let tailnet = match report.tailnet.state {
        TailnetState::Ready => None,
        TailnetState::Joining => Some(c::TAILNET_JOINING),
        TailnetState::LoginNeeded => Some(c::TAILNET_LOGIN_NEEDED),
        TailnetState::ApprovalNeeded => Some(c::TAILNET_APPROVAL_NEEDED),
        TailnetState::KeyExpired => Some(c::TAILNET_KEY_EXPIRED),
        TailnetState::NameTaken => Some(c::TAILNET_NAME_TAKEN),
        TailnetState::MagicDnsDisabled => Some(c::TAILNET_MAGIC_DNS_DISABLED),
        TailnetState::ControlUnavailable => Some(c::TAILNET_CONTROL_UNAVAILABLE),
    };
    let tailnet = Condition::new(
        c::TAILNET_READY,
        tailnet.is_none(),
        tailnet.unwrap_or(c::TAILNET_UP),
        tailnet_message(report),
        generation,
    );
    let certificate = certificate_condition(&report.certificate, generation);
    std::iter::once(tailnet).chain(certificate)
}

fn tailnet_message(report: &NodeReport) -> &str {
    match (&report.tailnet.state, &report.programmed) {
        // Nothing has been heard of the node itself.
        (TailnetState::Joining, Programmed::No { message, .. })
            if report.tailnet.message.is_empty() =>
        {
            message
        }
        _ => &report.tailnet.message,
    }
}

/// `True` while a certificate is served, whatever became of its renewal; the message says when it
/// expires, and why it is not renewed.
fn certificate_condition(report: &CertificateReport, generation: i64) -> Option<Condition> {
    let reason = match report.issuance {
        Issuance::NotNeeded => return None,
        Issuance::Ready => c::CERTIFICATE_ISSUED,
        Issuance::Pending => c::PENDING,
        Issuance::RateLimited => c::CERTIFICATE_RATE_LIMITED,
        Issuance::HttpsDisabled => c::CERTIFICATE_HTTPS_DISABLED,
        Issuance::Failed => c::CERTIFICATE_FAILED,
    };
    let expires = report
        .expires
        .and_then(|expires| jiff::Timestamp::try_from(expires).ok())
        .map(|expires| format!("it expires at {expires}"));
    let problem = (!report.message.is_empty()).then(|| report.message.clone());
    let message: Vec<_> = expires.into_iter().chain(problem).collect();
    Some(Condition::new(
        c::CERTIFICATE_READY,
        report.expires.is_some(),
        reason,
        message.join("; "),
        generation,
    ))
}

/// Why a listener is not served.
fn listener_unprogrammed(listener: &Listener, gateway: Option<&Finding>) -> Option<Finding> {
    match (&listener.conflict, &listener.unaccepted, &listener.unserved) {
        (Some(finding), Some(_), _) => Some(finding.clone()),
        (_, Some(finding), _) | (_, None, Some(finding)) => {
            Some(Finding::new(c::INVALID, finding.message.clone()))
        }
        (_, None, None) => gateway.map(|finding| {
            let reason = match finding.reason {
                c::INVALID | c::ADDRESS_NOT_USABLE => c::INVALID,
                _ => c::PENDING,
            };
            Finding::new(reason, finding.message.clone())
        }),
    }
}

/// A node that is served, but whose full name is not the one asked for.
fn other_name(node: &WantedNode, report: Option<&NodeReport>) -> Option<Finding> {
    let wanted = node.full.as_ref()?;
    let given = report.map(|report| report.dns_name.as_str())?;
    (!given.is_empty() && !given.eq_ignore_ascii_case(wanted)).then(|| {
        Finding::new(
            c::ADDRESS_NOT_USABLE,
            format!(
                "the Gateway asks for {wanted}, but the tailnet calls the node {given}: correct the Hostname in spec.addresses"
            ),
        )
    })
}
