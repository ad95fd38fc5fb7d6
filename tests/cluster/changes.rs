//! What changes while a Gateway is served, as a client of the tailnet sees it.

use super::{
    lab::PROBE,
    scene::{SYSTEM, Scene, site},
};
use serde_json::{Value, json};

const NAME: &str = "changes";

/// The listeners of the Gateway: TLS on 443, and these.
async fn listeners(scene: &Scene, more: &[Value]) {
    let tls = json!({ "name": "https", "port": 443, "protocol": "TLS", "tls": {
        "mode": "Terminate", "options": { "gateway.tailscale.com/certificate": "tailnet" },
    }});
    let listeners: Vec<_> = [&tls].into_iter().chain(more).collect();
    let patch = json!({ "spec": { "listeners": listeners } });
    scene.patch(NAME, "gateway/changes", patch).await;
}

/// The Service and its only backend of the route.
async fn lead_to(scene: &Scene, service: &str, port: u16) {
    let backend = json!({ "name": service, "port": port });
    let patch = json!({ "spec": { "rules": [{ "backendRefs": [backend] }] } });
    scene.patch(NAME, "tcproute/changes", patch).await;
}

async fn service_port(scene: &Scene, port: u16, target: u16) {
    let patch = json!({ "spec": { "ports": [{ "port": port, "targetPort": target }] } });
    scene.patch(NAME, "service/changes", patch).await;
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAME}, labels: {{app: {app}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]
"
    )
}

fn other_service() -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: other, namespace: {NAME}}}
spec: {{selector: {{app: other}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    )
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_changes_in_the_cluster_changes_for_the_client() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class(NAME)).await;
    lab.apply(&site(NAME, NAME)).await;
    lab.apply(&[pod("other", "other"), other_service()].concat())
        .await;
    scene.programmed(NAME, NAME).await;
    let domain = scene.tailnet.domain();
    let https = format!("https://changes.{domain}/");
    scene.page(&https, "changes /\n").await;

    of_listeners(&scene, &https).await;
    of_the_route(&scene, &https).await;
    of_the_service(&scene, &https).await;
    of_endpoints(&scene, &https).await;
    of_infrastructure(&scene, &https).await;
    of_the_name(&scene).await;

    lab.kubectl(["delete", "namespace", NAME]).await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    assert_eq!(scene.nodes().await, ["visitor"]);
    lab.delete(&scene.class(NAME)).await;
}

async fn of_listeners(scene: &Scene, https: &str) {
    let at = |port: u16| format!("http://changes.{}:{port}/", scene.tailnet.domain());
    scene.closed(&at(7000)).await;
    let tcp = |port: u16| json!({ "name": "tcp", "port": port, "protocol": "TCP" });
    listeners(scene, &[tcp(7000)]).await;
    scene.page(&at(7000), "changes /\n").await;
    listeners(scene, &[tcp(7001)]).await;
    scene.page(&at(7001), "changes /\n").await;
    scene.closed(&at(7000)).await;
    listeners(scene, &[]).await;
    scene.closed(&at(7001)).await;
    scene.programmed(NAME, NAME).await;
    scene.page(https, "changes /\n").await;
}

async fn of_the_route(scene: &Scene, https: &str) {
    lead_to(scene, "other", 80).await;
    scene.page(https, "other /\n").await;
    let attached = async || {
        let gateway = scene.lab.object(NAME, "gateway/changes").await.unwrap();
        gateway["status"]["listeners"][0]["attachedRoutes"].clone()
    };
    assert_eq!(attached().await, 1);
    let route = scene.lab.object(NAME, "tcproute/changes").await.unwrap();
    scene
        .lab
        .kubectl(["delete", "tcproute/changes", "--namespace", NAME])
        .await;
    scene.closed(https).await;
    scene
        .lab
        .eventually("no route is attached", || async {
            (attached().await == 0).then_some(())
        })
        .await;
    let again = json!({
        "apiVersion": route["apiVersion"], "kind": "TCPRoute",
        "metadata": { "name": NAME, "namespace": NAME }, "spec": route["spec"],
    });
    scene.lab.apply(&again.to_string()).await;
    scene.page(https, "other /\n").await;
    lead_to(scene, NAME, 80).await;
    scene.page(https, "changes /\n").await;
}

