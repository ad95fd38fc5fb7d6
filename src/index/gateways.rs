//! Gateways: which are ours, and their statuses.

use super::{
    annotations::http_options,
    backends::Resolved,
    classes::Class,
    frontend, links,
    listener_sets::{Member, Origin},
    listeners::Listener,
    nodes::{Names, WantedNode, wanted_node},
    objects::{Key, Kind, Objects, Precedence, generation, precedence},
    routes::{Attached, Route},
    status::{Address, Condition, Finding, GatewayStatus, ListenerStatus},
};
use crate::{
    api::{conditions as c, gateway_api::gateways::Gateway},
    model::{
        Certificate, CertificateReport, HttpOptions, Issuance, NodeName, NodeReport, ObjectName,
        Programmed, TailnetState, Unready,
    },
};
use std::collections::BTreeMap;

/// A Gateway of ours, before routes are looked at.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: ObjectName,
    precedence: Precedence,
    pub(super) generation: i64,
    pub(super) listeners: Vec<Listener>,
    pub(super) http_options: HttpOptions,
    /// Why annotations have no effect.
    ignored: Option<Finding>,
    /// The ListenerSets that mean it.
    pub(super) members: Vec<Member>,
    /// What is wrong with the parameters, of its class or its own.
    parameters: Result<(), Finding>,
    /// Whether its node is there already. What keeps new nodes from being made, such as
    /// credentials that were revoked, does not end this one.
    has_node: bool,
    /// What it shows of itself to backends.
    pub(super) client_certificate: Option<Result<Certificate, Finding>>,
    /// Where clients are let in whose certificates are not valid.
    insecure: Option<Finding>,
    /// The node it asks to be, or why it can be none.
    node: Result<WantedNode, Finding>,
}

/// All that is known of a Gateway of ours.
pub(super) struct Known<'a> {
    pub(super) candidate: &'a Candidate,
    pub(super) names: &'a Names,
    pub(super) attached: &'a Attached,
    /// The backends of all routes.
    pub(super) resolved: &'a BTreeMap<Key, Resolved>,
    pub(super) routes: &'a BTreeMap<Key, Route>,
    pub(super) report: Option<&'a NodeReport>,
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

fn client_certificate(
    objects: &Objects,
    name: &ObjectName,
    gateway: &Gateway,
) -> Option<Result<Certificate, Finding>> {
    let reference = links::client_certificate(gateway);
    // The same words, of another type.
    let reference = super::same(reference)?;
    let certificate = objects.certificate((Kind::Gateway, &name.namespace), &reference);
    Some(certificate.map_err(|finding| match finding.reason {
        c::INVALID_CERTIFICATE_REF => {
            Finding::new(c::INVALID_CLIENT_CERTIFICATE_REF, finding.message)
        }
        _ => finding,
    }))
}

// === impl Candidate ===

impl Candidate {
    pub(super) fn new(
        objects: &Objects,
        name: &ObjectName,
        gateway: &Gateway,
        class: &Class,
        has_node: bool,
    ) -> Self {
        let parameters = class_parameters(&gateway.spec.gateway_class_name, &class.parameters);
        let node = wanted_node(name, gateway);
        let (http_options, ignored) = http_options(&gateway.metadata);
        let members = objects.members(name, gateway);
        Self {
            name: name.clone(),
            precedence: precedence(&gateway.metadata, name),
            generation: generation(&gateway.metadata),
            listeners: objects.listeners(name, gateway, &members, node.as_ref().ok()),
            members,
            http_options,
            ignored,
            parameters: parameters.and_then(|()| own_parameters(gateway)),
            has_node,
            client_certificate: client_certificate(objects, name, gateway),
            insecure: frontend::insecure(gateway),
            node,
        }
    }

    /// The name that it asks for; one that would not be served anyway asks for none.
    pub(super) fn claim(&self) -> Option<(NodeName, Precedence)> {
        let node = self.node.as_ref().ok().filter(|_| self.is_served())?;
        Some((node.name.clone(), self.precedence.clone()))
    }

    /// Why the Gateway is not accepted as a whole.
    fn unaccepted(&self) -> Option<Finding> {
        let parameters = self.parameters.as_ref().err().cloned();
        parameters.or_else(|| self.unservable())
    }

    /// Those of the Gateway itself.
    fn own_listeners(&self) -> impl Iterator<Item = &Listener> {
        let listeners = self.listeners.iter();
        listeners.filter(|listener| listener.origin == Origin::Gateway)
    }

    /// Whether a ListenerSet may add listeners.
    pub(super) fn lets_in(&self, set: &ObjectName) -> bool {
        let mut members = self.members.iter();
        members.any(|member| member.name() == set && member.is_let_in())
    }

