//! What is made for a Gateway, or for an egress: a pure function of what is known of it.

use super::{
    labels,
    names::{label_value, workload_name},
};
use crate::{
    api::{quantity, tailnets::ProxySettings},
    discovery::AUDIENCE,
    index::egress,
    model::{ObjectName, Transport},
};
use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity,
};
use kube::api::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// All that a workload depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadInput {
    /// The Gateway, or the [egress](crate::index::egress::subject) of a TailscaleEndpoints.
    pub subject: ObjectName,
    /// Name of its GatewayClass, or of its TailscaleTailnet.
    pub class: String,
    /// The host name that its node asks for.
    pub hostname: String,
    /// `None`: it is a Gateway's.
    pub egress: Option<Egress>,
    /// `spec.infrastructure` of the Gateway.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub proxy: ProxySettings,
    pub control_url: Option<String>,
    pub ephemeral: bool,
    pub site: Site,
}

/// What an egress has that a Gateway has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Each is a node of its own, with a state of its own.
    pub replicas: u16,
    /// Of the Service, and of the pods; in order of name.
    pub ports: Vec<EgressPort>,
}

/// Where an endpoint is reached within the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressPort {
    /// Of the endpoint.
    pub name: String,
    pub number: u16,
    pub transport: Transport,
}

/// Where tailway runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Namespace of everything that is made.
    pub namespace: String,
    /// Image of pods whose class names none.
    pub image: String,
    pub image_pull_policy: Option<String>,
    /// Where the pods get their snapshots.
    pub discovery: String,
    /// Added to the environment of every pod.
    pub environment: BTreeMap<String, String>,
}

/// An object to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub resource: ApiResource,
    pub name: String,
    pub object: Value,
}

/// ConfigMap with the certificate authority of the controller.
pub const AUTHORITY: &str = "tailway-discovery-ca";

pub(super) const ADMIN_PORT: u16 = 9090;
const USER: i64 = 65532;
const DRAIN_SECONDS: u32 = 30;

/// Seconds until a pod of an egress that is to end takes no more connections.
const LEAVING: u32 = 3;

/// Memory that a pod may use unless the class says otherwise.
const MEMORY_LIMIT: &str = "512Mi";

/// The kinds that are made, in the order in which they are removed.
pub(super) fn kinds() -> [ApiResource; 7] {
    let kind = |group, version, kind, plural| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    };
    [
        kind("apps", "v1", "StatefulSet", "statefulsets"),
        kind(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
        ),
        kind("", "v1", "Service", "services"),
        kind(
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            "rolebindings",
        ),
        kind("rbac.authorization.k8s.io", "v1", "Role", "roles"),
        kind("", "v1", "ServiceAccount", "serviceaccounts"),
        kind("", "v1", "Secret", "secrets"),
    ]
}

/// The name of an object of one of [`kinds`].
pub(super) fn object_name(kind: &str, workload: &str) -> String {
    match kind {
        "Secret" => state_secret(workload),
        _ => workload.to_owned(),
    }
}

pub(super) fn state_secret(workload: &str) -> String {
    format!("{workload}-state")
}

impl WorkloadInput {
    /// The objects, those that others need first. The same input gives the same bytes.
    pub fn objects(&self) -> Vec<Made> {
        let name = self.name();
        let [set, budget, service, binding, role, account, secret] = kinds();
        let secrets = self.state_secrets();
        let mut made = vec![self.made(
            &account,
            &name,
            json!({ "automountServiceAccountToken": false }),
        )];
        // Their values are the pods': an apply must not name them.
        let names = secrets.iter();
        made.extend(names.map(|name| self.made(&secret, name, json!({}))));
        made.push(self.made(&role, &name, role_rules(&secrets)));
        made.push(self.made(&binding, &name, self.binding(&name)));
        made.push(match &self.egress {
            None => self.made(&service, &name, service_spec(&name)),
            Some(egress) => self.made(&service, &name, egress.service_spec(&name)),
        });
        if self.proxy.disruption_budget {
            let spec = json!({ "spec": {
                "maxUnavailable": 0,
                "selector": { "matchLabels": selector(&name) },
            }});
            made.push(self.made(&budget, &name, spec));
        }
        made.push(self.made(&set, &name, self.stateful_set(&name)));
        made
    }

