//! What the tests of faults do to a scene, and what they look at.

use super::{
    lab::{PROBE, succeed},
    scene::{SYSTEM, Scene},
};
use serde_json::Value;
use std::time::Duration;
use tailway::tailnet::{
    Secret,
    api::{ApiClient, ApiSettings, Credentials, KeyRequest},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const CONTROLLER: &str = "app.kubernetes.io/name=tailway,app.kubernetes.io/component=controller";

impl Scene {
    /// Runs `kubectl` in the namespace of tailway.
    pub async fn system<const N: usize>(&self, arguments: [&str; N]) -> String {
        let namespace = ["--namespace", SYSTEM];
        self.lab
            .kubectl(namespace.into_iter().chain(arguments))
            .await
    }

    /// Has so many replicas of the controller, and waits for them.
    pub async fn scale(&self, replicas: u8) {
        let replicas = format!("--replicas={replicas}");
        self.system(["scale", "deployment/tailway-controller", &replicas])
            .await;
        if replicas == "--replicas=0" {
            let gone = [
                "wait",
                "--for=delete",
                "pod",
                "--timeout=60s",
                "--selector",
                CONTROLLER,
            ];
            self.system(gone).await;
        } else {
            self.rolled_out("deployment/tailway-controller").await;
        }
    }

    pub async fn rolled_out(&self, workload: &str) {
        self.system(["rollout", "status", workload, "--timeout=120s"])
            .await;
    }

    /// Names of the controller's pods.
    pub async fn controllers(&self) -> Vec<String> {
        let names = "jsonpath={.items[*].metadata.name}";
        let list = ["get", "pods", "--selector", CONTROLLER, "--output", names];
        let names = self.system(list).await;
        names.split_whitespace().map(str::to_owned).collect()
    }

    /// The lease of the controllers: holder, when it was acquired, when it was renewed.
    pub async fn lease(&self) -> Value {
        let lease = self.lab.object(SYSTEM, "lease/tailway-controller").await;
        lease.unwrap()["spec"].clone()
    }

    /// The controller's pod that writes.
    pub async fn leader(&self) -> String {
        self.lab
            .eventually("a controller leads", || async {
                let holder = self.lease().await["holderIdentity"].as_str()?.to_owned();
                let there = self.controllers().await.contains(&holder);
                there.then_some(holder)
            })
            .await
    }

    /// An admin page of a pod.
    pub async fn admin_page(&self, pod: &str, page: &str) -> Result<String, String> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:9090/proxy{page}");
        self.lab.try_kubectl(["get", "--raw", &path]).await
    }

    /// The sum of a metric over the series that have all these labels.
    pub async fn metric(&self, pod: &str, name: &str, labels: &[&str]) -> Option<u64> {
        let page = self.admin_page(pod, "/metrics").await.ok()?;
        Some(sum(&page, name, labels))
    }

    /// Kills the process of a pod's container, and nothing else.
    pub async fn kill_container(&self, pod: &str) {
        self.kill_process(&self.container(pod).await).await;
    }

    /// The container that a pod has now.
    pub async fn container(&self, pod: &str) -> String {
        let object = self.lab.object(SYSTEM, &format!("pod/{pod}")).await;
        let object = object.unwrap();
        let id = object["status"]["containerStatuses"][0]["containerID"].as_str();
        id.unwrap().trim_start_matches("containerd://").to_owned()
    }

    /// Kills the process of a container, and waits until it is gone.
    pub async fn kill_process(&self, container: &str) {
        let mut kill = self.lab.command("ctr");
        kill.args(["tasks", "kill", "--signal", "SIGKILL", container]);
        succeed(kill, None).await;
        self.lab
            .eventually("the process is gone", || async {
                let mut list = self.lab.command("ctr");
                list.args(["tasks", "list"]);
                let tasks = succeed(list, None).await;
                let mut tasks = tasks.lines().map(str::split_whitespace);
                let runs = tasks.any(|mut task| {
                    task.next() == Some(container) && task.nth(1) == Some("RUNNING")
                });
                (!runs).then_some(())
            })
            .await;
    }

    /// Starts the API server that was killed.
    pub async fn api_back(&self) {
        self.lab.start("kube-apiserver").await;
        self.lab.api_ready().await;
        // These would wait for half a minute before they ask it again.
        for name in ["kube-controller-manager", "kube-scheduler"] {
            self.lab.kill(name).await;
            self.lab.start(name).await;
        }
    }

    /// How often a pod's container was started anew.
    pub async fn restarts(&self, pod: &str) -> Option<u64> {
        let object = self.lab.object(SYSTEM, &format!("pod/{pod}")).await?;
        object["status"]["containerStatuses"][0]["restartCount"].as_u64()
    }

    pub async fn uid(&self, object: &str) -> Option<String> {
        let object = self.lab.object(SYSTEM, object).await?;
        object["metadata"]["uid"].as_str().map(str::to_owned)
    }

    /// The ID that Tailscale's API has for the device of this name.
    pub async fn device(&self, name: &str) -> String {
        let node = self.tailnet.get(&format!("/nodes/{name}")).await;
        node["stable_id"].as_str().unwrap().to_owned()
    }

    /// How many calls of the API there were, by method and end of the path, and answered so.
    pub async fn calls(&self, method: &str, path: &str, status: u16) -> usize {
        let calls = self.tailnet.get("/api/calls").await;
        let calls = calls.as_array().unwrap().iter();
        calls
            .filter(|call| {
                call["method"] == method
                    && call["status"] == status
                    && call["path"].as_str().unwrap().contains(path)
            })
            .count()
    }

    pub async fn keys_minted(&self) -> usize {
        self.calls("POST", "/keys", 200).await
    }

    /// How many certificates the tailnet's authority gave.
    pub async fn certificates(&self) -> usize {
        let orders = self.tailnet.get("/acme/orders").await;
        orders["certificates"].as_array().map_or(0, Vec::len)
    }

    pub async fn gone(&self, namespace: &str, object: &str) {
        let what = format!("{object} in {namespace} is gone");
        self.lab
            .eventually(&what, || async {
                let there = self.lab.object(namespace, object).await;
                there.is_none().then_some(())
            })
            .await;
    }

    /// Waits until nothing is left of any Gateway, in the cluster and in the tailnet.
    pub async fn nothing_left(&self) {
        self.lab
            .eventually("nothing is left", || async {
                let nodes = self.nodes().await;
                let nodes = nodes.iter().filter(|name| *name != "visitor").count();
                (nodes == 0 && self.made().await.is_empty()).then_some(())
            })
            .await;
    }

    /// Deletes the Gateways of these namespaces, the namespaces and a class, and waits until
    /// nothing is left of any Gateway.
    pub async fn end(&self, namespaces: &[&str], class: &str) {
        for namespace in namespaces {
            // A namespace alone takes some seconds to begin.
            self.ask_to_delete(namespace, &["gateways", "--all"]).await;
            let namespace = format!("namespace/{namespace}");
            self.ask_to_delete("default", &[&namespace]).await;
        }
        self.nothing_left().await;
        self.lab.delete(&self.class(class)).await;
    }

    /// Mints an auth key that no node uses, as for a pod that ended before it came.
    pub async fn stray_key(&self, description: &str) {
        let mut settings = ApiSettings::new(Credentials::Client {
            id: self.tailnet.field("oauth_client_id").to_owned(),
            secret: Secret::new(self.tailnet.field("oauth_client_secret")),
        });
        settings.base_url = self.tailnet.field("api_url").to_owned();
        let request = KeyRequest {
            tags: vec!["tag:k8s".into()],
            ephemeral: false,
            expiry: Duration::from_secs(300),
            description: description.to_owned(),
        };
        let minted = async move { ApiClient::new(settings)?.mint_key(&request).await };
        self.tailnet.host.network.run(minted).await.unwrap();
    }

    /// Asks for things to be deleted, and does not wait.
    pub async fn ask_to_delete(&self, namespace: &str, objects: &[&str]) {
        let delete = ["delete", "--wait=false", "--namespace", namespace];
        self.lab
            .kubectl(delete.into_iter().chain(objects.iter().copied()))
            .await;
    }

    pub async fn finalizers(&self, namespace: &str, object: &str) -> Vec<String> {
        let object = self.lab.object(namespace, object).await.unwrap();
        let finalizers = object["metadata"]["finalizers"].as_array().cloned();
        let finalizers = finalizers.unwrap_or_default().into_iter();
        finalizers
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }
}

