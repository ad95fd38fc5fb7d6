//! Listeners of a Gateway: protocol, certificates, and who may attach.

use super::{
    certificates::covers,
    conflicts::{conflicts_of_groups, is_passthrough, overlaps},
    listener_sets::{Member, Origin},
    nodes::WantedNode,
    objects::{Key, Kind, Objects},
    status::{Finding, RouteKind},
};
use crate::{
    api::{
        ALPN_OPTION, CERTIFICATE_OPTION, GATEWAY_GROUP, OPTION_PREFIX, conditions as c,
        gateway_api::gateways::{
            Gateway, GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
            GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTls,
        },
    },
    model::{Certificate, Certificates, ClientValidation, HostnamePattern, ObjectName},
};
use std::collections::BTreeMap;

/// A listener and all that is known of it before routes are looked at.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    /// That no other listener of the Gateway has.
    pub(super) name: String,
    /// As its object calls it.
    pub(super) section: String,
    pub(super) origin: Origin,
    pub(super) port: u16,
    pub(super) protocol: Option<Protocol>,
    pub(super) supported_kinds: Vec<RouteKind>,
    /// Why it is not accepted.
    pub(super) unaccepted: Option<Finding>,
    /// What is odd about it although it is accepted.
    pub(super) note: String,
    /// Why it takes no connection although it is accepted.
    pub(super) unserved: Option<Finding>,
    /// Why not all that it refers to could be resolved.
    pub(super) unresolved: Option<Finding>,
    /// The listeners that it conflicts with.
    pub(super) conflict: Option<Finding>,
    /// The listeners whose hostnames overlap with its own.
    pub(super) overlap: Option<Finding>,
    /// What is asked of clients.
    pub(super) clients: Option<ClientValidation>,
    allowed: Allowed,
}

/// What a listener that is accepted speaks.
#[derive(Clone, Debug)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    /// TLS that ends at the backend.
    Passthrough {
        hostname: Option<HostnamePattern>,
    },
    Http {
        hostname: Option<HostnamePattern>,
    },
    /// HTTP in TLS.
    Https {
        hostname: Option<HostnamePattern>,
        certificates: Certificates,
    },
    Tls {
        hostname: Option<HostnamePattern>,
        certificates: Certificates,
        alpn: Vec<String>,
    },
}

/// From where routes may attach.
#[derive(Clone, Debug)]
pub(super) enum Allowed {
    All,
    Same,
    None,
    Selector(Selector),
}

const fn route(kind: Kind) -> RouteKind {
    RouteKind {
        group: GATEWAY_GROUP,
        kind: kind.as_str(),
    }
}

/// The kinds of routes that a listener can have; `None`: its protocol is none of ours.
fn kinds_of(spec: &GatewayListeners) -> Option<&'static [RouteKind]> {
    Some(match spec.protocol.as_str() {
        "HTTP" | "HTTPS" => &const { [route(Kind::HttpRoute), route(Kind::GrpcRoute)] },
        "TLS" if is_passthrough(spec) => &const { [route(Kind::TlsRoute)] },
        "TLS" => &const { [route(Kind::TlsRoute), route(Kind::TcpRoute)] },
        "TCP" => &const { [route(Kind::TcpRoute)] },
        "UDP" => &const { [route(Kind::UdpRoute)] },
        _ => return None,
    })
}

impl Objects {
    /// The listeners of a Gateway, in its order, then those of ListenerSets in theirs.
    pub(super) fn listeners(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        members: &[Member],
        node: Option<&WantedNode>,
    ) -> Vec<Listener> {
        let own = gateway.spec.listeners.iter();
        let mut listeners: Vec<_> = own
            .map(|spec| self.listener((name, gateway), Origin::Gateway, spec, node))
            .collect();
        let mut groups = vec![gateway.spec.listeners.clone()];
        for member in members.iter().filter(|member| member.is_let_in()) {
            let set = self.sets.get(member.name()).into_iter();
            let mut specs: Vec<_> = set.flat_map(|set| set.listeners.clone()).collect();
            for spec in &mut specs {
                let origin = Origin::Set(member.name().clone());
                let listener = self.listener((name, gateway), origin, spec, node);
                spec.name.clone_from(&listener.name);
                listeners.push(listener);
            }
            groups.push(specs);
        }
        let marks = conflicts_of_groups(&groups)
            .into_iter()
            .zip(overlaps(&groups.concat()));
        for (listener, (conflict, overlap)) in listeners.iter_mut().zip(marks) {
            let unsupported = listener
                .unaccepted
                .as_ref()
                .is_some_and(|finding| finding.reason == c::UNSUPPORTED_PROTOCOL);
            if conflict.is_some() && !unsupported {
                listener.unaccepted.clone_from(&conflict);
            }
            listener.conflict = conflict;
            listener.overlap = overlap;
        }
        listeners
    }