    /// Of all that is made, but for the Secrets.
    pub fn name(&self) -> String {
        workload_name(&self.subject)
    }

    /// The names of the Secrets that hold the state of its pods.
    pub(super) fn state_secrets(&self) -> Vec<String> {
        let name = self.name();
        match &self.egress {
            None => vec![state_secret(&name)],
            Some(egress) => {
                let pods = (0..egress.replicas).map(|ordinal| format!("{name}-{ordinal}"));
                pods.map(|pod| state_secret(&pod)).collect()
            }
        }
    }

    fn made(&self, resource: &ApiResource, name: &str, body: Value) -> Made {
        let mut object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": name,
                "namespace": self.site.namespace,
                "labels": self.all_labels(),
                "annotations": self.all_annotations(),
            },
        });
        if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
            object.extend(body);
        }
        Made {
            resource: resource.clone(),
            name: name.into(),
            object,
        }
    }

    /// Those of the Gateway's infrastructure, then ours, which they cannot replace (GEP-1867).
    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut all = foreign(&self.labels);
        all.extend(selector(&self.name()));
        let mut ours = vec![
            (labels::MANAGED_BY, labels::MANAGER.into()),
            (labels::NODE_FQDN, label_value(&self.hostname)),
        ];
        ours.extend(match egress::object_of(&self.subject) {
            Some((endpoints, _)) => vec![
                (labels::COMPONENT, labels::EGRESS.into()),
                (labels::ENDPOINTS_LABEL, label_value(&endpoints.name)),
            ],
            None => vec![
                (labels::COMPONENT, "proxy".into()),
                // GEP-1762 has it for what is made in a cluster for a Gateway.
                (labels::GATEWAY_LABEL, label_value(&self.subject.name)),
                (labels::CLASS_LABEL, label_value(&self.class)),
            ],
        });
        all.extend(ours.into_iter().map(|(key, value)| (key.to_owned(), value)));
        all
    }

    fn all_annotations(&self) -> BTreeMap<String, String> {
        let mut all = foreign(&self.annotations);
        let ours = match egress::object_of(&self.subject) {
            Some((endpoints, _)) => [
                (labels::ENDPOINTS_NAME, endpoints.name),
                (labels::ENDPOINTS_NAMESPACE, endpoints.namespace),
                (labels::TAILNET, self.class.clone()),
            ],
            None => [
                (labels::GATEWAY_NAME, self.subject.name.clone()),
                (labels::GATEWAY_NAMESPACE, self.subject.namespace.clone()),
                (labels::GATEWAY_CLASS, self.class.clone()),
            ],
        };
        all.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        all
    }

    fn binding(&self, name: &str) -> Value {
        json!({
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{
                "kind": "ServiceAccount", "name": name, "namespace": self.site.namespace,
            }],
        })
    }

    fn stateful_set(&self, name: &str) -> Value {
        json!({ "spec": {
            "replicas": self.replicas(),
            "serviceName": name,
            "selector": { "matchLabels": selector(name) },
            // In order would never replace a pod that does not get ready.
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "RollingUpdate" },
            "template": {
                "metadata": {
                    "labels": self.all_labels(),
                    "annotations": self.all_annotations(),
                },
                "spec": self.pod(name),
            },
        }})
    }

    fn replicas(&self) -> i32 {
        match &self.egress {
            None => self.proxy.replicas.unwrap_or(1),
            Some(egress) => egress.replicas.into(),
        }
    }

    fn pod(&self, name: &str) -> Value {
        let drain = self.proxy.drain_seconds.unwrap_or(DRAIN_SECONDS);
        let mut pod = json!({
            "serviceAccountName": name,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            // The node and its connections take some seconds to end after the drain.
            "terminationGracePeriodSeconds": drain + 15,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [self.container(name, drain)],
            "volumes": volumes(),
        });
        let proxy = &self.proxy;
        let secrets = proxy.image_pull_secrets.iter();
        let secrets: Vec<_> = secrets.map(|name| json!({ "name": name })).collect();
        let optional = [
            (
                "nodeSelector",
                json!(proxy.node_selector),
                proxy.node_selector.is_empty(),
            ),
            (
                "tolerations",
                json!(proxy.tolerations),
                proxy.tolerations.is_empty(),
            ),
            ("affinity", json!(proxy.affinity), proxy.affinity.is_none()),
            (
                "priorityClassName",
                json!(proxy.priority_class_name),
                proxy.priority_class_name.is_none(),
            ),
            ("imagePullSecrets", json!(secrets), secrets.is_empty()),
        ];
        for (key, value, is_absent) in optional {
            if !is_absent {
                pod[key] = value;
            }
        }
        pod
    }

    fn container(&self, name: &str, drain: u32) -> Value {
        let proxy = &self.proxy;
        let image = proxy.image.as_ref().unwrap_or(&self.site.image);
        let resources = resources(proxy.resources.as_ref());
        let mut container = json!({
            "name": "tailway",
            "image": image,
            "args": ["proxy"],
            "env": self.environment(name, drain, &resources),
            "ports": self.container_ports(),
            "resources": resources,
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "startupProbe": probe("/healthz", 1, 60),
            "livenessProbe": probe("/healthz", 10, 3),
            "readinessProbe": probe("/readyz", 2, 2),
            // What keeps it from serving is in `kubectl describe pod`, too.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                { "name": "state", "mountPath": "/var/lib/tailway" },
                { "name": "scratch", "mountPath": "/tmp" },
                { "name": "discovery", "mountPath": "/var/run/tailway/discovery", "readOnly": true },
                { "name": "identity", "mountPath": "/var/run/secrets/tailway", "readOnly": true },
                {
                    "name": "kubernetes",
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    "readOnly": true,
                },
            ],
        });
        if self.egress.is_some() {
            // Connections still come until all nodes of the cluster know that it ends.
            container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": LEAVING } } });
        }
        let policy = proxy.image_pull_policy.as_ref();
        if let Some(policy) = policy.or(self.site.image_pull_policy.as_ref()) {
            container["imagePullPolicy"] = json!(policy);
        }
        container
    }

    fn container_ports(&self) -> Vec<Value> {
        let admin = json!({ "name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP" });
        let egress = self.egress.iter().flat_map(|egress| &egress.ports);
        let egress = egress.map(
            |port| json!({ "containerPort": port.number, "protocol": port.transport.as_str() }),
        );
        [admin].into_iter().chain(egress).collect()
    }

    /// Kubernetes puts the pod's own name in.
    fn state_secret_of_pod(&self, name: &str) -> String {
        match &self.egress {
            None => state_secret(name),
            Some(_) => state_secret("$(POD_NAME)"),
        }
    }

    fn environment(&self, name: &str, drain: u32, resources: &ResourceRequirements) -> Vec<Value> {
        let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let value = |name: &str, value: String| json!({ "name": name, "value": value });
        let mut environment = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            value("TAILWAY_GATEWAY", self.subject.to_string()),
            value("TAILWAY_DISCOVERY", self.site.discovery.clone()),
            value("TAILWAY_STATE_SECRET", self.state_secret_of_pod(name)),
            value("TAILWAY_ADMIN_ADDR", format!("0.0.0.0:{ADMIN_PORT}")),
            value("TAILWAY_DRAIN_TIMEOUT", format!("{drain}s")),
            value("TAILWAY_LOG_FORMAT", "json".into()),
        ];
        environment.extend(memory_limit(resources).map(|bytes| {
            // The rest is for Rust's side, stacks and the kernel's.
            value("TAILWAY_ENGINE_MEMORY", (bytes / 10 * 7).to_string())
        }));
        environment
            .extend(cpu_limit(resources).map(|cores| value("GOMAXPROCS", cores.to_string())));
        // Then what holds for all Gateways, and after it what the class says.
        environment.extend(
            self.site
                .environment
                .iter()
                .map(|(name, text)| value(name, text.clone())),
        );
        environment.extend(
            self.control_url
                .iter()
                .map(|url| value("TS_CONTROL_URL", url.clone())),
        );
        environment.extend(
            self.ephemeral
                .then(|| value("TAILWAY_EPHEMERAL", "true".into())),
        );
        environment.extend(
            self.proxy
                .log_level
                .iter()
                .map(|level| value("TAILWAY_LOG", level.clone())),
        );
        environment.extend(self.proxy.env.iter().map(|variable| json!(variable)));
        last_of_each(environment)
    }
}

