//! Egress: the Snapshot by which pods lead clients of the cluster to the endpoints of a
//! TailscaleEndpoints.
//!
//! Each endpoint has a port of its own there, which stays while the endpoint has its name. What
//! passes is bytes: TLS is between the client and the endpoint.

use super::{Index, Key, Kind, endpoints::Place, endpoints::Reading};
use crate::{
    api::endpoints::{ConnectionType, Egress, TailscaleEndpointsSpec},
    model::{
        Backend, BackendId, BackendKind, Forward, Health, HttpOptions, NodeName, NodeReport,
        NodeSpec, ObjectName, Port, Role, Snapshot, TcpListener, Transport, UdpListener,
        WeightedBackend,
    },
};
use aws_lc_rs::digest;
use std::collections::{BTreeMap, BTreeSet};

/// Of the names of what an egress is known by, so that none is that of a Gateway.
const PREFIX: &str = "tailscaleendpoints/";

/// Ports that endpoints have at an egress: above those of systems, below those that systems give
/// to clients.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;

/// Length that the name of a node can have before the number of its pod.
const NODE_NAME: usize = 60;

/// The name that the Snapshot of an egress goes by.
pub fn subject(object: &ObjectName) -> ObjectName {
    ObjectName::new(&object.namespace, format!("{PREFIX}{}", object.name))
}

/// The name that a pod of an egress reports by.
pub fn replica(object: &ObjectName, ordinal: u32) -> ObjectName {
    let name = format!("{PREFIX}{}/{ordinal}", object.name);
    ObjectName::new(&object.namespace, name)
}

/// The TailscaleEndpoints that a [`subject`] or a [`replica`] is of, and the number of the replica;
/// `None` for names of Gateways.
pub fn object_of(subject: &ObjectName) -> Option<(ObjectName, Option<u32>)> {
    let name = subject.name.strip_prefix(PREFIX)?;
    let (name, ordinal) = match name.split_once('/') {
        Some((name, ordinal)) => (name, Some(ordinal.parse().ok()?)),
        None => (name, None),
    };
    Some((ObjectName::new(&subject.namespace, name), ordinal))
}

/// The port that each endpoint has: found by hash, so that others that come and go change nothing.
/// Where two would have the same, the next that is free goes to the one that comes later by name.
pub fn ports<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, u16> {
    let names: BTreeSet<_> = names.into_iter().take(usize::from(PORTS)).collect();
    let mut taken = BTreeSet::new();
    let mut ports = BTreeMap::new();
    for name in names {
        let hash = digest::digest(&digest::SHA256, name.as_bytes());
        let hash = hash.as_ref()[..4].iter();
        let hash = hash.fold(0u32, |hash, byte| hash << 8 | u32::from(*byte));
        let mut offset = (hash % u32::from(PORTS)) as u16;
        while !taken.insert(offset) {
            offset = (offset + 1) % PORTS;
        }
        ports.insert(name.to_owned(), FIRST_PORT + offset);
    }
    ports
}

/// Whether clients of the cluster reach an endpoint by way of the egress.
pub fn is_through(spec: &TailscaleEndpointsSpec, place: &Place) -> bool {
    let by_choice = spec.egress == Egress::Proxy && !place.is_local();
    let pods = spec.proxy.as_ref();
    let serves = pods.is_none_or(|pods| pods.connection_type != ConnectionType::Ingress);
    serves && (by_choice || place.target.is_in_tailnet())
}

impl Index {
    /// What the pods of an egress said last, by their numbers.
    pub fn egress_reports(&self, object: &ObjectName) -> impl Iterator<Item = (u32, &NodeReport)> {
        let first = ObjectName::new(&object.namespace, format!("{PREFIX}{}/", object.name));
        let reports = self.reports.range(first.clone()..);
        let own = reports.take_while(move |(subject, _)| {
            subject.namespace == first.namespace && subject.name.starts_with(&first.name)
        });
        own.filter_map(|(subject, report)| Some((object_of(subject)?.1?, report)))
    }

    /// What follows from a TailscaleEndpoints besides the backends of routes.
    pub(super) fn conclude_endpoints(&mut self, name: &ObjectName) {
        let object = self.objects.endpoints.get(name);
        let reading = self.objects.readings.get(name);
        let snapshot = object.zip(reading);
        let snapshot =
            snapshot.and_then(|(object, reading)| snapshot_of(name, &object.spec, reading));
        self.outcome.snapshots.settle(&subject(name), snapshot);
        let health = object.map(|_| self.health_of(name));
        let health = health.filter(|health| !health.is_empty());
        self.outcome.health.settle(name, health);
        let wrong = reading.map(|reading| reading.messages());
        let key = Key {
            kind: Kind::Endpoints,
            name: name.clone(),
        };
        let wrong = wrong.filter(|wrong| !wrong.is_empty());
        self.outcome.statuses.unclaimed.settle(&key, wrong);
    }

