//! What holds of the index whatever the objects are.

mod changes;

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tailway::{
    api::{CONTROLLER, Object},
    index::{Index, Kind, Outcome, status::ListenerStatus},
    model::{BackendId, Forward, Port, Snapshot, TlsMode, TlsRoutes},
};

fn outcome(objects: impl IntoIterator<Item = Object>) -> Outcome {
    let mut index = Index::default();
    index.reset(objects);
    index.evaluate()
}

fn class() -> Object {
    let class = json!({"metadata": {"name": "c"}, "spec": {"controllerName": CONTROLLER}});
    Object::GatewayClass(serde_json::from_value(class).unwrap())
}

fn listener() -> impl Strategy<Value = Value> {
    (
        1..4,
        select(vec!["TCP", "TLS", "HTTP", "HTTPS", "UDP"]),
        select(vec!["", "a.example.com", "*.example.com", "gw.tail.ts.net"]),
        select(vec!["Same", "All"]),
        select(vec!["Terminate", "Passthrough"]),
    )
        .prop_map(|(port, protocol, hostname, from, mode)| {
            let mut listener = json!({
                "port": port,
                "protocol": protocol,
                "allowedRoutes": {"namespaces": {"from": from}},
            });
            if protocol.starts_with("HTTP") || protocol == "TLS" {
                listener["hostname"] = json!(hostname);
            }
            if protocol == "TLS" || protocol == "HTTPS" {
                listener["tls"] = json!({"mode": mode, "certificateRefs": [{"name": "missing"}]});
            }
            listener
        })
}

fn created(day: u8) -> String {
    format!("2026-01-0{day}T00:00:00Z")
}

fn gateway() -> impl Strategy<Value = Object> {
    (
        select(vec!["a", "b", "c", "d"]),
        select(vec!["x", "y"]),
        prop::option::of(select(vec!["one", "two", "two.tail.ts.net", "no_label"])),
        prop::collection::vec(listener(), 1..4),
        1u8..4,
    )
        .prop_map(|(name, namespace, hostname, mut listeners, day)| {
            for (index, listener) in listeners.iter_mut().enumerate() {
                listener["name"] = json!(format!("l{index}"));
            }
            let addresses: Vec<_> = hostname
                .iter()
                .map(|name| json!({"type": "Hostname", "value": name}))
                .collect();
            let gateway = json!({
                "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created(day)},
                "spec": {"gatewayClassName": "c", "addresses": addresses, "listeners": listeners},
            });
            Object::Gateway(serde_json::from_value(gateway).unwrap())
        })
}

fn route() -> impl Strategy<Value = Object> {
    let parent = (
        select(vec!["a", "b", "c", "missing"]),
        select(vec!["x", "y"]),
        prop::option::of(select(vec!["l0", "l1"])),
    );
    let backend = (select(vec!["web", "db", "missing"]), prop::option::of(0..3));
    let kind = select(vec![
        Kind::TcpRoute,
        Kind::UdpRoute,
        Kind::TlsRoute,
        Kind::HttpRoute,
        Kind::GrpcRoute,
    ]);
    // None contains another: the more specific goes before the older.
    let hostnames = prop::collection::vec(select(vec!["a.example.com", "b.example.com"]), 0..2);
    (
        (kind, hostnames),
        select(vec!["r", "s", "t", "u"]),
        select(vec!["x", "y"]),
        prop::collection::vec(parent, 1..3),
        prop::collection::vec(backend, 1..3),
        1u8..4,
    )
        .prop_map(|((kind, hostnames), name, namespace, parents, backends, day)| {
            let parents: Vec<_> = parents
                .into_iter()
                .map(|(name, namespace, section)| {
                    json!({"name": name, "namespace": namespace, "sectionName": section})
                })
                .collect();
            let backends: Vec<_> = backends
                .into_iter()
                .map(|(name, weight)| json!({"name": name, "port": 80, "weight": weight}))
                .collect();
            let route = json!({
                "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created(day)},
                "spec": {
                    "parentRefs": parents,
                    "hostnames": hostnames,
                    "rules": [{"backendRefs": backends}],
                },
            });
            route_of(kind, route)
        })
}

/// A route of any kind; of what the kind has not, nothing is read.
fn route_of(kind: Kind, route: Value) -> Object {
    match kind {
        Kind::TcpRoute => Object::TcpRoute(serde_json::from_value(route).unwrap()),
        Kind::UdpRoute => Object::UdpRoute(serde_json::from_value(route).unwrap()),
        Kind::TlsRoute => Object::TlsRoute(serde_json::from_value(route).unwrap()),
        Kind::HttpRoute => Object::HttpRoute(serde_json::from_value(route).unwrap()),
        Kind::GrpcRoute => Object::GrpcRoute(serde_json::from_value(route).unwrap()),
        other => panic!("{other} is no route"),
    }
}

fn services() -> Vec<Object> {
    let names = [("x", "web"), ("x", "db"), ("y", "web")];
    let service = |(namespace, name)| {
        let service = json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]},
        });
        Object::Service(serde_json::from_value(service).unwrap())
    };
    names.into_iter().map(service).collect()
}

