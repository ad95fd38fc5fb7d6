//! TailscaleEndpoints: what Envoy Gateway is told of them, and their statuses.

use super::world::{engine, objects, world as published, world_by};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tailway::{
    api::Object,
    controller::{EgressState, Note, World, egress_objects, plan},
    index::{Key, Kind, egress},
    model::{Health, NodeReport, ObjectName},
};

/// A Gateway of Envoy Gateway that asks for routes, and the endpoints of its namespace.
const OBJECTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: eg
  namespace: default
  uid: gateway
  labels: {gateway.tailscale.com/egress: "true"}
spec:
  gatewayClassName: eg
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {name: example, namespace: default, uid: example, generation: 3, resourceVersion: "1", creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  endpoints:
  - {name: web, port: 80, externalTarget: "example.com:8080"}
  - {name: api, port: 443, protocol: HTTPS, externalTarget: "192.0.2.1:443", healthCheck: {path: /up, interval: 5s}}
  - {name: inside, port: 8080, tailscaleFQDN: inside}
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleTailnet
metadata: {name: tailnet}
spec: {credentials: {secretRef: {name: oauth}}}
"#;

const EGRESS: &str = "example-egress-default-28e00c8f";

fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key {
        kind,
        name: ObjectName::new(namespace, name),
    }
}

fn example() -> ObjectName {
    ObjectName::new("default", "example")
}

async fn world_of(objects: Vec<Object>, notes: Vec<Note>) -> World {
    World::clone(&*published(objects, notes).await)
}

async fn world(more: &str, notes: Vec<Note>) -> World {
    world_of(objects(&format!("{OBJECTS}---\n{more}")), notes).await
}

fn set(world: &World) -> Value {
    egress_objects(world)
        .remove(&key(Kind::EgressSet, "default", "eg"))
        .unwrap_or_default()
}

/// Route, cluster, path and source of each service.
fn routes(set: &Value) -> Vec<Value> {
    let services = set["spec"]["services"].as_array().cloned();
    let services = services.into_iter().flatten();
    services
        .map(|s| json!([s["route"], s["cluster"], s["pathPrefix"], s["source"]]))
        .collect()
}

#[tokio::test]
async fn a_gateway_that_asks_gets_a_set_with_all_it_takes_to_reach_the_endpoints() {
    let world = world("", Vec::new()).await;
    let set = set(&world);
    let metadata = &set["metadata"];
    assert_eq!(
        metadata["labels"],
        json!({"app.kubernetes.io/managed-by": "tailway-controller"})
    );
    assert_eq!(metadata["ownerReferences"][0]["uid"], "gateway");
    let targets = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "eg"}]);
    assert_eq!(set["spec"]["targetRefs"], targets);
    let service = |name: &str, path: &str, upstream: Value| {
        json!({
            "name": name, "source": "default/example", "route": format!("tailscale-egress-{name}"),
            "pathPrefix": path, "cluster": format!("external-backend-{name}"), "upstream": upstream,
        })
    };
    let check = json!({
        "enabled": true, "path": "/up", "interval": "5s", "timeout": "3s",
        "healthyThreshold": 2, "unhealthyThreshold": 3,
    });
    let host = format!("{EGRESS}.tailway-system.svc.cluster.local");
    let port = egress::ports(["api", "inside", "web"])["inside"];
    assert_eq!(
        set["spec"]["services"],
        json!([
            service(
                "api",
                "/api/api",
                json!({
                    "protocol": "HTTPS", "host": "192.0.2.1", "healthCheck": check,
                    "targets": [{"host": "192.0.2.1", "port": 443, "weight": 1}],
                    "tls": {"serverName": "192.0.2.1", "insecureSkipVerify": false},
                })
            ),
            service(
                "inside",
                "/api/inside",
                json!({
                    "protocol": "HTTP", "host": "inside:8080",
                    "targets": [{"host": host, "port": port, "weight": 1}],
                })
            ),
            service(
                "web",
                "/api/web",
                json!({
                    "protocol": "HTTP", "host": "example.com:8080",
                    "targets": [{"host": "example.com", "port": 8080, "weight": 1}],
                })
            ),
        ])
    );
}

#[tokio::test]
async fn the_same_objects_give_the_same_bytes_and_another_revision_comes_with_a_change_alone() {
    let one = set(&world("", Vec::new()).await);
    let again = set(&world("", Vec::new()).await);
    assert_eq!(one.to_string(), again.to_string());
    let moved = OBJECTS.replace("example.com:8080", "example.com:8081");
    let moved = set(&world_of(objects(&moved), Vec::new()).await);
    assert_ne!(one["spec"]["revision"], moved["spec"]["revision"]);
}

