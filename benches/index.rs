//! The index at scale: what one change costs, beside evaluating everything anew.
//!
//! `cargo bench --bench index`, or `make bench`. Objects are of the size that a cluster has them.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and ends where it cannot go on"
)]

use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};
use tailway::{
    api::{CONTROLLER, Object},
    controller::{World, plan},
    index::Index,
    model::{NodeReport, ObjectName, Programmed, TailnetReport, TailnetState},
};

const GATEWAYS: usize = 1000;
const ROUTES_PER_GATEWAY: usize = 5;
const ROUTES: usize = GATEWAYS * ROUTES_PER_GATEWAY;
const NAMESPACES: usize = 50;
const ENDPOINTS: usize = 10;

fn main() {
    let count = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let endpoint_events = count("ENDPOINT_EVENTS", 10_000);
    let other_events = count("OTHER_EVENTS", 1_000);
    println!(
        "{GATEWAYS} Gateways, {ROUTES} TCPRoutes and Services, {ROUTES} EndpointSlices of {ENDPOINTS} endpoints"
    );
    let before = resident();
    let mut index = Index::with_verdicts();
    fill(&mut index);
    let objects = resident();
    let first = time(|| drop(index.evaluate()));
    let mut world = World::default();
    world.outcome = index.evaluate();
    world.subjects = index.subjects();
    let results = resident();
    let planned = time(|| drop(plan(&world, jiff::Timestamp::now())));
    println!(
        "resident: +{} MiB objects, +{} MiB results",
        objects - before,
        results - objects
    );
    line("first evaluation", first, first);
    line("plan of all statuses", planned, first);

    let mut bench = Bench {
        index,
        world,
        first,
    };
    bench.run("endpoint event", endpoint_events, |index, event| {
        index.apply(slice(event % ROUTES, event / ROUTES + 1));
    });
    bench.run("route change", other_events, |index, event| {
        index.apply(route(event % ROUTES, event + 2));
    });
    bench.run("Gateway change", other_events, |index, event| {
        index.apply(gateway(event % GATEWAYS, event + 2));
    });
    bench.run("report", other_events, |index, event| {
        let (name, report) = report(event % GATEWAYS, 2);
        index.report(name, report);
    });
    println!(
        "resident: {} MiB after all of it, {} MiB at most",
        resident(),
        peak()
    );
}

struct Bench {
    index: Index,
    world: World,
    first: Duration,
}

impl Bench {
    /// Changes one thing at a time, and evaluates after each; the outcome before is kept until
    /// then, as its readers do.
    fn run(&mut self, name: &str, events: usize, change: impl Fn(&mut Index, usize)) {
        let mut statuses = Duration::ZERO;
        let mut evaluations = Duration::ZERO;
        for event in 0..events {
            evaluations += time(|| {
                change(&mut self.index, event);
                self.world.outcome = self.index.evaluate();
                self.world.subjects = self.index.subjects();
            });
            statuses += time(|| drop(plan(&self.world, jiff::Timestamp::UNIX_EPOCH)));
        }
        let events = u32::try_from(events).expect("few events");
        line(name, evaluations / events, self.first);
        line("  its status plan", statuses / events, self.first);
    }
}

