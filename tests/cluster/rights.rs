//! What pods and the controller may do, tried with their own tokens.

use super::{
    lab::NODE,
    scene::{SYSTEM, Scene, site},
    smoke::pod,
    views::text,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client};
use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tailway::discovery::proto::{
    FromPod, ObjectName, Subscribe, ToPod, discovery_client::DiscoveryClient, from_pod, to_pod,
};
use tokio::sync::mpsc;
use tonic::{
    Code, Request, Status, Streaming,
    codegen::tokio_stream::wrappers::ReceiverStream,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

const AUDIENCE: &str = "--audience=tailway-discovery";

/// A call that RBAC forbids.
fn forbidden<T>(what: &str, answer: kube::Result<T>) {
    match answer {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{what}: {status:?}"),
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} is allowed"),
    }
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_pod_and_the_controller_can_do_what_they_need_and_nothing_else() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("rights")).await;
    for name in ["mine", "theirs"] {
        lab.apply(&site(name, "rights")).await;
    }
    scene.programmed("mine", "mine").await;
    scene.programmed("theirs", "theirs").await;

    secrets_of_a_pod(&scene).await;
    snapshots_of_a_pod(&scene).await;
    rights_of_the_controller(&scene).await;
    pod_security(&scene).await;

    lab.kubectl(["delete", "namespace", "mine", "theirs"]).await;
    lab.delete(&scene.class("rights")).await;
}

/// A pod reads and writes the Secret of its own state.
async fn secrets_of_a_pod(scene: &Scene) {
    let lab = scene.lab;
    let client = client_of(scene, "mine-mine").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    secrets.get("mine-mine-state").await.unwrap();
    for other in [
        "theirs-theirs-state",
        "rights-oauth",
        "tailway-discovery-ca",
    ] {
        let there = lab.object(SYSTEM, &format!("secret/{other}")).await;
        assert!(there.is_some(), "{other}");
        forbidden(other, secrets.get(other).await);
    }
    let every = Default::default();
    forbidden("a list of Secrets", secrets.list(&every).await);
    let deleted = secrets.delete("mine-mine-state", &Default::default()).await;
    forbidden("a deletion", deleted);
    let mut fresh = Secret::default();
    fresh.metadata.name = Some("fresh".into());
    forbidden(
        "a new Secret",
        secrets.create(&Default::default(), &fresh).await,
    );
    forbidden(
        "Secrets elsewhere",
        Api::<Secret>::namespaced(client.clone(), "mine")
            .list(&every)
            .await,
    );
    forbidden(
        "pods",
        Api::<Pod>::namespaced(client, SYSTEM).list(&every).await,
    );
    // The pod has the same rights as who asks here, by a token that is renewed.
    let pod = lab.object(SYSTEM, "pod/mine-mine-0").await.unwrap();
    assert_eq!(pod["spec"]["serviceAccountName"], "mine-mine");
}

async fn client_of(scene: &Scene, account: &str) -> Client {
    let kubeconfig = scene.lab.kubeconfig_of(SYSTEM, account).await;
    scene.lab.client(&kubeconfig).await
}

async fn token(scene: &Scene, namespace: &str, account: &str, audience: &[&str]) -> String {
    let create = ["create", "token", account, "--namespace", namespace];
    let token = scene
        .lab
        .kubectl(create.into_iter().chain(audience.iter().copied()));
    token.await.trim().to_owned()
}

/// What the controller answers to who asks for the snapshot of a Gateway.
struct Discovery {
    authority: String,
    address: SocketAddr,
}

type Answer = Result<(mpsc::Sender<FromPod>, Streaming<ToPod>), Status>;

impl Discovery {
    /// The controller's Service, as a way from here.
    async fn of(scene: &Scene) -> Self {
        let lab = scene.lab;
        let service = lab.object(SYSTEM, "service/tailway-controller").await;
        let ip = text(&service.unwrap()["spec"]["clusterIP"]);
        let map = lab.object(SYSTEM, "configmap/tailway-discovery-ca").await;
        Self {
            authority: text(&map.unwrap()["data"]["ca.crt"]),
            address: lab
                .network()
                .forward(SocketAddr::new(ip.parse().unwrap(), 9443)),
        }
    }

