//! The rules of shape that an API server holds objects to before any controller sees them. Files
//! have no API server, so they are held here. What the index turns into a condition of one
//! listener or route is left to it.

mod endpoints;
mod filters;
mod routes;
mod tls;

use crate::{
    api::{
        Object,
        gateway_api::{
            gatewayclasses::GatewayClass,
            gateways::{Gateway, GatewayListeners, GatewayListenersTlsMode as Mode},
            listenersets::ListenerSet,
            referencegrants::ReferenceGrant,
        },
    },
    index::Kind,
    model::HostnamePattern,
};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt, net::IpAddr, ops::RangeInclusive};

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// Of the field, such as `spec.listeners[0].port`.
    pub(super) path: String,
    /// The rule, so that it can be kept.
    rule: String,
}

/// All that breaks a rule.
pub(super) fn violations(object: &Object) -> Vec<Violation> {
    let mut found = Violations::default();
    match object {
        Object::GatewayClass(o) => {
            metadata(&mut found, &o.metadata);
            gateway_class(&mut found, o);
        }
        Object::Gateway(o) => {
            metadata(&mut found, &o.metadata);
            gateway(&mut found, o);
            tls::gateway(&mut found, o);
        }
        Object::ListenerSet(o) => {
            metadata(&mut found, &o.metadata);
            listener_set(&mut found, o);
        }
        Object::BackendTlsPolicy(o) => {
            metadata(&mut found, &o.metadata);
            tls::backend_tls_policy(&mut found, o);
        }
        Object::HttpRoute(o) => route(&mut found, Kind::HttpRoute, &o.metadata, &o.spec),
        Object::GrpcRoute(o) => route(&mut found, Kind::GrpcRoute, &o.metadata, &o.spec),
        Object::TlsRoute(o) => route(&mut found, Kind::TlsRoute, &o.metadata, &o.spec),
        Object::TcpRoute(o) => route(&mut found, Kind::TcpRoute, &o.metadata, &o.spec),
        Object::UdpRoute(o) => route(&mut found, Kind::UdpRoute, &o.metadata, &o.spec),
        Object::ReferenceGrant(o) => {
            metadata(&mut found, &o.metadata);
            reference_grant(&mut found, o);
        }
        Object::Service(o) => {
            metadata(&mut found, &o.metadata);
            service(&mut found, o);
        }
        Object::EndpointSlice(o) => {
            metadata(&mut found, &o.metadata);
            endpoint_slice(&mut found, o);
        }
        Object::ConfigMap(o) => metadata(&mut found, &o.metadata),
        Object::Secret(o) => metadata(&mut found, &o.metadata),
        Object::Namespace(o) => metadata(&mut found, &o.metadata),
        Object::Tailnet(o) => metadata(&mut found, &o.metadata),
        Object::Endpoints(o) => {
            metadata(&mut found, &o.metadata);
            endpoints::endpoints(&mut found, o);
        }
        Object::Backend(o) => metadata(&mut found, &o.metadata),
        Object::EgressSet(o) => metadata(&mut found, &o.metadata),
    }
    found.0
}

const PORT: RangeInclusive<i32> = 1..=65_535;

#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    /// Notes the rule unless it is kept.
    fn check(&mut self, kept: bool, path: impl Into<String>, rule: impl Into<String>) {
        if !kept {
            self.0.push(Violation {
                path: path.into(),
                rule: rule.into(),
            });
        }
    }

    fn port(&mut self, port: i32, path: impl Into<String>) {
        let rule = format!("{port} is no port: use 1 to 65535");
        self.check(PORT.contains(&port), path, rule);
    }

    fn count(&mut self, count: usize, allowed: RangeInclusive<usize>, path: &str) {
        let (least, most) = (allowed.start(), allowed.end());
        let rule = if count < *least {
            format!("needs at least {least}")
        } else {
            format!("has {count}, but can have {most}")
        };
        self.check(allowed.contains(&count), path, rule);
    }

    fn subdomain(&mut self, name: &str, path: impl Into<String>) {
        let rule = format!(
            "{name:?} is no name: use lower-case letters, digits, inner dashes and dots (RFC 1123)"
        );
        self.check(is_subdomain(name), path, rule);
    }

    fn label(&mut self, name: &str, path: impl Into<String>) {
        let rule = format!(
            "{name:?} is no name: use at most 63 lower-case letters, digits and inner dashes (RFC 1123)"
        );
        self.check(is_label(name), path, rule);
    }

    fn not_empty(&mut self, value: &str, path: impl Into<String>) {
        self.check(!value.is_empty(), path, "is empty");
    }
}

fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// As API servers have it: the labels may be longer than DNS allows.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        })
}

fn metadata(found: &mut Violations, metadata: &ObjectMeta) {
    found.subdomain(
        metadata.name.as_deref().unwrap_or_default(),
        "metadata.name",
    );
    if let Some(namespace) = &metadata.namespace {
        found.label(namespace, "metadata.namespace");
    }
}

fn gateway_class(found: &mut Violations, class: &GatewayClass) {
    let name = &class.spec.controller_name;
    let parts = name.split_once('/');
    found.check(
        parts.is_some_and(|(domain, path)| is_subdomain(domain) && !path.is_empty()),
        "spec.controllerName",
        format!("{name:?} is no domain and path, such as example.com/controller"),
    );
}

