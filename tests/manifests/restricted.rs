//! The Pod Security Standard `restricted`, as far as our pods touch it, and what goes beyond it.

use serde_json::Value;

/// What is wrong with the specification of a pod.
pub fn violations(pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |kept: bool, what: &str| {
        if !kept {
            wrong.push(what.to_owned());
        }
    };
    let security = &pod["securityContext"];
    check(security["runAsNonRoot"] == true, "runAsNonRoot");
    check(security["runAsUser"] == 65532, "runAsUser");
    check(
        security["seccompProfile"]["type"] == "RuntimeDefault",
        "seccompProfile",
    );
    for key in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
        check(pod[key].is_null(), key);
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let allowed = ["configMap", "emptyDir", "projected"];
        let kinds: Vec<_> = volume.as_object().unwrap().keys().collect();
        let legal = |key: &&String| *key == "name" || allowed.contains(&key.as_str());
        check(kinds.iter().all(legal), "volumes");
    }
    let containers = pod["containers"].as_array().unwrap();
    check(containers.len() == 1, "containers");
    for container in containers {
        let security = &container["securityContext"];
        check(
            security["allowPrivilegeEscalation"] == false,
            "allowPrivilegeEscalation",
        );
        check(
            security["readOnlyRootFilesystem"] == true,
            "readOnlyRootFilesystem",
        );
        check(
            security["capabilities"] == serde_json::json!({ "drop": ["ALL"] }),
            "capabilities",
        );
        check(security["privileged"].is_null(), "privileged");
        let resources = &container["resources"];
        check(
            resources["requests"]["cpu"].is_string() || resources["requests"]["cpu"].is_number(),
            "requests of cpu",
        );
        check(
            resources["requests"]["memory"].is_string(),
            "requests of memory",
        );
        check(resources["limits"]["memory"].is_string(), "limit of memory");
        let ports = container["ports"].as_array().into_iter().flatten();
        check(
            ports.into_iter().all(|port| port["hostPort"].is_null()),
            "hostPort",
        );
    }
    wrong
}