    fn listener(
        &self,
        (name, gateway): (&ObjectName, &Gateway),
        origin: Origin,
        spec: &GatewayListeners,
        node: Option<&WantedNode>,
    ) -> Listener {
        let mut listener = Listener {
            name: origin.unique(&spec.name),
            section: spec.name.clone(),
            origin,
            port: u16::try_from(spec.port).unwrap_or(0),
            protocol: None,
            supported_kinds: Vec::new(),
            unaccepted: None,
            note: String::new(),
            unserved: None,
            unresolved: None,
            conflict: None,
            overlap: None,
            clients: None,
            allowed: Allowed::of(spec),
        };
        let home = listener.origin.home(name);
        let mut unresolved = Vec::new();
        if let Some(kinds) = kinds_of(spec) {
            listener.supported_kinds = supported_kinds(spec, kinds, &mut unresolved);
        }
        let protocol = match spec.protocol.as_str() {
            "TCP" => plain(spec, Protocol::Tcp),
            "UDP" => plain(spec, Protocol::Udp),
            "TLS" if is_passthrough(spec) => passthrough(spec),
            "HTTP" => http(spec),
            "HTTPS" => self
                .tls(home, spec, node, &mut unresolved)
                .map(Protocol::with_http),
            "TLS" => self.tls(home, spec, node, &mut unresolved),
            other => Err(Finding::new(
                c::UNSUPPORTED_PROTOCOL,
                format!("protocol {other} is not supported: use HTTP, HTTPS, TLS, TCP or UDP"),
            )),
        };
        match protocol {
            Ok(protocol) => listener.protocol = Some(protocol),
            Err(finding) => listener.unaccepted = Some(finding),
        }
        if listener.port == 0 {
            let message = format!("port {} is no port: use 1 to 65535", spec.port);
            listener.unaccepted = Some(Finding::new(c::UNSUPPORTED_VALUE, message));
        }
        if listener.protocol.as_ref().is_some_and(Protocol::terminates)
            && let Some(clients) = self.clients(name, gateway, spec.port)
        {
            unresolved.extend(clients.unresolved);
            match clients.validation {
                Ok(validation) => listener.clients = Some(validation),
                Err(finding) => listener.unaccepted = Some(finding),
            }
        }
        if let Some(protocol) = &listener.protocol {
            listener.unserved = protocol.unserved();
            listener.note = protocol.note().unwrap_or_default();
        }
        listener.unresolved = Finding::join(unresolved);
        listener
    }

    fn tls(
        &self,
        home: (Kind, &str),
        spec: &GatewayListeners,
        node: Option<&WantedNode>,
        unresolved: &mut Vec<Finding>,
    ) -> Result<Protocol, Finding> {
        let tls = spec.tls.clone().unwrap_or_default();
        if is_passthrough(spec) {
            return Err(unsupported(
                "an HTTPS listener ends TLS: use mode Terminate, or protocol TLS to pass it on",
            ));
        }
        let hostname = hostname_of(spec)?;
        let alpn = options(&tls)?;
        let tailnet = node.is_none_or(|node| node.may_be(hostname.as_ref()));
        let mut secrets = Vec::new();
        for reference in tls.certificate_refs.iter().flatten() {
            match self.certificate(home, reference) {
                Ok(certificate) => secrets.push(certificate),
                Err(mut finding) => {
                    if let (true, Some(node)) = (tailnet, node) {
                        let node = node.full.as_deref().unwrap_or(node.name.as_str());
                        finding.message = format!(
                            "{}; the tailnet's certificate for {node} is served all the same",
                            finding.message
                        );
                    }
                    unresolved.push(finding);
                }
            }
        }
        Ok(Protocol::Tls {
            hostname,
            certificates: Certificates { tailnet, secrets },
            alpn,
        })
    }
}

