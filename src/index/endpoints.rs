//! TailscaleEndpoints: where each endpoint is, and how it is spoken to.
//!
//! One that is wrong is left out and told; it never hurts the others.

use super::{
    Kind,
    authorities::AuthorityRef,
    durations::duration,
    objects::{Objects, generation},
    status::Finding,
};
use crate::{
    api::{
        conditions as c,
        endpoints::{
            DiscoverySource, Egress, EndpointSpec, EndpointStatus, EndpointTls, TailscaleEndpoints,
        },
        upstream::{HealthCheck as CheckSpec, Protocol},
    },
    model::{BackendTls, Endpoint, HealthCheck, Member, ObjectName, Probe, Transport, Trust},
};
use rustls::pki_types::ServerName;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// What is read of a TailscaleEndpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// `metadata.generation`; 0 when it has none.
    pub generation: i64,
    /// All that can be used, by name.
    pub places: Vec<Place>,
    /// What is wrong with endpoints, by name.
    pub wrong: Vec<Wrong>,
}

/// An endpoint that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub name: String,
    /// What routes call it by, and the port of a target in the tailnet.
    pub port: u16,
    pub protocol: Protocol,
    pub target: Endpoint,
    /// The target without its port, as requests and certificates name it; `svc:` is left out.
    pub host: String,
    pub tags: Vec<String>,
    /// From 1 to 100.
    pub weight: u32,
    /// `None`: in plain.
    pub tls: Option<BackendTls>,
    /// `None`: it is not checked.
    pub check: Option<HealthCheck>,
    pub source: DiscoverySource,
}

/// Something that is not as it should be with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub endpoint: String,
    /// As it is written.
    pub port: i32,
    pub finding: Finding,
    /// Whether it is left out because of that. Otherwise it is used, but not as it was asked for.
    pub is_fatal: bool,
}

/// Shortest time from a check to the next one.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// Addresses that Tailscale gives to nodes.
const V4_NETWORK: (Ipv4Addr, u32) = (Ipv4Addr::new(100, 64, 0, 0), 10);
const V6_PREFIX: [u16; 3] = [0xfd7a, 0x115c, 0xa1e0];

impl Objects {
    /// Reads a TailscaleEndpoints: the endpoints of its spec and those that were discovered, as
    /// its status has them. Of two of the same name that of the spec counts.
    pub(super) fn read_endpoints(&self, name: &ObjectName) -> Option<Reading> {
        let object = self.endpoints.get(name)?;
        let mut reading = Reading {
            generation: generation(&object.metadata),
            ..Reading::default()
        };
        let mut known = BTreeSet::new();
        for spec in &object.spec.endpoints {
            let first = known.insert(&spec.name);
            let place = match first {
                true => self.place(name, spec, DiscoverySource::Manual),
                false => Err(invalid("another endpoint has the same name: rename one")),
            };
            reading.add(spec, place);
        }
        for status in discovered(object) {
            if known.insert(&status.name) {
                let spec = spec_of(status);
                let place = self.place(name, &spec, status.discovery_source);
                reading.add(&spec, place);
            }
        }
        if object.spec.egress == Egress::Proxy {
            reading.tell_local();
        }
        reading.places.sort_by(|a, b| a.name.cmp(&b.name));
        reading.wrong.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        Some(reading)
    }

    fn place(
        &self,
        object: &ObjectName,
        spec: &EndpointSpec,
        source: DiscoverySource,
    ) -> Result<(Place, Option<Finding>), Finding> {
        let port = u16::try_from(spec.port).ok().filter(|&port| port > 0);
        let Some(port) = port else {
            let message = format!("{} is no port: use 1 to 65535", spec.port);
            return Err(invalid(message));
        };
        let (target, host) = target(spec, port)?;
        let tls = self.endpoint_tls(object, spec, &host)?;
        let weight = u32::try_from(spec.weight).ok();
        let weight = weight.filter(|weight| (1..=100).contains(weight));
        let Some(weight) = weight else {
            let message = format!("weight {} is not from 1 to 100", spec.weight);
            return Err(invalid(message));
        };
        let mut place = Place {
            name: spec.name.clone(),
            port,
            protocol: spec.protocol,
            target,
            host,
            tags: spec.tags.clone(),
            weight,
            tls,
            check: None,
            source,
        };
        let check = spec.health_check.as_ref().filter(|check| check.enabled);
        let check = check.map(|check| place.check(check)).transpose();
        let unchecked = match check {
            Ok(check) => {
                place.check = check;
                None
            }
            Err(message) => Some(invalid(format!(
                "healthCheck: {message}; it is not checked"
            ))),
        };
        Ok((place, unchecked))
    }