    async fn ask(&self, token: Option<&str>, gateway: &str) -> Answer {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .domain_name(format!("tailway-controller.{SYSTEM}.svc"));
        let remote = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        let channel = remote.tls_config(tls).unwrap().connect().await.unwrap();
        let (outbound, messages) = mpsc::channel(1);
        let subscribe = Subscribe {
            gateway: Some(ObjectName {
                namespace: gateway.into(),
                name: gateway.into(),
            }),
            pod: "test".into(),
            program_version: "test".into(),
            held: Vec::new(),
        };
        let message = Some(from_pod::Message::Subscribe(subscribe));
        outbound.send(FromPod { message }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = DiscoveryClient::new(channel);
        let answer = client.follow(request);
        let answer = tokio::time::timeout(Duration::from_secs(30), answer).await;
        let answer = answer.expect("the controller answers")?;
        Ok((outbound, answer.into_inner()))
    }
}

/// A pod is sent the snapshot of its own Gateway.
async fn snapshots_of_a_pod(scene: &Scene) {
    let discovery = Discovery::of(scene).await;
    let mine = token(scene, SYSTEM, "mine-mine", &[AUDIENCE]).await;
    let (_outbound, mut inbound) = discovery.ask(Some(&mine), "mine").await.unwrap();
    let first = inbound.message().await.unwrap().unwrap().message.unwrap();
    match first {
        to_pod::Message::Push(push) => assert!(!push.upserted.is_empty()),
        other => panic!("no snapshot: {other:?}"),
    }
    let for_the_api = token(scene, SYSTEM, "mine-mine", &[]).await;
    let elsewhere = token(scene, "mine", "default", &[AUDIENCE]).await;
    let of_no_gateway = token(scene, SYSTEM, "default", &[AUDIENCE]).await;
    for (who, token, gateway, code) in [
        (
            "a pod of another Gateway",
            Some(&mine),
            "theirs",
            Code::PermissionDenied,
        ),
        (
            "a token for the API server",
            Some(&for_the_api),
            "mine",
            Code::Unauthenticated,
        ),
        (
            "an account of another namespace",
            Some(&elsewhere),
            "mine",
            Code::PermissionDenied,
        ),
        (
            "an account of no Gateway",
            Some(&of_no_gateway),
            "mine",
            Code::PermissionDenied,
        ),
        (
            "a forgery",
            Some(&format!("{mine}x")),
            "mine",
            Code::Unauthenticated,
        ),
        ("nobody", None, "mine", Code::Unauthenticated),
    ] {
        let answer = discovery.ask(token.map(String::as_str), gateway).await;
        let refused = match answer {
            Err(status) => status,
            Ok((_outbound, mut inbound)) => match inbound.message().await {
                Err(status) => status,
                Ok(message) => panic!("{who} is sent {message:?}"),
            },
        };
        assert_eq!(refused.code(), code, "{who}: {refused}");
    }
    // And the other way round: it opens nothing at the API server.
    let server = format!("--server=https://{NODE}:6443");
    let anonymous = [
        "--kubeconfig=/dev/null",
        "--insecure-skip-tls-verify",
        &server,
    ];
    let bearer = format!("--token={mine}");
    let read = [
        "get",
        "secret/mine-mine-state",
        "--namespace",
        SYSTEM,
        &bearer,
    ];
    let refused = scene
        .lab
        .try_kubectl(anonymous.into_iter().chain(read))
        .await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("must be logged in"), "{refused}");
}

