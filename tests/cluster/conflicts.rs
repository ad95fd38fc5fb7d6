//! Two that want the same: the first by age, then name, has it, and the other takes over from it.

use super::{
    lab::PROBE,
    scene::{SYSTEM, Scene},
};
use serde_json::{Value, json};

const SPACE: &str = "conflicts";

/// A Gateway in the tests' namespace.
fn gateway(name: &str, hostname: &str, annotations: &str, listeners: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {SPACE}, annotations: {{{annotations}}}}}
spec:
  gatewayClassName: conflicts
  addresses: [{{type: Hostname, value: {hostname}}}]
  listeners: [{listeners}]
"
    )
}

/// A route from a Gateway to the pod of this name.
fn route(name: &str, gateway: &str, backend: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: {name}, namespace: {SPACE}}}
spec:
  parentRefs: [{{name: {gateway}}}]
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"
    )
}

fn backend(name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {SPACE}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {SPACE}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]}}
"
    )
}

fn space() -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {SPACE}}}\n")
}

const HTTP: &str = "{name: http, port: 80, protocol: TCP}";

#[tokio::test]
#[ignore = "make cluster"]
async fn the_first_is_served_and_named_and_the_next_takes_over_by_itself() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    let class = scene.class("conflicts");
    lab.apply(&[class.clone(), space(), backend("red"), backend("blue")].concat())
        .await;
    // By name where both are of one second, and by age else: the same order.
    lab.apply(&gateway("a-first", "shared", "", HTTP)).await;
    lab.apply(&gateway("b-second", "shared", "", HTTP)).await;
    lab.apply(&route("a-first", "a-first", "red")).await;
    lab.apply(&route("b-second", "b-second", "blue")).await;
    lab.apply(&route("c-late", "a-first", "blue")).await;
    let url = format!("http://shared.{}/", scene.tailnet.domain());
    scene.programmed(SPACE, "a-first").await;
    scene.page(&url, "red /\n").await;

    one_hostname(&scene, &url).await;
    one_port(&scene).await;

    lab.kubectl(["delete", "namespace", SPACE]).await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    lab.delete(&class).await;
}

/// Two Gateways of one hostname, and two routes of one listener.
async fn one_hostname(scene: &Scene, url: &str) {
    let lab = scene.lab;
    let taken = ("Programmed", "False", "AddressNotUsable");
    let message = scene.condition(SPACE, "gateway/b-second", taken).await;
    let holder = "the node name shared is that of Gateway conflicts/a-first";
    assert!(message.contains(holder), "{message}");
    let accepted = ("Accepted", "True", "Accepted");
    scene.condition(SPACE, "gateway/b-second", accepted).await;
    let second = lab.object(SPACE, "gateway/b-second").await.unwrap();
    assert_eq!(second["status"]["addresses"], json!([]));
    let sets = [
        "get",
        "statefulsets",
        "--namespace",
        SYSTEM,
        "--output=name",
    ];
    assert_eq!(lab.kubectl(sets).await.lines().count(), 1);

    let conflicted = "tailway.michaelbeaumont.github.io/Conflicted";
    let older = (conflicted, "True", "OlderRoute");
    let message = scene.route_condition(SPACE, "c-late", older).await;
    let holder = "listener http serves TCPRoute conflicts/a-first";
    assert!(message.contains(holder), "{message}");
    lab.kubectl(["delete", "tcproute/a-first", "--namespace", SPACE])
        .await;
    scene.page(url, "blue /\n").await;
    lab.eventually("the conflict is over", || async {
        let route = lab.object(SPACE, "tcproute/c-late").await?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?;
        let is_over = conditions.iter().all(|c| c["type"] != conflicted);
        is_over.then_some(())
    })
    .await;

    lab.apply(&route("b-second", "b-second", "red")).await;
    lab.kubectl(["delete", "gateway/a-first", "--namespace", SPACE])
        .await;
    let status = scene.programmed(SPACE, "b-second").await;
    let name = format!("shared.{}", scene.tailnet.domain());
    assert_eq!(status["addresses"][0]["value"], name);
    scene.page(url, "red /\n").await;
}

/// Two listeners of one port have no age: neither is served until one goes.
async fn one_port(scene: &Scene) {
    let lab = scene.lab;
    let tls = "{name: tls, port: 443, protocol: TLS, tls: {options: {gateway.tailscale.com/certificate: tailnet}}}";
    let tcp = "{name: tcp, port: 443, protocol: TCP}";
    let both = gateway("ports", "ports", "", &[HTTP, tls, tcp].join(", "));
    lab.apply(&[both, route("ports", "ports", "red")].concat())
        .await;
    let gateway_name = (SPACE, "gateway/ports");
    for (listener, holder) in [("tls", "listener tcp"), ("tcp", "listener tls")] {
        let conflicted = ("Conflicted", "True", "ProtocolConflict");
        let message = scene
            .listener_condition(gateway_name, listener, conflicted)
            .await;
        assert!(message.contains(holder), "{listener}: {message}");
        let accepted = scene
            .condition_now(gateway_name, Some(listener), "Accepted")
            .await;
        assert_eq!(
            (&accepted["status"], &accepted["reason"]),
            (&json!("False"), &json!("ProtocolConflict"))
        );
    }
    // What is in nobody's way is served.
    scene.programmed(SPACE, "ports").await;
    let domain = scene.tailnet.domain();
    scene
        .page(&format!("http://ports.{domain}/"), "red /\n")
        .await;
    scene.closed(&format!("https://ports.{domain}/")).await;
    let one = gateway("ports", "ports", "", &[HTTP, tls].join(", "));
    lab.apply(&one).await;
    scene
        .page(&format!("https://ports.{domain}/"), "red /\n")
        .await;
    let fine = ("Conflicted", "False", "NoConflicts");
    scene.listener_condition(gateway_name, "tls", fine).await;
}