    /// How it is spoken to, when that is to be in TLS.
    fn endpoint_tls(
        &self,
        object: &ObjectName,
        spec: &EndpointSpec,
        host: &str,
    ) -> Result<Option<BackendTls>, Finding> {
        let default = EndpointTls::default();
        let wanted = match (spec.protocol, &spec.tls) {
            (Protocol::Https, tls) => tls.as_ref().unwrap_or(&default),
            (Protocol::Tcp, Some(tls)) => tls,
            (Protocol::Tcp | Protocol::Http | Protocol::Udp, None) => return Ok(None),
            (Protocol::Http | Protocol::Udp, Some(_)) => {
                return Err(invalid(
                    "tls is for protocol HTTPS or TCP: set another protocol, or leave tls out",
                ));
            }
        };
        let hostname = wanted.server_name.as_deref().unwrap_or(host);
        let hostname = hostname.to_ascii_lowercase();
        if ServerName::try_from(hostname.as_str()).is_err() {
            let message = format!(
                "{hostname:?} is no name that a certificate can be for: set tls.serverName"
            );
            return Err(invalid(message));
        }
        Ok(Some(BackendTls {
            hostname,
            trust: self.endpoint_trust(object, wanted)?,
            names: Vec::new(),
            certificate: None,
        }))
    }

    fn endpoint_trust(&self, object: &ObjectName, wanted: &EndpointTls) -> Result<Trust, Finding> {
        let reference = match (&wanted.ca_certificate_ref, wanted.insecure_skip_verify) {
            (None, false) => return Ok(Trust::System),
            (None, true) => return Ok(Trust::Anybody),
            (Some(_), true) => {
                return Err(invalid(
                    "insecureSkipVerify believes anybody: leave caCertificateRef out",
                ));
            }
            (Some(reference), false) => AuthorityRef {
                group: "",
                kind: "ConfigMap",
                name: ObjectName::new(&object.namespace, &reference.name),
            },
        };
        let from = (Kind::Endpoints, object.namespace.as_str());
        let resolution = self.authorities(from, [reference], c::INVALID_CA_CERTIFICATE_KIND);
        match Finding::join(resolution.unresolved) {
            Some(unresolved) => Err(unresolved),
            None => Ok(Trust::Authorities(resolution.authorities)),
        }
    }
}

fn invalid(message: impl Into<String>) -> Finding {
    Finding::new(c::INVALID, message)
}

/// The endpoints that were found in the tailnet. They count only while they are looked for.
fn discovered(object: &TailscaleEndpoints) -> impl Iterator<Item = &EndpointStatus> {
    let discovery = object.spec.auto_discovery.as_ref();
    let status = object.status.as_ref();
    let status = status.filter(|_| discovery.is_some_and(|discovery| discovery.enabled));
    let entries = status
        .into_iter()
        .flat_map(|status| &status.endpoint_status);
    entries.filter(|entry| entry.discovery_source != DiscoverySource::Manual)
}

/// What a user would have written.
fn spec_of(status: &EndpointStatus) -> EndpointSpec {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    EndpointSpec {
        name: status.name.clone(),
        port: status.port,
        protocol: status.protocol,
        external_target: None,
        tailscale_fqdn: given(&status.tailscale_fqdn),
        tailscale_ip: given(&status.tailscale_ip),
        tags: status.tags.clone(),
        weight: 1,
        health_check: None,
        tls: None,
    }
}

/// The ConfigMaps that a TailscaleEndpoints refers to.
pub(super) fn config_maps(name: &ObjectName, object: &TailscaleEndpoints) -> Vec<ObjectName> {
    let tls = object
        .spec
        .endpoints
        .iter()
        .filter_map(|spec| spec.tls.as_ref());
    let references = tls.filter_map(|tls| tls.ca_certificate_ref.as_ref());
    references
        .map(|reference| ObjectName::new(&name.namespace, &reference.name))
        .collect()
}

