//! The ground the other tests of this folder stand on.

use super::{
    lab::{IMAGE, Lab, NODE, PROBE, Tier, succeed},
    tailnet::HostedTailnet,
};
use crate::tailnet::world::gateway;
use serde_json::json;
use std::{fs, net::SocketAddr, path::Path};
use tokio::net::{TcpListener, TcpStream};

/// A namespace that takes pods of the `restricted` Pod Security Standard only.
pub fn restricted(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels: {{pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/enforce-version: latest}}
"
    )
}

/// A pod that the `restricted` standard admits.
pub fn pod(namespace: &str, name: &str, image: &str, arguments: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: main
      image: {image}
      args: {arguments}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {{drop: [ALL]}}
"
    )
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_node_is_ready_and_of_the_kubernetes_that_was_asked_for() {
    let lab = Lab::shared().await;
    let node = lab.object("default", "node/node0").await.unwrap();
    let ready = node["status"]["conditions"].as_array().unwrap().iter();
    let ready = ready.clone().find(|condition| condition["type"] == "Ready");
    assert_eq!(ready.unwrap()["status"], "True");
    let modules =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/lab/go.mod"))
            .unwrap();
    let version = node["status"]["nodeInfo"]["kubeletVersion"]
        .as_str()
        .unwrap();
    assert!(
        modules.contains(&format!("k8s.io/kubernetes {version}\n")),
        "{version}"
    );
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_pod_answers_through_its_service_by_name_and_its_log_says_so() {
    let lab = Lab::shared().await;
    lab.apply(&restricted("services")).await;
    lab.apply(&pod("services", "web", PROBE, "[serve, ':8080']"))
        .await;
    lab.apply(&pod("services", "client", PROBE, "[sleep]"))
        .await;
    lab.kubectl([
        "-n",
        "services",
        "expose",
        "pod/web",
        "--port=80",
        "--target-port=8080",
    ])
    .await;
    lab.wait([
        "--for=condition=Ready",
        "pod/web",
        "pod/client",
        "--namespace=services",
    ])
    .await;

    let url = "http://web.services.svc.cluster.local/hello";
    let answer = lab
        .eventually("the Service answers", || async {
            lab.exec("services", "client", ["/probe", "get", url])
                .await
                .ok()
        })
        .await;
    assert_eq!(answer, "web /hello\n");
    let log = lab.kubectl(["logs", "--namespace=services", "web"]).await;
    assert!(log.contains("GET /hello from 10.244.0."), "{log}");

    lab.delete(&pod("services", "web", PROBE, "[serve, ':8080']"))
        .await;
    assert_eq!(lab.object("services", "pod/web").await, None);
}

#[tokio::test]
#[ignore = "make cluster"]
async fn tailway_runs_in_a_namespace_that_enforces_restricted_pod_security() {
    let lab = Lab::shared().await;
    lab.apply(&restricted("restricted")).await;
    let yaml = pod("restricted", "tailway", IMAGE, "[--version]");
    let refused = lab
        .try_apply(&yaml.replace("runAsNonRoot: true", "runAsNonRoot: false"))
        .await
        .unwrap_err();
    assert!(
        refused.contains("violates PodSecurity \"restricted:latest\": runAsNonRoot != true"),
        "{refused}"
    );

    lab.apply(&yaml).await;
    lab.wait([
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/tailway",
        "--namespace=restricted",
    ])
    .await;
    let log = lab
        .kubectl(["logs", "--namespace=restricted", "tailway"])
        .await;
    assert_eq!(log, format!("tailway {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_host_beside_the_node_reaches_services_and_pods_reach_it() {
    let lab = Lab::shared().await;
    lab.apply(&restricted("hosts")).await;
    lab.apply(&pod("hosts", "web", PROBE, "[serve, ':8080']"))
        .await;
    lab.kubectl([
        "-n",
        "hosts",
        "expose",
        "pod/web",
        "--port=80",
        "--target-port=8080",
    ])
    .await;
    lab.wait(["--for=condition=Ready", "pod/web", "--namespace=hosts"])
        .await;
    let host = lab.host("neighbour", 60).await;

    let service = lab.object("hosts", "service/web").await.unwrap();
    let url = format!("http://{}/", service["spec"]["clusterIP"].as_str().unwrap());
    lab.eventually("the Service answers a host", || async {
        let answer = host
            .command("curl")
            .args(["-sf", "-m3", &url])
            .output()
            .await
            .unwrap();
        (answer.stdout == b"web /\n").then_some(())
    })
    .await;

    let address = SocketAddr::from((host.address, 7000));
    let (listening, ready) = tokio::sync::oneshot::channel();
    let peer = host.network.run(async move {
        let listener = TcpListener::bind(address).await.unwrap();
        listening.send(()).unwrap();
        listener.accept().await.unwrap().1
    });
    let dial = async {
        ready.await.unwrap();
        lab.exec("hosts", "web", ["/probe", "dial", &address.to_string()])
            .await
    };
    let (peer, dialled) = tokio::join!(peer, dial);
    dialled.unwrap();
    let pod = lab.object("hosts", "pod/web").await.unwrap();
    assert_eq!(pod["status"]["podIP"], json!(peer.ip()));

    let processes = async || {
        let mut command = lab.command("ip");
        command.args(["netns", "pids", "neighbour"]);
        succeed(command, None).await
    };
    let program = host.command("sleep").arg("1000").spawn().unwrap();
    lab.eventually("a program runs on the host", || async {
        (!processes().await.is_empty()).then_some(())
    })
    .await;
    drop(program);
    lab.eventually("the program ended with its value", || async {
        processes().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_pod_is_a_node_of_a_tailnet_on_a_host_and_serves_a_service_there() {
    let lab = Lab::shared().await;
    let tailnet = HostedTailnet::start(&lab, "tailnet", 70).await;
    let control = format!("http://{}:", tailnet.host.address);
    assert!(tailnet.field("control_url").starts_with(&control));
    lab.apply(&restricted("standalone")).await;
    lab.apply(&pod("standalone", "web", PROBE, "[serve, ':8080']"))
        .await;
    lab.kubectl([
        "-n",
        "standalone",
        "expose",
        "pod/web",
        "--port=80",
        "--target-port=8080",
    ])
    .await;
    let gateway = gateway("nginx", 80).replace(
        "externalName: 127.0.0.1",
        "externalName: web.standalone.svc.cluster.local",
    );
    let configuration = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "gateway", "namespace": "standalone" },
        "data": { "gateway.yaml": gateway },
    });
    lab.apply(&configuration.to_string()).await;

    let arguments = json!([
        "run",
        "-f",
        "/etc/tailway/gateway.yaml",
        "--state-dir",
        "/state",
        "--control-url",
        tailnet.field("control_url"),
    ]);
    let mut environment = tailnet.container_env();
    environment
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "TS_AUTHKEY", "value": tailnet.field("auth_key") }));
    let mounts = json!([{ "name": "configuration", "mountPath": "/etc/tailway" }, { "name": "state", "mountPath": "/state" }]);
    let volumes = json!([{ "name": "configuration", "configMap": { "name": "gateway" } }, { "name": "state", "emptyDir": {} }]);
    let yaml = pod("standalone", "nginx", IMAGE, &arguments.to_string());
    lab.apply(&format!(
        "{yaml}      env: {environment}\n      volumeMounts: {mounts}\n  volumes: {volumes}\n"
    ))
    .await;

    let url = format!("https://nginx.{}/hello", tailnet.domain());
    let answer = lab
        .eventually("a client of the tailnet is answered", || async {
            tailnet.visit(&url).await.ok()
        })
        .await;
    assert_eq!(
        (&answer["status"], &answer["body"]),
        (&json!(200), &json!("web /hello\n"))
    );
}

