//! backendRefs to weighted backends, Services to endpoints.

use super::{grants::Reference, objects::Objects, status::Finding};
use crate::{
    api::{conditions as c, gateway_api::tcproutes::TcpRouteRulesBackendRefs},
    model::{
        Backend, BackendId, BackendProtocol, Endpoint, HostnamePattern, ObjectName, WeightedBackend,
    },
};
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::{collections::BTreeMap, net::IpAddr};

/// Protocol of a port that names none (core/v1 `ServicePort`, discovery/v1 `EndpointPort`).
const DEFAULT_PROTOCOL: &str = "TCP";

/// The backends of a rule, and what is wrong with them.
pub(super) struct Resolved {
    pub(super) weighted: Vec<WeightedBackend>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    pub(super) findings: Vec<Finding>,
}

impl Objects {
    /// Resolves the backendRefs of a TCPRoute. An invalid one keeps its weight.
    pub(super) fn resolve_backends(
        &self,
        route: &ObjectName,
        refs: &[TcpRouteRulesBackendRefs],
    ) -> Resolved {
        let mut resolved = Resolved {
            weighted: Vec::new(),
            backends: BTreeMap::new(),
            findings: Vec::new(),
        };
        for reference in refs {
            let weight = reference
                .weight
                .and_then(|weight| u32::try_from(weight).ok())
                .unwrap_or(1);
            let backend = match self.resolve_backend(route, reference) {
                Ok((id, backend)) => {
                    resolved.backends.insert(id.clone(), backend);
                    Some(id)
                }
                Err(finding) => {
                    resolved.findings.push(finding);
                    None
                }
            };
            resolved.weighted.push(WeightedBackend { weight, backend });
        }
        resolved
    }

    fn resolve_backend(
        &self,
        route: &ObjectName,
        reference: &TcpRouteRulesBackendRefs,
    ) -> Result<(BackendId, Backend), Finding> {
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Service");
        if !group.is_empty() || kind != "Service" {
            let kind = super::qualified(kind, group);
            return Err(Finding::new(
                c::INVALID_KIND,
                format!(
                    "backend {} is a {kind}: only a Service can be one",
                    reference.name
                ),
            ));
        }
        let namespace = reference.namespace.as_ref().unwrap_or(&route.namespace);
        let service = ObjectName::new(namespace, &reference.name);
        let permitted = self.permits(&Reference {
            from_kind: "TCPRoute",
            from_namespace: &route.namespace,
            to_kind: "Service",
            to: &service,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Service {service} is in another namespace, where no ReferenceGrant allows TCPRoutes of namespace {} to use it",
                    route.namespace
                ),
            ));
        }
        let not_found = |message: String| Finding::new(c::BACKEND_NOT_FOUND, message);
        let Some(object) = self.services.get(&service) else {
            return Err(not_found(format!("there is no Service {service}")));
        };
        let Some(port) = reference
            .port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port > 0)
        else {
            return Err(not_found(format!("backend {service} has no port: set one")));
        };
        let endpoints = self.endpoints(&service, object, port).map_err(not_found)?;
        Ok((
            BackendId { service, port },
            Backend {
                protocol: BackendProtocol::default(),
                endpoints,
            },
        ))
    }

    /// Where a port of a Service is served now. A Service without EndpointSlices is served nowhere.
    fn endpoints(
        &self,
        name: &ObjectName,
        service: &Service,
        port: u16,
    ) -> Result<Vec<Endpoint>, String> {
        let spec = service.spec.as_ref();
        let ports = spec.and_then(|spec| spec.ports.as_deref());
        let of_number: Vec<_> = ports
            .unwrap_or_default()
            .iter()
            .filter(|candidate| candidate.port == i32::from(port))
            .collect();
        let service_port = of_number
            .iter()
            .copied()
            .find(|candidate| is_tcp(candidate.protocol.as_deref()));
        if let Some(spec) = spec.filter(|spec| spec.type_.as_deref() == Some("ExternalName")) {
            let host = spec.external_name.as_deref().unwrap_or_default();
            return external(name, host, service_port, port).map(|endpoint| vec![endpoint]);
        }
        let Some(service_port) = service_port else {
            return Err(match of_number.first() {
                None => format!("Service {name} has no port {port}"),
                Some(other) => format!(
                    "port {port} of Service {name} is for {}, not for TCP",
                    other.protocol.as_deref().unwrap_or_default()
                ),
            });
        };
        let mut endpoints: Vec<_> = self
            .slices(name)
            .flat_map(|slice| ready_endpoints(slice, service_port))
            .collect();
        endpoints.sort();
        endpoints.dedup();
        Ok(endpoints)
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.unwrap_or(DEFAULT_PROTOCOL) == "TCP"
}

/// The one endpoint of an ExternalName Service: a DNS name or, as `tailway run` allows, an IP
/// address, of this host or another.
fn external(
    name: &ObjectName,
    host: &str,
    port: Option<&ServicePort>,
    number: u16,
) -> Result<Endpoint, String> {
    let target = match port.and_then(|port| port.target_port.as_ref()) {
        Some(IntOrString::Int(target)) => u16::try_from(*target)
            .map_err(|_| format!("Service {name} has target port {target}, which is no port"))?,
        _ => number,
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Endpoint::Address(ip, target));
    }
    let host = host.trim_end_matches('.');
    match HostnamePattern::parse(host) {
        Ok(HostnamePattern::Exact(host)) => Ok(Endpoint::Name(host, target)),
        _ => Err(format!(
            "Service {name} has externalName {host:?}, which is neither a DNS name nor an IP address"
        )),
    }
}

/// Endpoints that take new connections, at the slice's port of the same name.
fn ready_endpoints(slice: &EndpointSlice, port: &ServicePort) -> Vec<Endpoint> {
    let name = port.name.as_deref().unwrap_or("");
    let number = slice
        .ports
        .iter()
        .flatten()
        .find(|p| p.name.as_deref().unwrap_or("") == name && is_tcp(p.protocol.as_deref()))
        .and_then(|p| p.port)
        .and_then(|number| u16::try_from(number).ok());
    let Some(number) = number else {
        return Vec::new();
    };
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // What is absent is to be read as ready and not terminating (EndpointConditions).
            conditions.and_then(|c| c.ready).unwrap_or(true)
                && !conditions.and_then(|c| c.terminating).unwrap_or(false)
        })
        .flat_map(|endpoint| &endpoint.addresses)
        .map(|address| match address.parse() {
            Ok(ip) => Endpoint::Address(ip, number),
            Err(_) => Endpoint::Name(address.clone(), number),
        })
        .collect()
}