fn gateway(found: &mut Violations, gateway: &Gateway) {
    let spec = &gateway.spec;
    found.not_empty(&spec.gateway_class_name, "spec.gatewayClassName");
    listeners(found, &spec.listeners);
    let addresses = spec.addresses.as_deref().unwrap_or_default();
    found.count(addresses.len(), 0..=16, "spec.addresses");
    let mut values = BTreeSet::new();
    for (index, address) in addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}].value");
        let kind = address.r#type.as_deref().unwrap_or("IPAddress");
        let Some(value) = address.value.as_deref().filter(|value| !value.is_empty()) else {
            continue;
        };
        found.check(
            values.insert((kind, value)),
            &path,
            format!("{value:?} is there twice"),
        );
        // What name a node can have is the index's to say: it harms one Gateway only.
    }
}

fn listener_set(found: &mut Violations, set: &ListenerSet) {
    found.not_empty(&set.spec.parent_ref.name, "spec.parentRef.name");
    // The same words, of another type.
    let specs = serde_json::to_value(&set.spec.listeners);
    let specs = specs.and_then(serde_json::from_value::<Vec<GatewayListeners>>);
    listeners(found, &specs.unwrap_or_default());
}

fn listeners(found: &mut Violations, specs: &[GatewayListeners]) {
    found.count(specs.len(), 1..=64, "spec.listeners");
    let mut names = BTreeSet::new();
    for (index, spec) in specs.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        found.check(
            names.insert(&spec.name),
            format!("{path}.name"),
            format!("another listener is called {:?}", spec.name),
        );
        listener(found, spec, &path);
    }
}

fn listener(found: &mut Violations, listener: &GatewayListeners, path: &str) {
    found.subdomain(&listener.name, format!("{path}.name"));
    found.port(listener.port, format!("{path}.port"));
    found.not_empty(&listener.protocol, format!("{path}.protocol"));
    let hostname = listener.hostname.as_deref().unwrap_or_default();
    found.check(
        hostname.is_empty()
            || HostnamePattern::parse(hostname).is_ok_and(|name| name.to_string() == hostname),
        format!("{path}.hostname"),
        format!("{hostname:?} is no DNS name in lower case, with or without a leading \"*.\""),
    );
    let kinds = listener
        .allowed_routes
        .as_ref()
        .and_then(|allowed| allowed.kinds.as_ref());
    let count = kinds.map_or(0, Vec::len);
    found.count(count, 0..=8, &format!("{path}.allowedRoutes.kinds"));
    if listener.protocol != "TLS" && listener.tls.is_none() {
        return;
    }
    let tls = listener.tls.clone().unwrap_or_default();
    let references = tls
        .certificate_refs
        .map_or(0, |references| references.len());
    let options = tls.options.map_or(0, |options| options.len());
    found.count(references, 0..=64, &format!("{path}.tls.certificateRefs"));
    found.count(options, 0..=16, &format!("{path}.tls.options"));
    found.check(
        matches!(tls.mode, Some(Mode::Passthrough)) || references + options > 0,
        format!("{path}.tls"),
        "needs certificateRefs or options to terminate TLS: for the tailnet's certificate, set options {gateway.tailscale.com/certificate: tailnet}",
    );
}

fn route(found: &mut Violations, kind: Kind, of: &ObjectMeta, spec: &impl Serialize) {
    metadata(found, of);
    // Text, numbers and lists of them always serialize.
    let spec = serde_json::to_value(spec).unwrap_or_default();
    routes::route(found, kind, &spec);
}

fn reference_grant(found: &mut Violations, grant: &ReferenceGrant) {
    found.count(grant.spec.from.len(), 1..=16, "spec.from");
    found.count(grant.spec.to.len(), 1..=16, "spec.to");
}

fn service(found: &mut Violations, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let external_name = spec.external_name.as_deref().unwrap_or_default();
    found.check(
        !external || !external_name.is_empty(),
        "spec.externalName",
        "is missing: a Service of type ExternalName needs a DNS name or an IP address",
    );
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        found.port(port.port, format!("{path}.port"));
        let name = port.name.as_deref().unwrap_or_default();
        found.check(
            ports.len() == 1 || !name.is_empty(),
            &path,
            "needs a name, as one of several ports",
        );
        found.check(
            names.insert(name) || name.is_empty(),
            format!("{path}.name"),
            format!("another port is called {name:?}"),
        );
    }
}

fn endpoint_slice(found: &mut Violations, slice: &EndpointSlice) {
    let kind = slice.address_type.as_str();
    found.check(
        ["IPv4", "IPv6", "FQDN"].contains(&kind),
        "addressType",
        format!("{kind:?} is no type of address: use IPv4, IPv6 or FQDN"),
    );
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            found.port(number, format!("ports[{index}].port"));
        }
    }
    for (at, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let path = format!("endpoints[{at}].addresses");
        found.count(endpoint.addresses.len(), 1..=100, &path);
        for (index, address) in endpoint.addresses.iter().enumerate() {
            let fits = match (kind, address.parse()) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => true,
                ("FQDN", Err(_)) => is_subdomain(address),
                _ => false,
            };
            found.check(
                fits,
                format!("{path}[{index}]"),
                format!("{address:?} is no {kind} address"),
            );
        }
    }
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.rule)
    }
}
