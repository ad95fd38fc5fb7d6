//! Routes of HTTP: objects of a cluster, requests of a tailnet, pods behind.

use super::{lab::PROBE, scene::Scene};
use serde_json::{Value, json};

/// A Gateway with HTTPS and HTTP, two sites behind it, and a listener of another namespace.
fn objects() -> String {
    let pod = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]}}
---
"
        )
    };
    let mut yaml = pod("routes", "one") + &pod("routes", "two") + &pod("guests", "three");
    yaml.insert_str(
        0,
        "apiVersion: v1
kind: Namespace
metadata: {name: routes}
---
apiVersion: v1
kind: Namespace
metadata: {name: guests}
---
",
    );
    yaml + "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: routes, namespace: routes}
spec:
  gatewayClassName: routes
  addresses: [{type: Hostname, value: routes}]
  allowedListeners: {namespaces: {from: All}}
  listeners:
    - {name: https, port: 443, protocol: HTTPS, tls: {options: {gateway.tailscale.com/certificate: tailnet}}}
    - {name: http, port: 80, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: sites, namespace: routes}
spec:
  parentRefs: [{name: routes, sectionName: https}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /two}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
      backendRefs: [{name: two, port: 80}]
    - backendRefs: [{name: one, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: to-https, namespace: routes}
spec:
  parentRefs: [{name: routes, port: 80}]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: guests, namespace: guests}
spec:
  parentRef: {name: routes, namespace: routes}
  listeners: [{name: guests, port: 8080, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: guests, namespace: guests}
spec:
  parentRefs: [{kind: ListenerSet, name: guests}]
  rules: [{backendRefs: [{name: three, port: 80}]}]
"
}

/// Waits until a route's one parent has accepted it as it is, and found its backends.
async fn accepted(scene: &Scene, namespace: &str, route: &str) {
    let object = format!("httproute/{route}");
    let what = format!("{object} is accepted");
    let current = || async {
        let route = scene.lab.object(namespace, &object).await?;
        let [parent] = route["status"]["parents"].as_array()?.as_slice() else {
            return None;
        };
        let conditions = parent["conditions"].as_array()?.iter().map(|condition| {
            let current = condition["observedGeneration"] == route["metadata"]["generation"];
            json!([condition["type"], condition["status"], current])
        });
        let conditions: Value = conditions.collect();
        let expected = json!([["Accepted", "True", true], ["ResolvedRefs", "True", true]]);
        (conditions == expected).then_some(())
    };
    scene.lab.eventually(&what, current).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn requests_find_their_pods_and_pods_know_who_asks() {
    let scene = Scene::start().await;
    scene.lab.apply(&scene.class("routes")).await;
    scene.lab.apply(&objects()).await;
    let status = scene.programmed("routes", "routes").await;
    assert_eq!(status["attachedListenerSets"], json!(1));
    for (namespace, route) in [
        ("routes", "sites"),
        ("routes", "to-https"),
        ("guests", "guests"),
    ] {
        accepted(&scene, namespace, route).await;
    }
    let programmed = ("Programmed", "True", "Programmed");
    scene
        .condition("guests", "listenerset/guests", programmed)
        .await;

    let host = format!("routes.{}", scene.tailnet.domain());
    scene.page(&format!("https://{host}/a"), "one /a\n").await;
    scene
        .page(&format!("https://{host}/two/b"), "two /b\n")
        .await;
    scene
        .page(&format!("http://{host}:8080/c"), "three /c\n")
        .await;
    let login = "header=Tailscale-User-Login";
    let visitor = "[owner@example.com]\n";
    scene
        .page(&format!("https://{host}/?{login}"), visitor)
        .await;
    let answer = scene.tailnet.visit(&format!("http://{host}/d?e")).await;
    let answer = answer.unwrap();
    assert_eq!(answer["status"], json!(301));
    let location = format!("https://{host}/d?e");
    assert_eq!(answer["headers"]["Location"], json!([location]), "{answer}");

    // A pod that goes takes its endpoint with it; the others serve on.
    scene
        .lab
        .kubectl(["delete", "pod/two", "--namespace=routes"])
        .await;
    let gone = format!("https://{host}/two/b");
    let what = "no endpoint answers 503";
    let unavailable = || async {
        let answer = scene.tailnet.visit(&gone).await.ok()?;
        (answer["status"] == json!(503)).then_some(())
    };
    scene.lab.eventually(what, unavailable).await;
    scene.page(&format!("https://{host}/a"), "one /a\n").await;

    let namespaces = ["delete", "namespace/routes", "namespace/guests"];
    scene.lab.kubectl(namespaces).await;
    let what = "nothing is left of it";
    let empty = || async { scene.made().await.is_empty().then_some(()) };
    scene.lab.eventually(what, empty).await;
}
