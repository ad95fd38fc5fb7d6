//! `manifests/`: what is installed fits the program.

use super::{
    known_variables, objects, objects as objects_of, parse, restricted, strings, variables,
    workload,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};
use tailway::{check, index::Index, source};

const INSTALL: &str = "manifests/install.yaml";
const UNINSTALL: &str = "manifests/uninstall.yaml";
const EXTENSION: &str = "manifests/envoy-gateway/extension.yaml";

fn only(objects: &[Value], kind: &str, name: &str) -> Value {
    let found: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0].clone()
}

fn pod_of(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]
}

fn controller() -> Value {
    only(&objects(INSTALL), "Deployment", "tailway-controller")
}

fn cleanup() -> Value {
    only(&objects(UNINSTALL), "Job", "tailway-cleanup")
}

#[test]
fn what_is_installed_is_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = &objects("manifests/chart/Chart.yaml")[0];
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&json!(version), &json!(version))
    );
    let image = format!("ghcr.io/tailway/tailway:{version}");
    for object in [controller(), cleanup()] {
        assert_eq!(pod_of(&object)["containers"][0]["image"], image);
    }
}

#[test]
fn the_controller_s_pods_are_restricted_too() {
    for object in [controller(), cleanup()] {
        assert_eq!(restricted::violations(pod_of(&object)), [""; 0]);
    }
    let namespace = only(&objects(INSTALL), "Namespace", "tailway-system");
    let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(enforced, "restricted");
}

#[test]
fn the_controller_is_told_only_what_it_reads() {
    let known = known_variables("controller");
    for object in [controller(), cleanup()] {
        let unknown: Vec<_> = variables(&pod_of(&object)["containers"][0])
            .difference(&known)
            .cloned()
            .collect();
        assert_eq!(unknown, [""; 0], "{}", object["kind"]);
    }
    assert_eq!(
        pod_of(&controller())["containers"][0]["args"],
        json!(["controller"])
    );
    assert_eq!(
        pod_of(&cleanup())["containers"][0]["args"],
        json!(["controller", "--cleanup"])
    );
}

#[test]
fn pods_find_the_controller_where_they_look_for_it() {
    let service = only(&objects(INSTALL), "Service", "tailway-controller");
    let ports = service["spec"]["ports"].as_array().unwrap();
    let discovery = ports
        .iter()
        .find(|port| port["name"] == "discovery")
        .unwrap();
    assert_eq!(discovery["port"], 9443);
    let deployment = controller();
    let container = &pod_of(&deployment)["containers"][0];
    let listens = |port: &Value| port["name"] == "discovery" && port["containerPort"] == 9443;
    assert!(container["ports"].as_array().unwrap().iter().any(listens));
    assert_eq!(
        service["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"]
    );
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for (key, value) in service["spec"]["selector"].as_object().unwrap() {
        assert_eq!(&labels[key], value);
    }
    // Not the pods of Gateways.
    let made = workload::plain("default", "nginx").objects();
    let set = made
        .iter()
        .find(|made| made.resource.kind == "StatefulSet")
        .unwrap();
    let proxy = &set.object["spec"]["template"]["metadata"]["labels"];
    assert_ne!(
        proxy["app.kubernetes.io/component"],
        labels["app.kubernetes.io/component"]
    );
}

/// What is allowed, by group and resource.
type Allowed = BTreeMap<String, BTreeSet<String>>;

fn allowed(role: &Value) -> Allowed {
    let mut allowed = Allowed::new();
    for rule in role["rules"].as_array().unwrap() {
        let names = match &rule["resourceNames"] {
            Value::Null => String::new(),
            names => format!(" {names}"),
        };
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                let verbs = allowed
                    .entry(format!("{group}/{resource}{names}"))
                    .or_default();
                verbs.extend(strings(&rule["verbs"]));
            }
        }
    }
    allowed
}

const READS: [&str; 3] = ["get", "list", "watch"];

