//! One change at a time gives what all at once gives.

use super::{created, route_of};
use proptest::{
    prelude::*,
    sample::{Index as At, select},
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};
use tailway::{
    api::{CONTROLLER, Object},
    index::{Index, Key, Kind, Outcome, Verdict, egress},
    model::{
        CertificateReport, Issuance, NodeReport, ObjectName, Programmed, Role, Table,
        TailnetReport, TailnetState, Unready,
    },
};

#[derive(Clone, Debug)]
enum Event {
    Apply(Object),
    Delete(Key),
    /// Deletes one of the objects that are there.
    DeleteOne(At),
    Report(ObjectName, NodeReport),
    ForgetReport(ObjectName),
    Judge(String, Verdict),
    Evaluate,
}

/// What an index was told, as it holds in the end.
#[derive(Default)]
struct Told {
    objects: BTreeMap<Key, Object>,
    reports: BTreeMap<ObjectName, NodeReport>,
    verdicts: BTreeMap<String, Verdict>,
}

impl Told {
    fn take(&mut self, index: &mut Index, event: Event) {
        match event {
            Event::Apply(object) => {
                self.objects.insert(Key::of(&object), object.clone());
                index.apply(object);
            }
            Event::Delete(key) => {
                self.objects.remove(&key);
                index.delete(&key);
            }
            Event::DeleteOne(at) if !self.objects.is_empty() => {
                let keys: Vec<_> = self.objects.keys().cloned().collect();
                self.take(index, Event::Delete(at.get(&keys).clone()));
            }
            Event::Report(gateway, report) => {
                self.reports.insert(gateway.clone(), report.clone());
                index.report(gateway, report);
            }
            Event::ForgetReport(gateway) => {
                self.reports.remove(&gateway);
                index.forget_report(&gateway);
            }
            Event::Judge(class, verdict) => {
                self.verdicts.insert(class.clone(), verdict.clone());
                index.judge(class, verdict);
            }
            Event::DeleteOne(_) | Event::Evaluate => {}
        }
    }

    /// What an index that is told all of it at once gives.
    fn outcome(&self, mut index: Index) -> Outcome {
        for (class, verdict) in &self.verdicts {
            index.judge(class.clone(), verdict.clone());
        }
        for (gateway, report) in &self.reports {
            index.report(gateway.clone(), report.clone());
        }
        index.reset(self.objects.values().cloned());
        index.evaluate()
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
    serde_json::from_value(value).unwrap()
}

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c"])
}

fn namespace() -> impl Strategy<Value = &'static str> {
    select(vec!["x", "y"])
}

/// Seldom `rare`.
fn seldom<T: Clone + std::fmt::Debug + 'static>(
    rare: Vec<T>,
    often: Vec<T>,
) -> impl Strategy<Value = T> {
    prop_oneof![1 => select(rare), 5 => select(often)]
}

fn metadata() -> impl Strategy<Value = Value> {
    (name(), namespace(), 1u8..4, 1..3).prop_map(|(name, namespace, day, generation)| {
        json!({
            "name": name,
            "namespace": namespace,
            "creationTimestamp": created(day),
            "generation": generation,
        })
    })
}

fn class() -> impl Strategy<Value = Object> {
    let parameters = prop_oneof![
        2 => Just(Value::Null),
        1 => select(vec![
            json!({"group": "", "kind": "Secret", "name": "a", "namespace": "x"}),
            json!({"group": "gateway.tailscale.com", "kind": "TailscaleTailnet", "name": "a"}),
            json!({"group": "", "kind": "ConfigMap", "name": "a", "namespace": "x"}),
        ]),
    ];
    let controller = seldom(vec!["example.com/other"], vec![CONTROLLER]);
    (name(), controller, parameters, 1..3).prop_map(|(name, controller, parameters, generation)| {
        Object::GatewayClass(object(json!({
            "metadata": {"name": name, "generation": generation},
            "spec": {"controllerName": controller, "parametersRef": parameters},
        })))
    })
}

