//! What is made for a Gateway, as files: `tests/manifests/workload/<case>/in.yaml` gives
//! `objects.yaml`. `UPDATE_GOLDEN=1 cargo test manifests` writes what comes out.

use super::{known_variables, restricted, strings, update, variables};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};
use tailway::{
    api::tailnets::ProxySettings,
    controller::{Egress, EgressPort, Made, Site, WorkloadInput},
    model::{ObjectName, Transport},
};

const ROOT: &str = "tests/manifests/workload";

/// `in.yaml`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    gateway: String,
    class: String,
    hostname: String,
    egress: Option<Replicated>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    proxy: ProxySettings,
    control_url: Option<String>,
    #[serde(default)]
    ephemeral: bool,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

/// The ports are of TCP unless their name begins with `udp`.
#[derive(Deserialize)]
struct Replicated {
    replicas: u16,
    ports: BTreeMap<String, u16>,
}

impl Replicated {
    fn into_egress(self) -> Egress {
        let ports = self.ports.into_iter().map(|(name, number)| EgressPort {
            transport: match name.starts_with("udp") {
                true => Transport::Udp,
                false => Transport::Tcp,
            },
            name,
            number,
        });
        Egress {
            replicas: self.replicas,
            ports: ports.collect(),
        }
    }
}

impl Case {
    fn into_input(self) -> WorkloadInput {
        let (namespace, name) = self.gateway.split_once('/').unwrap();
        WorkloadInput {
            subject: ObjectName::new(namespace, name),
            class: self.class,
            hostname: self.hostname,
            egress: self.egress.map(Replicated::into_egress),
            labels: self.labels,
            annotations: self.annotations,
            proxy: self.proxy,
            control_url: self.control_url,
            ephemeral: self.ephemeral,
            site: Site {
                environment: self.environment,
                ..site()
            },
        }
    }
}

fn site() -> Site {
    Site {
        namespace: "tailway-system".into(),
        image: "ghcr.io/tailway/tailway:1".into(),
        image_pull_policy: None,
        discovery: "https://tailway-controller.tailway-system.svc:9443".into(),
        environment: BTreeMap::new(),
    }
}

pub fn plain(namespace: &str, name: &str) -> WorkloadInput {
    WorkloadInput {
        subject: ObjectName::new(namespace, name),
        class: "my-tailnet".into(),
        hostname: format!("{name}-{namespace}"),
        egress: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        proxy: ProxySettings::default(),
        control_url: None,
        ephemeral: false,
        site: site(),
    }
}

fn cases() -> Vec<(String, WorkloadInput)> {
    let entries = fs::read_dir(ROOT).unwrap();
    let mut cases: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    cases.sort();
    let input = |case: String| {
        let text = fs::read_to_string(format!("{ROOT}/{case}/in.yaml")).unwrap();
        let input: Case = serde_saphyr::from_str(&text).unwrap();
        (case, input.into_input())
    };
    cases.into_iter().map(input).collect()
}

fn yaml(made: &[Made]) -> String {
    made.iter()
        .map(|made| format!("---\n{}", serde_saphyr::to_string(&made.object).unwrap()))
        .collect()
}

fn of_kind(input: &WorkloadInput, kind: &str) -> Value {
    let made = input.objects().into_iter();
    let mut of_kind = made.filter(|made| made.resource.kind == kind);
    of_kind.next().unwrap().object
}

fn pod(input: &WorkloadInput) -> Value {
    of_kind(input, "StatefulSet")["spec"]["template"]["spec"].clone()
}

