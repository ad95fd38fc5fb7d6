//! Listeners of a Gateway: protocol, conflicts, certificates, and who may attach.

use super::{
    grants::Reference,
    objects::Objects,
    status::{Finding, RouteKind},
};
use crate::{
    api::{
        ALPN_OPTION, CERTIFICATE_OPTION, GATEWAY_GROUP, conditions as c,
        gateway_api::gateways::{
            Gateway, GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
            GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTls,
            GatewayListenersTlsCertificateRefs as CertificateRef, GatewayListenersTlsMode as Mode,
        },
    },
    model::{Certificate, Certificates, HostnamePattern, NodeName, ObjectName},
};
use k8s_openapi::api::core::v1::Secret;
use std::collections::BTreeMap;

/// A listener and all that is known of it before routes are looked at.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) protocol: Option<Protocol>,
    pub(super) supported_kinds: Vec<RouteKind>,
    /// Why it is not accepted.
    pub(super) unaccepted: Option<Finding>,
    /// Why not all that it refers to could be resolved.
    pub(super) unresolved: Option<Finding>,
    /// The listeners that it conflicts with.
    pub(super) conflict: Option<Finding>,
    allowed: Allowed,
}

/// What a listener that is accepted speaks.
#[derive(Clone, Debug)]
pub(super) enum Protocol {
    Tcp,
    Tls {
        hostname: Option<HostnamePattern>,
        certificates: Certificates,
        alpn: Vec<String>,
    },
}

/// From where routes may attach.
#[derive(Clone, Debug)]
enum Allowed {
    All,
    Same,
    None,
    Selector(Selector),
}

pub(super) const TCP_ROUTE: RouteKind = RouteKind {
    group: GATEWAY_GROUP,
    kind: "TCPRoute",
};

impl Objects {
    /// The listeners of a Gateway, in its order.
    pub(super) fn listeners(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        node: Option<&NodeName>,
    ) -> Vec<Listener> {
        let specs = &gateway.spec.listeners;
        let mut listeners: Vec<_> = specs
            .iter()
            .map(|spec| self.listener(name, spec, node))
            .collect();
        for (index, conflict) in conflicts(specs).into_iter().enumerate() {
            if listeners[index].unaccepted.is_none() {
                listeners[index].unaccepted.clone_from(&conflict);
            }
            listeners[index].conflict = conflict;
        }
        listeners
    }

    fn listener(
        &self,
        gateway: &ObjectName,
        spec: &GatewayListeners,
        node: Option<&NodeName>,
    ) -> Listener {
        let mut listener = Listener {
            name: spec.name.clone(),
            port: u16::try_from(spec.port).unwrap_or(0),
            protocol: None,
            supported_kinds: Vec::new(),
            unaccepted: None,
            unresolved: None,
            conflict: None,
            allowed: Allowed::of(spec),
        };
        let mut unresolved = Vec::new();
        match self.protocol(gateway, spec, node, &mut unresolved) {
            Ok(protocol) => {
                listener.protocol = Some(protocol);
                listener.supported_kinds = supported_kinds(spec, &mut unresolved);
            }
            Err(finding) => listener.unaccepted = Some(finding),
        }
        if listener.port == 0 {
            let message = format!("port {} is no port: use 1 to 65535", spec.port);
            listener.unaccepted = Some(Finding::new(c::UNSUPPORTED_VALUE, message));
        }
        listener.unresolved = Finding::join(unresolved);
        listener
    }

    fn protocol(
        &self,
        gateway: &ObjectName,
        spec: &GatewayListeners,
        node: Option<&NodeName>,
        unresolved: &mut Vec<Finding>,
    ) -> Result<Protocol, Finding> {
        let unsupported = |message: String| Err(Finding::new(c::UNSUPPORTED_VALUE, message));
        match spec.protocol.as_str() {
            "TCP" if spec.tls.is_some() => {
                unsupported("a TCP listener has no tls: use protocol TLS to terminate it".into())
            }
            "TCP" if spec.hostname.is_some() => {
                unsupported("a TCP listener has no hostname".into())
            }
            "TCP" => Ok(Protocol::Tcp),
            "TLS" => self.tls(gateway, spec, node, unresolved),
            other => Err(Finding::new(
                c::UNSUPPORTED_PROTOCOL,
                format!("protocol {other} is not supported: use TCP or TLS"),
            )),
        }
    }

