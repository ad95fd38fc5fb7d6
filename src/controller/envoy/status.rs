//! What became of TailscaleEndpoints and TailscaleBackends.

use super::desired::{backend_name, is_made_here, service_address};
use crate::{
    api::{
        SERVED_ANNOTATION, TAILWAY_GROUP, conditions as c,
        endpoints::{
            ConnectionType, DiscoverySource, EndpointStatus, HealthStatus, StatefulSetRef,
            TailscaleEndpoints,
        },
        upstream::egress::TailscaleEgressSet,
    },
    controller::{egress::tailnet_of, names::workload_name, world::World},
    extension,
    index::{
        EndpointName, Key, Kind, Subjects, egress,
        endpoints::{Place, Reading, Wrong},
        status::Condition,
    },
    model::{Endpoint, Health, ObjectName},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What the extension of Envoy Gateway says that it served.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Served {
    revision: String,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Skipped {
    service: String,
    source: String,
    message: String,
}

/// The conditions of a TailscaleEndpoints, and the rest of its status.
pub(in crate::controller) fn of_endpoints(
    world: &World,
    name: &ObjectName,
) -> Option<(Vec<Condition>, Map<String, Value>)> {
    let object = world.subjects.endpoints.get(name)?;
    let reading = world.subjects.readings.get(name)?;
    let case = Case {
        world,
        name,
        object,
        reading,
    };
    Some((case.conditions(), case.rest()))
}

/// The condition of a TailscaleBackend.
pub(in crate::controller) fn of_backend(world: &World, name: &ObjectName) -> Option<Condition> {
    let backend = world.subjects.backends.get(name)?;
    let generation = backend.metadata.generation.unwrap_or(0);
    let no = |reason, message| Condition::new(c::ACCEPTED, false, reason, message, generation);
    if let Err(refusal) = extension::check(&backend.spec.upstream, world.local_targets) {
        return Some(no(
            c::INVALID,
            format!("Envoy is not told of it: {refusal}"),
        ));
    }
    let refused = refusals(world, name);
    Some(match refused.is_empty() {
        true => Condition::fine(c::ACCEPTED, generation),
        false => no(
            c::UNSUPPORTED_VALUE,
            format!(
                "Envoy Gateway sends requests to one TailscaleBackend only where it is the only backend of a rule; it is not in {}",
                refused.join(", ")
            ),
        ),
    })
}

/// The objects whose statuses may have become others. What TailscaleEndpoints depend on is too much
/// to tell them apart, and they are few.
pub(in crate::controller) fn changed(world: &World, before: &World) -> BTreeSet<Key> {
    let (now, then) = (&world.outcome, &before.outcome);
    let (subjects, old) = (&world.subjects, &before.subjects);
    let is_same = now.health.is_same(&then.health)
        && subjects.readings.is_same(&old.readings)
        && now.egress_routes.is_same(&then.egress_routes)
        && subjects.endpoints.is_same(&old.endpoints)
        && subjects.egress_sets.is_same(&old.egress_sets)
        && subjects.tailnets.is_same(&old.tailnets)
        && Arc::ptr_eq(&world.egresses, &before.egresses)
        && Arc::ptr_eq(&world.discovered, &before.discovered);
    let endpoints = subjects.endpoints.keys().filter(|_| !is_same);
    let endpoints = endpoints.map(|name| key(Kind::Endpoints, name));
    let of_routes = [subjects, old].into_iter().flat_map(|objects| {
        let http = subjects.http_routes.differences(&old.http_routes);
        let http = http.into_iter().flat_map(|name| http_rules(objects, name));
        let grpc = subjects.grpc_routes.differences(&old.grpc_routes);
        let grpc = grpc.into_iter().flat_map(|name| grpc_rules(objects, name));
        http.chain(grpc).flat_map(|rule| rule.backends)
    });
    let backends = subjects.backends.differences(&old.backends);
    let backends = backends.into_iter().cloned().chain(of_routes);
    let backends = backends.map(|name| key(Kind::Backend, &name));
    endpoints.chain(backends).collect()
}

fn key(kind: Kind, name: &ObjectName) -> Key {
    Key {
        kind,
        name: name.clone(),
    }
}

/// The rules in which a TailscaleBackend is one of several backends.
fn refusals(world: &World, name: &ObjectName) -> Vec<String> {
    let subjects = &world.subjects;
    let http = subjects.http_routes.keys();
    let http = http.flat_map(|route| http_rules(subjects, route));
    let grpc = subjects.grpc_routes.keys();
    let grpc = grpc.flat_map(|route| grpc_rules(subjects, route));
    http.chain(grpc)
        .filter(|rule| rule.count > 1 && rule.backends.contains(name))
        .map(|rule| format!("rule {} of {} {}", rule.at, rule.kind, rule.route))
        .collect()
}

/// A rule with TailscaleBackends.
struct Rule {
    at: usize,
    kind: Kind,
    route: ObjectName,
    backends: Vec<ObjectName>,
    /// How many backends it has, of all kinds.
    count: usize,
}

/// Group, kind, namespace and name of a backendRef.
type Reference<'a> = (
    &'a Option<String>,
    &'a Option<String>,
    &'a Option<String>,
    &'a String,
);

fn http_rules(subjects: &Subjects, route: &ObjectName) -> Vec<Rule> {
    let object = subjects.http_routes.get(route);
    let rules = object
        .into_iter()
        .flat_map(|o| o.spec.rules.iter().flatten());
    let rules = rules.map(|rule| {
        let refs = rule.backend_refs.iter().flatten();
        refs.map(|r| (&r.group, &r.kind, &r.namespace, &r.name))
    });
    rules_of(Kind::HttpRoute, route, rules)
}

fn grpc_rules(subjects: &Subjects, route: &ObjectName) -> Vec<Rule> {
    let object = subjects.grpc_routes.get(route);
    let rules = object
        .into_iter()
        .flat_map(|o| o.spec.rules.iter().flatten());
    let rules = rules.map(|rule| {
        let refs = rule.backend_refs.iter().flatten();
        refs.map(|r| (&r.group, &r.kind, &r.namespace, &r.name))
    });
    rules_of(Kind::GrpcRoute, route, rules)
}

/// Those among the rules of a route that have TailscaleBackends.
fn rules_of<'a, R: Iterator<Item = Reference<'a>>>(
    kind: Kind,
    route: &ObjectName,
    rules: impl Iterator<Item = R>,
) -> Vec<Rule> {
    let rules = rules.enumerate().filter_map(|(at, references)| {
        let (mut backends, mut count) = (Vec::new(), 0);
        for (group, kind, namespace, name) in references {
            count += 1;
            if group.as_deref() == Some(TAILWAY_GROUP)
                && kind.as_deref() == Some("TailscaleBackend")
            {
                let namespace = namespace.as_ref().unwrap_or(&route.namespace);
                backends.push(ObjectName::new(namespace, name));
            }
        }
        (!backends.is_empty()).then(|| Rule {
            at,
            kind,
            route: route.clone(),
            backends,
            count,
        })
    });
    rules.collect()
}

/// A TailscaleEndpoints in its world.
struct Case<'a> {
    world: &'a World,
    name: &'a ObjectName,
    object: &'a TailscaleEndpoints,
    reading: &'a Reading,
}