fn line(name: &str, took: Duration, whole: Duration) {
    let ratio = took.as_secs_f64() / whole.as_secs_f64();
    println!("{name:<24} {took:>12.1?}   {ratio:.5} of an evaluation of all");
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Memory of this process in MiB.
fn resident() -> u64 {
    memory("VmRSS:")
}

fn peak() -> u64 {
    memory("VmHWM:")
}

fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    kibibytes
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

fn fill(index: &mut Index) {
    for number in 0..NAMESPACES {
        index.apply(Object::Namespace(object(&json!({
            "metadata": {"name": namespace(number), "labels": {"team": "bench"}},
        }))));
    }
    index.apply(Object::GatewayClass(object(&json!({
        "metadata": {"name": "tailway"},
        "spec": {"controllerName": CONTROLLER},
    }))));
    index.judge("tailway".into(), tailway::index::Verdict::Accepted);
    for number in 0..GATEWAYS {
        index.apply(gateway(number, 1));
        let (name, report) = report(number, 1);
        index.report(name, report);
    }
    for number in 0..ROUTES {
        index.apply(route(number, 1));
        index.apply(service(number));
        index.apply(slice(number, 0));
    }
}

fn object<T: serde::de::DeserializeOwned>(value: &Value) -> Box<T> {
    Box::new(T::deserialize(value).expect("the object is as its type has it"))
}

fn namespace(number: usize) -> String {
    format!("team-{:02}", number % NAMESPACES)
}

fn metadata(kind: &str, number: usize, of: usize, generation: usize) -> Value {
    json!({
        "name": format!("{kind}-{number:04}"),
        "namespace": namespace(of),
        "uid": format!("0b1c7a52-6b0e-4f6e-9a57-{number:012}"),
        "resourceVersion": (number + 100_000 * generation).to_string(),
        "generation": generation,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app.kubernetes.io/name": format!("{kind}-{number:04}"), "app.kubernetes.io/part-of": "bench"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(600)},
    })
}

/// One listener of TLS with the tailnet's certificate, the others of TCP.
fn gateway(number: usize, generation: usize) -> Object {
    let listener = |at: usize| match at {
        0 => json!({"name": "l0", "port": 443, "protocol": "TLS", "tls": {"options": {
            "gateway.tailscale.com/certificate": "tailnet",
        }}}),
        at => json!({"name": format!("l{at}"), "port": 5000 + at, "protocol": "TCP"}),
    };
    let listeners: Vec<_> = (0..ROUTES_PER_GATEWAY).map(listener).collect();
    Object::Gateway(object(&json!({
        "metadata": metadata("gateway", number, number, generation),
        "spec": {"gatewayClassName": "tailway", "listeners": listeners},
    })))
}

fn route(number: usize, generation: usize) -> Object {
    let gateway = number / ROUTES_PER_GATEWAY;
    Object::TcpRoute(object(&json!({
        "metadata": metadata("route", number, gateway, generation),
        "spec": {
            "parentRefs": [{
                "name": format!("gateway-{gateway:04}"),
                "sectionName": format!("l{}", number % ROUTES_PER_GATEWAY),
            }],
            "rules": [{"backendRefs": [{"name": format!("service-{number:04}"), "port": 80, "weight": generation}]}],
        },
    })))
}

fn service(number: usize) -> Object {
    let of = number / ROUTES_PER_GATEWAY;
    Object::Service(object(&json!({
        "metadata": metadata("service", number, of, 1),
        "spec": {
            "clusterIP": "10.96.0.1",
            "selector": {"app.kubernetes.io/name": format!("service-{number:04}")},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })))
}

/// `round` changes the addresses of its endpoints.
fn slice(number: usize, round: usize) -> Object {
    let endpoint = |at: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", round % 250, number % 250, at + number / 250 * 10)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{at:03}"),
            "zone": "zone-a",
            "targetRef": {
                "kind": "Pod",
                "name": format!("service-{number:04}-7d4b9c6f5-{at:05}"),
                "namespace": namespace(number / ROUTES_PER_GATEWAY),
                "uid": format!("5f0f6b7e-2f0c-4d3f-8d8a-{at:012}"),
            },
        })
    };
    let mut metadata = metadata("slice", number, number / ROUTES_PER_GATEWAY, 1 + round);
    metadata["labels"] = json!({"kubernetes.io/service-name": format!("service-{number:04}")});
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    Object::EndpointSlice(object(&json!({
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })))
}

/// What the node of a Gateway says once it serves.
fn report(number: usize, generation: i64) -> (ObjectName, NodeReport) {
    let name = format!("gateway-{number:04}");
    let report = NodeReport {
        dns_name: format!("{name}-{}.tail1234.ts.net", namespace(number)),
        addresses: vec![[100, 64, 0, 1].into()],
        node_id: format!("n{number}CNTRL"),
        programmed: Programmed::Generation(generation),
        tailnet: TailnetReport {
            state: TailnetState::Ready,
            message: String::new(),
        },
        ..NodeReport::default()
    };
    (ObjectName::new(namespace(number), &name), report)
}
