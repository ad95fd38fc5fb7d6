//! What is installed, as an API server takes it: `manifests/`, `crds/`, and the controller's rights.

use super::lab::{Lab, Tier};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

const INSTALL: &str = "manifests/install.yaml";
const SYSTEM: &str = "tailway-system";
const CONTROLLER: &str = "--as=system:serviceaccount:tailway-system:tailway-controller";

/// A cluster with the Gateway API and all that is installed.
async fn installed() -> Lab {
    let lab = Lab::up(Tier::Control).await;
    lab.install_gateway_api().await;
    // As the README has it: small enough for a client's own apply.
    lab.kubectl(["apply", "--filename", INSTALL]).await;
    let established = "--for=condition=Established";
    let crd = "customresourcedefinition/tailscaletailnets.gateway.tailscale.com";
    lab.wait([established, crd]).await;
    lab
}

/// The objects of each case of `tests/manifests/workload`, as the controller applies them.
fn workloads() -> Vec<String> {
    let cases = fs::read_dir("tests/manifests/workload").unwrap();
    let mut cases: Vec<_> = cases
        .map(|case| case.unwrap().path().join("objects.yaml"))
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    cases.sort();
    cases
}

async fn apply_workloads(lab: &Lab) {
    for file in workloads() {
        let field_manager = "--field-manager=tailway-controller";
        let apply = ["apply", "--server-side", field_manager, CONTROLLER];
        lab.kubectl(apply.into_iter().chain(["--filename", &file]))
            .await;
    }
}

/// The version of every object, by kind and name.
async fn versions(lab: &Lab, kinds: &str, label: &str) -> BTreeMap<String, Value> {
    let list = ["get", kinds, "--all-namespaces", "--output=json"];
    let list = lab
        .kubectl(list.into_iter().chain(["--selector", label]))
        .await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    let version = |object: &Value| {
        let metadata = &object["metadata"];
        let name = format!("{} {}", object["kind"], metadata["name"]);
        // What others write into the status does not count.
        let version = match &metadata["generation"] {
            Value::Null => &metadata["resourceVersion"],
            generation => generation,
        };
        (name, version.clone())
    };
    items.map(version).collect()
}

fn gateway(name: &str, class: &str, addresses: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: {class}
  addresses: {addresses}
  listeners: [{{name: tcp, port: 5432, protocol: TCP}}]
"
    )
}

fn class(name: &str, controller: &str, tags: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: {name}, annotations: {{tailway.michaelbeaumont.github.io/tags: '{tags}'}}}}
spec: {{controllerName: {controller}}}
"
    )
}

const OURS: &str = "tailway.michaelbeaumont.github.io/controller";

