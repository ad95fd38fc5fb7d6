//! Services and their EndpointSlices. Of both only what is read is kept: in a cluster they are by
//! far the most, and most of an object's bytes are not for us.

use crate::model::{Endpoint, HostnamePattern, ObjectName, Transport};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::net::IpAddr;

/// Protocol of a port that names none (core/v1 `ServicePort`, discovery/v1 `EndpointPort`).
const DEFAULT_PROTOCOL: &str = "TCP";

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is read of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePorts {
    /// Of a Service of type ExternalName.
    external_name: Option<String>,
    ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ServicePort {
    name: String,
    number: i32,
    protocol: String,
    target: Option<i32>,
    app_protocol: Option<String>,
}

/// What is read of an EndpointSlice: what takes new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEndpoints {
    pub(super) service: ObjectName,
    ports: Vec<SlicePort>,
    ready: Vec<Host>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SlicePort {
    name: String,
    protocol: String,
    number: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

fn protocol(given: Option<&String>) -> String {
    given.map_or_else(|| DEFAULT_PROTOCOL.into(), Clone::clone)
}

// === impl ServicePorts ===

impl ServicePorts {
    pub(super) fn of(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let external = spec.filter(|spec| spec.type_.as_deref() == Some("ExternalName"));
        let ports = spec.and_then(|spec| spec.ports.as_deref());
        let ports = ports.unwrap_or_default().iter().map(|port| ServicePort {
            name: port.name.clone().unwrap_or_default(),
            number: port.port,
            protocol: protocol(port.protocol.as_ref()),
            target: match port.target_port {
                Some(IntOrString::Int(target)) => Some(target),
                _ => None,
            },
            app_protocol: port.app_protocol.clone(),
        });
        Self {
            external_name: external.map(|spec| spec.external_name.clone().unwrap_or_default()),
            ports: ports.collect(),
        }
    }

    fn port(&self, number: u16, transport: Transport) -> Option<&ServicePort> {
        let protocol = transport.as_str();
        let mut ports = self.ports.iter();
        ports.find(|port| port.number == i32::from(number) && port.protocol == protocol)
    }

    /// What a port says it speaks (`appProtocol`).
    pub(super) fn app_protocol(&self, number: u16) -> Option<&str> {
        self.port(number, Transport::Tcp)?.app_protocol.as_deref()
    }

    /// The name of a port; empty when it has none.
    pub(super) fn port_name(&self, number: u16) -> &str {
        self.port(number, Transport::Tcp)
            .map_or("", |port| &port.name)
    }

    /// Where a port is served now. A Service without EndpointSlices is served nowhere.
    pub(super) fn endpoints<'a>(
        &self,
        name: &ObjectName,
        port: u16,
        transport: Transport,
        slices: impl Iterator<Item = &'a SliceEndpoints>,
    ) -> Result<Vec<Endpoint>, String> {
        let protocol = transport.as_str();
        let service_port = self.port(port, transport);
        if let Some(host) = &self.external_name {
            let target = service_port.and_then(|port| port.target);
            return external(name, host, target, port).map(|endpoint| vec![endpoint]);
        }
        let Some(service_port) = service_port else {
            let mut ports = self.ports.iter();
            return Err(match ports.find(|p| p.number == i32::from(port)) {
                None => format!("Service {name} has no port {port}"),
                Some(ServicePort {
                    protocol: other, ..
                }) => format!("port {port} of Service {name} is for {other}, not for {protocol}"),
            });
        };
        let mut endpoints: Vec<_> = slices
            .flat_map(|slice| slice.of_port(&service_port.name, protocol))
            .collect();
        endpoints.sort();
        endpoints.dedup();
        Ok(endpoints)
    }
}

/// The one endpoint of an ExternalName Service: a DNS name or, as `tailway run` allows, an IP
/// address, of this host or another.
fn external(
    name: &ObjectName,
    host: &str,
    target: Option<i32>,
    number: u16,
) -> Result<Endpoint, String> {
    let target = match target {
        Some(target) => u16::try_from(target)
            .map_err(|_| format!("Service {name} has target port {target}, which is no port"))?,
        None => number,
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

// === impl SliceEndpoints ===

impl SliceEndpoints {
    /// `None`: the slice is of no Service.
    pub(super) fn of(name: &ObjectName, slice: &EndpointSlice) -> Option<Self> {
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let ports = slice.ports.iter().flatten().map(|port| SlicePort {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol(port.protocol.as_ref()),
            number: port.port.and_then(|number| u16::try_from(number).ok()),
        });
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // What is absent is to be read as ready and not terminating (EndpointConditions).
            conditions.and_then(|c| c.ready).unwrap_or(true)
                && !conditions.and_then(|c| c.terminating).unwrap_or(false)
        });
        let hosts = ready
            .flat_map(|endpoint| &endpoint.addresses)
            .map(|address| match address.parse() {
                Ok(ip) => Host::Address(ip),
                Err(_) => Host::Name(address.clone()),
            });
        Some(Self {
            service: ObjectName::new(&name.namespace, service),
            ports: ports.collect(),
            ready: hosts.collect(),
        })
    }

    /// The endpoints at the port of a Service's port's name.
    fn of_port(&self, name: &str, protocol: &str) -> impl Iterator<Item = Endpoint> {
        let mut ports = self.ports.iter();
        let port = ports.find(|port| port.name == name && port.protocol == protocol);
        let number = port.and_then(|port| port.number);
        number.into_iter().flat_map(|number| {
            self.ready.iter().map(move |host| match host {
                Host::Address(ip) => Endpoint::Address(*ip, number),
                Host::Name(name) => Endpoint::Name(name.clone(), number),
            })
        })
    }
}