/// Without what only reads.
fn writes(allowed: &Allowed) -> BTreeMap<&str, Vec<&str>> {
    allowed
        .iter()
        .map(|(resource, verbs)| {
            let verbs: Vec<_> = verbs
                .iter()
                .map(String::as_str)
                .filter(|verb| !READS.contains(verb))
                .collect();
            (resource.as_str(), verbs)
        })
        .filter(|(_, verbs)| !verbs.is_empty())
        .collect()
}

fn reads(allowed: &Allowed) -> BTreeSet<&str> {
    let complete = |verbs: &BTreeSet<String>| READS.iter().all(|verb| verbs.contains(*verb));
    allowed
        .iter()
        .filter(|(_, verbs)| complete(verbs))
        .map(|(resource, _)| resource.as_str())
        .collect()
}

#[test]
fn outside_its_namespace_the_controller_writes_statuses_events_and_finalizers() {
    let role = allowed(&only(
        &objects(INSTALL),
        "ClusterRole",
        "tailway-controller",
    ));
    assert_eq!(
        writes(&role),
        BTreeMap::from([
            ("authentication.k8s.io/tokenreviews", vec!["create"]),
            ("events.k8s.io/events", vec!["create", "patch"]),
            (
                "gateway.networking.k8s.io/gatewayclasses/status",
                vec!["patch"]
            ),
            ("gateway.networking.k8s.io/gatewayclasses", vec!["patch"]),
            ("gateway.networking.k8s.io/gateways", vec!["patch"]),
            ("gateway.networking.k8s.io/gateways/status", vec!["patch"]),
            ("gateway.networking.k8s.io/grpcroutes/status", vec!["patch"]),
            (
                "gateway.networking.k8s.io/backendtlspolicies/status",
                vec!["patch"]
            ),
            ("gateway.networking.k8s.io/httproutes/status", vec!["patch"]),
            (
                "gateway.networking.k8s.io/listenersets/status",
                vec!["patch"]
            ),
            ("gateway.networking.k8s.io/tcproutes/status", vec!["patch"]),
            ("gateway.networking.k8s.io/tlsroutes/status", vec!["patch"]),
            ("gateway.networking.k8s.io/udproutes/status", vec!["patch"]),
            (
                "gateway.tailscale.com/tailscalebackends",
                vec!["create", "delete", "patch"]
            ),
            (
                "gateway.tailscale.com/tailscalebackends/status",
                vec!["patch"]
            ),
            (
                "gateway.tailscale.com/tailscaleegresssets",
                vec!["create", "delete", "patch"]
            ),
            (
                "gateway.tailscale.com/tailscaleendpoints/status",
                vec!["patch"]
            ),
        ])
    );
    assert_eq!(
        reads(&role),
        BTreeSet::from([
            "/configmaps",
            "/namespaces",
            "/secrets",
            "/services",
            "discovery.k8s.io/endpointslices",
            "gateway.networking.k8s.io/backendtlspolicies",
            "gateway.networking.k8s.io/gatewayclasses",
            "gateway.networking.k8s.io/gateways",
            "gateway.networking.k8s.io/grpcroutes",
            "gateway.networking.k8s.io/httproutes",
            "gateway.networking.k8s.io/listenersets",
            "gateway.networking.k8s.io/referencegrants",
            "gateway.networking.k8s.io/tcproutes",
            "gateway.networking.k8s.io/tlsroutes",
            "gateway.networking.k8s.io/udproutes",
            "gateway.tailscale.com/tailscalebackends",
            "gateway.tailscale.com/tailscaleegresssets",
            "gateway.tailscale.com/tailscaleendpoints",
            "gateway.tailscale.com/tailscaletailnets",
        ])
    );
}

