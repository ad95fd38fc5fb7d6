//! Many Gateways at once.

use super::{
    hands::{bare_gateway, sum},
    lab::{Lab, Tier},
    scene::{SYSTEM, Scene, class},
};
use crate::tailnet::world::{Tailnet, http};
use hyper::Method;
use serde_json::{Value, json};
use std::{net::SocketAddr, process::Stdio};
use tokio::process::{Child, Command};

const ECHO: &str = "{name: echo, port: 7, protocol: TCP}";
const MANY: usize = 100;

/// The controller as a process of this machine, killed with its value.
struct Controller {
    _child: Child,
    admin: SocketAddr,
}

impl Controller {
    async fn start(lab: &Lab, tailnet: &Tailnet) -> Self {
        let log = std::fs::File::create(lab.directory().join("log/controller.log")).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = free.local_addr().unwrap();
        drop(free);
        let child = Command::new(env!("CARGO_BIN_EXE_tailway"))
            .args([
                "controller",
                "--proxy-image",
                "none",
                "--discovery-addr",
                "127.0.0.1:0",
            ])
            .arg("--admin-addr")
            .arg(admin.to_string())
            .env("KUBECONFIG", lab.kubeconfig())
            .env("TAILWAY_API_URL", tailnet.field("api_url"))
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            _child: child,
            admin,
        }
    }

    async fn metrics(&self) -> String {
        let page = http(self.admin, Method::GET, "/metrics", String::new()).await;
        page.1
    }
}

fn gateways(count: usize) -> String {
    let all = (0..count).map(|number| bare_gateway("many", &format!("g{number}"), "many", ECHO));
    all.collect::<Vec<_>>().join("---\n")
}

/// Objects of the system namespace that the controller made.
async fn made(lab: &Lab) -> usize {
    let kinds = "statefulset,pod,service,serviceaccount,role,rolebinding,secret";
    let list = ["get", kinds, "--namespace", SYSTEM, "--output=name"];
    let ours = [
        "--selector",
        "app.kubernetes.io/managed-by=tailway-controller",
    ];
    lab.kubectl(list.into_iter().chain(ours))
        .await
        .lines()
        .count()
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_hundred_gateways_come_and_go_at_once_with_few_writes() {
    let lab = Lab::up(Tier::Control).await;
    lab.install_gateway_api().await;
    for crd in std::fs::read_dir("crds").unwrap() {
        let yaml = std::fs::read_to_string(crd.unwrap().path()).unwrap();
        lab.apply(&yaml).await;
    }
    let tailnet = Tailnet::start().await;
    for namespace in ["many", SYSTEM] {
        lab.kubectl(["create", "namespace", namespace]).await;
    }
    let (id, secret) = (
        tailnet.field("oauth_client_id"),
        tailnet.field("oauth_client_secret"),
    );
    lab.apply(&class("many", id, secret)).await;
    let controller = Controller::start(&lab, &tailnet).await;
    lab.apply(&gateways(MANY)).await;

    lab.eventually("each has a pod and is told so", || async {
        let all = lab.object("many", "gateways").await?;
        let all = all["items"].as_array()?;
        let told = |gateway: &&Value| {
            let conditions = gateway["status"]["conditions"].as_array();
            let mut programmed = conditions.into_iter().flatten();
            programmed.any(|c| {
                c["type"] == "Programmed"
                    && c["status"] == "False"
                    && c["message"]
                        .as_str()
                        .is_some_and(|m| m.starts_with("pod g"))
            })
        };
        (all.iter().filter(told).count() == MANY).then_some(())
    })
    .await;
    let page = controller.metrics().await;
    assert_eq!(
        sum(&page, "tailway_reconciles_total", &["result=\"error\""]),
        0
    );
    // Waiting for a pod, for its start, and what the API server says of it.
    let writes = sum(&page, "tailway_status_writes_total", &["kind=\"Gateway\""]);
    assert!(
        writes <= 4 * MANY as u64,
        "{writes} writes of {MANY} statuses"
    );
    let applies = sum(&page, "tailway_reconciles_total", &["step=\"apply\""]);
    assert!(
        applies <= 2 * MANY as u64,
        "{applies} applies of {MANY} workloads"
    );

    lab.kubectl([
        "delete",
        "gateways",
        "--all",
        "--namespace=many",
        "--wait=false",
    ])
    .await;
    lab.eventually("all are gone", || async {
        // Of none, kubectl says nothing at all.
        let left = lab.object("many", "gateways").await;
        (left.is_none() && made(&lab).await == 0).then_some(())
    })
    .await;
    let page = controller.metrics().await;
    // Its workload, while its pod ends, the rest, and once more until that is seen.
    let removals = sum(&page, "tailway_reconciles_total", &["step=\"remove\""]);
    assert!(
        removals <= 8 * MANY as u64,
        "{removals} steps to remove {MANY}"
    );
    let after = |page: &str| sum(page, "tailway_status_writes_total", &["kind=\"Gateway\""]);
    assert!(after(&page) <= 7 * MANY as u64, "{} writes", after(&page));
    assert_eq!(tailnet.get("/nodes").await, json!([]));
}

#[tokio::test]
#[ignore = "make cluster"]
async fn several_gateways_come_and_go_at_once_and_nothing_is_left() {
    const SEVERAL: usize = 8;
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("many")).await;
    lab.apply("{apiVersion: v1, kind: Namespace, metadata: {name: many}}")
        .await;
    lab.apply(&gateways(SEVERAL)).await;
    for number in 0..SEVERAL {
        scene.programmed("many", &format!("g{number}")).await;
    }
    assert_eq!(scene.keys_minted().await, SEVERAL);
    let leader = scene.leader().await;
    let labels = ["kind=\"Gateway\""];
    let writes = scene
        .metric(&leader, "tailway_status_writes_total", &labels)
        .await;
    let writes = writes.unwrap();
    assert!(
        writes <= 12 * SEVERAL as u64,
        "{writes} writes of {SEVERAL} statuses"
    );
    scene.end(&["many"], "many").await;
}