    fn tls(
        &self,
        gateway: &ObjectName,
        spec: &GatewayListeners,
        node: Option<&NodeName>,
        unresolved: &mut Vec<Finding>,
    ) -> Result<Protocol, Finding> {
        let invalid = |message: String| Finding::new(c::UNSUPPORTED_VALUE, message);
        let tls = spec.tls.clone().unwrap_or_default();
        if matches!(tls.mode, Some(Mode::Passthrough)) {
            return Err(Finding::new(
                c::UNSUPPORTED_PROTOCOL,
                "TLS mode Passthrough is not supported: use Terminate, or protocol TCP to pass the bytes on",
            ));
        }
        let hostname = match spec
            .hostname
            .as_deref()
            .filter(|hostname| !hostname.is_empty())
        {
            Some(text) => {
                Some(HostnamePattern::parse(text).map_err(|error| invalid(error.to_string()))?)
            }
            None => None,
        };
        let options = tls.options.clone().unwrap_or_default();
        match options.get(CERTIFICATE_OPTION).map(String::as_str) {
            None | Some("tailnet") => {}
            Some(other) => {
                return Err(invalid(format!(
                    "tls.options {CERTIFICATE_OPTION} is {other:?}: the one value is \"tailnet\""
                )));
            }
        }
        let alpn = options
            .get(ALPN_OPTION)
            .map(|list| {
                list.split(',')
                    .map(|name| name.trim().to_owned())
                    .filter(|name| !name.is_empty())
                    .collect()
            })
            .unwrap_or_default();
        let secrets = self.secrets(gateway, &tls, node, unresolved);
        let tailnet = options.contains_key(CERTIFICATE_OPTION)
            || secrets.is_empty()
            || may_be_the_node(hostname.as_ref(), node);
        Ok(Protocol::Tls {
            hostname,
            certificates: Certificates { tailnet, secrets },
            alpn,
        })
    }

    fn secrets(
        &self,
        gateway: &ObjectName,
        tls: &GatewayListenersTls,
        node: Option<&NodeName>,
        unresolved: &mut Vec<Finding>,
    ) -> Vec<Certificate> {
        let mut certificates = Vec::new();
        for reference in tls.certificate_refs.iter().flatten() {
            match self.certificate(gateway, reference) {
                Ok(certificate) => certificates.push(certificate),
                Err(mut finding) => {
                    let node = node.map_or("the node", NodeName::as_str);
                    finding.message = format!(
                        "{}; the tailnet's certificate for {node} is served all the same",
                        finding.message
                    );
                    unresolved.push(finding);
                }
            }
        }
        certificates
    }

    fn certificate(
        &self,
        gateway: &ObjectName,
        reference: &CertificateRef,
    ) -> Result<Certificate, Finding> {
        let invalid = |message: String| Finding::new(c::INVALID_CERTIFICATE_REF, message);
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if !group.is_empty() || kind != "Secret" {
            return Err(invalid(format!(
                "certificateRef {} is a {kind}: only a Secret can be one",
                reference.name
            )));
        }
        let namespace = reference.namespace.as_ref().unwrap_or(&gateway.namespace);
        let name = ObjectName::new(namespace, &reference.name);
        let permitted = self.permits(&Reference {
            from_kind: "Gateway",
            from_namespace: &gateway.namespace,
            to_kind: "Secret",
            to: &name,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Secret {name} is in another namespace, where no ReferenceGrant allows Gateways of namespace {} to use it",
                    gateway.namespace
                ),
            ));
        }
        let Some(secret) = self.secrets.get(&name) else {
            return Err(invalid(format!("there is no Secret {name}")));
        };
        let (chain, key) = (
            secret_value(secret, "tls.crt"),
            secret_value(secret, "tls.key"),
        );
        match (chain, key) {
            (Some(chain), Some(key)) => Certificate::from_pem(&chain, &key)
                .map_err(|error| invalid(format!("Secret {name} cannot be used: {error}"))),
            (None, _) => Err(invalid(format!("Secret {name} has no tls.crt"))),
            (_, None) => Err(invalid(format!("Secret {name} has no tls.key"))),
        }
    }
}