#[test]
fn every_case_gives_what_stands_beside_it() {
    let mut wrong = Vec::new();
    for (case, input) in cases() {
        let path = format!("{ROOT}/{case}/objects.yaml");
        let given = yaml(&input.objects());
        if update() {
            fs::write(&path, &given).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != given {
            wrong.push(path);
        }
    }
    assert_eq!(wrong, [""; 0], "UPDATE_GOLDEN=1 writes what comes out");
}

#[test]
fn the_same_input_gives_the_same_bytes_and_another_gives_others() {
    let mut given = BTreeSet::new();
    for (case, input) in cases() {
        let bytes = yaml(&input.objects());
        assert_eq!(bytes, yaml(&input.clone().objects()), "{case}");
        assert!(given.insert(bytes), "{case}");
    }
}

#[test]
fn a_pod_is_told_only_what_it_reads() {
    let mut known = known_variables("proxy");
    // Go's.
    known.insert("GOMAXPROCS".into());
    for (case, input) in cases() {
        let unknown: Vec<_> = variables(&pod(&input)["containers"][0])
            .difference(&known)
            .cloned()
            .collect();
        assert_eq!(unknown, [""; 0], "{case}");
    }
}

#[test]
fn a_pod_may_use_its_own_state_and_nothing_else() {
    for (case, input) in cases() {
        let name = of_kind(&input, "StatefulSet")["metadata"]["name"].clone();
        let secrets = input.objects().into_iter();
        let secrets = secrets.filter(|made| made.resource.kind == "Secret");
        let secrets: Vec<_> = secrets.map(|made| made.name).collect();
        let rules = json!([{
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": secrets,
            "verbs": ["get", "update", "patch"],
        }]);
        assert_eq!(of_kind(&input, "Role")["rules"], rules, "{case}");
        let binding = of_kind(&input, "RoleBinding");
        let subjects = json!([
            { "kind": "ServiceAccount", "name": name, "namespace": "tailway-system" },
        ]);
        assert_eq!(binding["subjects"], subjects, "{case}");
        assert_eq!(binding["roleRef"]["name"], name, "{case}");
        assert_eq!(pod(&input)["serviceAccountName"], name, "{case}");
    }
}

#[test]
fn no_apply_names_what_a_state_secret_holds() {
    for (case, input) in cases() {
        let secret = of_kind(&input, "Secret");
        let keys: Vec<_> = secret.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["apiVersion", "kind", "metadata"], "{case}");
    }
}

#[test]
fn the_grace_period_is_longer_than_the_drain() {
    let mut input = plain("default", "nginx");
    for seconds in [1, 30, 3600] {
        input.proxy.drain_seconds = Some(seconds);
        let grace = pod(&input)["terminationGracePeriodSeconds"].clone();
        assert!(grace.as_u64().unwrap() > u64::from(seconds));
    }
}

#[test]
fn a_gateway_cannot_claim_the_nodes_of_another() {
    let mut input = plain("default", "nginx");
    for key in ["node-ids", "gateway-name", "gateway-namespace", "anything"] {
        let key = format!("tailway.michaelbeaumont.github.io/{key}");
        input.labels.insert(key.clone(), "stranger".into());
        input.annotations.insert(key, "stranger".into());
    }
    assert_eq!(
        yaml(&input.objects()),
        yaml(&plain("default", "nginx").objects())
    );
}

/// Names as an API server takes them.
fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
}

fn subdomain() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
        "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?",
    ]
}

fn is_label(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && text.chars().all(|c| is_end(c) || c == '-')
}