// === impl Egress ===

impl Egress {
    /// It spreads connections over the pods that are ready.
    fn service_spec(&self, name: &str) -> Value {
        let ports = self.ports.iter().map(|port| {
            json!({
                "name": port_name(port),
                "port": port.number,
                "targetPort": port.number,
                "protocol": port.transport.as_str(),
            })
        });
        json!({ "spec": {
            "type": "ClusterIP",
            "selector": selector(name),
            "ports": ports.collect::<Vec<_>>(),
        }})
    }
}

/// The name of a port of a Service may have 15 letters in some places: the number is always one.
fn port_name(port: &EgressPort) -> String {
    format!(
        "{}-{}",
        port.transport.as_str().to_ascii_lowercase(),
        port.number
    )
}

/// Without what the controller reads from its own objects: whoever may write a Gateway could name
/// devices there that are not its own.
fn foreign(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut given = given.clone();
    given.retain(|key, _| !key.starts_with(labels::OURS));
    given
}

fn selector(workload: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".into(), "tailway".into()),
        ("app.kubernetes.io/instance".into(), workload.into()),
    ])
}

/// An API server takes no variable twice, and what comes later is more particular.
fn last_of_each(variables: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::with_capacity(variables.len());
    for variable in variables {
        kept.retain(|earlier| earlier["name"] != variable["name"]);
        kept.push(variable);
    }
    kept
}