fn unsupported(message: impl Into<String>) -> Finding {
    Finding::new(c::UNSUPPORTED_VALUE, message)
}

fn http(spec: &GatewayListeners) -> Result<Protocol, Finding> {
    if spec.tls.is_some() {
        return Err(unsupported(
            "an HTTP listener has no tls: use protocol HTTPS to terminate it",
        ));
    }
    Ok(Protocol::Http {
        hostname: hostname_of(spec)?,
    })
}

fn hostname_of(spec: &GatewayListeners) -> Result<Option<HostnamePattern>, Finding> {
    let hostname = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let hostname = hostname.map(HostnamePattern::parse).transpose();
    hostname.map_err(|error| unsupported(error.to_string()))
}

/// What has neither TLS nor names.
fn plain(spec: &GatewayListeners, protocol: Protocol) -> Result<Protocol, Finding> {
    let name = &spec.protocol;
    if spec.tls.is_some() {
        return Err(unsupported(match protocol {
            Protocol::Udp => "a UDP listener has no tls: remove it".to_owned(),
            _ => format!("a {name} listener has no tls: use protocol TLS to terminate it"),
        }));
    }
    match spec.hostname.as_deref() {
        None | Some("") => Ok(protocol),
        Some(_) => Err(unsupported(format!(
            "a {name} listener has no hostname: remove it"
        ))),
    }
}

/// Certificates, if any, are the backends' matter (Gateway API `TLSModePassthrough`).
fn passthrough(spec: &GatewayListeners) -> Result<Protocol, Finding> {
    Ok(Protocol::Passthrough {
        hostname: hostname_of(spec)?,
    })
}

/// Checks the `tls.options` that are ours, and gives the protocols for ALPN.
fn options(tls: &GatewayListenersTls) -> Result<Vec<String>, Finding> {
    let mut alpn = Vec::new();
    for (key, value) in tls.options.iter().flatten() {
        match key.as_str() {
            CERTIFICATE_OPTION if value == "tailnet" => {}
            CERTIFICATE_OPTION => {
                return Err(unsupported(format!(
                    "tls.options {CERTIFICATE_OPTION} is {value:?}: the one value is \"tailnet\""
                )));
            }
            ALPN_OPTION => {
                let names = value.split(',').map(str::trim);
                alpn.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
            }
            key if key.starts_with(OPTION_PREFIX) => {
                return Err(unsupported(format!(
                    "tls.options has no {key}: there are {CERTIFICATE_OPTION} and {ALPN_OPTION}"
                )));
            }
            _ => {} // of another implementation
        }
    }
    // One byte holds the length (RFC 7301 §3.1).
    match alpn.iter().find(|name| name.len() > 255) {
        Some(name) => Err(unsupported(format!(
            "tls.options {ALPN_OPTION} has {name:?}, which is longer than 255 bytes"
        ))),
        None => Ok(alpn),
    }
}

/// Those of `own` that the listener allows.
fn supported_kinds(
    spec: &GatewayListeners,
    own: &[RouteKind],
    unresolved: &mut Vec<Finding>,
) -> Vec<RouteKind> {
    let kinds = spec
        .allowed_routes
        .as_ref()
        .and_then(|allowed| allowed.kinds.as_ref());
    let Some(kinds) = kinds.filter(|kinds| !kinds.is_empty()) else {
        return own.to_vec();
    };
    let mut supported = Vec::new();
    for kind in kinds {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        let mut supporting = own.iter();
        if let Some(own) = supporting.find(|own| group == own.group && kind.kind == own.kind) {
            if !supported.contains(own) {
                supported.push(own.clone());
            }
        } else {
            let own: Vec<_> = own.iter().map(|own| own.kind).collect();
            unresolved.push(Finding::new(
                c::INVALID_ROUTE_KINDS,
                format!(
                    "{} cannot be attached to {} {} listener{}: {} can",
                    super::qualified(&kind.kind, group),
                    if spec.protocol.starts_with("HTTP") {
                        "an"
                    } else {
                        "a"
                    },
                    spec.protocol,
                    if is_passthrough(spec) {
                        " of mode Passthrough"
                    } else {
                        ""
                    },
                    own.join(", ")
                ),
            ));
        }
    }
    supported
}

// === impl Listener ===

impl Listener {
    pub(super) fn is_accepted(&self) -> bool {
        self.unaccepted.is_none()
    }

