//! Envoy Gateway in a cluster, with our controller, extension and egress beside it, each installed as
//! its manifests install it.

mod install;

use super::{lab::PROBE, scene::Scene};
use install::{EnvoyGateway, Link, install, install_with};
use serde_json::{Value, json};
use tailway::{controller::workload_name, index::egress::replica, model::ObjectName};

/// As the documentation prints it.
const ENDPOINTS: &str = r#"apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata:
  name: example-endpoints
spec:
  endpoints:
  - name: web-service
    port: 80
    protocol: HTTP
    externalTarget: "example.com:80"  # External service to route to
  - name: api-service
    port: 443
    protocol: HTTPS
    externalTarget: "api.example.com:443"
"#;

/// A Gateway of Envoy Gateway that asks for routes, with a route of its own for all other paths.
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eg, labels: {gateway.tailscale.com/egress: 'true'}}
spec:
  gatewayClassName: eg
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: everything-else}
spec:
  parentRefs: [{name: eg}]
  rules: [{backendRefs: [{name: fallback, port: 80}]}]
";

fn web(name: &str, cluster_ip: Option<&str>) -> String {
    let address = cluster_ip.map_or_else(String::new, |ip| format!("clusterIP: {ip}, "));
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{{address}selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]}}
---
"
    )
}

/// What stands for example.com.
const EXAMPLE_COM: &str = "10.96.77.77";

/// A node of the tailnet, which nobody outside of it reaches.
fn node(name: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: {name}
  addresses: [{{type: Hostname, value: {name}}}]
  listeners: [{{name: http, port: 80, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: {name}}}]
  rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]
"
    )
}

const HIDDEN: &str = "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {name: hidden}
spec:
  endpoints:
  - name: hidden
    port: 80
    tailscaleFQDN: hidden
    healthCheck: {path: /health, interval: 1s, timeout: 1s, healthyThreshold: 1, unhealthyThreshold: 1}
";

fn tailnet(scene: &Scene) -> String {
    format!(
        "---
apiVersion: v1
kind: Secret
metadata: {{name: tailnet, namespace: tailway-system}}
stringData: {{client_id: {:?}, client_secret: {:?}}}
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleTailnet
metadata: {{name: tailnet}}
spec:
  credentials: {{secretRef: {{name: tailnet}}}}
  tags: ['tag:k8s']
",
        scene.tailnet.field("oauth_client_id"),
        scene.tailnet.field("oauth_client_secret")
    )
}

/// Where auth keys are made.
const KEYS: &str = "/api/v2/tailnet/-/keys";

const PROGRAMMED: (&str, &str, &str) = ("Programmed", "True", "Programmed");

/// Envoy Gateway with a Gateway and the endpoints of the documentation.
async fn with_example(scene: &Scene, link: Link) -> EnvoyGateway<'_> {
    let lab = scene.lab;
    lab.apply(&(web("example", Some(EXAMPLE_COM)) + &web("fallback", None)))
        .await;
    let gateway = install_with(scene, &[("example.com", EXAMPLE_COM)], link).await;
    lab.apply(GATEWAY).await;
    lab.apply(ENDPOINTS).await;
    gateway
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_walk_through_works_from_apply_to_curl() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    let gateway = with_example(&scene, Link::Plain).await;

    let endpoints = "tailscaleendpoints/example-endpoints";
    let message = scene.condition("default", endpoints, PROGRAMMED).await;
    assert_eq!(message, "served by 1 Gateway of Envoy Gateway");
    gateway
        .page("/api/web-service/status", "example /status\n")
        .await;
    gateway.page("/api/web-service", "example /\n").await;
    gateway
        .page("/api/web-servicex", "fallback /api/web-servicex\n")
        .await;
    gateway.page("/", "fallback /\n").await;
    let status = lab.object("default", endpoints).await.unwrap()["status"].clone();
    let counts = [
        &status["totalEndpoints"],
        &status["healthyEndpoints"],
        &status["discoveredEndpoints"],
    ];
    assert_eq!(counts, [2, 0, 0]);
    let columns = lab.kubectl(["get", endpoints, "--no-headers"]).await;
    let columns: Vec<_> = columns.split_whitespace().take(4).collect();
    assert_eq!(columns, ["example-endpoints", "2", "0", "True"]);

    // What is written next reaches Envoy without anything else being touched.
    let renamed = ENDPOINTS.replace("web-service", "shop");
    lab.apply(&renamed).await;
    gateway.page("/api/shop/status", "example /status\n").await;
    gateway
        .page(
            "/api/web-service/status",
            "fallback /api/web-service/status\n",
        )
        .await;
    let before = versions(&scene).await;
    gateway.page("/api/shop", "example /\n").await;
    assert_eq!(
        versions(&scene).await,
        before,
        "nothing changed, and something was written"
    );

    // A route of the user's own names one of the services.
    lab.apply(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-name}