fn tailnet() -> impl Strategy<Value = Object> {
    name().prop_map(|name| {
        Object::Tailnet(object(json!({
            "metadata": {"name": name},
            "spec": {"credentials": {"secretRef": {"name": "a"}}},
        })))
    })
}

fn listener() -> impl Strategy<Value = Value> {
    let protocol = seldom(
        vec!["UDP", "example.com/other"],
        vec!["TCP", "TCP", "TCP", "TCP", "TLS", "TLS", "HTTP", "HTTPS"],
    );
    let mode = seldom(vec!["Passthrough"], vec!["Terminate"]);
    let hostname = select(vec![
        "",
        "a.example.com",
        "*.example.com",
        "one.tail.ts.net",
    ]);
    let from = select(vec![
        json!({"from": "Same"}),
        json!({"from": "All"}),
        json!({"from": "All"}),
        json!({"from": "Selector", "selector": {"matchLabels": {"team": "one"}}}),
        json!({"from": "Selector", "selector": {"matchExpressions": [
            {"key": "team", "operator": "NotIn", "values": ["one"]},
        ]}}),
    ]);
    let kinds = seldom(vec![json!([{"kind": "HTTPRoute"}])], vec![json!([])]);
    let secret = prop::option::of((name(), namespace()));
    (1..4, protocol, hostname, from, kinds, (secret, mode)).prop_map(
        |(port, protocol, hostname, from, kinds, (secret, mode))| {
            let mut listener = json!({
                "port": port,
                "protocol": protocol,
                "allowedRoutes": {"namespaces": from, "kinds": kinds},
            });
            if protocol.starts_with("HTTP") {
                listener["hostname"] = json!(hostname);
            }
            if protocol == "TLS" || protocol == "HTTPS" {
                let secret = secret.into_iter();
                let secrets = secret
                    .map(|(name, namespace)| json!({"name": name, "namespace": namespace}))
                    .collect::<Vec<_>>();
                listener["hostname"] = json!(hostname);
                listener["tls"] = json!({"mode": mode, "certificateRefs": secrets});
            }
            listener
        },
    )
}

/// Adds an annotation of ours, unless it is empty.
fn annotate(metadata: &mut Value, name: &str, value: &str) {
    if !value.is_empty() {
        let name = format!("tailway.michaelbeaumont.github.io/{name}");
        metadata["annotations"] = json!({name: value});
    }
}

/// `spec.tls` of a Gateway.
fn gateway_tls() -> impl Strategy<Value = Value> {
    let kind = seldom(vec!["Service"], vec!["ConfigMap"]);
    let mode = seldom(vec!["AllowInsecureFallback"], vec!["AllowValidOnly"]);
    let authority = (kind, name(), namespace(), mode);
    let certificate = (name(), namespace());
    let port = prop::option::of(1..4);
    (
        prop::option::weighted(0.4, (authority, port)),
        prop::option::weighted(0.4, certificate),
    )
        .prop_map(|(frontend, backend)| {
            let mut tls = json!({});
            if let Some(((kind, name, namespace, mode), port)) = frontend {
                let reference =
                    json!({"group": "", "kind": kind, "name": name, "namespace": namespace});
                let validation =
                    json!({"validation": {"caCertificateRefs": [reference], "mode": mode}});
                tls["frontend"] = match port {
                    None => json!({"default": validation}),
                    Some(port) => {
                        json!({"default": {}, "perPort": [{"port": port, "tls": validation}]})
                    }
                };
            }
            if let Some((name, namespace)) = backend {
                tls["backend"] =
                    json!({"clientCertificateRef": {"name": name, "namespace": namespace}});
            }
            tls
        })
}

