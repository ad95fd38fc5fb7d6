//! tailway in a lab: installed as its manifests install it, with a tailnet beside it.

use super::{
    lab::{IMAGE, Lab, PROBE, Shared},
    tailnet::HostedTailnet,
};
use serde_json::{Value, json};
use std::{
    fs,
    sync::atomic::{AtomicU8, Ordering},
};

/// Namespace of everything that the controller makes.
pub const SYSTEM: &str = "tailway-system";

/// The installation of `manifests/install.yaml` in the shared lab, for one test: its controller
/// makes nodes of a tailnet of the test's own.
pub struct Scene {
    // First, so that it ends before its host does.
    pub tailnet: HostedTailnet<'static>,
    pub lab: &'static Lab,
    _shared: Shared,
}

/// Numbers of hosts that no test had yet.
static HOSTS: AtomicU8 = AtomicU8::new(10);

impl Scene {
    /// Installs tailway, as it is by default.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Installs tailway, with these variables in the controller's environment.
    pub async fn start_with(environment: &[(&str, &str)]) -> Self {
        let shared = Lab::shared().await;
        let lab = shared.lab();
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let tailnet = HostedTailnet::start(lab, &format!("tailnet{number}"), number).await;
        lab.install_gateway_api().await;
        let scene = Self {
            tailnet,
            lab,
            _shared: shared,
        };
        scene.install(environment).await;
        scene
    }

    /// Installs tailway again, with other variables in the controller's environment.
    pub async fn install(&self, environment: &[(&str, &str)]) {
        let yaml = self.adapted("manifests/install.yaml", environment);
        self.lab.apply(&yaml).await;
        let status = ["rollout", "status", "deployment/tailway-controller"];
        let namespace = ["--namespace", SYSTEM, "--timeout=120s"];
        self.lab.kubectl(status.into_iter().chain(namespace)).await;
    }

    /// A manifest, with the lab's image and this tailnet in the environment. Variables that are
    /// there already are replaced.
    pub fn adapted(&self, path: &str, environment: &[(&str, &str)]) -> String {
        let nodes: Vec<_> = self
            .tailnet
            .environment()
            .iter()
            .map(|(name, value)| format!("{name}={}", value.as_str().unwrap()))
            .collect();
        let nodes = nodes.join(",");
        let mut all = vec![
            ("TAILWAY_PROXY_ENV", nodes.as_str()),
            ("TAILWAY_API_URL", self.tailnet.field("api_url")),
            ("TS_CONTROL_URL", self.tailnet.field("control_url")),
        ];
        all.extend_from_slice(environment);
        let marker = "            - name: TAILWAY_PROXY_IMAGE\n";
        let yaml = fs::read_to_string(path).unwrap();
        assert!(yaml.contains(marker));
        let version = env!("CARGO_PKG_VERSION");
        let mut yaml = yaml.replace(&format!("ghcr.io/tailway/tailway:{version}"), IMAGE);
        for (name, value) in all {
            let there = format!("            - name: {name}\n              value: ");
            let (before, after) = match yaml.split_once(&there) {
                Some((before, after)) => (before, after.split_once('\n').unwrap().1),
                None => {
                    let at = yaml.find(marker).unwrap();
                    yaml.split_at(at)
                }
            };
            yaml = format!("{before}{there}{value:?}\n{after}");
        }
        yaml
    }

    /// The objects of a GatewayClass with a Secret, as the seed has them: its credentials are the
    /// tailnet's ready-made ones.
    pub fn class(&self, name: &str) -> String {
        class(
            name,
            self.tailnet.field("oauth_client_id"),
            self.tailnet.field("oauth_client_secret"),
        )
    }

    /// Waits until a condition of an object has this status and reason; its message.
    pub async fn condition(
        &self,
        namespace: &str,
        object: &str,
        (kind, status, reason): (&str, &str, &str),
    ) -> String {
        let what = format!("{object} in {namespace}: {kind}={status} {reason}");
        self.lab
            .eventually(&what, || async {
                let object = self.lab.object(namespace, object).await?;
                let conditions = object["status"]["conditions"].as_array()?.clone();
                let condition = conditions.into_iter().find(|c| c["type"] == kind)?;
                let current = condition["observedGeneration"] == object["metadata"]["generation"];
                (current && condition["status"] == status && condition["reason"] == reason)
                    .then(|| condition["message"].as_str().unwrap_or_default().to_owned())
            })
            .await
    }

    /// Waits until a Gateway is programmed; its status.
    pub async fn programmed(&self, namespace: &str, gateway: &str) -> Value {
        let object = format!("gateway/{gateway}");
        self.condition(namespace, &object, ("Programmed", "True", "Programmed"))
            .await;
        self.lab.object(namespace, &object).await.unwrap()["status"].clone()
    }

    /// Waits until a client of the tailnet gets this page.
    pub async fn page(&self, url: &str, body: &str) {
        let what = format!("{url} answers {body:?}");
        self.lab
            .eventually(&what, || async {
                let answer = self.tailnet.visit(url).await.ok()?;
                (answer["status"] == json!(200) && answer["body"] == json!(body)).then_some(())
            })
            .await;
    }

    /// What the controller made for Gateways and what is left of it, by kind and name.
    pub async fn made(&self) -> Vec<String> {
        let kinds =
            "statefulset,pod,service,serviceaccount,role,rolebinding,secret,poddisruptionbudget";
        let list = ["get", kinds, "--namespace", SYSTEM, "--output=name"];
        let made = [
            "--selector",
            "app.kubernetes.io/managed-by=tailway-controller",
        ];
        let names = self.lab.kubectl(list.into_iter().chain(made)).await;
        names.lines().map(str::to_owned).collect()
    }

    /// Names of the tailnet's nodes.
    pub async fn nodes(&self) -> Vec<String> {
        let nodes = self.tailnet.get("/nodes").await;
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A GatewayClass with a Secret of an OAuth client.
pub fn class(name: &str, client_id: &str, client_secret: &str) -> String {
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: {name}-oauth, namespace: {SYSTEM}}}
stringData: {{client_id: {client_id:?}, client_secret: {client_secret:?}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: {name}, annotations: {{tailway.michaelbeaumont.github.io/tags: 'tag:k8s'}}}}
spec:
  controllerName: tailway.michaelbeaumont.github.io/controller
  parametersRef: {{kind: Secret, group: '', name: {name}-oauth, namespace: {SYSTEM}}}
"
    )
}

/// A namespace of this name with a Gateway of this name, which terminates TLS, its route, and a
/// pod behind it that answers with its name and the path.
pub fn site(name: &str, class: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {name}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {name}}}
spec:
  gatewayClassName: {class}
  addresses: [{{type: Hostname, value: {name}}}]
  listeners:
    - name: https
      port: 443
      protocol: TLS
      tls: {{mode: Terminate, options: {{gateway.tailscale.com/certificate: tailnet}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: {name}, namespace: {name}}}
spec:
  parentRefs: [{{name: {name}}}]
  rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {name}, labels: {{app: {name}}}}}
spec: {{containers: [{{name: web, image: '{PROBE}', args: [serve, ':8080']}}]}}
"
    )
}