spec:
  parentRefs: [{name: eg}]
  hostnames: [shop.example.org]
  rules:
  - filters: [{type: URLRewrite, urlRewrite: {hostname: example.com}}]
    backendRefs: [{group: gateway.tailscale.com, kind: TailscaleBackend, name: example-endpoints-shop, port: 80}]
",
    )
    .await;
    gateway
        .page_of("shop.example.org", "/by/name", "example /by/name\n")
        .await;

    lab.delete(&renamed).await;
    gateway
        .page("/api/shop/status", "fallback /api/shop/status\n")
        .await;
    let left = "tailscalebackends,tailscaleegresssets";
    lab.eventually("what was made for it is gone", || async {
        let left = lab.kubectl(["get", left, "--output=name"]).await;
        left.is_empty().then_some(())
    })
    .await;
    leave(&scene).await;
}

/// Removes what a test made in the default namespace, and waits until nothing of ours is left.
async fn leave(scene: &Scene) {
    let lab = scene.lab;
    let ours = "tailscaleendpoints,gateways,httproutes,tcproutes";
    lab.kubectl(["delete", ours, "--all"]).await;
    lab.kubectl(["delete", "pods,services", "--selector=app", "--now"])
        .await;
    scene.nothing_left().await;
}

/// The versions of what the controller writes for Envoy Gateway, and of its statuses.
async fn versions(scene: &Scene) -> Value {
    let kinds = "tailscalebackends,tailscaleegresssets,tailscaleendpoints";
    let list = scene.lab.kubectl(["get", kinds, "--output=json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| json!([item["kind"], item["metadata"]["resourceVersion"]]))
        .collect()
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_changed_while_the_extension_was_away_is_served_when_it_is_back() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    let gateway = with_example(&scene, Link::Plain).await;
    gateway.page("/api/web-service/1", "example /1\n").await;

    let scale = async |replicas: &str| {
        let deployment = "deployment/tailscale-gateway-extension-server";
        let namespace = "--namespace=tailscale-gateway-system";
        lab.kubectl(["scale", deployment, replicas, namespace])
            .await;
        lab.kubectl(["rollout", "status", deployment, namespace, "--timeout=120s"])
            .await;
    };
    scale("--replicas=0").await;
    lab.eventually("no pod of it is left", || async {
        let list = [
            "get",
            "pods",
            "--output=name",
            "--namespace=tailscale-gateway-system",
        ];
        lab.kubectl(list).await.is_empty().then_some(())
    })
    .await;
    lab.apply(&ENDPOINTS.replace("web-service", "shop")).await;
    // Envoy has what it had.
    gateway.page("/api/web-service/2", "example /2\n").await;
    scale("--replicas=2").await;
    gateway.page("/api/shop/3", "example /3\n").await;
    lab.eventually("the set was counted up after the start", || async {
        let set = lab.object("default", "tailscaleegressset/eg").await?;
        (set["spec"]["resync"].as_i64() > Some(0)).then_some(())
    })
    .await;
    let programmed = scene
        .condition(
            "default",
            "tailscaleendpoints/example-endpoints",
            PROGRAMMED,
        )
        .await;
    assert_eq!(programmed, "served by 1 Gateway of Envoy Gateway");
    leave(&scene).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn envoy_gateway_and_the_extension_know_each_other_by_certificates() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    let gateway = with_example(&scene, Link::MutualTls).await;
    gateway.page("/api/web-service/1", "example /1\n").await;
    lab.apply(&ENDPOINTS.replace("web-service", "shop")).await;
    gateway.page("/api/shop/2", "example /2\n").await;
    leave(&scene).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_is_on_the_tailnet_alone_is_reached_through_the_egress() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&(scene.class("hidden") + &tailnet(&scene))).await;
    lab.apply(&(web("hidden", None) + &web("fallback", None)))
        .await;
    let gateway = install(&scene, &[]).await;
    lab.apply(GATEWAY).await;
    lab.apply(&node("hidden")).await;
    lab.apply(HIDDEN).await;

    let endpoints = "tailscaleendpoints/hidden";
    scene.condition("default", endpoints, PROGRAMMED).await;
    gateway.page("/api/hidden/page", "hidden /page\n").await;
    lab.eventually("the endpoint is found to be healthy", || async {
        let object = lab.object("default", endpoints).await?;
        let status = &object["status"];
        let workload = &status["statefulSetRefs"][0];
        (status["healthyEndpoints"] == 1 && workload["readyReplicas"] == 2).then_some(())
    })
    .await;
    let nodes = scene.nodes().await;
    for node in ["hidden-egress-0", "hidden-egress-1"] {
        assert!(nodes.iter().any(|known| known == node), "{nodes:?}");
    }
    // In steady state no key is made.
    let keys = scene.asked("POST", KEYS).await.len();

    // One of the pods goes while requests come.
    let set =
        lab.object("default", endpoints).await.unwrap()["status"]["statefulSetRefs"][0]["name"]
            .clone();
    let pod = format!("pod/{}-0", set.as_str().unwrap());
    let uid = scene.uid(&pod).await;
    scene.system(["delete", &pod, "--wait=false"]).await;
    let (mut answered, mut failed) = (0, Vec::new());
    loop {
        match gateway.get("eg.example.org", "/api/hidden/load").await {
            Ok(body) if body == "hidden /load\n" => answered += 1,
            other => failed.push(other),
        }
        assert!(answered + failed.len() < 2000, "the pod does not come back");
        let Some(object) = lab.object("tailway-system", &pod).await else {
            continue;
        };
        let conditions = object["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.into_iter().flatten();
        let is_ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
        if is_ready && object["metadata"]["uid"].as_str() != uid.as_deref() {
            break;
        }
    }
    // Those that were on their way in while it left.
    assert!(
        failed.len() * 10 <= answered,
        "{answered} answered, not so: {failed:?}"
    );
    assert_eq!(
        scene.nodes().await.len(),
        nodes.len(),
        "its node is the same"
    );
    let after = scene.asked("POST", KEYS).await.len();
    assert_eq!(
        after, keys,
        "no key was made for a node that has an identity"
    );

    // What is not healthy is not offered, and back when it is.
    lab.kubectl(["delete", "pod/hidden"]).await;
    lab.eventually("it is found to be unhealthy", || async {
        let object = lab.object("default", endpoints).await?;
        (object["status"]["unhealthyEndpoints"] == 1).then_some(())
    })
    .await;
    lab.eventually("Envoy answers that there is nobody", || async {
        let answer = gateway.get("eg.example.org", "/api/hidden/gone").await;
        answer
            .is_err_and(|error| error.contains("503"))
            .then_some(())
    })
    .await;
    lab.apply(&web("hidden", None)).await;
    gateway.page("/api/hidden/back", "hidden /back\n").await;

    let name = replica(&ObjectName::new("default", "hidden"), 1);
    let key = format!("tailway {}", workload_name(&name));
    scene.stray_key(&key).await;
    lab.delete(HIDDEN).await;
    lab.eventually("the egress and its nodes are gone", || async {
        let nodes = scene.nodes().await;
        let made = scene.made().await;
        let is_left = nodes.iter().any(|node| node.starts_with("hidden-egress"))
            || made.iter().any(|name| name.contains("egress"));
        (!is_left).then_some(())
    })
    .await;
    assert_eq!(
        scene.calls("DELETE", "/keys/", 200).await,
        1,
        "a key that was not used is of no use any more"
    );
    leave(&scene).await;
    lab.delete(&(scene.class("hidden") + &tailnet(&scene)))
        .await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn envoy_gateway_is_reached_from_the_tailnet_and_sees_who_asks() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("front")).await;
    lab.apply(&(web("fallback", None))).await;
    let gateway = install(&scene, &[]).await;
    lab.apply(GATEWAY).await;
    gateway.page("/", "fallback /\n").await;
    let sample = std::fs::read_to_string("manifests/samples/envoy-gateway/ingress.yaml").unwrap();
    let (namespace, service) = gateway.service().await;
    let sample = sample
        .replace("gatewayClassName: my-tailnet", "gatewayClassName: front")
        .replace("ENVOY_SERVICE", &service)
        .replace("ENVOY_NAMESPACE", &namespace);
    lab.apply(&sample).await;
    let status = scene.programmed("default", "eg-on-tailnet").await;
    let name = status["addresses"][0]["value"].as_str().unwrap();
    let asked = format!("http://{name}/?header=X-Forwarded-For");
    let peer = lab
        .eventually("the target is told of a node of the tailnet", || async {
            let answer = scene.tailnet.visit(&asked).await.ok()?;
            let body = answer["body"].as_str()?.to_owned();
            body.starts_with("[100.64.").then_some(body)
        })
        .await;
    assert!(peer.ends_with("]\n"), "{peer}");
    leave(&scene).await;
    lab.delete(&scene.class("front")).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn devices_of_the_tailnet_become_endpoints() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&(scene.class("device") + &tailnet(&scene))).await;
    lab.apply(&web("device", None)).await;
    lab.apply(&node("device")).await;
    scene.programmed("default", "device").await;
    let found = |patterns: &str| {
        format!(
            "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {{name: found}}
spec:
  autoDiscovery: {{includePatterns: [{patterns}], syncInterval: 10s}}
"
        )
    };
    lab.apply(&found("'dev*'")).await;
    let discovered = ("Discovered", "True", "Discovered");
    let message = scene
        .condition("default", "tailscaleendpoints/found", discovered)
        .await;
    assert_eq!(message, "1 endpoints found");
    let status = lab
        .eventually("the device is an endpoint", || async {
            let object = lab.object("default", "tailscaleendpoints/found").await?;
            let status = object["status"]["endpointStatus"].as_array()?.clone();
            (status.len() == 1).then(|| status[0].clone())
        })
        .await;
    let shown = [
        "name",
        "port",
        "protocol",
        "discoverySource",
        "healthStatus",
    ];
    let shown: Vec<_> = shown.iter().map(|field| status[*field].clone()).collect();
    assert_eq!(
        shown,
        [
            json!("device"),
            json!(80),
            json!("HTTP"),
            json!("AutoDiscovery"),
            json!("Disabled")
        ]
    );
    lab.apply(&found("nothing")).await;
    lab.eventually("it is an endpoint no more", || async {
        let object = lab.object("default", "tailscaleendpoints/found").await?;
        (object["status"]["totalEndpoints"] == 0).then_some(())
    })
    .await;
    leave(&scene).await;
    lab.delete(&(scene.class("device") + &tailnet(&scene)))
        .await;
}

impl EnvoyGateway<'_> {
    /// Waits until a request for a path is answered with this.
    async fn page(&self, path: &str, body: &str) {
        self.page_of("eg.example.org", path, body).await;
    }

    async fn page_of(&self, host: &str, path: &str, body: &str) {
        let what = format!("{host}{path} answers {body:?}");
        self.lab()
            .eventually(&what, || async {
                let answer = self.get(host, path).await;
                (answer.as_deref() == Ok(body)).then_some(())
            })
            .await;
    }
}
