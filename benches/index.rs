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
    controller::{World, changed, plan},
    discovery::Publisher,
    index::{Index, Verdict},
    model::{NodeReport, ObjectName, Programmed, TailnetReport, TailnetState},
};

const GATEWAYS: usize = 1000;
const ROUTES_PER_GATEWAY: usize = 5;
const ROUTES: usize = GATEWAYS * ROUTES_PER_GATEWAY;
const NAMESPACES: usize = 50;
const ENDPOINTS: usize = 10;

/// Endpoint events that are taken in at once where they come in bursts.
const BURST: usize = 100;

fn main() {
    let count = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let endpoint_events = count("ENDPOINT_EVENTS", 10_000);
    let other_events = count("OTHER_EVENTS", 1_000);
    println!(
        "index: {GATEWAYS} Gateways, {ROUTES} TCPRoutes and Services, {ROUTES} EndpointSlices of {ENDPOINTS} endpoints"
    );
    let before = resident();
    let mut index = Index::with_verdicts();
    fill(&mut index);
    let objects = resident();
    let mut bench = Bench::new(index);
    println!(
        "resident: {before} MiB at first, +{} MiB objects, +{} MiB results",
        objects - before,
        resident() - objects
    );
    bench.print("all anew", 1, bench.all);

    bench.run("endpoint event", endpoint_events, 1, |event| {
        slice(event % ROUTES, event / ROUTES + 1)
    });
    let name = format!("  of {BURST} at once");
    bench.run(&name, endpoint_events, BURST, |event| {
        slice(event % ROUTES, event / ROUTES + 11)
    });
    bench.run("route change", other_events, 1, |event| {
        route(event % ROUTES, event + 2)
    });
    bench.run("Gateway change", other_events, 1, |event| {
        gateway(event % GATEWAYS, event + 2)
    });
    bench.reports("report of a node", other_events);
    println!(
        "resident: {} MiB after all of it, {} MiB at most",
        resident(),
        peak()
    );
}

struct Bench {
    index: Index,
    world: World,
    publisher: Publisher,
    /// What it takes when all is worked out.
    all: Took,
}

/// What one step takes.
#[derive(Clone, Copy, Default)]
struct Took {
    evaluation: Duration,
    /// To find and plan the statuses that are to be written, and the Snapshots to be sent.
    readers: Duration,
}

impl Bench {
    fn new(index: Index) -> Self {
        let mut bench = Self {
            index,
            world: World::default(),
            publisher: Publisher::default(),
            all: Took::default(),
        };
        bench.all = bench.step(|_| ());
        bench
    }

    /// Applies objects, as many at a time as a burst has.
    fn run(&mut self, name: &str, events: usize, burst: usize, object: impl Fn(usize) -> Object) {
        let mut took = Took::default();
        for first in (0..events).step_by(burst) {
            let objects: Vec<_> = (first..first + burst).map(&object).collect();
            let step = self.step(|index| objects.into_iter().for_each(|o| index.apply(o)));
            took.evaluation += step.evaluation;
            took.readers += step.readers;
        }
        self.print(name, events, took);
    }

    fn reports(&mut self, name: &str, events: usize) {
        let mut took = Took::default();
        for event in 0..events {
            let generation = i64::try_from(event / GATEWAYS).expect("few events");
            let (name, report) = report(event % GATEWAYS, 2 + generation);
            let step = self.step(|index| index.report(name, report));
            took.evaluation += step.evaluation;
            took.readers += step.readers;
        }
        self.print(name, events, took);
    }

    /// Changes something, and does what follows; the world before is kept until then, as its
    /// readers do.
    fn step(&mut self, change: impl FnOnce(&mut Index)) -> Took {
        let started = Instant::now();
        change(&mut self.index);
        let world = World {
            outcome: self.index.evaluate(),
            subjects: self.index.subjects(),
            ..World::default()
        };
        let evaluation = started.elapsed();
        let started = Instant::now();
        let objects = changed(&world, &self.world);
        drop(plan(&world, &objects, jiff::Timestamp::UNIX_EPOCH));
        let since = tokio::time::Instant::now();
        self.publisher.publish(&world.outcome.snapshots, since);
        self.world = world;
        Took {
            evaluation,
            readers: started.elapsed(),
        }
    }

    fn print(&self, name: &str, events: usize, took: Took) {
        let events = u32::try_from(events).expect("few events");
        let (evaluation, readers) = (took.evaluation / events, took.readers / events);
        let all = self.all.evaluation + self.all.readers;
        let ratio = (evaluation + readers).as_secs_f64() / all.as_secs_f64();
        println!(
            "{name:<18} index {evaluation:>9.1?}, its readers {readers:>9.1?}: {ratio:.5} of all"
        );
    }
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
    index.judge("tailway".into(), Verdict::Accepted);
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
