//! The objects of Tailway's first README, word for word but for the parentRef of its route.

use super::{
    lab::{Lab, PROBE},
    scene::{SYSTEM, Scene},
    views::{Told, text},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};

const CLASS: &str = r#"---
apiVersion: v1
kind: Secret
metadata:
  name: my-tailnet-oauth
  namespace: tailway-system
stringData:
  client_id: # oauth client_id
  client_secret: # oauth client_secret
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: GatewayClass
metadata:
  name: my-tailnet
  annotations:
    # tags the managed machines should have
    tailway.michaelbeaumont.github.io/tags: tag:k8s
spec:
  controllerName: "tailway.michaelbeaumont.github.io/controller"
  parametersRef:
    kind: Secret
    group: ""
    name: my-tailnet-oauth
    namespace: tailway-system
"#;

const GATEWAY: &str = "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: Gateway
metadata:
  name: nginx
spec:
  gatewayClassName: my-tailnet
  listeners:
    - port: 443
      name: https
      protocol: TLS
      tls:
        # this is required by the Gateway API webhook but
        # isn't used. Tailscale provisions certs.
        certificateRefs: [name: dummy]
  # you can specify the name of your machine
  # otherwise a default of <name>-<namespace> is used
  addresses:
    - type: Hostname
      value: nginx
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata:
  name: nginx
spec:
  # only one rule with one backend is supported
  rules:
    - backendRefs:
        - name: nginx
          port: 80
  parentRefs:
    - name: nginx
      kind: Gateway
";

/// The backend that the README takes for granted.
fn backend() -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: nginx}}
spec: {{selector: {{app: nginx}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: nginx, labels: {{app: nginx}}}}
spec: {{containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]}}
"
    )
}

/// Further Gateways, and one route that is attached to all of them: one that names no machine, one
/// that names it in full, and one whose listeners are not all of a protocol that is served.
fn more(domain: &str) -> String {
    let gateway = |name: &str, addresses: &str, listeners: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec: {{gatewayClassName: my-tailnet, addresses: {addresses}, listeners: {listeners}}}
"
        )
    };
    let web = "[{name: web, port: 80, protocol: TCP}]";
    let full = format!("[{{type: Hostname, value: full.{domain}}}]");
    let mixed = "[{name: web, port: 80, protocol: TCP}, {name: other, port: 8080, protocol: example.com/mqtt}]";
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: more}
spec:
  parentRefs: [{name: plain}, {name: full}, {name: mixed}]
  rules: [{backendRefs: [{name: nginx, port: 80}]}]
";
    [
        gateway("plain", "[]", web),
        gateway("full", &full, web),
        gateway("mixed", "[]", mixed),
        route.to_owned(),
    ]
    .concat()
}