/// A class, Services, and some Gateways and routes of different names.
fn objects() -> impl Strategy<Value = Vec<Object>> {
    let gateways = prop::collection::vec(gateway(), 0..5);
    let routes = prop::collection::vec(route(), 0..6);
    (gateways, routes).prop_map(|(gateways, routes)| {
        let mut keys = BTreeSet::new();
        let mut objects = vec![class()];
        objects.extend(services());
        objects.extend(gateways);
        objects.extend(routes);
        objects.retain(|object| keys.insert(tailway::index::Key::of(object)));
        objects
    })
}

fn is_true(listener: &ListenerStatus, kind: &str) -> bool {
    let mut conditions = listener.conditions.iter();
    conditions.any(|condition| condition.kind == kind && condition.status)
}

fn forwards(snapshot: &Snapshot) -> Vec<&Forward> {
    let udp = snapshot.udp_ports.values();
    let mut forwards: Vec<_> = udp.flat_map(|listener| &listener.route).collect();
    for port in snapshot.ports.values() {
        match port {
            Port::Tcp(listener) => forwards.extend(&listener.route),
            Port::Http(_) => {}
            Port::Tls(listeners) => {
                for listener in listeners {
                    let named = match &listener.mode {
                        TlsMode::Passthrough(named) => named.as_slice(),
                        TlsMode::Terminate(termination) => match &termination.routes {
                            TlsRoutes::Forwards(named) => named,
                            TlsRoutes::HttpRoutes(_) => [].as_slice(),
                        },
                    };
                    forwards.extend(named.iter().map(|named| &named.forward));
                }
            }
        }
    }
    forwards
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_gives_the_same(
        (objects, shuffled) in objects().prop_flat_map(|objects| {
            let shuffled = Just(objects.clone()).prop_shuffle();
            (Just(objects), shuffled)
        })
    ) {
        prop_assert_eq!(outcome(objects), outcome(shuffled));
    }

    #[test]
    fn just_the_accepted_listeners_are_served(objects in objects()) {
        let outcome = outcome(objects);
        for status in outcome.statuses.gateways.values() {
            let accepted: BTreeSet<_> = status
                .listeners
                .iter()
                .filter(|listener| is_true(listener, "Accepted"))
                .map(|listener| listener.name.as_str())
                .collect();
            for listener in &status.listeners {
                prop_assert!(!(is_true(listener, "Accepted") && is_true(listener, "Conflicted")));
            }
            if let Some(snapshot) = outcome.snapshots.get(&status.name) {
                let mut served: BTreeSet<_> =
                    snapshot.ports.values().flat_map(Port::listener_names).collect();
                served.extend(snapshot.udp_ports.values().map(|listener| listener.name.as_str()));
                prop_assert_eq!(served, accepted);
            }
        }
    }

    #[test]
    fn no_two_gateways_have_a_node_name(objects in objects()) {
        let outcome = outcome(objects);
        let names: BTreeSet<_> = outcome.snapshots.values().map(|s| &s.node.name).collect();
        prop_assert_eq!(names.len(), outcome.snapshots.len());
    }

    #[test]
    fn a_snapshot_holds_the_backends_of_its_routes_and_no_others(objects in objects()) {
        for snapshot in outcome(objects).snapshots.values() {
            let mut used: BTreeSet<&BackendId> = forwards(snapshot)
                .iter()
                .flat_map(|forward| &forward.backends)
                .filter_map(|weighted| weighted.backend.as_ref())
                .collect();
            let rules = snapshot.http_routes.values().flat_map(|route| &route.rules);
            let backends = rules.flat_map(|rule| &rule.backends);
            used.extend(backends.filter_map(|backend| backend.backend.as_ref()));
            prop_assert_eq!(snapshot.backends.keys().collect::<BTreeSet<_>>(), used);
        }
    }

    #[test]
    fn what_is_younger_takes_nothing_from_what_is_served(
        objects in objects(),
        gateway in gateway(),
        route in route(),
    ) {
        let before = outcome(objects.clone());
        let after = outcome(objects.into_iter().chain([younger(gateway), younger(route)]));
        for (name, snapshot) in &before.snapshots {
            let after = &after.snapshots[name];
            prop_assert_eq!(&snapshot.node, &after.node);
            let served = forwards(after);
            for forward in forwards(snapshot) {
                prop_assert!(served.contains(&forward), "{name} lost {}", forward.route);
            }
        }
    }
}

/// The same under a name of its own, younger than all others.
fn younger(mut object: Object) -> Object {
    let metadata = match &mut object {
        Object::Gateway(gateway) => &mut gateway.metadata,
        Object::TcpRoute(route) => &mut route.metadata,
        Object::UdpRoute(route) => &mut route.metadata,
        Object::TlsRoute(route) => &mut route.metadata,
        Object::HttpRoute(route) => &mut route.metadata,
        Object::GrpcRoute(route) => &mut route.metadata,
        other => panic!("{other:?}"),
    };
    metadata.name = Some("younger".into());
    metadata.creation_timestamp = serde_json::from_value(json!(created(9))).unwrap();
    object
}