    /// Why it is not served. What is served is told, also when it would not be made any more.
    pub(super) fn unserved(&self) -> Option<Finding> {
        self.unaccepted().filter(|_| !self.is_served())
    }

    pub(super) fn is_served(&self) -> bool {
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
        if self.own_listeners().any(Listener::is_accepted) {
            return None;
        }
        Some(Finding::new(
            c::LISTENERS_NOT_VALID,
            "no listener is accepted",
        ))
    }

    /// Whether all that it refers to was found, when it refers to something besides its listeners
    /// (Gateway API, `ResolvedRefs` of a Gateway).
    fn resolved_refs(&self) -> Option<Condition> {
        let own = self.client_certificate.as_ref()?.as_ref().err().cloned();
        let unresolved: Vec<_> = self
            .own_listeners()
            .filter(|listener| listener.unresolved.is_some())
            .map(|listener| listener.name.as_str())
            .collect();
        let of_listeners = (!unresolved.is_empty()).then(|| {
            let message = format!("see listener {}", unresolved.join(", "));
            Finding::new(c::LISTENERS_NOT_RESOLVED, message)
        });
        let finding = own.or(of_listeners);
        Some(Condition::of(c::RESOLVED_REFS, finding, self.generation))
    }

    fn accepted(&self, unaccepted: Option<Finding>) -> Condition {
        let invalid: Vec<_> = self
            .own_listeners()
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
                self.generation,
            );
        }
        Condition::of(c::ACCEPTED, unaccepted, self.generation)
    }
}

// === impl Known ===

impl Known<'_> {
    /// The node that it is, or why it is none: each name goes to the oldest that asks for it.
    pub(super) fn node(&self) -> Result<&WantedNode, Finding> {
        let node = self.candidate.node.as_ref().map_err(Finding::clone)?;
        match self.names.owner(&node.name) {
            Some(owner) if *owner != self.candidate.name => Err(Finding::new(
                c::ADDRESS_NOT_USABLE,
                format!(
                    "the node name {} is that of Gateway {owner}, which comes first by age, then name: set another Hostname in spec.addresses",
                    node.name
                ),
            )),
            _ => Ok(node),
        }
    }

    pub(super) fn status(&self) -> GatewayStatus {
        let generation = self.candidate.generation;
        let unaccepted = self.candidate.unaccepted();
        let unserved = self.candidate.unserved();
        let programmed = self.unprogrammed(unserved.as_ref());
        let listeners = self.candidate.own_listeners();
        let listeners = listeners
            .map(|listener| self.listener_status(listener, programmed.as_ref(), generation));
        let listeners = listeners.collect();
        let mut addresses = Vec::new();
        if let Some(report) = self.report.filter(|_| unserved.is_none()) {
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
            self.candidate.accepted(unaccepted),
            Condition::of(c::PROGRAMMED, programmed, generation),
        ];
        conditions.extend(self.candidate.resolved_refs());
        let insecure = self.candidate.insecure.clone();
        conditions.extend(insecure.map(|finding| {
            Condition::negative(c::INSECURE_FRONTEND_VALIDATION_MODE, finding, generation)
        }));
        let reports = self.report.into_iter();
        conditions.extend(reports.flat_map(|report| node_conditions(report, generation)));
        let ignored = self.candidate.ignored.clone();
        conditions.extend(
            ignored.map(|finding| Condition::negative(c::INVALID_ANNOTATIONS, finding, generation)),
        );
        let attached = self.candidate.members.iter().filter(|member| {
            let listeners = &self.candidate.listeners;
            member.unaccepted(listeners, unserved.as_ref()).is_none()
        });
        GatewayStatus {
            name: self.candidate.name.clone(),
            addresses,
            conditions,
            listeners,
            attached_listener_sets: i32::try_from(attached.count()).unwrap_or(i32::MAX),
        }
    }

    /// Why this generation of the Gateway is not served.
    pub(super) fn unprogrammed(&self, unaccepted: Option<&Finding>) -> Option<Finding> {
        if let Some(finding) = unaccepted {
            let reason = match finding.reason {
                c::PENDING => c::PENDING,
                _ => c::INVALID,
            };
            return Some(Finding::new(reason, finding.message.clone()));
        }
        let node = match self.node() {
            Ok(node) => node,
            Err(finding) => return Some(finding),
        };
        match self.report.map(|report| &report.programmed) {
            Some(Programmed::Generation(generation))
                if *generation == self.candidate.generation =>
            {
                other_name(node, self.report)
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

    /// `generation`: of the object that the listener is in.
    pub(super) fn listener_status(
        &self,
        listener: &Listener,
        unprogrammed: Option<&Finding>,
        generation: i64,
    ) -> ListenerStatus {
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
            attached_routes: self
                .attached
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