/// `spec.allowedListeners` of a Gateway.
fn allowed_listeners() -> impl Strategy<Value = Value> {
    select(vec![
        Value::Null,
        json!({"namespaces": {"from": "All"}}),
        json!({"namespaces": {"from": "All"}}),
        json!({"namespaces": {"from": "Same"}}),
        json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "one"}}}}),
    ])
}

fn listener_set() -> impl Strategy<Value = Object> {
    let kind = seldom(vec!["Service"], vec!["Gateway"]);
    let parent = (name(), namespace(), kind);
    let listeners = prop::collection::vec(listener(), 1..3);
    (metadata(), parent, listeners).prop_map(
        |(metadata, (name, namespace, kind), mut listeners)| {
            for (index, listener) in listeners.iter_mut().enumerate() {
                listener["name"] = json!(format!("l{index}"));
            }
            Object::ListenerSet(object(json!({
                "metadata": metadata,
                "spec": {
                    "parentRef": {"name": name, "namespace": namespace, "kind": kind},
                    "listeners": listeners,
                },
            })))
        },
    )
}

fn gateway() -> impl Strategy<Value = Object> {
    let class = seldom(vec!["missing", "b"], vec!["a"]);
    let hostname = prop::option::of(select(vec!["one", "two", "one.tail.ts.net", "no_label"]));
    let listeners = prop::collection::vec(listener(), 1..4);
    let log = seldom(vec!["all", "1/0"], vec![""]);
    let others = (gateway_tls(), allowed_listeners(), log);
    (metadata(), class, hostname, listeners, others).prop_map(
        |(mut metadata, class, hostname, mut listeners, (tls, allowed, log))| {
            annotate(&mut metadata, "access-log", log);
            for (index, listener) in listeners.iter_mut().enumerate() {
                listener["name"] = json!(format!("l{index}"));
            }
            let address = |name| json!({"type": "Hostname", "value": name});
            let addresses: Vec<_> = hostname.into_iter().map(address).collect();
            Object::Gateway(object(json!({
                "metadata": metadata,
                "spec": {
                    "gatewayClassName": class,
                    "addresses": addresses,
                    "listeners": listeners,
                    "tls": tls,
                    "allowedListeners": allowed,
                },
            })))
        },
    )
}

fn route() -> impl Strategy<Value = Object> {
    let kind = select(vec![
        "Gateway",
        "Gateway",
        "Gateway",
        "ListenerSet",
        "Service",
    ]);
    let section = prop::option::of(select(vec!["l0", "l1"]));
    let parent = (name(), namespace(), kind, section);
    let port = seldom(vec![53], vec![80]);
    let kind = prop_oneof![
        1 => Just("Bucket."),
        3 => Just("TailscaleEndpoints.gateway.tailscale.com"),
        8 => Just("Service."),
    ];
    let backend = (name(), namespace(), port, prop::option::of(0..3), kind);
    let parents = prop::collection::vec(parent, 0..3);
    let backends = prop::collection::vec(backend, 1..3);
    let rules = seldom(vec![2], vec![1]);
    let kind = select(vec![
        Kind::TcpRoute,
        Kind::TcpRoute,
        Kind::TcpRoute,
        Kind::TcpRoute,
        Kind::UdpRoute,
        Kind::TlsRoute,
        Kind::HttpRoute,
        Kind::GrpcRoute,
    ]);
    let hostnames = select(vec![
        "a.example.com",
        "*.example.com",
        "*.com",
        "b.example.org",
    ]);
    let hostnames = prop::collection::vec(hostnames, 0..3);
    let own = (kind, hostnames, rule(), seldom(vec!["v2", "v3"], vec![""]));
    (metadata(), parents, backends, rules, own).prop_map(
        |(mut metadata, parents, backends, rules, (kind, hostnames, mut rule, proxy))| {
            annotate(&mut metadata, "proxy-protocol", proxy);
            let parents = parents.into_iter();
            let parents = parents.map(|(name, namespace, kind, section)| {
                json!({"name": name, "namespace": namespace, "kind": kind, "sectionName": section})
            });
            let backends = backends.into_iter();
            let backends = backends.map(|(name, namespace, port, weight, kind)| {
                let (kind, group) = kind.split_once('.').unwrap();
                json!({
                    "group": group,
                    "kind": kind,
                    "name": name,
                    "namespace": namespace,
                    "port": port,
                    "weight": weight,
                })
            });
            let references = json!({"backendRefs": backends.collect::<Vec<_>>()});
            let mut all = vec![references.clone(); rules];
            if matches!(kind, Kind::HttpRoute | Kind::GrpcRoute) {
                rule["backendRefs"] = references["backendRefs"].clone();
                all.push(rule);
            }
            route_of(
                kind,
                json!({
                    "metadata": metadata,
                    "spec": {
                        "parentRefs": parents.collect::<Vec<_>>(),
                        "hostnames": hostnames,
                        "rules": all,
                    },
                }),
            )
        },
    )
}

