//! The server, called as Envoy Gateway calls it.

use super::{
    hooks::{request, service, set},
    messages::{Match, configuration, draft, host, hosts, route, route_names},
};
use prost::Message;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::{
    drain::Drain,
    extension::{
        Call, EgressSet, Hook, Hooks, Known, Listener, Observer, Plan, Server, ServerSettings,
        Settings, Tls,
        proto::{
            PostClusterModifyRequest, PostEndpointsModifyRequest, PostHttpListenerModifyRequest,
            PostRouteModifyRequest, PostTranslateModifyRequest, PostVirtualHostModifyRequest,
            envoy_gateway_extension_client::EnvoyGatewayExtensionClient,
        },
    },
    model::ObjectName,
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

#[derive(Default)]
struct Calls(Mutex<Vec<Call>>);

impl Observer for Calls {
    fn called(&self, call: Call) {
        self.0.lock().unwrap().push(call);
    }
}

/// A server on a socket or a port of its own.
pub struct Scene {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    pub address: Option<SocketAddr>,
    calls: Arc<Calls>,
    drain: Drain,
    serving: JoinHandle<()>,
}

impl Scene {
    fn start(known: Option<Known>, settings: ServerSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::unix(&directory.path().join("socket")).unwrap();
        Self::serve(directory, listener, known, settings)
    }

    pub async fn start_on_port(tls: Option<Tls>, settings: ServerSettings) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::tcp(address, tls).await.unwrap();
        Self::serve(tempfile::tempdir().unwrap(), listener, None, settings)
    }

    fn serve(
        directory: tempfile::TempDir,
        listener: Listener,
        known: Option<Known>,
        settings: ServerSettings,
    ) -> Self {
        let calls = Arc::new(Calls::default());
        let hooks = Hooks::new(Settings::default());
        let observer = Arc::clone(&calls) as Arc<dyn Observer>;
        let server = Server::new(hooks, known, observer, settings);
        let drain = Drain::default();
        let address = listener.address();
        let serving = server.serve(listener, drain.clone());
        Self {
            socket: directory.path().join("socket"),
            _directory: directory,
            address,
            calls,
            drain,
            serving: tokio::spawn(async move { serving.await.unwrap() }),
        }
    }

    async fn client(&self) -> EnvoyGatewayExtensionClient<Channel> {
        let channel = connect(&self.socket).await;
        EnvoyGatewayExtensionClient::new(channel).max_decoding_message_size(usize::MAX)
    }
}

pub async fn connect(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    endpoint.connect().await.unwrap()
}

fn translation(services: &[&str]) -> PostTranslateModifyRequest {
    let services = services.iter().map(|name| service(name)).collect();
    let user = host("*", [route("user", Match::Prefix("/"))]);
    request(
        &[set("default", "eg", services)],
        vec![configuration([user])],
    )
}

/// As Envoy Gateway asks when its configuration includes no routes and listeners.
fn translation_without_policies() -> PostTranslateModifyRequest {
    PostTranslateModifyRequest {
        listeners: Vec::new(),
        ..request(&[], Vec::new())
    }
}

pub fn virtual_host() -> PostVirtualHostModifyRequest {
    PostVirtualHostModifyRequest {
        virtual_host: host("*", [route("user", Match::Prefix("/"))]).done(),
        post_virtual_host_context: None,
    }
}

fn plan(services: &[&str]) -> Option<Arc<Plan>> {
    let services = services.iter().map(|name| service(name)).collect();
    let spec = set("default", "eg", services)["spec"].take();
    let set = EgressSet::from_spec(ObjectName::new("default", "eg"), spec).unwrap();
    Some(Arc::new(Hooks::new(Settings::default()).plan([&set])))
}