#[tokio::test]
async fn a_gateway_that_does_not_ask_or_is_ours_gets_nothing() {
    let without = OBJECTS.replace(r#"egress: "true""#, r#"egress: "false""#);
    assert_eq!(
        set(&world_of(objects(&without), Vec::new()).await),
        Value::Null
    );
    let ours = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: eg}
spec: {controllerName: tailway.michaelbeaumont.github.io/controller}
";
    assert_eq!(set(&world(ours, Vec::new()).await), Value::Null);
}

fn foreign(more: &str) -> String {
    format!(
        "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {{name: theirs, namespace: other, uid: theirs, generation: 1, resourceVersion: '1', creationTimestamp: '2026-01-02T00:00:00Z'}}
spec:
  endpoints:
  - {{name: web, port: 80, externalTarget: 'theirs.example.com:80'}}
  - {{name: more, port: 80, externalTarget: 'theirs.example.com:80'}}
---
{more}"
    )
}

#[tokio::test]
async fn endpoints_of_another_namespace_are_routed_to_only_where_they_are_let_in() {
    let names = |world: &World| -> Vec<Value> {
        let set = set(world);
        let services = set["spec"]["services"].as_array().unwrap().clone();
        services.into_iter().map(|s| s["name"].clone()).collect()
    };
    let namespace = |label: &str| {
        foreign(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: other, labels: {{{label}}}}}\n"
        ))
    };
    let grant = |name: &str| {
        foreign(&format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: let-in, namespace: default}}
spec:
  from: [{{group: gateway.tailscale.com, kind: TailscaleEndpoints, namespace: other}}]
  to: [{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}]
"
        ))
    };
    let alone = ["api", "inside", "web"];
    let together = ["api", "inside", "more", "web"];
    let cases = [
        (namespace(""), &alone[..]),
        (namespace("gateway.tailscale.com/egress: 'true'"), &together),
        (grant("eg"), &together),
        (grant("another"), &alone),
    ];
    for (objects, expected) in cases {
        assert_eq!(
            names(&world(&objects, Vec::new()).await),
            expected,
            "{objects}"
        );
    }
}

#[tokio::test]
async fn of_two_objects_that_want_one_path_the_older_has_it_and_the_other_is_told() {
    let let_in = foreign(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {gateway.tailscale.com/egress: 'true'}}\n",
    );
    let world = world(&let_in, Vec::new()).await;
    let web: Vec<_> = routes(&set(&world))
        .into_iter()
        .filter(|route| route[2] == "/api/web")
        .collect();
    assert_eq!(
        web,
        [json!([
            "tailscale-egress-web",
            "external-backend-web",
            "/api/web",
            "default/example"
        ])]
    );
    let conflicted = conditions(&world, "other", "theirs")
        .remove("Conflicted")
        .unwrap();
    assert_eq!(
        conflicted,
        [
            "True",
            "Conflicted",
            "/api/web of Gateway default/eg goes to endpoint web of default/example, which is older, and not to endpoint web"
        ]
    );
}

#[tokio::test]
async fn with_paths_of_their_own_two_of_one_name_are_told_apart_by_their_objects() {
    let let_in = foreign(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {gateway.tailscale.com/egress: 'true'}}\n",
    );
    let annotated = OBJECTS.replace(
        "  labels:",
        "  annotations: {gateway.tailscale.com/egress-path: '/{namespace}/{service}'}\n  labels:",
    );
    let world = world_of(objects(&format!("{annotated}---\n{let_in}")), Vec::new()).await;
    let web: Vec<_> = routes(&set(&world))
        .into_iter()
        .filter(|route| route[2].as_str().unwrap().ends_with("/web"))
        .collect();
    assert_eq!(
        web,
        [
            json!([
                "tailscale-egress-web",
                "external-backend-web",
                "/default/web",
                "default/example"
            ]),
            json!([
                "tailscale-egress-web.other.theirs",
                "external-backend-web.other.theirs",
                "/other/web",
                "other/theirs"
            ]),
        ]
    );
}