/// What rules of HTTP and gRPC can both hold, some of it wrong.
fn rule() -> impl Strategy<Value = Value> {
    select(vec![
        json!({"name": "all"}),
        json!({"matches": [{"headers": [{"name": "x", "type": "RegularExpression", "value": "("}]}]}),
        json!({"filters": [
            {"type": "ExtensionRef", "extensionRef": {"group": "g", "kind": "k", "name": "n"}},
        ]}),
        json!({"filters": [{"type": "RequestMirror", "requestMirror": {
            "backendRef": {"name": "a", "namespace": "y", "port": 80},
        }}]}),
    ])
}

fn policy() -> impl Strategy<Value = Object> {
    let target = (
        name(),
        prop::option::weighted(0.2, select(vec!["web", "other"])),
    );
    let authority = prop_oneof![
        1 => Just(json!({"wellKnownCACertificates": "System"})),
        1 => Just(json!({"wellKnownCACertificates": "example.com/others"})),
        6 => (seldom(vec!["Secret"], vec!["ConfigMap"]), name()).prop_map(|(kind, name)| {
            json!({"caCertificateRefs": [{"group": "", "kind": kind, "name": name}]})
        }),
    ];
    let targets = prop::collection::vec(target, 1..3);
    (metadata(), targets, authority).prop_map(|(metadata, targets, mut validation)| {
        let targets = targets.into_iter().map(|(name, section)| {
            json!({"group": "", "kind": "Service", "name": name, "sectionName": section})
        });
        validation["hostname"] = json!("app.example.com");
        Object::BackendTlsPolicy(object(json!({
            "metadata": metadata,
            "spec": {"targetRefs": targets.collect::<Vec<_>>(), "validation": validation},
        })))
    })
}

fn config_map() -> impl Strategy<Value = Object> {
    (name(), namespace(), 0..4usize).prop_map(|(name, namespace, at)| {
        let data = match at {
            0 | 1 => json!({"ca.crt": CERTIFICATES[at]["tls.crt"]}),
            2 => json!({"ca.crt": "none"}),
            _ => json!({"other": "none"}),
        };
        Object::ConfigMap(object(json!({
            "metadata": {"name": name, "namespace": namespace},
            "data": data,
        })))
    })
}

fn grant() -> impl Strategy<Value = Object> {
    let from = select(vec![
        "TCPRoute",
        "UDPRoute",
        "TLSRoute",
        "HTTPRoute",
        "GRPCRoute",
        "Gateway",
        "ListenerSet",
    ]);
    let to = (
        select(vec![
            "Service.",
            "Secret.",
            "ConfigMap.",
            "TailscaleEndpoints.gateway.tailscale.com",
        ]),
        prop::option::of(name()),
    );
    (name(), namespace(), from, namespace(), to).prop_map(
        |(name, namespace, from, of, (to, only))| {
            let (to, group) = to.split_once('.').unwrap();
            Object::ReferenceGrant(object(json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "from": [{"group": "gateway.networking.k8s.io", "kind": from, "namespace": of}],
                    "to": [{"group": group, "kind": to, "name": only}],
                },
            })))
        },
    )
}