#[test]
fn in_its_namespace_the_controller_may_make_what_gateways_are_made_of() {
    let role = allowed(&only(&objects(INSTALL), "Role", "tailway-controller"));
    let scale = &role[r#"apps/deployments/scale ["tailway-controller"]"#];
    assert_eq!(*scale, BTreeSet::from(["patch".to_owned()]));
    let mut input = workload::plain("default", "nginx");
    input.proxy.disruption_budget = true;
    for (group, resource, verbs) in workload::needs(&input) {
        let granted = &role[&format!("{group}/{resource}")];
        assert!(
            verbs.is_subset(granted),
            "{resource}: {verbs:?} of {granted:?}"
        );
    }
    assert!(!role.values().any(|verbs| verbs.contains("*")));
}

#[test]
fn the_samples_for_a_cluster_are_accepted() {
    let sample = |name: &str| PathBuf::from(format!("manifests/samples/kubernetes/{name}.yaml"));
    for class in ["class-secret", "class-tailnet"] {
        let loaded = source::load(&[sample(class), sample("nginx")]).unwrap();
        let warnings = loaded.warnings.iter();
        let warnings: Vec<_> = warnings.map(|warning| warning.message.as_str()).collect();
        assert_eq!(
            warnings,
            ["Deployment of apps/v1 is not read by tailway"],
            "{class}"
        );
        let mut index = Index::default();
        index.reset(loaded.objects);
        let problems = check::problems(&index.evaluate().statuses);
        assert_eq!(problems, [""; 0], "{class}");
    }
}

#[test]
fn the_extension_is_where_envoy_gateway_looks_for_it() {
    let (name, namespace) = (
        "tailscale-gateway-extension-server",
        "tailscale-gateway-system",
    );
    let objects = objects_of(EXTENSION);
    let service = only(&objects, "Service", name);
    assert_eq!(service["metadata"]["namespace"], namespace);
    let deployment = only(&objects, "Deployment", name);
    assert_eq!(deployment["metadata"]["namespace"], namespace);
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(restricted::violations(pod_of(&deployment)), [""; 0]);
    let container = &pod_of(&deployment)["containers"][0];
    assert_eq!(container["args"], json!(["extension"]));
    let told = variables(container);
    let known = known_variables("extension");
    assert!(told.is_subset(&known), "{told:?}");
    assert_eq!(
        service["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"]
    );
    assert_eq!(service["spec"]["ports"][0]["port"], 5005);
    for file in ["envoy-gateway-config", "hooks-only"] {
        let config = objects_of(format!("manifests/envoy-gateway/{file}.yaml"));
        let config = only(&config, "ConfigMap", "envoy-gateway-config");
        let config = parse(config["data"]["envoy-gateway.yaml"].as_str().unwrap());
        let manager = &config[0]["extensionManager"];
        let host = format!("{name}.{namespace}.svc.cluster.local");
        let fqdn = json!({ "hostname": host, "port": 5005 });
        assert_eq!(manager["service"], json!({ "fqdn": fqdn }), "{file}");
        assert_eq!(manager["maxMessageSize"], "1000M", "{file}");
    }
}

#[test]
fn envoy_gateway_may_read_the_kinds_that_it_is_to_hand_on() {
    let config = objects_of("manifests/envoy-gateway/envoy-gateway-config.yaml");
    let config = only(&config, "ConfigMap", "envoy-gateway-config");
    let config = parse(config["data"]["envoy-gateway.yaml"].as_str().unwrap());
    let manager = &config[0]["extensionManager"];
    let kinds = ["policyResources", "backendResources"].map(|list| {
        let kinds = manager[list].as_array().unwrap();
        kinds
            .iter()
            .map(|kind| kind["kind"].as_str().unwrap().to_owned())
    });
    let kinds: BTreeSet<String> = kinds.into_iter().flatten().collect();
    assert_eq!(
        kinds,
        ["TailscaleBackend", "TailscaleEgressSet"]
            .map(String::from)
            .into()
    );
    let role = only(
        &objects_of(EXTENSION),
        "ClusterRole",
        "tailscale-gateway-extension-server-resources",
    );
    let role = allowed(&role);
    assert_eq!(
        reads(&role),
        [
            "gateway.tailscale.com/tailscalebackends",
            "gateway.tailscale.com/tailscaleegresssets"
        ]
        .into()
    );
    // Whatever is registered as a policy gets a status.
    assert_eq!(
        writes(&role),
        [(
            "gateway.tailscale.com/tailscaleegresssets/status",
            vec!["update"]
        )]
        .into()
    );
}

/// Helm, where it can be run: `make helm` builds it.
pub fn helm() -> Option<PathBuf> {
    let given = std::env::var_os("HELM").map(PathBuf::from);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/helm");
    let helm = given.or_else(|| built.exists().then_some(built));
    if helm.is_none() {
        eprintln!("not tested: there is no Helm; `make helm` builds it");
    }
    helm
}

#[test]
fn install_yaml_is_what_the_chart_says() {
    let Some(helm) = helm() else { return };
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("manifests/gen.sh")
        .arg(directory.path())
        .env("HELM", helm)
        .status();
    assert!(status.unwrap().success());
    for path in [INSTALL, UNINSTALL, EXTENSION] {
        let made = directory.path().join(path.trim_start_matches("manifests/"));
        let made = fs::read_to_string(made).unwrap();
        assert!(
            made == fs::read_to_string(path).unwrap(),
            "{path} is not what the chart says: `make gen` writes it"
        );
    }
}

/// What the chart makes of values.
fn template(helm: &PathBuf, values: &str) -> Vec<Value> {
    let mut command = Command::new(helm);
    command.args([
        "template",
        "tailway",
        "manifests/chart",
        "--namespace",
        "tailway-system",
    ]);
    let output = command.args(["--set-json", values]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    parse(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn secrets_can_be_limited_to_some_namespaces() {
    let Some(helm) = helm() else { return };
    let objects = template(&helm, r#"secretNamespaces=["shop","web"]"#);
    let cluster = allowed(&only(&objects, "ClusterRole", "tailway-controller"));
    assert_eq!(cluster.get("/secrets"), None);
    let certificates: Vec<_> = objects
        .iter()
        .filter(|object| {
            object["kind"] == "Role"
                && object["metadata"]["name"] == "tailway-controller-certificates"
        })
        .map(|role| (role["metadata"]["namespace"].clone(), role["rules"].clone()))
        .collect();
    let rules = json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": READS }]);
    assert_eq!(
        certificates,
        [(json!("shop"), rules.clone()), (json!("web"), rules)]
    );
    let deployment = only(&objects, "Deployment", "tailway-controller");
    let environment = pod_of(&deployment)["containers"][0]["env"]
        .as_array()
        .unwrap();
    let namespaces = json!({ "name": "TAILWAY_SECRET_NAMESPACES", "value": "shop,web" });
    assert!(environment.contains(&namespaces));
}

#[test]
fn every_value_of_the_chart_gives_objects_that_still_fit() {
    let Some(helm) = helm() else { return };
    let values = [
        r#"workloadIdentity=[{"name":"token","audience":"api.tailscale.com/abc"}]"#,
        r#"networkPolicy={"enabled":true,"metricsFrom":[{"namespaceSelector":{}}]}"#,
        r#"proxyEnv={"TAILWAY_IDLE_TIMEOUT":"1h","HTTPS_PROXY":"http://proxy:3128"}"#,
        r#"tailnets={"apiURL":"https://api.example.com","controlURL":"https://control.example.com"}"#,
        r#"image={"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","pullPolicy":"Never"}"#,
        r#"secretNamespaces=[]"#,
        r#"extension={"enabled":true,"allowLocalTargets":true,"tls":{"secret":"tls","clientCASecret":"clients"}}"#,
    ];
    for values in values {
        let objects = template(&helm, values);
        let deployment = only(&objects, "Deployment", "tailway-controller");
        assert_eq!(
            restricted::violations(pod_of(&deployment)),
            [""; 0],
            "{values}"
        );
        let told = variables(&pod_of(&deployment)["containers"][0]);
        let known = known_variables("controller");
        assert!(told.is_subset(&known), "{values}: {told:?}");
        let of_controller = told;
        let name = "tailscale-gateway-extension-server";
        if values.starts_with("extension") {
            let told = variables(&pod_of(&only(&objects, "Deployment", name))["containers"][0]);
            let known = known_variables("extension");
            assert!(told.is_subset(&known), "{values}: {told:?}");
            let both = "TAILWAY_EXTENSION_LOCAL_TARGETS";
            assert!(told.contains(both) && of_controller.contains(both));
        }
    }
}