    /// Of the endpoints that are checked: good is what one of the pods can use.
    fn health_of(&self, name: &ObjectName) -> BTreeMap<String, Health> {
        let mut all: BTreeMap<String, Health> = BTreeMap::new();
        for (_, report) in self.egress_reports(name) {
            for (endpoint, health) in &report.health {
                let known = all
                    .entry(endpoint.clone())
                    .or_insert_with(|| health.clone());
                if *health == Health::Healthy {
                    *known = Health::Healthy;
                }
            }
        }
        all
    }
}

/// What an egress serves; `None`: nothing, and none is needed.
fn snapshot_of(
    name: &ObjectName,
    spec: &TailscaleEndpointsSpec,
    reading: &Reading,
) -> Option<Snapshot> {
    let numbers = ports(reading.names());
    let (mut ports, mut udp_ports) = (BTreeMap::new(), BTreeMap::new());
    let mut backends = BTreeMap::new();
    let through = reading.places.iter();
    for place in through.filter(|place| is_through(spec, place)) {
        let Some(&number) = numbers.get(&place.name) else {
            continue;
        };
        let id = backend_of(name, place);
        let (listener, route) = (place.name.clone(), Some(forward_to(name, &id)));
        match place.transport() {
            Transport::Tcp => {
                let listener = TcpListener {
                    name: listener,
                    route,
                };
                ports.insert(number, Port::Tcp(listener));
            }
            Transport::Udp => {
                let listener = UdpListener {
                    name: listener,
                    route,
                };
                udp_ports.insert(number, listener);
            }
        }
        let backend = Backend {
            members: vec![place.member(place.name.clone())],
            ..Backend::default()
        };
        backends.insert(id, backend);
    }
    if backends.is_empty() {
        return None;
    }
    Some(Snapshot {
        gateway: subject(name),
        role: Role::Egress,
        generation: reading.generation,
        node: NodeSpec {
            name: node_name(name)?,
        },
        ports,
        udp_ports,
        http_options: HttpOptions::default(),
        http_routes: BTreeMap::new(),
        backends,
    })
}

/// Each endpoint is a backend of its own: several may have the same port.
fn backend_of(object: &ObjectName, place: &Place) -> BackendId {
    let name = format!("{}/{}", object.name, place.name);
    BackendId {
        kind: BackendKind::Endpoints,
        object: ObjectName::new(&object.namespace, name),
        port: place.port,
        transport: place.transport(),
    }
}

fn forward_to(object: &ObjectName, backend: &BackendId) -> Forward {
    Forward {
        route: object.clone(),
        backends: vec![WeightedBackend {
            weight: 1,
            backend: Some(backend.clone()),
        }],
        proxy_protocol: None,
    }
}

/// `<name>-egress`, with a hash where that is too long or no label of DNS.
fn node_name(object: &ObjectName) -> Option<NodeName> {
    let wanted = format!("{}-egress", object.name);
    let plain = NodeName::parse(&wanted).ok();
    if let Some(name) = plain.filter(|name| name.as_str().len() <= NODE_NAME) {
        return Some(name);
    }
    let hash = digest::digest(&digest::SHA256, object.name.as_bytes());
    let hash: String = hash.as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let end = format!("-{hash}-egress");
    let label = object.name.replace('.', "-");
    let label: String = label.chars().take(NODE_NAME - end.len()).collect();
    NodeName::parse(&format!("{}{end}", label.trim_end_matches('-'))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_stays_whatever_else_there_is_and_no_two_are_the_same() {
        let names: Vec<_> = (0..3000)
            .map(|number| format!("service-{number}"))
            .collect();
        let all = ports(names.iter().map(String::as_str));
        let distinct: BTreeSet<_> = all.values().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(all.values().all(|port| (10_000..30_000).contains(port)));
        // Only those that met another on their way can move.
        let few = ports(names[..5].iter().map(String::as_str));
        assert_eq!(few, ports(names[..5].iter().rev().map(String::as_str)));
        assert_eq!(few["service-0"], all["service-0"]);
        assert_eq!(ports(["web"]), [("web".to_owned(), 24_102)].into());
    }

    #[test]
    fn whose_subject_it_is_can_be_told_from_those_of_gateways() {
        let object = ObjectName::new("default", "example");
        assert_eq!(object_of(&subject(&object)), Some((object.clone(), None)));
        let second = replica(&object, 1);
        assert_eq!(second.to_string(), "default/tailscaleendpoints/example/1");
        assert_eq!(object_of(&second), Some((object.clone(), Some(1))));
        assert_eq!(object_of(&object), None);
        let odd = ObjectName::new("default", "tailscaleendpoints/example/x");
        assert_eq!(object_of(&odd), None);
    }

    #[test]
    fn a_node_is_named_after_its_object_and_has_room_for_the_number_of_a_pod() {
        let name = |name: &str| node_name(&ObjectName::new("x", name)).unwrap().to_string();
        assert_eq!(name("example"), "example-egress");
        assert_eq!(name("a.b"), "a-b-2e7336dc-egress");
        let long = name(&"a".repeat(80));
        assert_eq!(long.len(), 60);
        assert_ne!(long, name(&"a".repeat(81)));
    }
}