const TAKE_BACK: &str = "tailway.michaelbeaumont.github.io/name-conflict: TakeBack";

/// Takes the Gateways of the class out of service, or into it again.
async fn replicas(scene: &Scene, replicas: u8) {
    let spec = json!({ "proxy": { "replicas": replicas } });
    scene
        .patch(
            "default",
            "tailscaletailnet/conflicts",
            json!({ "spec": spec }),
        )
        .await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_name_is_taken_back_from_our_own_device_and_never_from_another() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    let class = parameters(&scene);
    lab.apply(&[class.clone(), space(), backend("red")].concat())
        .await;
    let foreign = json!({ "login": "owner@example.com", "hostname": "foreign" });
    scene.tailnet.post("/client/foreign", foreign).await;
    let owner = scene.node("foreign").await["stable_id"].clone();
    lab.apply(&gateway("own", "own", "", HTTP)).await;
    lab.apply(&route("own", "own", "red")).await;
    lab.apply(&gateway("foreign", "foreign", TAKE_BACK, HTTP))
        .await;
    lab.apply(&route("foreign", "foreign", "red")).await;
    let domain = scene.tailnet.domain();

    // Both are served under the names that they got, and say so.
    scene.programmed(SPACE, "own").await;
    let first = scene.node("own").await["stable_id"].clone();
    keeps_another_name(&scene, "foreign").await;

    // The node of a Gateway that lost its state is another one, and the first holds its name.
    replicas(&scene, 0).await;
    let workload = "own-conflicts";
    scene.gone(SYSTEM, &format!("pod/{workload}-0")).await;
    let secret = format!("secret/{workload}-state");
    lab.kubectl(["delete", &secret, "--namespace", SYSTEM])
        .await;
    scene.tailnet.delete("/client/foreign").await;
    replicas(&scene, 1).await;
    keeps_another_name(&scene, "own").await;
    assert_eq!(scene.node("own").await["stable_id"], first);
    keeps_another_name(&scene, "foreign").await;

    let annotate = ["annotate", "gateway/own", "--namespace", SPACE];
    let policy = TAKE_BACK.replace(": ", "=");
    lab.kubectl(annotate.into_iter().chain([&*policy])).await;
    let status = scene.programmed(SPACE, "own").await;
    assert_eq!(
        status["addresses"][0]["value"],
        json!(format!("own.{domain}"))
    );
    scene
        .page(&format!("http://own.{domain}/"), "red /\n")
        .await;
    assert_ne!(scene.node("own").await["stable_id"], first);

    // The other was asked for nothing, online or not.
    let now = scene.node("foreign").await;
    assert_eq!((&now["stable_id"], &now["online"]), (&owner, &json!(false)));
    let path = format!("/device/{}", owner.as_str().unwrap());
    for method in ["DELETE", "POST"] {
        assert_eq!(scene.asked(method, &path).await, Vec::<Value>::new());
    }
    keeps_another_name(&scene, "foreign").await;
    lab.kubectl(["delete", "namespace", SPACE]).await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    let mut left = scene.nodes().await;
    left.sort();
    assert_eq!(left, ["foreign", "visitor"]);
    lab.delete(&class).await;
}

/// A class whose parameters are in a TailscaleTailnet, and its credentials.
fn parameters(scene: &Scene) -> String {
    let class = scene.class("conflicts");
    let (secret, class) = class.split_once("---\n").unwrap();
    let (class, _) = class.split_once("  parametersRef").unwrap();
    format!(
        "{secret}---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleTailnet
metadata: {{name: conflicts}}
spec:
  credentials: {{secretRef: {{name: conflicts-oauth}}}}
  tags: ['tag:k8s']
---
{class}  parametersRef: {{group: gateway.tailscale.com, kind: TailscaleTailnet, name: conflicts}}
"
    )
}

/// Waits until a Gateway says that it is served under another name, and is.
async fn keeps_another_name(scene: &Scene, gateway: &str) {
    let name = format!("{gateway}-1.{}", scene.tailnet.domain());
    let object = format!("gateway/{gateway}");
    for condition in [
        ("Programmed", "False", "AddressNotUsable"),
        ("TailnetReady", "False", "NameTaken"),
    ] {
        let message = scene.condition(SPACE, &object, condition).await;
        let said = format!(
            "the tailnet named the node {name} because {gateway} is taken; it serves that name: remove the other machine, or set another Hostname in spec.addresses"
        );
        assert_eq!(message, said);
    }
    let object = scene.lab.object(SPACE, &object).await.unwrap();
    assert_eq!(object["status"]["addresses"][0]["value"], json!(name));
    scene.page(&format!("http://{name}/"), "red /\n").await;
}