#[tokio::test]
#[ignore = "make cluster"]
async fn installing_again_changes_nothing() {
    let lab = installed().await;
    let kinds = "namespace,deployment,service,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,\
                 poddisruptionbudget,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let label = "app.kubernetes.io/name=tailway";
    let before = versions(&lab, kinds, label).await;
    assert_eq!(before.len(), 15, "{before:?}");
    lab.kubectl(["apply", "--filename", INSTALL]).await;
    assert_eq!(versions(&lab, kinds, label).await, before);
    for policy in ["tailway-gateways", "tailway-classes", "tailway-controller"] {
        let policy = format!("validatingadmissionpolicy/{policy}");
        let checked = lab
            .eventually("the policy's expressions are checked", || async {
                let policy = lab.object("default", &policy).await?;
                policy["status"].get("typeChecking").cloned()
            })
            .await;
        assert_eq!(checked, serde_json::json!({}), "{policy}");
    }
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_no_tailnet_can_have_is_refused_when_it_is_written() {
    let lab = installed().await;
    lab.apply(&class("ours", OURS, "tag:k8s, tag:web-1")).await;
    lab.apply(&class("theirs", "example.com/controller", "k8s"))
        .await;
    let wildcard = "[{type: Hostname, value: '*.tail1234.ts.net'}]";
    let two = "[{type: Hostname, value: one}, {type: Hostname, value: two}]";
    let long = format!("[{{type: Hostname, value: {}}}]", "a".repeat(64));
    // A policy is known to the API server a moment after it was written.
    let refused = lab
        .eventually("the policy is in force", || async {
            let yaml = gateway("wildcard", "ours", wildcard);
            match lab.try_apply(&yaml).await {
                Err(refused) => Some(refused),
                Ok(_) => {
                    lab.delete(&yaml).await;
                    None
                }
            }
        })
        .await;
    assert!(refused.contains("at most 63 letters"), "{refused}");
    let refused = lab.try_apply(&gateway("long", "ours", &long)).await;
    assert!(refused.unwrap_err().contains("at most 63 letters"));
    let refused = lab.try_apply(&gateway("two", "ours", two)).await;
    assert!(refused.unwrap_err().contains("leave one Hostname"));
    for tags in ["web", "tag:k8s,", "tag:1", ""] {
        let refused = lab.try_apply(&class("tags", OURS, tags)).await.unwrap_err();
        assert!(
            refused.contains("a tag is tag: and a letter"),
            "{tags}: {refused}"
        );
    }

    // Other classes, and what conditions tell of.
    for class in ["theirs", "missing"] {
        for (name, addresses) in [("wildcard", wildcard), ("long", &long), ("two", two)] {
            let name = format!("{class}-{name}");
            lab.apply(&gateway(&name, class, addresses)).await;
        }
    }
    let fine = [
        ("short", "[{type: Hostname, value: nginx}]"),
        ("full", "[{type: Hostname, value: nginx.tail1234.ts.net}]"),
        ("empty", "[{type: Hostname}]"),
        ("address", "[{type: IPAddress, value: 100.64.0.1}]"),
        ("with.dot", "[]"),
    ];
    for (name, addresses) in fine {
        lab.apply(&gateway(name, "ours", addresses)).await;
    }

    // What was there before it became ours can still be changed and deleted.
    lab.apply(&class("missing", OURS, "tag:k8s")).await;
    lab.kubectl(["label", "gateway/missing-two", "team=shop"])
        .await;
    lab.kubectl(["delete", "gateway/missing-two"]).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_controller_may_write_the_finalizers_of_a_gateway_and_nothing_else_of_it() {
    let lab = installed().await;
    lab.apply(&gateway("nginx", "ours", "[]")).await;
    let patch = async |patch: &str| {
        let arguments = ["patch", "gateway/nginx", "--type=merge", CONTROLLER, "-p"];
        lab.try_kubectl(arguments.into_iter().chain([patch])).await
    };
    let only = "writes statuses and finalizers of Gateways and their classes, and nothing else";
    // A policy is known to the API server a moment after it was written.
    let tries = AtomicUsize::new(0);
    lab.eventually("the policy is in force", || async {
        let value = tries.fetch_add(1, Ordering::Relaxed);
        let change = format!(r#"{{"metadata":{{"labels":{{"try":"{value}"}}}}}}"#);
        let refused = patch(&change).await.err()?;
        assert!(refused.contains(only), "{refused}");
        Some(())
    })
    .await;
    for wrong in [
        r#"{"spec":{"gatewayClassName":"theirs"}}"#,
        r#"{"metadata":{"annotations":{"a":"b"}}}"#,
    ] {
        let refused = patch(wrong).await.unwrap_err();
        assert!(refused.contains(only), "{refused}");
    }
    let finalizer = r#"{"metadata":{"finalizers":["tailway.michaelbeaumont.github.io/gateway"]}}"#;
    patch(finalizer).await.unwrap();
    patch(r#"{"metadata":{"finalizers":null}}"#).await.unwrap();
    let deletion = ["delete", "gateway/nginx", CONTROLLER];
    let refused = lab.try_kubectl(deletion).await.unwrap_err();
    assert!(refused.contains("cannot delete resource"), "{refused}");
    lab.apply(&class("ours", OURS, "tag:k8s")).await;
    let wrong = r#"{"metadata":{"annotations":null}}"#;
    let patch = [
        "patch",
        "gatewayclass/ours",
        "--type=merge",
        CONTROLLER,
        "-p",
    ];
    let refused = lab.try_kubectl(patch.into_iter().chain([wrong])).await;
    assert!(refused.unwrap_err().contains(only));
    // Everybody else writes what he may.
    lab.kubectl(["label", "gateway/nginx", "team=shop"]).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_controller_makes_workloads_with_its_own_rights_and_their_pods_are_admitted() {
    let lab = installed().await;
    apply_workloads(&lab).await;
    let kinds = "statefulset,service,serviceaccount,secret,role,rolebinding,poddisruptionbudget";
    let label = "app.kubernetes.io/managed-by=tailway-controller";
    let before = versions(&lab, kinds, label).await;
    // One has a budget, and one the Secret of a second pod.
    assert_eq!(before.len(), 6 * workloads().len() + 2, "{before:?}");
    apply_workloads(&lab).await;
    assert_eq!(versions(&lab, kinds, label).await, before);

    // The namespace enforces the Pod Security Standard.
    let sets = lab.kubectl(["get", "statefulset", "--namespace", SYSTEM, "--output=json"]);
    let sets: Value = serde_json::from_str(&sets.await).unwrap();
    for set in sets["items"].as_array().unwrap() {
        if set["spec"]["replicas"] == 0 {
            continue;
        }
        let pod = format!("pod/{}-0", set["metadata"]["name"].as_str().unwrap());
        lab.eventually("its pod is made", || lab.object(SYSTEM, &pod))
            .await;
    }
    let controllers = || async {
        let deployment = lab.object(SYSTEM, "deployment/tailway-controller").await?;
        (deployment["status"]["replicas"] == 2).then_some(())
    };
    lab.eventually("the controller's pods are made", controllers)
        .await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn nobody_holds_more_than_the_work_takes() {
    let lab = installed().await;
    apply_workloads(&lab).await;
    let may = async |account: &str, words: &[&str]| {
        let account = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let question = ["auth", "can-i", &account].into_iter();
        let answer = lab.try_kubectl(question.chain(words.iter().copied())).await;
        // `no` is a failure of kubectl.
        answer.is_ok_and(|answer| answer.trim() == "yes")
    };
    let controller = "tailway-controller";
    let here = "--namespace=tailway-system";
    let there = "--namespace=default";
    for allowed in [
        &["list", "secrets", there][..],
        &["watch", "endpointslices.discovery.k8s.io", there],
        &[
            "patch",
            "gateways.gateway.networking.k8s.io",
            "--subresource=status",
            there,
        ],
        &["create", "events.events.k8s.io", there],
        &["create", "tokenreviews.authentication.k8s.io"],
        &["delete", "statefulsets.apps", here],
        &["create", "leases.coordination.k8s.io", here],
    ] {
        assert!(may(controller, allowed).await, "{allowed:?}");
    }
    for forbidden in [
        &["create", "secrets", there][..],
        &["patch", "secrets", there],
        &["patch", "services", there],
        &["patch", "tcproutes.gateway.networking.k8s.io", there],
        &["patch", "httproutes.gateway.networking.k8s.io", there],
        &["delete", "gateways.gateway.networking.k8s.io", there],
        &["create", "roles.rbac.authorization.k8s.io", there],
        &["patch", "clusterroles.rbac.authorization.k8s.io"],
        &["patch", "namespaces"],
        &["create", "deployments.apps", here],
        &["create", "pods", here],
        &["create", "pods", "--subresource=exec", here],
        &["create", "serviceaccounts", "--subresource=token", here],
    ] {
        assert!(!may(controller, forbidden).await, "{forbidden:?}");
    }

    let pod = "nginx-default";
    for verb in ["get", "update", "patch"] {
        assert!(may(pod, &[verb, "secret/nginx-default-state", here]).await);
        for other in ["secret/web-shop-state", "secret/tailway-discovery-ca"] {
            assert!(!may(pod, &[verb, other, here]).await, "{verb} {other}");
        }
    }
    for forbidden in [
        &["list", "secrets", here][..],
        &["watch", "secrets", here],
        &["delete", "secret/nginx-default-state", here],
        &["get", "configmaps", here],
        &["get", "secrets", there],
        &["list", "gateways.gateway.networking.k8s.io", there],
    ] {
        assert!(!may(pod, forbidden).await, "{forbidden:?}");
    }

    // Nobody grants what he does not hold.
    let role = "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: more, namespace: tailway-system}
rules: [{apiGroups: [''], resources: [pods/exec], verbs: [create]}]
";
    let file = lab.directory().join("role.yaml");
    fs::write(&file, role).unwrap();
    let file = file.to_str().unwrap();
    let create = ["create", CONTROLLER, "--filename", file];
    let refused = lab.try_kubectl(create).await.unwrap_err();
    assert!(refused.contains("not currently held"), "{refused}");
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_tailnet_that_means_nothing_is_refused() {
    let lab = installed().await;
    let tailnet = |spec: &str| {
        format!(
            "apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleTailnet
metadata: {{name: my-tailnet}}
spec: {spec}
"
        )
    };
    let wrong = [
        (
            "{credentials: {}}",
            "set either secretRef or workloadIdentity",
        ),
        (
            "{credentials: {secretRef: {name: a}, workloadIdentity: {clientID: b}}}",
            "set either secretRef or workloadIdentity",
        ),
        (
            "{credentials: {secretRef: {name: a}}, tags: [web]}",
            "spec.tags[0]",
        ),
        (
            "{credentials: {secretRef: {name: a}}, tags: ['tag:a', 'tag:a']}",
            "Duplicate value",
        ),
        (
            "{credentials: {secretRef: {name: a}}, keyLifetimeMinutes: 11}",
            "less than or equal to 10",
        ),
        (
            "{credentials: {secretRef: {name: a}}, controlURL: 'ftp://a'}",
            "spec.controlURL",
        ),
        (
            "{credentials: {secretRef: {name: a}}, nameConflict: Fight}",
            "spec.nameConflict",
        ),
        (
            "{credentials: {secretRef: {name: a}}, proxy: {replicas: 2}}",
            "less than or equal to 1",
        ),
    ];
    for (spec, why) in wrong {
        let refused = lab.try_apply(&tailnet(spec)).await.unwrap_err();
        assert!(refused.contains(why), "{spec}: {refused}");
    }
    let plain = "{credentials: {workloadIdentity: {clientID: abc}}, proxy: {resources: {limits: {cpu: 2}}}}";
    lab.apply(&tailnet(plain)).await;
    let made = lab.object("default", "tailscaletailnet/my-tailnet").await;
    let spec = &made.unwrap()["spec"];
    assert_eq!(spec["tailnet"], "-");
    assert_eq!(spec["keyLifetimeMinutes"], 5);
    assert_eq!(
        spec["credentials"]["workloadIdentity"]["tokenPath"],
        "/var/run/secrets/tailscale/token"
    );
    for sample in ["class-secret", "class-tailnet", "nginx"] {
        let sample = format!("manifests/samples/kubernetes/{sample}.yaml");
        lab.kubectl(["apply", "--filename", &sample]).await;
    }
}