#[tokio::test]
async fn each_endpoint_of_http_is_a_backend_unless_the_name_is_somebody_elses() {
    let by_hand = "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleBackend
metadata: {name: example-web, namespace: default, uid: hand}
spec: {upstream: {targets: [{host: elsewhere.example.com, port: 80}]}}
";
    let world = world(by_hand, Vec::new()).await;
    let objects = egress_objects(&world);
    let backends: Vec<_> = objects
        .keys()
        .filter(|key| key.kind == Kind::Backend)
        .map(|key| key.name.to_string())
        .collect();
    assert_eq!(backends, ["default/example-api", "default/example-inside"]);
    let status = status(&world, "default", "example");
    let web = status["endpointStatus"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(web["message"], "TailscaleBackend example-web is another's");
}

/// A report of a pod of the egress.
fn report(ordinal: u32, health: Health) -> Note {
    let report = NodeReport {
        health: [("inside".to_owned(), health)].into(),
        ..NodeReport::default()
    };
    Note::Report(egress::replica(&example(), ordinal), Some(report))
}

fn unhealthy() -> Health {
    Health::Unhealthy {
        reason: "connection refused".into(),
    }
}

#[tokio::test]
async fn what_no_pod_of_the_egress_can_use_is_left_out() {
    let checked = OBJECTS.replace(
        "tailscaleFQDN: inside",
        "tailscaleFQDN: inside, healthCheck: {path: /}",
    );
    let targets = async |notes| {
        let world = world_of(objects(&checked), notes).await;
        let set = set(&world);
        let status = status(&world, "default", "example");
        let inside = status["endpointStatus"][1].clone();
        let targets = set["spec"]["services"][1]["upstream"]["targets"]
            .as_array()
            .unwrap()
            .len();
        (
            targets,
            inside["healthStatus"].clone(),
            inside["message"].clone(),
        )
    };
    let known = targets(vec![report(0, unhealthy()), report(1, Health::Healthy)]).await;
    assert_eq!(known, (1, json!("Healthy"), Value::Null));
    let known = targets(vec![report(0, unhealthy()), report(1, unhealthy())]).await;
    assert_eq!(known, (0, json!("Unhealthy"), json!("connection refused")));
    assert_eq!(
        targets(Vec::new()).await,
        (1, json!("Unknown"), Value::Null)
    );
}

fn status(world: &World, namespace: &str, name: &str) -> Value {
    let key = key(Kind::Endpoints, namespace, name);
    let now = "2026-02-01T00:00:00Z".parse().unwrap();
    let writes = plan(world, &[key].into(), now);
    writes
        .into_iter()
        .next()
        .map(|write| write.status)
        .unwrap_or_default()
}

/// Status, reason and message of each condition, by type.
fn conditions(world: &World, namespace: &str, name: &str) -> BTreeMap<String, [String; 3]> {
    let status = status(world, namespace, name);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .map(|condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
            (
                text("type"),
                [text("status"), text("reason"), text("message")],
            )
        })
        .collect()
}

#[tokio::test]
async fn an_object_is_programmed_once_its_egress_is_up_and_its_routes_were_served() {
    let programmed = async |more: &str, ready: i32| {
        let state = EgressState {
            desired: 2,
            ready,
            problem: if ready == 0 {
                "pod x: image not there".into()
            } else {
                String::new()
            },
        };
        let world = world(more, vec![Note::Egress(example(), Some(state))]).await;
        conditions(&world, "default", "example")
            .remove("Programmed")
            .unwrap()
    };
    let revision = set(&world("", Vec::new()).await)["spec"]["revision"]
        .as_str()
        .unwrap()
        .to_owned();
    let set_of = |served: &str| {
        format!(
            "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEgressSet
metadata: {{name: eg, namespace: default, annotations: {{gateway.tailscale.com/served: '{served}'}}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: eg}}]
  revision: {revision}
  services: [{{name: web, source: default/example, route: tailscale-egress-web, pathPrefix: /api/web, cluster: external-backend-web, upstream: {{targets: []}}}}]
"
        )
    };
    let served = format!(r#"{{"revision":"{revision}"}}"#);
    let skipped = format!(
        r#"{{"revision":"{revision}","skipped":[{{"service":"web","source":"default/example","message":"no such port"}}]}}"#
    );
    let pending = |message: &str| ["False".to_owned(), "Pending".into(), message.into()];
    assert_eq!(
        programmed("", 1).await,
        pending("Gateway default/eg: its TailscaleEgressSet is being made")
    );
    assert_eq!(
        programmed(&set_of("{}"), 1).await,
        pending(&format!(
            "Gateway default/eg: Envoy Gateway has not taken revision {revision} yet"
        ))
    );
    assert_eq!(
        programmed(&set_of(&skipped), 1).await,
        pending("Gateway default/eg: web is left out: no such port")
    );
    assert_eq!(
        programmed(&set_of(&served), 0).await,
        pending("no pod of the egress is ready: pod x: image not there")
    );
    assert_eq!(
        programmed(&set_of(&served), 1).await,
        ["True", "Programmed", "served by 1 Gateway of Envoy Gateway"]
    );
}

