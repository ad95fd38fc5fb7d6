//! Sets in, what Envoy is told out, as files: `tests/extension/golden/<case>/`.
//!
//! - `in.yaml`: the TailscaleEgressSet, and with `hosts` the virtual hosts that Envoy Gateway made:
//!   the names of their routes and what those match.
//! - `out.yaml`: the routes and clusters of the answer, as far as they are ours, and what was left
//!   out.
//!
//! `make envoy` asks Envoy, too, whether it takes each of them (`--mode validate`).
//! `UPDATE_GOLDEN=1 cargo test golden` writes what comes out; read the difference before it is
//! committed.

use super::{
    bootstrap::bootstrap,
    hooks::service,
    messages::{self, Match, configuration, eds_cluster, host},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tailway::extension::{
    Hooks, Settings, Told,
    proto::{
        ExtensionResource, PostClusterExtensionContext, PostClusterModifyRequest,
        PostTranslateExtensionContext, PostTranslateModifyRequest, PostTranslateModifyResponse,
    },
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/extension/golden");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(default)]
    hosts: BTreeMap<String, Vec<UserRoute>>,
    /// Specs of sets of Gateway `default/eg`.
    sets: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserRoute {
    name: String,
    #[serde(flatten)]
    matches: UserMatch,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum UserMatch {
    Prefix(String),
    Segments(String),
    Exact(String),
    Regex(String),
    Folded(String),
    WithHeader(String),
    WithMore(String),
}

#[derive(Serialize)]
struct Outcome {
    /// Of each virtual host, by its domains.
    order: BTreeMap<String, Vec<String>>,
    routes: Vec<Value>,
    clusters: Vec<Value>,
    skipped: Vec<String>,
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(ROOT).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn request(case: &Case) -> PostTranslateModifyRequest {
    let policy = |(at, spec): (usize, &Value)| {
        let mut spec = spec.clone();
        spec["targetRefs"] =
            json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "eg" }]);
        let set = json!({
            "apiVersion": "gateway.tailscale.com/v1alpha1",
            "kind": "TailscaleEgressSet",
            "metadata": { "namespace": "default", "name": format!("eg-{at}") },
            "spec": spec,
        });
        ExtensionResource {
            unstructured_bytes: serde_json::to_vec(&set).unwrap().into(),
        }
    };
    let hosts = case.hosts.iter().map(|(domain, routes)| {
        let route = |route: &UserRoute| messages::route(&route.name, route.matches.as_match());
        host(domain, routes.iter().map(route))
    });
    PostTranslateModifyRequest {
        post_translate_context: Some(PostTranslateExtensionContext {
            extension_resources: case.sets.iter().enumerate().map(policy).collect(),
        }),
        clusters: vec![eds_cluster("httproute/default/user/rule/0").done()],
        secrets: Vec::new(),
        listeners: Vec::new(),
        routes: vec![configuration(hosts).done()],
    }
}

fn answer(case: &Case) -> (PostTranslateModifyResponse, Told) {
    let hooks = Hooks::new(Settings {
        // There on every machine of these tests.
        system_authorities: concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/extension/authorities.pem"
        )
        .into(),
        ..Settings::default()
    });
    let answer = hooks.translation(request(case), None);
    (answer.message, answer.told)
}

fn outcome(message: &PostTranslateModifyResponse, told: &Told) -> Outcome {
    let hosts = messages::hosts(&message.routes[0]);
    let mut routes = Vec::new();
    let mut order = BTreeMap::new();
    for host in hosts {
        let host = messages::json("envoy.config.route.v3.VirtualHost", &host);
        let all = host["routes"].as_array().cloned().unwrap_or_default();
        let name = |route: &Value| route["name"].as_str().unwrap().to_owned();
        order.insert(
            host["domains"].to_string(),
            all.iter().map(name).collect::<Vec<_>>(),
        );
        let ours = |route: &Value| route["route"].is_object();
        if routes.is_empty() {
            routes = all.into_iter().filter(ours).collect();
        }
    }
    let clusters = message.clusters.iter().skip(1);
    let relative = |cluster: Value| {
        let text = cluster.to_string();
        let text = text.replace(env!("CARGO_MANIFEST_DIR"), "");
        serde_json::from_str(&text).unwrap()
    };
    let skipped = told.served.values().flat_map(|served| &served.skipped);
    Outcome {
        order,
        routes,
        clusters: clusters
            .map(|cluster| relative(messages::cluster_json(cluster)))
            .collect(),
        skipped: skipped
            .map(|one| {
                let reason = one.refusal.reason();
                format!(
                    "{} of {}: {reason}: {}",
                    one.service, one.source, one.refusal
                )
            })
            .collect(),
    }
}