/// Where it is, and what that is called. Of a name and an address of the tailnet the name counts:
/// it stays with a device that is made anew, which gets another address.
fn target(spec: &EndpointSpec, port: u16) -> Result<(Endpoint, String), Finding> {
    if let Some(target) = &spec.external_target {
        return external(target);
    }
    let (what, host) = match (&spec.tailscale_fqdn, &spec.tailscale_ip) {
        (Some(name), _) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let host = name.strip_prefix("svc:").unwrap_or(&name).to_owned();
            if !is_name(&host) {
                let message = format!(
                    "tailscaleFQDN {name:?} names neither a device nor a service (svc:name) of a tailnet"
                );
                return Err(invalid(message));
            }
            (name, host)
        }
        (None, Some(text)) => match text.parse::<IpAddr>() {
            Ok(ip) if is_of_tailnet(ip) => (ip.to_string(), ip.to_string()),
            Ok(ip) => {
                let message = format!(
                    "tailscaleIP {ip} is not among the addresses of tailnets (100.64.0.0/10, fd7a:115c:a1e0::/48): for another host set externalTarget"
                );
                return Err(invalid(message));
            }
            Err(_) => {
                return Err(invalid(format!("tailscaleIP {text:?} is no IP address")));
            }
        },
        (None, None) => {
            return Err(invalid(
                "say where it is: set externalTarget, tailscaleFQDN or tailscaleIP",
            ));
        }
    };
    Ok((Endpoint::Tailnet(what, port), host))
}

/// `host:port` of somebody outside the tailnet.
fn external(target: &str) -> Result<(Endpoint, String), Finding> {
    let wrong = || {
        invalid(format!(
            "externalTarget {target:?} is no host:port: write example.com:443, 192.0.2.1:80 or [2001:db8::1]:80"
        ))
    };
    let (host, port) = target.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|&port| port > 0);
    let port = port.ok_or_else(wrong)?;
    if let Some(host) = host.strip_prefix('[') {
        let ip = host.strip_suffix(']').and_then(|host| host.parse().ok());
        let ip: Ipv6Addr = ip.ok_or_else(wrong)?;
        return Ok((Endpoint::Address(ip.into(), port), ip.to_string()));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok((Endpoint::Address(ip.into(), port), ip.to_string()));
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match is_name(&host) {
        true => Ok((Endpoint::Name(host.clone(), port), host)),
        false => Err(wrong()),
    }
}

/// Whether this can be looked up: a DNS name of RFC 1123, also with underscores inside, as resolvers
/// know them. What ends in a number would be taken for an address that it is not.
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253
        && text.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_of_tailnet(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let (network, bits) = V4_NETWORK;
            (ip.to_bits() ^ network.to_bits()) >> (32 - bits) == 0
        }
        IpAddr::V6(ip) => ip.segments().starts_with(&V6_PREFIX),
    }
}

// === impl Reading ===

impl Reading {
    fn add(&mut self, spec: &EndpointSpec, read: Result<(Place, Option<Finding>), Finding>) {
        let wrong = |finding, is_fatal| Wrong {
            endpoint: spec.name.clone(),
            port: spec.port,
            finding,
            is_fatal,
        };
        match read {
            Ok((place, finding)) => {
                self.wrong
                    .extend(finding.map(|finding| wrong(finding, false)));
                self.places.push(place);
            }
            Err(finding) => self.wrong.push(wrong(finding, true)),
        }
    }

    /// Those that a port of the object stands for.
    pub fn at(&self, port: u16, transport: Transport) -> impl Iterator<Item = &Place> {
        let places = self.places.iter();
        places.filter(move |place| place.port == port && place.transport() == transport)
    }

    /// An egress leads to no place that would be each pod's own.
    fn tell_local(&mut self) {
        let local = self.places.iter().filter(|place| place.is_local());
        let wrong = local.map(|place| Wrong {
            endpoint: place.name.clone(),
            port: place.port.into(),
            finding: invalid(format!(
                "{} is on whatever host connects to it, and the egress does not lead there: set the address or the name that others reach it by",
                place.target
            )),
            is_fatal: false,
        });
        self.wrong.extend(wrong);
    }