#[tokio::test]
#[ignore = "make cluster"]
async fn the_gateway_api_refuses_what_its_own_rules_forbid() {
    let lab = Lab::up(Tier::Control).await;
    lab.install_gateway_api().await;
    let gateway = |port| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: nginx}}
spec:
  gatewayClassName: tailnet
  listeners: [{{name: tcp, port: {port}, protocol: TCP, hostname: nginx.example.com}}]
"
        )
    };
    let refused = lab.try_apply(&gateway(80)).await.unwrap_err();
    assert!(
        refused.contains("hostname must not be specified"),
        "{refused}"
    );
    let allowed = gateway(80).replace(", hostname: nginx.example.com", "");
    assert_eq!(
        lab.apply(&allowed).await,
        "gateway.gateway.networking.k8s.io/nginx created\n"
    );
}

#[tokio::test]
#[ignore = "make cluster"]
async fn an_api_server_that_was_killed_comes_back_with_what_it_held() {
    let lab = Lab::up(Tier::Control).await;
    lab.kubectl(["create", "configmap", "kept"]).await;
    lab.kill("kube-apiserver").await;
    lab.try_kubectl(["get", "configmap", "kept"])
        .await
        .unwrap_err();
    lab.start("kube-apiserver").await;
    lab.api_ready().await;
    assert!(lab.object("default", "configmap/kept").await.is_some());
}

#[tokio::test]
#[ignore = "make cluster"]
async fn labs_beside_each_other_share_nothing_and_are_reached_from_outside() {
    let (one, other) = tokio::join!(Lab::up(Tier::Control), Lab::up(Tier::Control));
    one.kubectl(["create", "configmap", "only-here"]).await;
    assert!(one.object("default", "configmap/only-here").await.is_some());
    assert_eq!(other.object("default", "configmap/only-here").await, None);

    let version = one
        .client(one.kubeconfig())
        .await
        .apiserver_version()
        .await
        .unwrap();
    assert_eq!(
        (version.major.as_str(), version.minor.as_str()),
        ("1", "36")
    );
    one.kubectl(["create", "serviceaccount", "nobody"]).await;
    let nobody = one
        .client(&one.kubeconfig_of("default", "nobody").await)
        .await;
    let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::default_namespaced(nobody);
    let refused = pods
        .list(&kube::api::ListParams::default())
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("\"system:serviceaccount:default:nobody\" cannot list"),
        "{refused}"
    );
}

#[tokio::test]
#[ignore = "make cluster"]
async fn nothing_is_left_of_a_lab_whose_test_failed() {
    let (told, facts) = std::sync::mpsc::channel();
    let failed = tokio::spawn(async move {
        let lab = Lab::up(Tier::Control).await;
        let runner = fs::read_to_string(lab.directory().join("runner")).unwrap();
        told.send((lab.directory().to_owned(), runner.trim().to_owned()))
            .unwrap();
        let _held = lab
            .network()
            .run(async { TcpStream::connect((NODE, 6443)).await.unwrap() })
            .await;
        panic!("on purpose");
    });
    assert!(failed.await.unwrap_err().is_panic());
    let (directory, runner) = facts.recv().unwrap();
    assert!(!directory.exists());
    assert!(!Path::new("/proc").join(&runner).exists());
    let mut groups = String::new();
    for group in fs::read_dir("/sys/fs/cgroup").unwrap() {
        let group = group.unwrap().path().join(format!("tailway-lab-{runner}"));
        if group.exists() {
            groups.push_str(&group.display().to_string());
        }
    }
    assert_eq!(groups, "");

    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory.file_name().unwrap());
    assert!(kept.join("kube-apiserver.log").exists());
    fs::remove_dir_all(kept).unwrap();
}