/// A pod may read and write its state, and nothing else. The pods of an egress have one account, and
/// could read each other's.
fn role_rules(secrets: &[String]) -> Value {
    json!({ "rules": [{
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": secrets,
        "verbs": ["get", "update", "patch"],
    }]})
}

/// Headless: a StatefulSet wants one, and Prometheus finds the pod by it.
fn service_spec(name: &str) -> Value {
    json!({ "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": selector(name),
        "ports": [{ "name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP" }],
    }})
}

fn volumes() -> Value {
    let token = |path: &str, audience: Option<&str>| {
        let mut token = json!({ "path": path, "expirationSeconds": 3600 });
        if let Some(audience) = audience {
            token["audience"] = json!(audience);
        }
        json!({ "serviceAccountToken": token })
    };
    let root = json!({ "configMap": {
        "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }],
    }});
    let namespace = json!({ "downwardAPI": {
        "items": [{ "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }],
    }});
    json!([
        // In memory: they hold private keys.
        { "name": "state", "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } },
        { "name": "scratch", "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } },
        { "name": "discovery", "configMap": { "name": AUTHORITY, "optional": true } },
        { "name": "identity", "projected": { "sources": [token("token", Some(AUDIENCE))] } },
        { "name": "kubernetes", "projected": { "sources": [token("token", None), root, namespace] } },
    ])
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": "admin" },
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 2,
    })
}

/// What the class says, and a sane rest.
fn resources(given: Option<&ResourceRequirements>) -> ResourceRequirements {
    let mut resources = given.cloned().unwrap_or_default();
    let requests = resources.requests.get_or_insert_default();
    for (name, quantity) in [("cpu", "20m"), ("memory", "64Mi")] {
        requests
            .entry(name.into())
            .or_insert_with(|| Quantity(quantity.into()));
    }
    let limits = resources.limits.get_or_insert_default();
    limits
        .entry("memory".into())
        .or_insert_with(|| Quantity(MEMORY_LIMIT.into()));
    resources
}

fn memory_limit(resources: &ResourceRequirements) -> Option<u64> {
    let Quantity(text) = resources.limits.as_ref()?.get("memory")?;
    quantity::bytes(text)
}

/// Whole cores, rounded up.
fn cpu_limit(resources: &ResourceRequirements) -> Option<u64> {
    let Quantity(text) = resources.limits.as_ref()?.get("cpu")?;
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().ok()?,
        None => text.parse::<u64>().ok()?.checked_mul(1000)?,
    };
    Some(millis.div_ceil(1000).max(1))
}
