//! What is written into the statuses of ListenerSets and BackendTLSPolicies.

use super::world::{NODE, OBJECTS, accepted, objects, up, with_statuses, world};
use serde_json::{Value, json};
use tailway::{
    api::CONTROLLER,
    controller::{Note, StatusWrite, World, changed, plan},
};

const NOW: &str = "2026-01-02T00:00:00Z";

/// A Gateway that lets a ListenerSet in, and a policy for the backend of a route to it.
fn yaml() -> String {
    let gateway = "listeners: [{name: tcp, port: 80, protocol: TCP}]";
    let allowing = format!("{gateway}\n  allowedListeners: {{namespaces: {{from: Same}}}}");
    let base = OBJECTS.replace(gateway, &allowing);
    format!(
        "{base}---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {{name: more, namespace: web, generation: 4, resourceVersion: \"13\", uid: set}}
spec:
  parentRef: {{name: nginx}}
  listeners: [{{name: http, port: 8080, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: web, generation: 1, resourceVersion: \"14\", uid: http}}
spec:
  parentRefs: [{{kind: ListenerSet, name: more}}]
  rules: [{{backendRefs: [{{name: nginx, port: 80}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: tls, namespace: web, generation: 2, resourceVersion: \"15\", uid: policy}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: nginx}}]
  validation: {{hostname: app.example.com, wellKnownCACertificates: System}}
"
    )
}

async fn planned(yaml: &str, statuses: &[(&str, Value)], notes: Vec<Note>) -> Vec<StatusWrite> {
    let world = world(with_statuses(objects(yaml), statuses), notes).await;
    let all = changed(&world, &World::default());
    plan(&world, &all, NOW.parse().unwrap())
}

/// The status that is written to the one object of a kind, if one is.
fn of(writes: &[StatusWrite], kind: &str) -> Option<Value> {
    let mut these = writes
        .iter()
        .filter(|write| write.key.kind.as_str() == kind);
    let status = these.next().map(|write| write.status.clone());
    assert_eq!(these.next(), None);
    status
}

fn condition(kind: &str, generation: i64) -> Value {
    json!({
        "type": kind,
        "status": "True",
        "reason": kind,
        "message": "",
        "observedGeneration": generation,
        "lastTransitionTime": NOW,
    })
}

fn ancestor(controller: &str, name: &str) -> Value {
    json!({
        "ancestorRef": {
            "group": "gateway.networking.k8s.io",
            "kind": "Gateway",
            "namespace": "web",
            "name": name,
        },
        "controllerName": controller,
        "conditions": [condition("Accepted", 2), condition("ResolvedRefs", 2)],
    })
}

#[tokio::test]
async fn a_listener_set_tells_of_its_own_generation_and_its_gateway_counts_it() {
    let writes = planned(&yaml(), &[], vec![accepted(), up()]).await;
    let kinds = json!([
        {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"},
    ]);
    let set = of(&writes, "ListenerSet").unwrap();
    assert_eq!(
        set["conditions"],
        json!([condition("Accepted", 4), condition("Programmed", 4)])
    );
    let listener = &set["listeners"][0];
    assert_eq!(listener["name"], "http");
    assert_eq!(listener["attachedRoutes"], 1);
    assert_eq!(listener["supportedKinds"][0], kinds[0]);
    let gateway = of(&writes, "Gateway").unwrap();
    assert_eq!(gateway["attachedListenerSets"], 1);
    assert_eq!(gateway["listeners"].as_array().unwrap().len(), 1);
    assert_eq!(gateway["addresses"][0]["value"], NODE);
}

#[tokio::test]
async fn a_gateway_whose_listener_sets_left_counts_none() {
    let there = of(
        &planned(&yaml(), &[], vec![accepted(), up()]).await,
        "Gateway",
    );
    let gone = yaml().replace("parentRef: {name: nginx}", "parentRef: {name: else}");
    let statuses = [("Gateway", there.unwrap())];
    let writes = planned(&gone, &statuses, vec![accepted(), up()]).await;
    let gateway = of(&writes, "Gateway").unwrap();
    assert_eq!(gateway["attachedListenerSets"], 0);
}

#[tokio::test]
async fn statuses_that_are_there_already_are_not_written_again() {
    let writes = planned(&yaml(), &[], vec![accepted(), up()]).await;
    let kinds = [
        "GatewayClass",
        "Gateway",
        "ListenerSet",
        "TCPRoute",
        "HTTPRoute",
        "BackendTLSPolicy",
    ];
    let written = kinds.map(|kind| (kind, of(&writes, kind).unwrap()));
    let again = planned(&yaml(), &written, vec![accepted(), up()]).await;
    assert_eq!(again, []);
}

#[tokio::test]
async fn a_policy_keeps_the_ancestors_of_others_and_tells_of_ours_in_the_room_they_leave() {
    let writes = planned(&yaml(), &[], vec![accepted(), up()]).await;
    let ours = ancestor(CONTROLLER, "nginx");
    let expected = json!({ "ancestors": [ours] });
    assert_eq!(of(&writes, "BackendTLSPolicy"), Some(expected));

    let theirs = ancestor("example.com/other", "theirs");
    let stale = ancestor(CONTROLLER, "gone");
    let there = [("BackendTLSPolicy", json!({"ancestors": [stale, theirs]}))];
    let writes = planned(&yaml(), &there, vec![accepted(), up()]).await;
    let expected = json!({ "ancestors": [theirs, ours] });
    assert_eq!(of(&writes, "BackendTLSPolicy"), Some(expected));

    let full = vec![theirs; 16];
    let there = [("BackendTLSPolicy", json!({ "ancestors": full }))];
    let writes = planned(&yaml(), &there, vec![accepted(), up()]).await;
    assert_eq!(of(&writes, "BackendTLSPolicy"), None);
}

#[tokio::test]
async fn a_policy_that_no_route_needs_any_more_loses_its_status() {
    let there = json!({"ancestors": [ancestor(CONTROLLER, "nginx")]});
    let there = [("BackendTLSPolicy", there)];
    let moved = yaml().replace("kind: ListenerSet, name: more}]", "name: else}]");
    let writes = planned(&moved, &there, vec![accepted(), up()]).await;
    let expected = json!({"ancestors": []});
    assert_eq!(of(&writes, "BackendTLSPolicy"), Some(expected));
}