impl Case<'_> {
    fn generation(&self) -> i64 {
        self.reading.generation
    }

    fn conditions(&self) -> Vec<Condition> {
        let mut conditions = vec![self.accepted(), self.resolved(), self.programmed()];
        conditions.extend(self.conflicted());
        conditions.extend(self.discovered());
        conditions
    }

    fn accepted(&self) -> Condition {
        let reading = self.reading;
        let wrong: Vec<_> = reading.wrong.iter().map(message).collect();
        let generation = self.generation();
        if wrong.is_empty() {
            return Condition::fine(c::ACCEPTED, generation);
        }
        let is_any_good = !reading.places.is_empty();
        let message = match is_any_good {
            true => format!(
                "some are left out, or not as they were asked for: {}",
                wrong.join("; ")
            ),
            false => wrong.join("; "),
        };
        let reason = if is_any_good {
            c::PARTIALLY_INVALID
        } else {
            c::INVALID
        };
        Condition::new(c::ACCEPTED, is_any_good, reason, message, generation)
    }

    fn resolved(&self) -> Condition {
        let generation = self.generation();
        let refs = self.reading.wrong.iter();
        let refs = refs.filter(|wrong| wrong.finding.reason != c::INVALID);
        let mut messages: Vec<_> = refs
            .map(|wrong| (wrong.finding.reason, message(wrong)))
            .collect();
        if self.needs_tailnet()
            && let Err(message) = tailnet_of(self.object, self.world)
        {
            messages.push((c::INVALID_PARAMETERS, message));
        }
        let Some((reason, _)) = messages.first() else {
            return Condition::fine(c::RESOLVED_REFS, generation);
        };
        let reason = *reason;
        let messages: Vec<_> = messages.into_iter().map(|(_, message)| message).collect();
        Condition::new(
            c::RESOLVED_REFS,
            false,
            reason,
            messages.join("; "),
            generation,
        )
    }

    fn needs_tailnet(&self) -> bool {
        let discovers = self.object.spec.auto_discovery.as_ref();
        discovers.is_some_and(|discovery| discovery.enabled) || self.has_egress()
    }

    fn has_egress(&self) -> bool {
        let snapshots = &self.world.outcome.snapshots;
        snapshots.contains_key(&egress::subject(self.name))
    }

    fn programmed(&self) -> Condition {
        let mut waiting = Vec::new();
        if self.has_egress() {
            let egress = self.world.egresses.get(self.name);
            if egress.is_none_or(|egress| egress.ready == 0) {
                let problem = egress.map_or("its pods have not been made", |e| &e.problem);
                waiting.push(format!("no pod of the egress is ready: {problem}"));
            }
        }
        let mut gateways = 0;
        for (gateway, routes) in &self.world.outcome.egress_routes {
            if let Some(problem) = &routes.problem {
                waiting.push(format!("Gateway {gateway}: {problem}"));
                continue;
            }
            let mut services = routes.services.iter();
            if !services.any(|routed| routed.endpoint.source == *self.name) {
                continue;
            }
            gateways += 1;
            waiting.extend(self.not_served(gateway));
        }
        let generation = self.generation();
        if !waiting.is_empty() {
            let message = waiting.join("; ");
            return Condition::new(c::PROGRAMMED, false, c::PENDING, message, generation);
        }
        let message = match gateways {
            0 => "no Gateway of Envoy Gateway asks for routes to it".to_owned(),
            1 => "served by 1 Gateway of Envoy Gateway".to_owned(),
            count => format!("served by {count} Gateways of Envoy Gateway"),
        };
        Condition::new(c::PROGRAMMED, true, c::PROGRAMMED, message, generation)
    }

    /// Why a Gateway does not serve all that it should of this object.
    fn not_served(&self, gateway: &ObjectName) -> Vec<String> {
        let set = self.world.subjects.egress_sets.get(gateway);
        let Some(set) = set.map(|set| &**set) else {
            return vec![format!(
                "Gateway {gateway}: its TailscaleEgressSet is being made"
            )];
        };
        let served = served(set);
        if served.revision != set.spec.revision {
            return vec![format!(
                "Gateway {gateway}: Envoy Gateway has not taken revision {} yet",
                set.spec.revision
            )];
        }
        let source = self.name.to_string();
        let skipped = served.skipped.iter();
        let mine = skipped.filter(|skipped| skipped.source == source);
        let told = mine.map(|skipped| {
            let Skipped {
                service, message, ..
            } = skipped;
            format!("Gateway {gateway}: {service} is left out: {message}")
        });
        told.collect()
    }

    fn conflicted(&self) -> Option<Condition> {
        let routes = self.world.outcome.egress_routes.iter();
        let lost = routes.flat_map(|(gateway, routes)| {
            let mine = routes.displaced.iter();
            let mine = mine.filter(|displaced| displaced.endpoint.source == *self.name);
            mine.map(move |displaced| {
                format!(
                    "{} of Gateway {gateway} goes to endpoint {} of {}, which is older, and not to endpoint {}",
                    displaced.path_prefix,
                    displaced.by.name,
                    displaced.by.source,
                    displaced.endpoint.name
                )
            })
        });
        let lost: Vec<_> = lost.collect();
        (!lost.is_empty()).then(|| {
            let (kind, reason) = (c::CONFLICTED, c::CONFLICTED);
            Condition::new(kind, true, reason, lost.join("; "), self.generation())
        })
    }

    fn discovered(&self) -> Option<Condition> {
        let discovered = self.world.discovered.get(self.name)?;
        let (kind, generation) = (c::DISCOVERED, self.generation());
        let message = || format!("{} endpoints found", discovered.endpoints.len());
        Some(match &discovered.problem {
            None => Condition::new(kind, true, c::DISCOVERED, message(), generation),
            Some(problem) => {
                Condition::new(kind, false, c::API_UNREACHABLE, problem.clone(), generation)
            }
        })
    }

    fn rest(&self) -> Map<String, Value> {
        let endpoints = self.endpoints();
        let count = |is_it: &dyn Fn(&EndpointStatus) -> bool| {
            let count = endpoints.iter().filter(|status| is_it(status)).count();
            i32::try_from(count).unwrap_or(i32::MAX)
        };
        let mut rest = Map::from_iter([
            (
                "discoveredEndpoints".into(),
                json!(count(&|e| e.discovery_source != DiscoverySource::Manual)),
            ),
            ("totalEndpoints".into(), json!(count(&|_| true))),
            (
                "healthyEndpoints".into(),
                json!(count(&|e| e.health_status == HealthStatus::Healthy)),
            ),
            (
                "unhealthyEndpoints".into(),
                json!(count(&|e| e.health_status == HealthStatus::Unhealthy)),
            ),
            ("statefulSetRefs".into(), json!(self.workloads())),
            ("endpointStatus".into(), json!(endpoints)),
        ]);
        if let Some(discovered) = self.world.discovered.get(self.name) {
            rest.insert("lastSync".into(), json!(discovered.at.map(Time)));
        }
        rest
    }

    fn workloads(&self) -> Vec<StatefulSetRef> {
        let egress = self.world.egresses.get(self.name);
        let egress = egress.map(|egress| {
            let name = workload_name(&egress::subject(self.name));
            StatefulSetRef {
                service: name.clone(),
                name,
                namespace: self.world.system_namespace.to_string(),
                connection_type: ConnectionType::Egress,
                desired_replicas: egress.desired,
                ready_replicas: egress.ready,
            }
        });
        egress.into_iter().collect()
    }

    fn endpoints(&self) -> Vec<EndpointStatus> {
        let reading = self.reading;
        let places = reading.places.iter().map(|place| self.endpoint(place));
        let wrong = reading.wrong.iter().filter(|wrong| wrong.is_fatal);
        let wrong = wrong.map(|wrong| EndpointStatus {
            name: wrong.endpoint.clone(),
            port: wrong.port,
            health_status: HealthStatus::Disabled,
            message: wrong.finding.message.clone(),
            ..EndpointStatus::default()
        });
        // Of two of one name, the first is the one that is used.
        let mut all: BTreeMap<String, EndpointStatus> = BTreeMap::new();
        for status in places.chain(wrong) {
            all.entry(status.name.clone()).or_insert(status);
        }
        let Some(discovered) = self.world.discovered.get(self.name) else {
            return all.into_values().collect();
        };
        // What is found no more goes, and what is found now becomes a place once it is here.
        let found: BTreeMap<_, _> = discovered
            .endpoints
            .iter()
            .map(|found| (&found.name, found))
            .collect();
        all.retain(|name, status| {
            status.discovery_source == DiscoverySource::Manual || found.contains_key(name)
        });
        for (name, found) in found {
            let status = all.entry(name.clone()).or_insert_with(|| found.clone());
            if status.discovery_source != DiscoverySource::Manual {
                status.port = found.port;
                status.protocol = found.protocol;
                status.tailscale_fqdn.clone_from(&found.tailscale_fqdn);
                status.tailscale_ip.clone_from(&found.tailscale_ip);
                status.tags.clone_from(&found.tags);
                status.discovery_source = found.discovery_source;
            }
        }
        all.into_values().collect()
    }

    fn endpoint(&self, place: &Place) -> EndpointStatus {
        let health = self.world.outcome.health.get(self.name);
        let health = health.and_then(|health| health.get(&place.name));
        let (health_status, mut message) = match (&place.check, health) {
            (None, _) => (HealthStatus::Disabled, String::new()),
            (Some(_), None) => (HealthStatus::Unknown, String::new()),
            (Some(_), Some(Health::Healthy)) => (HealthStatus::Healthy, String::new()),
            (Some(_), Some(Health::Unhealthy { reason })) => {
                (HealthStatus::Unhealthy, reason.clone())
            }
        };
        let backend = backend_name(&EndpointName {
            source: self.name.clone(),
            name: place.name.clone(),
        });
        let other = self.world.subjects.backends.get(&backend);
        let other = other.filter(|other| !self.owns(other));
        if message.is_empty() && other.is_some() {
            message = format!("TailscaleBackend {} is another's", backend.name);
        }
        let address = |host: &str, port: u16| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let (fqdn, ip) = match &place.target {
            Endpoint::Tailnet(host, _) if host.parse::<std::net::IpAddr>().is_ok() => {
                (String::new(), host.clone())
            }
            Endpoint::Tailnet(host, _) => (host.clone(), String::new()),
            _ => (String::new(), String::new()),
        };
        let by_egress = service_address(self.world, self.name, place);
        EndpointStatus {
            name: place.name.clone(),
            port: place.port.into(),
            protocol: place.protocol,
            address: address(&place.host, place.target.port()),
            egress_address: by_egress.map_or_else(String::new, |(host, port)| address(&host, port)),
            tailscale_fqdn: fqdn,
            tailscale_ip: ip,
            discovery_source: place.source,
            health_status,
            tags: place.tags.clone(),
            message,
        }
    }

    fn owns(&self, backend: &crate::api::upstream::backend::TailscaleBackend) -> bool {
        let uid = self.object.metadata.uid.as_deref();
        let mut owners = backend.owner_references().iter();
        is_made_here(backend.labels()) && owners.any(|owner| Some(owner.uid.as_str()) == uid)
    }
}

fn message(wrong: &Wrong) -> String {
    format!("endpoint {}: {}", wrong.endpoint, wrong.finding.message)
}

/// What the extension wrote on a set; nothing when it has not, or nothing that can be read.
fn served(set: &TailscaleEgressSet) -> Served {
    let annotation = set.annotations().get(SERVED_ANNOTATION);
    let served = annotation.and_then(|json| serde_json::from_str(json).ok());
    served.unwrap_or_default()
}