fn endpoints() -> impl Strategy<Value = Object> {
    let target = select(vec![
        json!({"tailscaleFQDN": "a"}),
        json!({"tailscaleIP": "100.64.0.1"}),
        json!({"externalTarget": "a.example.com:80"}),
        json!({"externalTarget": "none"}),
    ]);
    let protocol = select(vec!["HTTP", "HTTPS", "TCP", "UDP"]);
    let authority = prop::option::weighted(0.3, name());
    let endpoint = (name(), target, protocol, authority, select(vec![80, 53]));
    let found = (
        name(),
        select(vec!["AutoDiscovery", "Manual"]),
        any::<bool>(),
    );
    let egress = select(vec!["Auto", "Proxy"]);
    let pods = select(vec!["egress", "ingress", "bidirectional"]);
    let lists = (
        prop::collection::vec(endpoint, 0..4),
        prop::collection::vec(found, 0..3),
    );
    (metadata(), lists, egress, pods).prop_map(|(metadata, (endpoints, found), egress, pods)| {
        let endpoints = endpoints.into_iter();
        let endpoints = endpoints.map(|(name, mut endpoint, protocol, authority, port)| {
            endpoint["name"] = json!(name);
            endpoint["port"] = json!(port);
            endpoint["protocol"] = json!(protocol);
            if let (Some(authority), "HTTPS") = (authority, protocol) {
                endpoint["tls"] = json!({"caCertificateRef": {"name": authority}});
            }
            endpoint
        });
        let looks = !found.is_empty();
        let found = found.into_iter().map(|(name, source, secure)| {
            let (port, protocol) = if secure { (443, "HTTPS") } else { (80, "HTTP") };
            json!({
                "name": name,
                "port": port,
                "protocol": protocol,
                "tailscaleFQDN": "found",
                "discoverySource": source,
            })
        });
        Object::Endpoints(object(json!({
            "metadata": metadata,
            "spec": {
                "endpoints": endpoints.collect::<Vec<_>>(),
                "autoDiscovery": {"enabled": looks},
                "egress": egress,
                "proxy": {"connectionType": pods},
            },
            "status": {"endpointStatus": found.collect::<Vec<_>>()},
        })))
    })
}

fn service() -> impl Strategy<Value = Object> {
    let spec = seldom(
        vec![
            json!({"type": "ExternalName", "externalName": "db.example.org"}),
            json!({"ports": [{"port": 80, "protocol": "UDP"}]}),
            json!({"ports": [{"name": "web", "port": 80, "appProtocol": "https"}]}),
            json!({"ports": [{"name": "web", "port": 80, "appProtocol": "mysql"}]}),
        ],
        vec![json!({"ports": [{"name": "web", "port": 80}, {"port": 80, "protocol": "UDP"}]})],
    );
    (name(), namespace(), spec).prop_map(|(name, namespace, spec)| {
        Object::Service(object(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        })))
    })
}