    /// Whether it can take connections.
    pub(super) fn is_valid(&self) -> bool {
        self.is_accepted() && self.unserved.is_none()
    }

    /// Whether a route may attach.
    pub(super) fn allows(&self, objects: &Objects, gateway: &ObjectName, route: &Key) -> bool {
        let mut kinds = self.supported_kinds.iter();
        if !kinds.any(|kind| kind.kind == route.kind.as_str()) {
            return false;
        }
        let (_, home) = self.origin.home(gateway);
        self.allowed.lets_in(objects, home, &route.name.namespace)
    }
}

impl Listener {
    /// `None`: every name.
    pub(super) fn hostname(&self) -> Option<&HostnamePattern> {
        match self.protocol.as_ref()? {
            Protocol::Tcp | Protocol::Udp => None,
            Protocol::Http { hostname }
            | Protocol::Passthrough { hostname }
            | Protocol::Https { hostname, .. }
            | Protocol::Tls { hostname, .. } => hostname.as_ref(),
        }
    }
}

impl Protocol {
    /// Whether TLS ends here.
    fn terminates(&self) -> bool {
        matches!(self, Self::Https { .. } | Self::Tls { .. })
    }

    /// Whether what clients say is read here, so that it is said anew to backends; bytes are
    /// passed on as they are.
    pub(super) fn ends_here(&self) -> bool {
        self.terminates() || matches!(self, Self::Http { .. })
    }

    fn with_http(self) -> Self {
        match self {
            Self::Tls {
                hostname,
                certificates,
                ..
            } => Self::Https {
                hostname,
                certificates,
            },
            other => other,
        }
    }

    /// The hostname of a TLS listener, when no certificate is for it, and the Secrets' certificates.
    fn uncovered(&self) -> Option<(&HostnamePattern, &[Certificate])> {
        let (Self::Tls {
            hostname: Some(hostname),
            certificates,
            ..
        }
        | Self::Https {
            hostname: Some(hostname),
            certificates,
        }) = self
        else {
            return None;
        };
        let secrets = &certificates.secrets;
        let covered =
            certificates.tailnet || secrets.iter().any(|secret| covers(secret, Some(hostname)));
        (!covered).then_some((hostname, secrets))
    }

    /// A TLS listener takes no connection when it has no certificate at all.
    fn unserved(&self) -> Option<Finding> {
        let (hostname, secrets) = self.uncovered()?;
        let message = format!(
            "no certificate is for {hostname}: the tailnet's is for the name of the node only, so refer to a Secret with one"
        );
        secrets
            .is_empty()
            .then(|| Finding::new(c::INVALID, message))
    }

    /// A certificate for other names is served: some clients do not mind, but most do.
    fn note(&self) -> Option<String> {
        let (hostname, secrets) = self.uncovered()?;
        let names: Vec<_> = secrets
            .iter()
            .flat_map(Certificate::names)
            .map(String::as_str)
            .collect();
        (!secrets.is_empty()).then(|| {
            format!(
                "no certificate is for {hostname}: those of the Secrets are for {}",
                names.join(", ")
            )
        })
    }
}

impl Allowed {
    fn of(spec: &GatewayListeners) -> Self {
        let Some(namespaces) = spec
            .allowed_routes
            .as_ref()
            .and_then(|allowed| allowed.namespaces.as_ref())
        else {
            return Self::Same;
        };
        match (&namespaces.from, &namespaces.selector) {
            (Some(From::All), _) => Self::All,
            (Some(From::Selector), Some(selector)) => Self::Selector(selector.clone()),
            // A selector that is not there selects nothing.
            (Some(From::Selector), None) => Self::None,
            (Some(From::Same) | None, _) => Self::Same,
        }
    }

    /// Whether what is in a namespace may attach to what is in the namespace `home`.
    pub(super) fn lets_in(&self, objects: &Objects, home: &str, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Same => home == namespace,
            Self::None => false,
            Self::Selector(selector) => selects(selector, &objects.namespace_labels(namespace)),
        }
    }
}

/// A label selector of the API machinery: all of `matchLabels` and of `matchExpressions`.
fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .all(|expression| {
            let value = labels.get(&expression.key);
            let listed =
                value.is_some_and(|value| expression.values.iter().flatten().any(|v| v == value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        });
    equal && expressions
}
