//! The server, called as Envoy Gateway calls it.

use super::messages::{Match, configuration, draft, eds_cluster, host, hosts, route, route_names};
use bytes::Bytes;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::{
    drain::Drain,
    extension::{
        Call, EgressSet, Hook, Hooks, Known, Listener, Observer, Server, ServerSettings, Settings,
        proto::{
            ExtensionResource, PostTranslateExtensionContext, PostTranslateModifyRequest,
            PostVirtualHostModifyRequest,
            envoy_gateway_extension_client::EnvoyGatewayExtensionClient,
        },
    },
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

#[derive(Default)]
struct Calls(Mutex<Vec<Call>>);

impl Observer for Calls {
    fn called(&self, call: Call) {
        self.0.lock().unwrap().push(call);
    }
}

/// A server on a socket of its own.
struct Scene {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    calls: Arc<Calls>,
    drain: Drain,
    serving: JoinHandle<()>,
}

impl Scene {
    fn start(known: Option<Known>, settings: ServerSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let calls = Arc::new(Calls::default());
        let hooks = Hooks::new(Settings::default());
        let observer = Arc::clone(&calls) as Arc<dyn Observer>;
        let server = Server::new(hooks, known, observer, settings);
        let listener = Listener::unix(&socket).unwrap();
        let drain = Drain::default();
        let serving = server.serve(listener, drain.clone());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            _directory: directory,
            socket,
            calls,
            drain,
            serving,
        }
    }

    async fn client(&self) -> EnvoyGatewayExtensionClient<Channel> {
        let channel = connect(&self.socket).await;
        EnvoyGatewayExtensionClient::new(channel).max_decoding_message_size(usize::MAX)
    }
}

async fn connect(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    endpoint.connect().await.unwrap()
}

/// The policy of Gateway `default/eg`, with a service for each name.
fn policy(names: &[&str]) -> ExtensionResource {
    let set = json!({
        "apiVersion": "gateway.tailscale.com/v1alpha1",
        "kind": "TailscaleEgressSet",
        "metadata": { "namespace": "default", "name": "eg" },
        "spec": spec(names),
    });
    ExtensionResource {
        unstructured_bytes: serde_json::to_vec(&set).unwrap().into(),
    }
}

fn spec(names: &[&str]) -> serde_json::Value {
    let service = |name: &&str| {
        json!({
            "name": name,
            "source": "default/endpoints",
            "route": format!("tailscale-egress-{name}"),
            "pathPrefix": format!("/api/{name}"),
            "cluster": format!("external-backend-{name}"),
            "upstream": {
                "protocol": "HTTP",
                "host": "example.com",
                "targets": [{ "host": "example.com", "port": 80 }],
            },
        })
    };
    json!({
        "targetRefs": [{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "eg" }],
        "revision": "r1",
        "services": names.iter().map(service).collect::<Vec<_>>(),
    })
}

fn translation(policies: Vec<ExtensionResource>) -> PostTranslateModifyRequest {
    let user = host("*", [route("user", Match::Prefix("/"))]);
    PostTranslateModifyRequest {
        post_translate_context: Some(PostTranslateExtensionContext {
            extension_resources: policies,
        }),
        clusters: vec![eds_cluster("httproute/default/web/rule/0").done()],
        secrets: vec![draft().bytes(1, "certificate").of_the_future().done()],
        listeners: vec![draft().bytes(1, "listener").done()],
        routes: vec![configuration([user]).of_the_future().done()],
    }
}

#[tokio::test]
async fn the_services_of_a_policy_come_back_as_routes_and_clusters() {
    let scene = Scene::start(None, ServerSettings::default());
    let request = translation(vec![policy(&["web"])]);
    let mut client = scene.client().await;
    let answer = client.post_translate_modify(request.clone()).await.unwrap();
    let answer = answer.into_inner();
    let (routes, clusters) = (&answer.routes, &answer.clusters);
    assert_eq!(
        route_names(&hosts(&routes[0])[0]),
        ["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]
    );
    let names: Vec<_> = clusters
        .iter()
        .map(|cluster| cluster_name(cluster))
        .collect();
    assert_eq!(
        names,
        [
            "httproute/default/web/rule/0",
            "external-backend-web",
            "external-backend-web/grpc"
        ]
    );
    assert_eq!(
        (&answer.secrets, &answer.listeners),
        (&request.secrets, &request.listeners)
    );
}

fn cluster_name(cluster: &Bytes) -> String {
    super::messages::cluster_json(cluster)["name"]
        .as_str()
        .unwrap()
        .to_owned()
}