fn slice() -> impl Strategy<Value = Object> {
    let service = prop::option::weighted(0.9, name());
    let endpoints = prop::collection::vec((1..4, prop::bool::weighted(0.8)), 0..3);
    (name(), namespace(), service, endpoints).prop_map(|(name, namespace, service, endpoints)| {
        let labels = service.map(|service| json!({"kubernetes.io/service-name": service}));
        let endpoints = endpoints.into_iter().map(|(host, ready)| {
            json!({"addresses": [format!("10.0.0.{host}")], "conditions": {"ready": ready}})
        });
        Object::EndpointSlice(object(json!({
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080}, {"port": 5353, "protocol": "UDP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })))
    })
}

static CERTIFICATES: LazyLock<[Value; 2]> = LazyLock::new(|| {
    ["a.example.com", "*.example.com"].map(|name| {
        let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        json!({"tls.crt": issued.cert.pem(), "tls.key": issued.signing_key.serialize_pem()})
    })
});

fn secret() -> impl Strategy<Value = Object> {
    let kind = seldom(vec!["Opaque"], vec!["kubernetes.io/tls"]);
    (name(), namespace(), kind, 0..2usize).prop_map(|(name, namespace, kind, at)| {
        Object::Secret(object(json!({
            "metadata": {"name": name, "namespace": namespace},
            "type": kind,
            "stringData": CERTIFICATES[at],
        })))
    })
}

fn labelled_namespace() -> impl Strategy<Value = Object> {
    let team = prop::option::of(select(vec!["one", "two"]));
    (namespace(), team).prop_map(|(name, team)| {
        let labels = team.map(|team| json!({"team": team}));
        Object::Namespace(object(
            json!({"metadata": {"name": name, "labels": labels}}),
        ))
    })
}

fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![
        1 => class(),
        1 => tailnet(),
        7 => gateway(),
        8 => route(),
        2 => grant(),
        4 => service(),
        6 => slice(),
        3 => secret(),
        2 => labelled_namespace(),
        4 => listener_set(),
        6 => policy(),
        3 => config_map(),
        5 => endpoints(),
    ]
}

fn report() -> impl Strategy<Value = NodeReport> {
    let programmed = select(vec![
        Programmed::Generation(1),
        Programmed::Generation(2),
        Programmed::No {
            reason: Unready::AddressNotAssigned,
            message: "no address yet".into(),
        },
    ]);
    let dns_name = select(vec!["", "one.tail.ts.net", "one-1.tail.ts.net"]);
    let state = select(vec![TailnetState::Ready, TailnetState::NameTaken]);
    let issuance = select(vec![Issuance::NotNeeded, Issuance::RateLimited]);
    (programmed, dns_name, state, issuance).prop_map(|(programmed, dns_name, state, issuance)| {
        NodeReport {
            dns_name: dns_name.into(),
            addresses: vec![[100, 64, 0, 1].into()],
            node_id: "n1".into(),
            programmed,
            tailnet: TailnetReport {
                state,
                message: String::new(),
            },
            certificate: CertificateReport {
                issuance,
                ..CertificateReport::default()
            },
            health: BTreeMap::new(),
        }
    })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let refused = Verdict::Refused {
        reason: "InvalidCredentials",
        message: "wrong".into(),
    };
    seldom(vec![refused], vec![Verdict::Accepted])
}

fn event(verdicts: bool) -> impl Strategy<Value = Event> {
    let gateway = || {
        let ordinal = prop::option::weighted(0.2, 0..2u32);
        (namespace(), name(), ordinal).prop_map(|(x, name, ordinal)| {
            let object = ObjectName::new(x, name);
            ordinal.map_or(object.clone(), |ordinal| egress::replica(&object, ordinal))
        })
    };
    let judge =
        (name(), verdict()).prop_map(|(class, verdict)| Event::Judge(class.into(), verdict));
    prop_oneof![
        12 => any_object().prop_map(Event::Apply),
        3 => any::<At>().prop_map(Event::DeleteOne),
        1 => any_object().prop_map(|object| Event::Delete(Key::of(&object))),
        2 => (gateway(), report()).prop_map(|(gateway, report)| Event::Report(gateway, report)),
        1 => gateway().prop_map(Event::ForgetReport),
        u32::from(verdicts) => judge,
        4 => Just(Event::Evaluate),
    ]
}

/// What is there first, so that most of what follows means something.
fn foundation() -> Vec<Event> {
    let class = Object::GatewayClass(object(json!({
        "metadata": {"name": "a", "generation": 1},
        "spec": {"controllerName": CONTROLLER},
    })));
    let mut events = vec![
        Event::Apply(class),
        Event::Judge("a".into(), Verdict::Accepted),
    ];
    for namespace in ["x", "y"] {
        for name in ["a", "b", "c"] {
            let metadata = json!({"name": name, "namespace": namespace, "generation": 1});
            let backends = json!([{"name": name, "port": 80}]);
            let parents = json!([{"name": "a", "namespace": "x"}]);
            let rules = json!([{"backendRefs": backends}]);
            let service = json!({
                "metadata": metadata,
                "spec": {"ports": [{"name": "web", "port": 80}]},
            });
            let route = json!({
                "metadata": metadata,
                "spec": {"parentRefs": parents, "rules": rules},
            });
            let kind = json!("TailscaleEndpoints");
            let group = json!("gateway.tailscale.com");
            let mut both = route.clone();
            both["spec"]["rules"][0]["backendRefs"]
                .as_array_mut()
                .unwrap()
                .push(json!({"group": group, "kind": kind, "name": name, "port": 80}));
            let endpoints = json!({
                "metadata": metadata,
                "spec": {"endpoints": [{"name": "web", "port": 80, "tailscaleFQDN": "web"}]},
            });
            events.extend([
                Event::Apply(Object::Service(object(service))),
                Event::Apply(Object::TcpRoute(object(route.clone()))),
                Event::Apply(Object::HttpRoute(object(both))),
                Event::Apply(Object::Endpoints(object(endpoints))),
            ]);
        }
    }
    let from = json!({"namespaces": {"from": "All"}});
    let listeners = [("l0", 1, "TCP"), ("l1", 2, "HTTP")].map(|(name, port, protocol)| {
        json!({"name": name, "port": port, "protocol": protocol, "allowedRoutes": from})
    });
    events.push(Event::Apply(Object::Gateway(object(json!({
        "metadata": {"name": "a", "namespace": "x", "generation": 1},
        "spec": {"gatewayClassName": "a", "listeners": listeners, "allowedListeners": from},
    })))));
    events.push(Event::Evaluate);
    events
}

/// What is equal in both is the very same.
fn is_shared<T: PartialEq, K: Ord + Clone>(now: &Table<T, K>, before: &Table<T, K>) -> bool {
    let mut both = now
        .iter()
        .filter_map(|(key, value)| Some((value, before.get(key)?)));
    both.all(|(now, before)| Arc::ptr_eq(now, before) || now != before)
}

/// The reasons of all conditions.
fn reasons(outcome: &Outcome) -> BTreeSet<&'static str> {
    let statuses = &outcome.statuses;
    let classes = statuses
        .classes
        .values()
        .flat_map(|class| &class.conditions);
    let gateways = statuses.gateways.values().flat_map(|gateway| {
        let listeners = gateway.listeners.iter();
        let listeners = listeners.flat_map(|listener| &listener.conditions);
        gateway.conditions.iter().chain(listeners)
    });
    let routes = statuses.routes.values().flat_map(|route| &route.parents);
    let routes = routes.flat_map(|parent| &parent.conditions);
    let sets = statuses.listener_sets.values().flat_map(|set| {
        let listeners = set.listeners.iter();
        let listeners = listeners.flat_map(|listener| &listener.conditions);
        set.conditions.iter().chain(listeners)
    });
    let policies = statuses.policies.values();
    let policies = policies.flat_map(|policy| &policy.ancestors);
    let policies = policies.flat_map(|ancestor| &ancestor.conditions);
    let conditions = classes.chain(gateways).chain(routes);
    let conditions = conditions.chain(sets).chain(policies);
    conditions.map(|condition| condition.reason).collect()
}

/// What the changes must have led to for the test to mean something.
const REASONS: [&str; 29] = [
    "Accepted",
    "AddressNotUsable",
    "BackendNotFound",
    "ConfigurationChanged",
    "Conflicted",
    "HostnameConflict",
    "InvalidCACertificateKind",
    "InvalidCACertificateRef",
    "InvalidCertificateRef",
    "InvalidClientCertificateRef",
    "InvalidKind",
    "InvalidParameters",
    "InvalidRouteKinds",
    "ListenersNotValid",
    "NoMatchingListenerHostname",
    "NoMatchingParent",
    "NoValidCACertificate",
    "NotAllowed",
    "NotAllowedByListeners",
    "OlderRoute",
    "OverlappingHostnames",
    "Pending",
    "Programmed",
    "ProtocolConflict",
    "RateLimited",
    "RefNotPermitted",
    "ResolvedRefs",
    "UnsupportedProtocol",
    "UnsupportedValue",
];

/// A backend had endpoints; one was a TailscaleEndpoints; there was an egress.
const ENDPOINTS: &str = "endpoints";
const MEMBERS: &str = "members";
const EGRESS: &str = "egress";

/// Some reasons are seldom met: how often there is another look before one is missed.
const ROUNDS: usize = 6;

fn changes_give_what_all_at_once_gives(empty: &Index, verdicts: bool) {
    let mut missing = BTreeSet::from(REASONS);
    missing.extend([ENDPOINTS, MEMBERS, EGRESS]);
    if verdicts {
        missing.insert("InvalidCredentials");
    }
    for _ in 0..ROUNDS {
        let seen = seen_while_comparing(empty, verdicts);
        missing.retain(|reason| !seen.contains(reason));
        if missing.is_empty() {
            return;
        }
    }
    panic!("never seen: {missing:?}");
}

/// Compares after random changes, and gives the reasons that were met.
fn seen_while_comparing(empty: &Index, verdicts: bool) -> BTreeSet<&'static str> {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let seen = RefCell::new(BTreeSet::new());
    let events = prop::collection::vec(event(verdicts), 50..200);
    runner
        .run(&events, |events| {
            let (mut index, mut told) = (empty.clone(), Told::default());
            let mut before = Outcome::default();
            let foundation = foundation().into_iter();
            // Without verdicts there is nobody to judge.
            let foundation =
                foundation.filter(|event| verdicts || !matches!(event, Event::Judge(..)));
            for event in foundation.chain(events).chain([Event::Evaluate]) {
                if !matches!(event, Event::Evaluate) {
                    told.take(&mut index, event);
                    continue;
                }
                let now = index.evaluate();
                prop_assert_eq!(&now, &told.outcome(empty.clone()));
                let (statuses, old) = (&now.statuses, &before.statuses);
                prop_assert!(is_shared(&now.snapshots, &before.snapshots));
                prop_assert!(is_shared(&statuses.classes, &old.classes));
                prop_assert!(is_shared(&statuses.gateways, &old.gateways));
                prop_assert!(is_shared(&statuses.routes, &old.routes));
                prop_assert!(is_shared(&statuses.listener_sets, &old.listener_sets));
                prop_assert!(is_shared(&statuses.policies, &old.policies));
                prop_assert!(is_shared(&statuses.unclaimed, &old.unclaimed));
                seen.borrow_mut().extend(reasons(&now));
                for snapshot in now.snapshots.values() {
                    let mut backends = snapshot.backends.values();
                    let members = backends.clone().any(|backend| !backend.members.is_empty());
                    let endpoints = backends.any(|backend| !backend.endpoints.is_empty());
                    let met = [
                        (ENDPOINTS, endpoints),
                        (MEMBERS, members && snapshot.role == Role::Ingress),
                        (EGRESS, snapshot.role == Role::Egress),
                    ];
                    let met = met.into_iter().filter(|(_, is_met)| *is_met);
                    seen.borrow_mut().extend(met.map(|(what, _)| what));
                }
                before = now;
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    seen.into_inner()
}

#[test]
fn changes_one_by_one_give_what_all_objects_at_once_give() {
    changes_give_what_all_at_once_gives(&Index::default(), false);
}

#[test]
fn changes_and_verdicts_one_by_one_give_what_all_at_once_give() {
    changes_give_what_all_at_once_gives(&Index::with_verdicts(), true);
}