#[tokio::test]
async fn the_services_of_a_policy_come_back_as_routes_and_clusters() {
    let scene = Scene::start(None, ServerSettings::default());
    let request = translation(&["web"]);
    let mut client = scene.client().await;
    let answer = client.post_translate_modify(request.clone()).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(
        route_names(&hosts(&answer.routes[0])[0]),
        ["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]
    );
    assert_eq!(answer.clusters.len(), request.clusters.len() + 2);
    assert_eq!(
        (&answer.secrets, &answer.listeners),
        (&request.secrets, &request.listeners)
    );
    let calls = scene.calls.0.lock().unwrap();
    let told = calls[0].result.as_ref().unwrap();
    assert_eq!(calls[0].hook, Hook::Translation);
    assert_eq!(
        calls[0].sizes,
        (request.encoded_len(), answer.encoded_len())
    );
    assert_eq!((told.routes, told.clusters), (2, 2));
}

#[tokio::test]
async fn hooks_that_change_nothing_give_back_what_came() {
    let scene = Scene::start(None, ServerSettings::default());
    let mut client = scene.client().await;
    let bytes = draft().bytes(1, "anything").of_the_future().done();
    let route = PostRouteModifyRequest {
        route: bytes.clone(),
        post_route_context: None,
    };
    let answer = client.post_route_modify(route).await.unwrap();
    assert_eq!(answer.into_inner().route, bytes);
    let listener = PostHttpListenerModifyRequest {
        listener: bytes.clone(),
        post_listener_context: None,
    };
    let answer = client.post_http_listener_modify(listener).await.unwrap();
    assert_eq!(answer.into_inner().listener, bytes);
    let endpoints = PostEndpointsModifyRequest {
        load_assignment: bytes.clone(),
        post_endpoints_context: None,
    };
    let answer = client.post_endpoints_modify(endpoints).await.unwrap();
    assert_eq!(answer.into_inner().load_assignment, bytes);
    let cluster = PostClusterModifyRequest {
        cluster: bytes.clone(),
        post_cluster_context: None,
    };
    let answer = client.post_cluster_modify(cluster).await.unwrap();
    assert_eq!(answer.into_inner().cluster, bytes);
    let host = PostVirtualHostModifyRequest {
        virtual_host: bytes.clone(),
        post_virtual_host_context: None,
    };
    let answer = client.post_virtual_host_modify(host).await.unwrap();
    assert_eq!(answer.into_inner().virtual_host, bytes);
}

#[tokio::test]
async fn sets_that_have_not_been_read_put_off_what_needs_them_and_nothing_else() {
    let (sender, known) = watch::channel(None);
    let settings = ServerSettings {
        bound: Duration::from_millis(50),
        ..ServerSettings::default()
    };
    let scene = Scene::start(Some(known), settings);
    let mut client = scene.client().await;
    let refused = client.post_virtual_host_modify(virtual_host()).await;
    assert_eq!(refused.err().unwrap().code(), Code::Unavailable);
    let refused = client.post_translate_modify(translation_without_policies());
    assert_eq!(refused.await.err().unwrap().code(), Code::Unavailable);
    let mut other = scene.client().await;
    let answer = other.post_translate_modify(translation(&["web"])).await;
    assert_eq!(answer.unwrap().into_inner().clusters.len(), 3);

    sender.send_replace(plan(&["web"]));
    let answer = client
        .post_virtual_host_modify(virtual_host())
        .await
        .unwrap();
    assert_eq!(
        route_names(&answer.into_inner().virtual_host),
        ["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]
    );
    let answer = client
        .post_translate_modify(translation_without_policies())
        .await;
    assert_eq!(answer.unwrap().into_inner().clusters.len(), 3);
}

#[tokio::test]
async fn an_envoy_gateway_that_brings_routes_gets_nothing_but_what_it_asks_for() {
    let (_sender, known) = watch::channel(plan(&["web"]));
    let scene = Scene::start(Some(known), ServerSettings::default());
    let mut client = scene.client().await;
    assert!(
        client
            .post_translate_modify(translation(&["web"]))
            .await
            .is_ok()
    );
    // A Gateway of TCP: there are no routes.
    let request = translation_without_policies();
    let answer = client.post_translate_modify(request.clone()).await.unwrap();
    assert_eq!(answer.into_inner().clusters, request.clusters);
    // Another may be configured otherwise.
    let mut other = scene.client().await;
    let answer = other.post_translate_modify(request).await.unwrap();
    assert_eq!(answer.into_inner().clusters.len(), 3);
}

#[tokio::test]
async fn a_call_waits_for_the_sets_as_long_as_it_may_take() {
    let (sender, known) = watch::channel(None);
    let settings = ServerSettings {
        bound: Duration::from_secs(60),
        ..ServerSettings::default()
    };
    let scene = Scene::start(Some(known), settings);
    let mut client = scene.client().await;
    let call = tokio::spawn(async move { client.post_virtual_host_modify(virtual_host()).await });
    // Either it waits already or it will find them.
    tokio::task::yield_now().await;
    sender.send_replace(plan(&["web"]));
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!(route_names(&answer.virtual_host).len(), 3);
}

#[tokio::test]
async fn sets_that_never_come_hold_up_nobody_for_ever() {
    let (_sender, known) = watch::channel(None);
    let settings = ServerSettings {
        patience: Duration::ZERO,
        ..ServerSettings::default()
    };
    let scene = Scene::start(Some(known), settings);
    let mut client = scene.client().await;
    let answer = client
        .post_virtual_host_modify(virtual_host())
        .await
        .unwrap();
    assert_eq!(
        answer.into_inner().virtual_host,
        virtual_host().virtual_host
    );
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_the_next_is_answered() {
    let settings = ServerSettings {
        max_message: 10_000,
        ..ServerSettings::default()
    };
    let scene = Scene::start(None, settings);
    let mut client = scene.client().await;
    let mut large = translation(&["web"]);
    large
        .clusters
        .push(draft().bytes(1, vec![b'x'; 20_000]).done());
    let refused = client.post_translate_modify(large).await.err().unwrap();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(
        client
            .post_translate_modify(translation(&["web"]))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn its_health_is_that_of_the_service_and_of_the_process() {
    let scene = Scene::start(None, ServerSettings::default());
    let channel = connect(&scene.socket).await;
    let mut health = HealthClient::new(channel);
    for service in ["", "envoygateway.extension.EnvoyGatewayExtension"] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_replaced_and_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    // One that nobody listens on, as after a crash.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    drop(Listener::unix(&socket).unwrap());
    assert!(!socket.exists());
    std::fs::write(&socket, "something else").unwrap();
    let error = Listener::unix(&socket).unwrap_err().to_string();
    assert!(
        error.contains("there is something that is no socket"),
        "{error}"
    );
    assert_eq!(std::fs::read(&socket).unwrap(), b"something else");
}

#[tokio::test]
async fn the_end_lets_go_of_clients_that_stay_connected() {
    let scene = Scene::start(None, ServerSettings::default());
    let mut client = scene.client().await;
    assert!(
        client
            .post_translate_modify(translation(&["web"]))
            .await
            .is_ok()
    );
    scene.drain.stop();
    let ended = tokio::time::timeout(Duration::from_secs(30), scene.serving).await;
    ended.unwrap().unwrap();
    assert!(!scene.socket.exists());
    assert!(
        client
            .post_translate_modify(translation(&["web"]))
            .await
            .is_err()
    );
}
