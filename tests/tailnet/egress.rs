//! The egress: from the cluster to endpoints of a tailnet.

use super::{
    endpoints::target,
    world::{Tailnet, eventually, soon},
};
use crate::{
    discovery::scene::{TOKEN, World, until_snapshot},
    proxy::scene,
};
use serde_json::json;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tailway::{
    api::Object,
    discovery::subscribe,
    drain::Drain,
    index::{Index, egress},
    metrics::Metrics,
    model::{Health, NodeReport, ObjectName, Programmed, Role, Snapshot},
    net::Stream,
    proxy::{Gateway, GatewaySettings, Limits, Proxy, Schedule},
    tailnet::{Connection, Listener, Node, NodeConfig, State},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};

/// The Snapshot of an egress to a node that is called `target`. Ports follow from the names, which
/// are therefore no other test's.
fn egress_to_target() -> (Snapshot, [String; 3]) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let names = ["web", "bytes", "datagrams"].map(|name| format!("{name}-{process}-{number}"));
    let check = json!({
        "path": "/",
        "interval": "200ms",
        "timeout": "200ms",
        "healthyThreshold": 1,
        "unhealthyThreshold": 2,
    });
    let object = json!({
        "metadata": {"name": "example", "namespace": "default", "generation": 5},
        "spec": {"endpoints": [
            {"name": names[0], "port": 80, "tailscaleFQDN": "target", "healthCheck": check},
            {"name": names[1], "port": 7001, "protocol": "TCP", "tailscaleFQDN": "target"},
            {"name": names[2], "port": 5353, "protocol": "UDP", "tailscaleFQDN": "target"},
            {"name": "outside", "port": 80, "externalTarget": "example.com:80"},
        ]},
    });
    let mut index = Index::default();
    index.apply(Object::Endpoints(Box::new(
        serde_json::from_value(object).unwrap(),
    )));
    let outcome = index.evaluate();
    let subject = egress::subject(&ObjectName::new("default", "example"));
    (Snapshot::clone(&outcome.snapshots[&subject]), names)
}

fn settings() -> GatewaySettings {
    GatewaySettings {
        limits: Limits::default(),
        metrics: Metrics::default(),
        schedule: Schedule::default(),
    }
}

fn config(tailnet: &Tailnet, snapshot: &Snapshot) -> NodeConfig {
    tailnet.config(&format!("{}-0", snapshot.node.name), State::Memory)
}

/// An egress that is ready, and the node that it leads to.
struct Scene {
    tailnet: Tailnet,
    egress: Gateway,
    reports: watch::Receiver<NodeReport>,
    /// Of the endpoints `web`, `bytes` and `datagrams`.
    names: [String; 3],
    snapshot: Snapshot,
    is_well: Arc<AtomicBool>,
    /// Where `bytes` leads to.
    listener: Listener,
    _target: Proxy<Node>,
}

impl Scene {
    async fn new() -> Self {
        let tailnet = Tailnet::start().await;
        let node = tailnet.node("target").await;
        let is_well = Arc::new(AtomicBool::new(true));
        let target = target(&node, Arc::clone(&is_well)).await;
        let listener = node.listen(7001, Arc::new(|_, _| true)).unwrap();
        let (published, names) = egress_to_target();
        let snapshot = as_its_pod_gets_it(published).await;
        let config = config(&tailnet, &snapshot);
        let egress = Gateway::start(snapshot.clone(), config, settings(), &Drain::default());
        let mut reports = egress.report();
        let ready = reports.wait_for(|report| report.programmed == Programmed::Generation(5));
        let report = soon("the egress is ready", ready).await.unwrap().clone();
        let name = format!("example-egress-0.{}", tailnet.domain());
        assert_eq!(report.dns_name, name);
        Self {
            tailnet,
            egress,
            reports,
            names,
            snapshot,
            is_well,
            listener,
            _target: target,
        }
    }

    /// Where the pod takes connections for an endpoint.
    fn address(&self, name: &str) -> SocketAddr {
        let mut ports = self.snapshot.ports.iter();
        let found = ports.find(|(_, port)| port.listener_names() == [name]);
        (Ipv4Addr::LOCALHOST, *found.unwrap().0).into()
    }