#[tokio::test]
async fn a_bad_endpoint_is_named_and_the_good_ones_are_used() {
    let bad = OBJECTS.replace("example.com:8080", "example.com:99999");
    let world = world_of(objects(&bad), Vec::new()).await;
    let accepted = conditions(&world, "default", "example")
        .remove("Accepted")
        .unwrap();
    assert_eq!(accepted[..2], ["True", "PartiallyInvalid"]);
    assert!(
        accepted[2].contains("endpoint web: externalTarget \"example.com:99999\""),
        "{accepted:?}"
    );
    let names: Vec<_> = routes(&set(&world))
        .into_iter()
        .map(|r| r[0].clone())
        .collect();
    assert_eq!(names, ["tailscale-egress-api", "tailscale-egress-inside"]);
}

#[tokio::test]
async fn a_status_that_is_there_is_not_written_again() {
    let world = world("", Vec::new()).await;
    let written = status(&world, "default", "example");
    assert_eq!(written["totalEndpoints"], 3);
    let mut again = objects(OBJECTS);
    for object in &mut again {
        if let Object::Endpoints(endpoints) = object {
            endpoints.status = Some(serde_json::from_value(written.clone()).unwrap());
        }
    }
    let world = world_of(again, Vec::new()).await;
    assert_eq!(status(&world, "default", "example"), Value::Null);
}

/// What the condition of a TailscaleBackend says, with a route.
async fn accepted(upstream: &str, rule: &str) -> [String; 4] {
    accepted_where(false, upstream, rule).await
}

/// The same, where targets may be local or not.
async fn accepted_where(local_targets: bool, upstream: &str, rule: &str) -> [String; 4] {
    let yaml = format!(
        "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleBackend
metadata: {{name: shop, namespace: default, uid: shop, generation: 1, resourceVersion: '1'}}
spec: {{upstream: {{{upstream}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop, namespace: default}}
spec:
  parentRefs: [{{name: eg}}]
  rules: [{{backendRefs: [{rule}]}}]
"
    );
    let engine = engine().with_local_targets(local_targets);
    let objects = objects(&format!("{OBJECTS}---\n{yaml}"));
    let world = world_by(engine, objects, Vec::new()).await;
    let key = key(Kind::Backend, "default", "shop");
    let now = "2026-02-01T00:00:00Z".parse().unwrap();
    let [write] = plan(&world, &[key].into(), now).try_into().unwrap();
    let condition = &write.status["conditions"][0];
    ["type", "status", "reason", "message"].map(|field| condition[field].as_str().unwrap().into())
}

const SHOP: &str = "{group: gateway.tailscale.com, kind: TailscaleBackend, name: shop, port: 80}";

#[tokio::test]
async fn a_backend_that_envoy_is_not_told_of_says_why() {
    for (upstream, why) in [
        (
            "targets: [{host: 127.0.0.1, port: 80}]",
            "target 127.0.0.1 is of Envoy's own host or network segment; --allow-local-targets lets it be used",
        ),
        (
            "protocol: UDP, targets: [{host: shop.example.com, port: 80}]",
            "UDP cannot be routed by HTTP",
        ),
        (
            "targets: [{host: shop.example.com, port: 80}], healthCheck: {interval: 0s}",
            "interval of the health check cannot be \"0s\"",
        ),
    ] {
        let message = format!("Envoy is not told of it: {why}");
        assert_eq!(
            accepted(upstream, SHOP).await,
            ["Accepted", "False", "Invalid", &message]
        );
    }
    let local = "targets: [{host: 127.0.0.1, port: 80}]";
    assert_eq!(accepted_where(true, local, SHOP).await[1], "True");
}

#[tokio::test]
async fn a_backend_beside_others_in_a_rule_is_refused_with_the_rule() {
    let upstream = "targets: [{host: shop.example.com, port: 80}]";
    assert_eq!(
        accepted(upstream, SHOP).await,
        ["Accepted", "True", "Accepted", ""]
    );
    let both = format!("{SHOP}, {{name: fallback, port: 80}}");
    let refused = accepted(upstream, &both).await;
    assert_eq!(refused[..3], ["Accepted", "False", "UnsupportedValue"]);
    let rule = "it is not in rule 0 of HTTPRoute default/shop";
    assert!(refused[3].ends_with(rule), "{refused:?}");
}