/// The controller runs with the rights of the manifest, which end where its work does.
async fn rights_of_the_controller(scene: &Scene) {
    let lab = scene.lab;
    let pods = [
        "get",
        "pods",
        "--namespace",
        SYSTEM,
        "--selector",
        "app.kubernetes.io/component=controller",
        "--output=jsonpath={.items[*].spec.serviceAccountName}",
    ];
    let accounts = lab.kubectl(pods).await;
    assert_eq!(accounts, "tailway-controller tailway-controller");
    let bindings = [
        "get",
        "clusterrolebindings,rolebindings",
        "--all-namespaces",
        "--output=json",
    ];
    let bindings: Value = serde_json::from_str(&lab.kubectl(bindings).await).unwrap();
    let is_its = |binding: &&Value| {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        subjects.clone().any(|subject| {
            subject["name"] == "tailway-controller"
                || subject["name"] == format!("system:serviceaccounts:{SYSTEM}")
        })
    };
    let its = bindings["items"].as_array().unwrap().iter().filter(is_its);
    let mut its: Vec<_> = its
        .map(|binding| {
            format!(
                "{} {}",
                text(&binding["kind"]),
                text(&binding["roleRef"]["name"])
            )
        })
        .collect();
    its.sort();
    assert_eq!(
        its,
        [
            "ClusterRoleBinding tailway-controller",
            "RoleBinding tailway-controller"
        ]
    );

    let token = token(scene, SYSTEM, "tailway-controller", &[]).await;
    let server = format!("--server=https://{NODE}:6443");
    let bearer = format!("--token={token}");
    let credentials = [
        "--kubeconfig=/dev/null",
        "--insecure-skip-tls-verify",
        &server,
        &bearer,
    ];
    let may = async |question: &[&str]| {
        let ask = credentials.into_iter().chain(["auth", "can-i"]);
        let answer = lab.try_kubectl(ask.chain(question.iter().copied())).await;
        answer.is_ok()
    };
    let system = "--namespace=tailway-system";
    for allowed in [
        &["list", "secrets", "--all-namespaces"][..],
        &[
            "patch",
            "gateways",
            "--subresource=status",
            "--namespace=mine",
        ],
        &["delete", "secrets/mine-mine-state", system],
        &["create", "statefulsets", system],
    ] {
        assert!(may(allowed).await, "{allowed:?}");
    }
    for refused in [
        &["create", "secrets", "--namespace=mine"][..],
        &["update", "secrets", "--namespace=mine"],
        &["delete", "secrets", "--namespace=mine"],
        &["create", "pods", system],
        &["create", "pods", "--namespace=mine"],
        &["list", "pods", "--namespace=mine"],
        &["create", "pods", "--subresource=exec", system],
        &["create", "statefulsets", "--namespace=mine"],
        &["create", "deployments", system],
        &["delete", "gateways", "--namespace=mine"],
        &["create", "gateways", "--namespace=mine"],
        &["delete", "gatewayclasses"],
        &["create", "clusterroles"],
        &["create", "clusterrolebindings"],
        &["create", "serviceaccounts", "--subresource=token", system],
        &["list", "nodes"],
        &["patch", "configmaps", "--namespace=mine"],
        &["patch", "validatingadmissionpolicies"],
        &["impersonate", "users"],
    ] {
        assert!(!may(refused).await, "{refused:?}");
    }
    let everywhere = ["*", "*", "--all-namespaces"];
    assert!(!may(&everywhere).await);
}

/// All that runs is in a namespace that admits pods of the restricted standard only.
async fn pod_security(scene: &Scene) {
    let lab = scene.lab;
    let namespace = lab
        .object("default", "namespace/tailway-system")
        .await
        .unwrap();
    let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(enforced, "restricted");
    let running = [
        "get",
        "pods",
        "--namespace",
        SYSTEM,
        "--output=jsonpath={.items[*].status.phase}",
    ];
    let running = lab.kubectl(running).await;
    assert_eq!(running, "Running Running Running Running");
    let root = pod(SYSTEM, "root", super::lab::PROBE, "[sleep]")
        .replace("runAsNonRoot: true", "runAsNonRoot: false");
    let refused = lab.try_apply(&root).await.unwrap_err();
    assert!(
        refused.contains("violates PodSecurity \"restricted"),
        "{refused}"
    );
}