/// Has the API server serve `v1alpha2` of TCPRoute, as it did before the kind was promoted.
async fn serve_first_version(lab: &Lab) {
    let bundle = lab.directory().join("build/gateway-api.yaml");
    let bundle = fs::read_to_string(bundle).unwrap();
    let documents = bundle.split("\n---\n");
    let mut routes = documents.filter(|document| document.contains("\n  name: tcproutes."));
    let mut crd: Value = serde_saphyr::from_str(routes.next().unwrap()).unwrap();
    let versions = crd["spec"]["versions"].as_array_mut().unwrap();
    let first = versions.iter_mut().find(|one| one["name"] == "v1alpha2");
    first.unwrap()["served"] = json!(true);
    // As the whole bundle is applied, which the next test does.
    let mut command = lab.command("kubectl");
    command.args(["apply", "--server-side", "--filename", "-"]);
    super::lab::finish(command, Some(&crd.to_string()))
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_objects_of_the_first_readme_work_as_they_are_printed() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    serve_first_version(lab).await;
    let domain = scene.tailnet.domain();
    let credentials = [
        ("client_id: #", scene.tailnet.field("oauth_client_id")),
        (
            "client_secret: #",
            scene.tailnet.field("oauth_client_secret"),
        ),
    ];
    let class = credentials
        .iter()
        .fold(CLASS.to_owned(), |class, (key, value)| {
            class.replace(key, &key.replace('#', &format!("{value} #")))
        });
    lab.apply(&class).await;
    lab.eventually("the version is served", || async {
        lab.try_apply(GATEWAY).await.ok()
    })
    .await;
    lab.apply(&backend()).await;
    let status = scene.programmed("default", "nginx").await;
    let name = format!("nginx.{domain}");
    scene
        .page(&format!("https://{name}/hello"), "nginx /hello\n")
        .await;

    let node = scene.node("nginx").await;
    let own = node["addresses"].as_array().unwrap().iter();
    let ips = own.map(|ip| json!({ "type": "IPAddress", "value": ip }));
    let hostname = json!({ "type": "Hostname", "value": name });
    let addresses: Vec<_> = [hostname].into_iter().chain(ips).collect();
    assert_eq!(
        (addresses.len(), &status["addresses"]),
        (3, &json!(addresses))
    );
    assert_eq!(node["tags"], json!(["tag:k8s"]));
    let mut row = scene.row("default", "gateway/nginx").await;
    assert!(row.remove("AGE").is_some_and(|age| !age.is_empty()));
    let shown = [
        ("NAME", "nginx"),
        ("CLASS", "my-tailnet"),
        ("ADDRESS", &name),
        ("PROGRAMMED", "True"),
    ];
    let shown = shown.map(|(column, cell)| (column.to_owned(), cell.to_owned()));
    assert_eq!(row, BTreeMap::from(shown));
    let set = lab
        .object(SYSTEM, "statefulset/nginx-default")
        .await
        .unwrap();
    let label = "tailway.michaelbeaumont.github.io/node-fqdn";
    assert_eq!(set["metadata"]["labels"][label], "nginx");

    // The certificate that was asked for is not there, and the tailnet's is served all the same.
    let invalid = ("ResolvedRefs", "False", "InvalidCertificateRef");
    let message = scene
        .listener_condition(("default", "gateway/nginx"), "https", invalid)
        .await;
    let served = "the tailnet's certificate for nginx is served all the same";
    assert!(
        message.contains("dummy") && message.contains(served),
        "{message}"
    );
    scene
        .route_condition("default", "nginx", ("ResolvedRefs", "True", "ResolvedRefs"))
        .await;
    told_once(&scene).await;

    other_names(&scene).await;
    let minted = scene.asked("POST", "/keys").await;
    let answers: Vec<_> = minted.iter().map(|call| &call["status"]).collect();
    assert_eq!(answers, [200; 4], "one key for each of four nodes");

    lab.delete(&[GATEWAY, &more(domain), &backend(), &class].concat())
        .await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    assert_eq!(scene.nodes().await, ["visitor"]);
}

/// Each condition was told of once, and so was that of the class.
async fn told_once(scene: &Scene) {
    let normal = |reason: &str| (String::from("Normal"), reason.to_owned(), 1);
    let short = |told: &Told| (told.weight.clone(), told.reason.clone(), told.times);
    let expected = ["Accepted", "CertificateReady", "Programmed", "TailnetReady"].map(normal);
    let told = scene
        .lab
        .eventually("all is told", || async {
            let told = scene.events("default", "nginx").await;
            (told.len() >= expected.len()).then_some(told)
        })
        .await;
    // And that it took a while is nothing to be warned of.
    assert_eq!(told.iter().map(short).collect::<Vec<_>>(), expected);
    let class = scene.events("default", "my-tailnet").await;
    assert_eq!(
        class.iter().map(short).collect::<Vec<_>>(),
        [normal("Accepted")]
    );
}

/// The other ways to name a node, and a listener that is not served beside one that is.
async fn other_names(scene: &Scene) {
    let domain = scene.tailnet.domain();
    scene.lab.apply(&more(domain)).await;
    for (gateway, node) in [
        ("plain", "plain-default"),
        ("full", "full"),
        ("mixed", "mixed-default"),
    ] {
        let status = scene.programmed("default", gateway).await;
        let name = format!("{node}.{domain}");
        assert_eq!(text(&status["addresses"][0]["value"]), name);
        scene.page(&format!("http://{name}/"), "nginx /\n").await;
    }
    let refused = ("Accepted", "False", "UnsupportedProtocol");
    let message = scene
        .listener_condition(("default", "gateway/mixed"), "other", refused)
        .await;
    assert!(
        message.contains("use HTTP, HTTPS, TLS, TCP or UDP"),
        "{message}"
    );
}
