//! The TailscaleEgressSets and TailscaleBackends that there should be: a pure function of the world.

use crate::{
    api::{
        GATEWAY_GROUP, TAILWAY_GROUP,
        endpoints::TailscaleEndpoints,
        upstream::{
            HealthCheck, Protocol, Target, Upstream, UpstreamTls,
            backend::TailscaleBackendSpec,
            egress::{GatewayRef, RoutedService},
        },
    },
    controller::{
        labels::{MANAGED_BY, MANAGER},
        names::workload_name,
        world::World,
    },
    index::{
        EndpointName, Key, Kind, RoutedEndpoint, egress,
        endpoints::{Place, Reading},
    },
    model::{self, Health, ObjectName, Port, Probe, Transport, Trust},
};
use aws_lc_rs::digest;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write,
    time::Duration,
};

/// Longest name of an object (RFC 1123 subdomain).
const LONGEST: usize = 253;

/// All objects that there should be, as they are applied.
pub fn desired(world: &World) -> BTreeMap<Key, Value> {
    let mut objects = sets(world);
    objects.extend(backends(world));
    objects
}

/// Whether the controller made an object with these labels.
pub(super) fn is_made_here(labels: &BTreeMap<String, String>) -> bool {
    labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

/// Where clients of the cluster reach an endpoint, when that is by way of an egress: host and port.
pub(super) fn service_address(
    world: &World,
    source: &ObjectName,
    place: &Place,
) -> Option<(String, u16)> {
    let object = world.subjects.endpoints.get(source)?;
    if !egress::is_through(&object.spec, place) {
        return None;
    }
    let subject = egress::subject(source);
    let snapshot = world.outcome.snapshots.get(&subject)?;
    let number = match place.transport() {
        Transport::Tcp => {
            let is_its =
                |port: &Port| matches!(port, Port::Tcp(listener) if listener.name == place.name);
            *snapshot.ports.iter().find(|(_, port)| is_its(port))?.0
        }
        Transport::Udp => {
            let mut ports = snapshot.udp_ports.iter();
            *ports.find(|(_, listener)| listener.name == place.name)?.0
        }
    };
    let host = format!("{}.{}", workload_name(&subject), world.egress_domain);
    Some((host, number))
}

/// The TailscaleBackend of an endpoint is called so.
pub(super) fn backend_name(endpoint: &EndpointName) -> ObjectName {
    let EndpointName { source, name } = endpoint;
    ObjectName::new(&source.namespace, format!("{}-{name}", source.name))
}

fn sets(world: &World) -> BTreeMap<Key, Value> {
    let mut objects = BTreeMap::new();
    for (name, routes) in &world.outcome.egress_routes {
        let Some(gateway) = world.subjects.gateways.get(name) else {
            continue;
        };
        let services = routes.services.iter();
        let services: Vec<_> = services
            .filter_map(|routed| service(world, routed))
            .collect();
        if services.is_empty() {
            continue;
        }
        let spec = json!({
            "targetRefs": [GatewayRef {
                group: GATEWAY_GROUP.into(),
                kind: "Gateway".into(),
                name: name.name.clone(),
            }],
            "revision": revision(&services),
            "services": services,
        });
        let key = Key {
            kind: Kind::EgressSet,
            name: ObjectName::clone(name),
        };
        let object = object(&key, &**gateway, spec);
        objects.insert(key, object);
    }
    objects
}

fn backends(world: &World) -> BTreeMap<Key, Value> {
    let mut objects: BTreeMap<Key, Value> = BTreeMap::new();
    for (source, reading) in by_age(world) {
        let Some(owner) = world.subjects.endpoints.get(source) else {
            continue;
        };
        for place in &reading.places {
            // Envoy Gateway takes such backends for routes of HTTP alone.
            if !matches!(place.protocol, Protocol::Http | Protocol::Https) {
                continue;
            }
            let endpoint = EndpointName {
                source: source.clone(),
                name: place.name.clone(),
            };
            let name = backend_name(&endpoint);
            let there = world.subjects.backends.get(&name);
            let by_hand = there.is_some_and(|there| !is_made_here(there.labels()));
            if by_hand || name.name.len() > LONGEST {
                continue;
            }
            let key = Key {
                kind: Kind::Backend,
                name,
            };
            // Of two objects that mean the same name, the older one has it.
            if let Entry::Vacant(entry) = objects.entry(key.clone()) {
                let spec = TailscaleBackendSpec {
                    upstream: upstream(world, source, place),
                };
                let spec = serde_json::to_value(spec).unwrap_or_default();
                entry.insert(object(&key, &**owner, spec));
            }
        }
    }
    objects
}

fn by_age(world: &World) -> Vec<(&ObjectName, &Reading)> {
    let age = |name: &ObjectName| {
        let object: Option<&TailscaleEndpoints> =
            world.subjects.endpoints.get(name).map(|object| &**object);
        let created = object.and_then(|object| object.metadata.creation_timestamp.as_ref());
        (created.map(|time| time.0.as_nanosecond()), name.clone())
    };
    let readings = world.subjects.readings.iter();
    let mut all: Vec<_> = readings
        .map(|(name, reading)| (&**name, &**reading))
        .collect();
    all.sort_by_key(|(name, _)| age(name));
    all
}

fn object<K: Resource<DynamicType = ()>>(key: &Key, owner: &K, spec: Value) -> Value {
    let mut reference = json!(owner.owner_ref(&()));
    if let Some(reference) = reference.as_object_mut() {
        // It is in nobody's way.
        reference.remove("controller");
        reference.remove("blockOwnerDeletion");
    }
    json!({
        "apiVersion": format!("{TAILWAY_GROUP}/v1alpha1"),
        "kind": key.kind.as_str(),
        "metadata": {
            "name": key.name.name,
            "namespace": key.name.namespace,
            "labels": { MANAGED_BY: MANAGER },
            "ownerReferences": [reference],
        },
        "spec": spec,
    })
}

fn service(world: &World, routed: &RoutedEndpoint) -> Option<RoutedService> {
    let EndpointName { source, name } = &routed.endpoint;
    let reading = world.subjects.readings.get(source)?;
    let mut places = reading.places.iter();
    let place = places.find(|place| place.name == *name)?;
    Some(RoutedService {
        name: name.clone(),
        source: source.to_string(),
        route: routed.route.clone(),
        path_prefix: routed.path_prefix.clone(),
        cluster: routed.cluster.clone(),
        upstream: upstream(world, source, place),
    })
}

/// Where a place is for clients of the cluster, and how it is spoken to.
fn upstream(world: &World, source: &ObjectName, place: &Place) -> Upstream {
    let by_egress = service_address(world, source, place);
    let is_by_egress = by_egress.is_some();
    let direct = || (place.host.clone(), place.target.port());
    let (host, port) = by_egress.unwrap_or_else(direct);
    // The egress checks what it connects to; what it cannot use is left out here, too.
    let health = world.outcome.health.get(source);
    let health = health.and_then(|health| health.get(&place.name));
    let is_out = is_by_egress && matches!(health, Some(Health::Unhealthy { .. }));
    let target = Target {
        host,
        port,
        weight: 1,
    };
    Upstream {
        protocol: place.protocol,
        host: place.authority(),
        targets: if is_out { Vec::new() } else { vec![target] },
        tls: place.tls.as_ref().map(tls),
        health_check: place
            .check
            .as_ref()
            .filter(|_| !is_by_egress)
            .map(health_check),
    }
}

fn tls(tls: &model::BackendTls) -> UpstreamTls {
    UpstreamTls {
        server_name: tls.hostname.clone(),
        ca_certificates: match &tls.trust {
            Trust::Authorities(authorities) => authorities.to_pem(),
            Trust::System | Trust::Anybody => String::new(),
        },
        insecure_skip_verify: tls.trust == Trust::Anybody,
    }
}

fn health_check(check: &model::HealthCheck) -> HealthCheck {
    let threshold = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let default = HealthCheck::default();
    HealthCheck {
        enabled: true,
        path: match &check.probe {
            Probe::Http { path, .. } => path.clone(),
            Probe::Tcp | Probe::Udp => default.path,
        },
        interval: duration(check.interval),
        timeout: duration(check.timeout),
        healthy_threshold: threshold(check.healthy_threshold),
        unhealthy_threshold: threshold(check.unhealthy_threshold),
    }
}

/// As GEP-2257 has it.
fn duration(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        (0, millis) => format!("{millis}ms"),
        (seconds, millis) => format!("{seconds}s{millis}ms"),
    }
}

/// The first half of a SHA-256 of what the services are.
fn revision(services: &[RoutedService]) -> String {
    let json = serde_json::to_vec(services).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, &json);
    let mut text = String::with_capacity(32);
    for byte in &digest.as_ref()[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