/// The sum over a metric's series that have all these labels.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> u64 {
    page.lines()
        .filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .map(|value| value as u64)
        .sum()
}

/// The same as [`super::scene::site`] for bare TCP: port 7 sends back what it gets.
pub fn echo_site(name: &str, class: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {name}}}
---
{gateway}---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: {name}, namespace: {name}}}
spec:
  parentRefs: [{{name: {name}}}]
  rules: [{{backendRefs: [{{name: {name}, port: 7}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 7, targetPort: 7000}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {name}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: echo, image: '{PROBE}', args: [echo, ':7000']}}]}}
",
        gateway = bare_gateway(name, name, class, "{name: echo, port: 7, protocol: TCP}")
    )
}

/// A Gateway with one listener, and nothing else.
pub fn bare_gateway(namespace: &str, name: &str, class: &str, listener: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  gatewayClassName: {class}
  addresses: [{{type: Hostname, value: {name}}}]
  listeners: [{listener}]
"
    )
}

/// Sends a word through a connection, and fails unless it comes back.
pub async fn echo(connection: &mut TcpStream, word: &str) {
    connection.write_all(word.as_bytes()).await.unwrap();
    let mut back = vec![0; word.len()];
    let read = connection.read_exact(&mut back);
    let read = tokio::time::timeout(super::lab::DEADLINE, read).await;
    read.unwrap_or_else(|_| panic!("{word:?} does not come back"))
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&back), word);
}