    /// The names of all endpoints, also of those that cannot be used.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let places = self.places.iter().map(|place| place.name.as_str());
        places.chain(self.wrong.iter().map(|wrong| wrong.endpoint.as_str()))
    }

    /// By name.
    pub fn by_name(&self) -> BTreeMap<&str, &Place> {
        let places = self.places.iter();
        places.map(|place| (place.name.as_str(), place)).collect()
    }

    /// What is wrong with all, a line for each.
    pub(super) fn messages(&self) -> Vec<String> {
        let message = |wrong: &Wrong| format!("{}: {}", wrong.endpoint, wrong.finding.message);
        self.wrong.iter().map(message).collect()
    }

    /// What is wrong with one.
    pub fn wrong_with(&self, endpoint: &str) -> impl Iterator<Item = &Wrong> {
        let wrong = self.wrong.iter();
        wrong.filter(move |wrong| wrong.endpoint == endpoint)
    }
}

// === impl Place ===

impl Place {
    pub fn transport(&self) -> Transport {
        match self.protocol {
            Protocol::Udp => Transport::Udp,
            Protocol::Http | Protocol::Https | Protocol::Tcp => Transport::Tcp,
        }
    }

    /// What requests have as their `Host`: the port is in it unless it is the scheme's own
    /// (RFC 9110 §4.2).
    pub fn authority(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.host.clone(),
        };
        match (self.tls.is_some(), self.target.port()) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Whether it is on whatever host connects to it, or a neighbour of it on the same link: what
    /// is in a pod of a cluster, or is told to its host alone, is not for others.
    pub fn is_local(&self) -> bool {
        match &self.target {
            Endpoint::Tailnet(..) => false,
            Endpoint::Name(name, _) => name == "localhost" || name.ends_with(".localhost"),
            Endpoint::Address(ip, _) => match ip.to_canonical() {
                IpAddr::V4(ip) => {
                    ip.is_loopback()
                        || ip.is_unspecified()
                        || ip.is_link_local()
                        || ip.is_multicast()
                        || ip.is_broadcast()
                }
                IpAddr::V6(ip) => {
                    ip.is_loopback()
                        || ip.is_unspecified()
                        || ip.is_multicast()
                        || ip.is_unicast_link_local()
                }
            },
        }
    }

    /// As part of a backend. `name`: what its health is told by.
    pub fn member(&self, name: String) -> Member {
        Member {
            name,
            endpoint: self.target.clone(),
            weight: self.weight,
            tls: self.tls.clone(),
            check: self.check.clone(),
        }
    }

    fn check(&self, wanted: &CheckSpec) -> Result<HealthCheck, String> {
        let time =
            |name: &str, text: &str| duration(text).map_err(|wrong| format!("{name}: {wrong}"));
        let interval = time("interval", &wanted.interval)?;
        let timeout = time("timeout", &wanted.timeout)?;
        if interval < LEAST_INTERVAL {
            return Err(format!(
                "interval {} is below the least, {LEAST_INTERVAL:?}",
                wanted.interval
            ));
        }
        if timeout.is_zero() || timeout > interval {
            return Err(format!(
                "timeout {} is not above 0 and at most the interval, {}",
                wanted.timeout, wanted.interval
            ));
        }
        let threshold = |name: &str, number: i32| {
            let number = u32::try_from(number).ok();
            let number = number.filter(|number| (1..=10).contains(number));
            number.ok_or_else(|| format!("{name} is not from 1 to 10"))
        };
        Ok(HealthCheck {
            probe: self.probe(&wanted.path)?,
            interval,
            timeout,
            healthy_threshold: threshold("healthyThreshold", wanted.healthy_threshold)?,
            unhealthy_threshold: threshold("unhealthyThreshold", wanted.unhealthy_threshold)?,
        })
    }

    fn probe(&self, path: &str) -> Result<Probe, String> {
        match self.protocol {
            Protocol::Tcp => return Ok(Probe::Tcp),
            Protocol::Udp => return Ok(Probe::Udp),
            Protocol::Http | Protocol::Https => {}
        }
        let is_path = path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok();
        if !is_path {
            return Err(format!(
                "path {path:?} is no path: begin it with a slash, and write spaces as %20"
            ));
        }
        Ok(Probe::Http {
            path: path.to_owned(),
            host: self.authority(),
        })
    }
}

#[cfg(test)]
mod tests;