async fn of_the_service(scene: &Scene, https: &str) {
    // Where nobody listens, and back.
    service_port(scene, 80, 9).await;
    scene.closed(https).await;
    service_port(scene, 80, 8080).await;
    scene.page(https, "changes /\n").await;

    service_port(scene, 81, 8080).await;
    let missing = ("ResolvedRefs", "False", "BackendNotFound");
    let message = scene.route_condition(NAME, NAME, missing).await;
    assert!(message.contains("Service changes/changes"), "{message}");
    scene.closed(https).await;
    lead_to(scene, NAME, 81).await;
    let resolved = ("ResolvedRefs", "True", "ResolvedRefs");
    scene.route_condition(NAME, NAME, resolved).await;
    scene.page(https, "changes /\n").await;
}

async fn of_endpoints(scene: &Scene, https: &str) {
    let lab = scene.lab;
    for (old, new) in [("changes", "second"), ("second", "third")] {
        lab.apply(&pod(new, NAME)).await;
        let ready = ["--for=condition=Ready", "--namespace", NAME];
        let new_pod = format!("pod/{new}");
        lab.wait(ready.into_iter().chain([&*new_pod])).await;
        let old_pod = format!("pod/{old}");
        lab.kubectl(["delete", &old_pod, "--namespace", NAME]).await;
        scene.page(https, &format!("{new} /\n")).await;
    }
    lab.kubectl(["delete", "pod/third", "--namespace", NAME])
        .await;
    scene.closed(https).await;
    lab.apply(&pod("fourth", NAME)).await;
    scene.page(https, "fourth /\n").await;
}

/// What is on everything that was made for the Gateway, and whose node it is.
async fn made(scene: &Scene) -> Vec<Value> {
    let kinds = "statefulset,pod,service,serviceaccount,role,rolebinding,secret";
    let list = ["get", kinds, "--namespace", SYSTEM, "--output=json"];
    let made = "app.kubernetes.io/instance=changes-changes";
    let list = scene
        .lab
        .kubectl(list.into_iter().chain(["--selector", made]))
        .await;
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

async fn of_infrastructure(scene: &Scene, https: &str) {
    let node = scene.node(NAME).await["stable_id"].clone();
    // Ours are nobody else's to set.
    let patch = json!({ "spec": { "infrastructure": {
        "labels": { "team": "shop", "app.kubernetes.io/managed-by": "somebody" },
        "annotations": { "example.com/contact": "shop@example.com", "tailway.michaelbeaumont.github.io/node-ids": "n1" },
    }}});
    scene.patch(NAME, "gateway/changes", patch).await;
    let carried = |object: &Value| {
        let metadata = &object["metadata"];
        metadata["labels"]["team"] == "shop"
            && metadata["annotations"]["example.com/contact"] == "shop@example.com"
    };
    let all = scene
        .lab
        .eventually("all carries the labels and annotations", || async {
            let all = made(scene).await;
            let pods = all.iter().filter(|object| object["kind"] == "Pod").count();
            (pods == 1 && all.iter().all(carried)).then_some(all)
        })
        .await;
    assert_eq!(all.len(), 7, "{all:?}");
    for object in &all {
        let metadata = &object["metadata"];
        let manager = &metadata["labels"]["app.kubernetes.io/managed-by"];
        assert_eq!(manager, "tailway-controller", "{object}");
        let nodes = &metadata["annotations"]["tailway.michaelbeaumont.github.io/node-ids"];
        assert_ne!(nodes, "n1", "{object}");
    }
    // It was made anew, and is the same node.
    scene.page(https, "fourth /\n").await;
    scene.programmed(NAME, NAME).await;
    assert_eq!(scene.node(NAME).await["stable_id"], node);
}

async fn of_the_name(scene: &Scene) {
    let lab = scene.lab;
    let identity = async || {
        let set = lab.object(SYSTEM, "statefulset/changes-changes").await;
        let secret = lab.object(SYSTEM, "secret/changes-changes-state").await;
        [set, secret].map(|object| object.unwrap()["metadata"]["uid"].clone())
    };
    let before = (
        identity().await,
        scene.node(NAME).await["stable_id"].clone(),
    );
    let address = json!({ "type": "Hostname", "value": "renamed" });
    let patch = json!({ "spec": { "addresses": [address] } });
    scene.patch(NAME, "gateway/changes", patch).await;
    let name = format!("renamed.{}", scene.tailnet.domain());
    scene.page(&format!("https://{name}/"), "fourth /\n").await;
    let status = scene.programmed(NAME, NAME).await;
    assert_eq!(status["addresses"][0]["value"], json!(name));
    let after = (
        identity().await,
        scene.node("renamed").await["stable_id"].clone(),
    );
    assert_eq!(after, before);
    assert_eq!(scene.keys_minted().await, 1);
}