    /// A connection to `bytes`, and its other end in the tailnet.
    async fn connected(&mut self) -> (TcpStream, Connection) {
        let client = TcpStream::connect(self.address(&self.names[1]))
            .await
            .unwrap();
        let accepted = soon("the other end", self.listener.accept()).await.unwrap();
        (client, accepted.open().unwrap())
    }

    /// Waits until `web` is told to be so.
    async fn until(&mut self, expected: Health) {
        let web = &self.names[0];
        let is_so = |report: &NodeReport| report.health.get(web) == Some(&expected);
        soon("the health that is", self.reports.wait_for(is_so))
            .await
            .unwrap();
    }
}

/// Sends a snapshot over the stream of a controller.
async fn as_its_pod_gets_it(published: Snapshot) -> Snapshot {
    let world = World::new();
    world.tokens.set(TOKEN, Ok(published.gateway.clone()));
    let server = world.serve().await;
    world.publish(&[&published]);
    let mut following = world.client_settings(server.address);
    following.gateway = published.gateway.clone();
    let pod = subscribe(following, world.metrics.clone()).await;
    let received = until_snapshot(&pod, &published).await;
    Snapshot::clone(&received.snapshot)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_carries_bytes_ends_and_resets_between_its_pod_and_the_tailnet() {
    let mut scene = Scene::new().await;
    let large: Vec<_> = (0..20_000u32).map(|at| at as u8).collect();
    let (mut client, mut served) = scene.connected().await;
    scene::pass(&mut client, &mut served, &large).await;
    scene::pass(&mut served, &mut client, &large).await;
    client.shutdown().await.unwrap();
    assert_eq!(scene::read_all(&mut served).await.unwrap(), b"");
    served.write_all(b"still heard").await.unwrap();
    served.shutdown().await.unwrap();
    let heard = scene::read_all(&mut client).await.unwrap();
    assert_eq!(heard, b"still heard");

    let (client, mut served) = scene.connected().await;
    scene::reset(client);
    let _ = soon("the end", served.read(&mut [0; 8])).await;
    assert!(served.was_reset());

    let (mut client, served) = scene.connected().await;
    served.reset();
    scene::expect_reset(&mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_answers_datagrams_and_has_ports_for_what_is_in_the_tailnet_alone() {
    let scene = Scene::new().await;
    let Snapshot {
        role,
        ports,
        udp_ports,
        ..
    } = &scene.snapshot;
    assert_eq!(*role, Role::Egress);
    assert_eq!((ports.len(), udp_ports.len()), (2, 1));
    let (port, listener) = udp_ports.first_key_value().unwrap();
    assert_eq!(listener.name, scene.names[2]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, *port)).await.unwrap();
    eventually("an answer to a datagram", || async {
        socket.send(b"a datagram").await.unwrap();
        let mut buffer = [0; 64];
        let answer = timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
        let length = answer.ok()?.ok()?;
        (&buffer[..length] == b"a datagram").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_tells_the_health_of_what_it_leads_to() {
    let mut scene = Scene::new().await;
    scene.until(Health::Healthy).await;
    scene.is_well.store(false, Ordering::Relaxed);
    let busy = Health::Unhealthy {
        reason: "status 503".into(),
    };
    scene.until(busy).await;
    scene.is_well.store(true, Ordering::Relaxed);
    scene.until(Health::Healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_outlives_the_control_server_and_ends_when_its_connections_have() {
    let mut scene = Scene::new().await;
    scene.tailnet.post("/control/stop", json!({})).await;
    let (mut client, mut served) = scene.connected().await;
    scene::pass(&mut client, &mut served, b"word").await;
    let address = scene.address(&scene.names[1]);
    let ended = scene.egress.end(Duration::from_secs(30));
    // It is asked to end before, as the first of the two.
    let finishing = async {
        scene::pass(&mut client, &mut served, b"word").await;
        client.shutdown().await.unwrap();
        served.shutdown().await.unwrap();
        drop((client, served));
    };
    let both = async { tokio::join!(ended, finishing) };
    soon("the egress has ended", both).await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}