#[test]
fn every_set_becomes_what_its_golden_file_says() {
    let mut wrong = Vec::new();
    for directory in cases() {
        let case = read(&directory);
        let (message, told) = answer(&case);
        assert!(
            (message.clone(), told.clone()) == answer(&case),
            "{} is not always the same",
            directory.display()
        );
        let text = serde_saphyr::to_string(&outcome(&message, &told)).unwrap();
        let path = directory.join("out.yaml");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &text).unwrap();
        }
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            wrong.push(path);
        }
    }
    assert_eq!(wrong, Vec::<PathBuf>::new());
}

#[test]
#[ignore = "make envoy"]
fn envoy_takes_everything_that_the_golden_files_say() {
    let envoy = std::env::var_os("TAILWAY_ENVOY").expect("make envoy sets TAILWAY_ENVOY");
    let directory = tempfile::tempdir().unwrap();
    for case in cases() {
        let (message, _) = answer(&read(&case));
        // The cluster of Envoy Gateway is one of EDS, for which there is nobody here to ask.
        let clusters = message.clusters.iter().skip(1);
        let config = bootstrap(clusters, &message.routes[0]);
        validate(
            &envoy,
            directory.path(),
            &config,
            &case.display().to_string(),
        );
    }
    let services = (0..1000).map(|number| service(&format!("s{number:03}")));
    let sets = vec![json!({ "revision": "r1", "services": services.collect::<Vec<_>>() })];
    let hosts = BTreeMap::new();
    let (message, _) = answer(&Case { hosts, sets });
    let clusters = message.clusters.iter().skip(1);
    let config = bootstrap(clusters, &message.routes[0]);
    validate(&envoy, directory.path(), &config, "a thousand services");
}

#[test]
#[ignore = "make envoy"]
fn envoy_takes_the_clusters_that_are_filled() {
    let envoy = std::env::var_os("TAILWAY_ENVOY").expect("make envoy sets TAILWAY_ENVOY");
    let directory = tempfile::tempdir().unwrap();
    let filled: Vec<_> = cases().iter().flat_map(|case| filled(case)).collect();
    assert!(filled.len() > 20);
    let config = bootstrap(filled.iter(), &configuration([]).done());
    validate(
        &envoy,
        directory.path(),
        &config,
        "clusters that were filled",
    );
}

/// The upstreams of all services as backends of an HTTPRoute and of a GRPCRoute.
fn filled(directory: &Path) -> Vec<Bytes> {
    let case = read(directory);
    let name = directory.file_name().unwrap().to_str().unwrap();
    let hooks = Hooks::new(Settings::default());
    let services = case
        .sets
        .iter()
        .flat_map(|set| set["services"].as_array().unwrap());
    let mut filled = Vec::new();
    for (number, service) in services.enumerate() {
        for kind in ["httproute", "grpcroute"] {
            let backend = json!({
                "apiVersion": "gateway.tailscale.com/v1alpha1",
                "kind": "TailscaleBackend",
                "metadata": { "namespace": "default", "name": service["name"] },
                "spec": { "upstream": service["upstream"] },
            });
            let name = format!("{kind}/default/{name}/rule/{number}");
            let answer = hooks.cluster(PostClusterModifyRequest {
                // Envoy Gateway sets how names are looked up, too.
                cluster: eds_cluster(&name).number(17, 3).done(),
                post_cluster_context: Some(PostClusterExtensionContext {
                    backend_extension_resources: vec![super::hooks::resource(&backend)],
                }),
            });
            // Those that are refused come back as they were.
            let is_filled = |cluster: &Bytes| messages::fields(cluster, 3).is_empty();
            filled.extend(Some(answer.message).filter(is_filled));
        }
    }
    filled
}

fn validate(envoy: &OsStr, directory: &Path, config: &[u8], what: &str) {
    let path = directory.join("bootstrap.pb");
    fs::write(&path, config).unwrap();
    let said = Command::new(envoy)
        .args([
            "--mode",
            "validate",
            "--allow-unknown-static-fields",
            "--config-path",
        ])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{what}: {text}");
}

fn read(directory: &Path) -> Case {
    let path = directory.join("in.yaml");
    let text = fs::read_to_string(&path).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

// === impl UserMatch ===

impl UserMatch {
    fn as_match(&self) -> Match<'_> {
        match self {
            Self::Prefix(text) => Match::Prefix(text),
            Self::Segments(text) => Match::Segments(text),
            Self::Exact(text) => Match::Exact(text),
            Self::Regex(text) => Match::Regex(text),
            Self::Folded(text) => Match::Folded(text),
            Self::WithHeader(text) => Match::WithHeader(text),
            Self::WithMore(text) => Match::WithMore(text),
        }
    }
}