/// A value of a Secret; `stringData` goes before `data`, as when an API server merges them.
fn secret_value(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    let text = secret.string_data.as_ref().and_then(|data| data.get(key));
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    text.map(|text| text.clone().into_bytes())
        .or_else(|| data.map(|data| data.0.clone()))
}

/// Whether a client could mean the node's own name with a name of this pattern. Its full name is
/// known only when it has joined, so its first label decides.
fn may_be_the_node(hostname: Option<&HostnamePattern>, node: Option<&NodeName>) -> bool {
    match (hostname, node) {
        (None, _) | (Some(HostnamePattern::Wildcard(_)), _) => true,
        (Some(HostnamePattern::Exact(name)), Some(node)) => {
            name.split('.').next() == Some(node.as_str())
        }
        (Some(_), None) => false,
    }
}

fn supported_kinds(spec: &GatewayListeners, unresolved: &mut Vec<Finding>) -> Vec<RouteKind> {
    let kinds = spec
        .allowed_routes
        .as_ref()
        .and_then(|allowed| allowed.kinds.as_ref());
    let Some(kinds) = kinds.filter(|kinds| !kinds.is_empty()) else {
        return vec![TCP_ROUTE];
    };
    let mut supported = Vec::new();
    for kind in kinds {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        if group == GATEWAY_GROUP && kind.kind == TCP_ROUTE.kind {
            supported.push(TCP_ROUTE);
        } else {
            unresolved.push(Finding::new(
                c::INVALID_ROUTE_KINDS,
                format!(
                    "{} cannot be attached to a {} listener: TCPRoute can",
                    kind.kind, spec.protocol
                ),
            ));
        }
    }
    supported.dedup();
    supported
}

/// For each listener, the conflict it has: the same port with another protocol, or with the same
/// protocol and hostname. None of them wins (Gateway API, `spec.listeners`).
fn conflicts(specs: &[GatewayListeners]) -> Vec<Option<Finding>> {
    let mut by_port: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for (index, spec) in specs.iter().enumerate() {
        by_port.entry(spec.port).or_default().push(index);
    }
    let hostname = |spec: &GatewayListeners| {
        spec.hostname
            .clone()
            .unwrap_or_default()
            .to_ascii_lowercase()
    };
    specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            let others = by_port
                .get(&spec.port)?
                .iter()
                .filter(|&&other| other != index);
            let (mut protocol, mut same) = (Vec::new(), Vec::new());
            for &other in others {
                let other = &specs[other];
                if other.protocol != spec.protocol {
                    protocol.push(other.name.as_str());
                } else if spec.protocol == "TCP" || hostname(other) == hostname(spec) {
                    same.push(other.name.as_str());
                }
            }
            let port = spec.port;
            if !protocol.is_empty() {
                let message = format!(
                    "port {port} has another protocol in listener {}",
                    protocol.join(", ")
                );
                Some(Finding::new(c::PROTOCOL_CONFLICT, message))
            } else if !same.is_empty() && spec.protocol == "TCP" {
                let message = format!("port {port} is also that of listener {}", same.join(", "));
                Some(Finding::new(c::PROTOCOL_CONFLICT, message))
            } else if !same.is_empty() {
                let message = format!(
                    "port {port} and hostname {:?} are also those of listener {}",
                    hostname(spec),
                    same.join(", ")
                );
                Some(Finding::new(c::HOSTNAME_CONFLICT, message))
            } else {
                None
            }
        })
        .collect()
}

// === impl Listener ===

impl Listener {
    pub(super) fn is_accepted(&self) -> bool {
        self.unaccepted.is_none()
    }

    /// Whether a route of this namespace may attach.
    pub(super) fn allows(&self, objects: &Objects, gateway: &ObjectName, namespace: &str) -> bool {
        match &self.allowed {
            Allowed::All => true,
            Allowed::Same => gateway.namespace == namespace,
            Allowed::None => false,
            Allowed::Selector(selector) => selects(selector, &objects.namespace_labels(namespace)),
        }
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