fn is_label_value(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || text.len() <= 63
            && text.starts_with(is_end)
            && text.ends_with(is_end)
            && text.chars().all(|c| is_end(c) || "-_.".contains(c))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_api_server_takes_every_name_and_label(
        namespace in label(), name in subdomain(), class in subdomain(), hostname in label(),
    ) {
        let mut input = plain(&namespace, &name);
        (input.class, input.hostname) = (class, hostname);
        input.proxy.disruption_budget = true;
        for made in input.objects() {
            let metadata = &made.object["metadata"];
            prop_assert_eq!(&metadata["name"], &made.name);
            // A Service's name is a label that starts with a letter (RFC 1035), a Secret's is longer.
            if made.resource.kind == "Secret" {
                prop_assert!(is_label(made.name.trim_end_matches("-state")));
            } else {
                prop_assert!(is_label(&made.name), "{}", made.name);
                prop_assert!(made.name.starts_with(|c: char| c.is_ascii_lowercase()), "{}", made.name);
            }
            let labels = metadata["labels"].as_object().unwrap();
            for (key, value) in labels {
                prop_assert!(is_label_value(value.as_str().unwrap()), "{key}: {value}");
            }
        }
        // Labels that Kubernetes gives a pod: its own name, and that of its revision.
        let set = of_kind(&input, "StatefulSet");
        let name = set["metadata"]["name"].as_str().unwrap();
        let revision = format!("{name}-0123456789");
        prop_assert!(revision.len() <= 63 && name.len() + "-0".len() <= 63);
    }

    #[test]
    fn no_two_gateways_share_an_object(
        one in (label(), subdomain()), other in (label(), subdomain()),
    ) {
        let names = |(namespace, name): &(String, String)| -> BTreeSet<_> {
            let made = plain(namespace, name).objects().into_iter();
            made.map(|made| (made.resource.kind, made.name)).collect()
        };
        prop_assert_eq!(names(&one).is_disjoint(&names(&other)), one != other);
    }

    #[test]
    fn dashes_between_name_and_namespace_are_not_confused(
        words in prop::collection::vec("[a-z]{1,3}", 3..6), at in 1usize..5, beside in 1usize..5,
    ) {
        let (at, beside) = (at.min(words.len() - 1), beside.min(words.len() - 1));
        let name = |at: usize| {
            let input = plain(&words[at..].join("-"), &words[..at].join("-"));
            of_kind(&input, "StatefulSet")["metadata"]["name"].clone()
        };
        prop_assert_eq!(name(at) == name(beside), at == beside);
    }

    #[test]
    fn a_pod_is_restricted_whatever_its_class_says(
        memory in prop::option::of(1u32..4096), cpu in prop::option::of(1u32..9000), log in "[a-z=,]{0,20}",
        variable in "[A-Z_]{1,10}", labels in prop::collection::btree_map("[a-z./]{1,20}", "[a-z]{0,9}", 0..4),
    ) {
        let mut input = plain("default", "nginx");
        let mut limits = json!({});
        if let Some(memory) = memory { limits["memory"] = json!(format!("{memory}Mi")); }
        if let Some(cpu) = cpu { limits["cpu"] = json!(format!("{cpu}m")); }
        input.proxy = serde_json::from_value(json!({
            "resources": { "limits": limits },
            "logLevel": log,
            "env": [{ "name": variable, "value": "x" }],
        })).unwrap();
        input.labels = labels.clone();
        input.annotations = labels;
        let pod = pod(&input);
        prop_assert_eq!(restricted::violations(&pod), [""; 0]);
        prop_assert_eq!(&pod["automountServiceAccountToken"], false);
        // No variable twice: an apply would be refused.
        let count = pod["containers"][0]["env"].as_array().unwrap().len();
        prop_assert_eq!(variables(&pod["containers"][0]).len(), count);
        // The Service and the StatefulSet find the pod.
        let set = of_kind(&input, "StatefulSet");
        let labels = set["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        for selector in [&set["spec"]["selector"]["matchLabels"], &of_kind(&input, "Service")["spec"]["selector"]] {
            for (key, value) in selector.as_object().unwrap() {
                prop_assert_eq!(labels.get(key), Some(value));
            }
        }
    }
}

#[test]
fn memory_and_cores_of_the_engine_follow_the_limits() {
    let environment = |limits: Value| {
        let mut input = plain("default", "nginx");
        input.proxy = serde_json::from_value(json!({ "resources": { "limits": limits } })).unwrap();
        let pod = pod(&input);
        let variables = pod["containers"][0]["env"].as_array().unwrap().clone();
        let value = move |name: &str| {
            let mut named = variables.iter().filter(|variable| variable["name"] == name);
            named
                .next()
                .map(|variable| variable["value"].as_str().unwrap().to_owned())
        };
        (value("TAILWAY_ENGINE_MEMORY"), value("GOMAXPROCS"))
    };
    let seven_tenths = |bytes: u64| Some((bytes / 10 * 7).to_string());
    assert_eq!(environment(json!({})), (seven_tenths(512 << 20), None));
    assert_eq!(
        environment(json!({ "memory": "1Gi", "cpu": "1500m" })),
        (seven_tenths(1 << 30), Some("2".into()))
    );
    assert_eq!(
        environment(json!({ "memory": 1_000_000_000, "cpu": 3 })),
        (seven_tenths(1_000_000_000), Some("3".into()))
    );
}

/// What the controller must be allowed to do with what it makes.
pub fn needs(input: &WorkloadInput) -> Vec<(String, String, BTreeSet<String>)> {
    let mut needs: Vec<_> = Vec::new();
    for made in input.objects() {
        let verbs = ["create", "patch", "delete"].map(String::from).into();
        needs.push((
            made.resource.group.clone(),
            made.resource.plural.clone(),
            verbs,
        ));
        // Nobody grants what he does not hold.
        for rule in made.object["rules"].as_array().into_iter().flatten() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    needs.push((group.clone(), resource, strings(&rule["verbs"])));
                }
            }
        }
    }
    needs
}
