//! Where connections go, and what happens when nobody is there.

use super::scene::{
    Scene, TCP, backend, dead, echo, expect_reset, greeter, ping, read_all, route, snapshot,
    tcp_port, tcp_port_to, within,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tailway::{
    model::{Backend, Endpoint},
    proxy::Limits,
};
use tokio::net::TcpStream;

/// An address where a handshake is never answered: a listener whose queue is full.
struct BlackHole {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<socket2::Socket>,
}

impl BlackHole {
    fn new() -> Self {
        let tcp = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = tcp().unwrap();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queued = (0..3)
            .map(|_| {
                let socket = tcp().unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address);
                socket
            })
            .collect();
        Self {
            address: address.as_socket().unwrap(),
            _listener: listener,
            _queued: queued,
        }
    }
}

fn quick() -> Limits {
    Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    }
}

#[tokio::test]
async fn backends_are_drawn_by_weight_and_the_share_of_an_invalid_one_is_refused() {
    let (a, b) = (greeter("a").await, greeter("b").await);
    let port = tcp_port_to(route(&[
        (1, Some("a")),
        (1, None),
        (0, Some("b")),
        (1, Some("missing")),
    ]));
    let scene = Scene::new(&snapshot([(TCP, port)], &[("a", &[a]), ("b", &[b])])).await;
    let mut answers = BTreeMap::new();
    for _ in 0..100 {
        let answer = match read_all(&mut scene.connect(TCP).await).await {
            Ok(name) => String::from_utf8(name).unwrap(),
            Err(error) => error.kind().to_string(),
        };
        *answers.entry(answer).or_insert(0) += 1;
    }
    let refused = answers["connection reset"];
    assert_eq!(
        answers.keys().collect::<Vec<_>>(),
        ["a", "connection reset"]
    );
    scene
        .until_metric(&format!(
            r#"tailway_connections_refused_total{{gateway="default/web",listener="tcp",reason="invalid_backend"}} {refused}"#
        ))
        .await;
}

#[tokio::test]
async fn a_listener_without_a_route_refuses() {
    let scene = Scene::new(&snapshot([(TCP, tcp_port_to(None))], &[])).await;
    expect_reset(&mut scene.connect(TCP).await).await;
    scene
        .until_metric(
            r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="no_route"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_counted() {
    let ((_socket, dead), live) = (dead(), echo().await);
    let scene = Scene::new(&snapshot([(TCP, tcp_port())], &[("app", &[dead, live])])).await;
    // Whoever is there has connections, so that the dead one is drawn sooner or later.
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = scene.connect(TCP).await;
        ping(&mut client).await.unwrap();
        open.push(client);
    }
    let counted = scene.metrics.encode().lines().any(|line| {
        line.starts_with(
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="connection_refused"} "#,
        )
    });
    assert!(counted, "{}", scene.metrics.encode());
}

#[tokio::test]
async fn a_connection_is_reset_when_all_endpoints_are_dead() {
    let ((_one, first), (_two, second)) = (dead(), dead());
    let scene = Scene::new(&snapshot([(TCP, tcp_port())], &[("app", &[first, second])])).await;
    expect_reset(&mut scene.connect(TCP).await).await;
    scene
        .until_metric(
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="connection_refused"} 2"#,
        )
        .await;
    scene
        .until_metric(
            r#"tailway_connections_refused_total{gateway="default/web",listener="tcp",reason="backend_unreachable"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn a_connection_is_reset_when_a_backend_has_no_endpoints() {
    let scene = Scene::new(&snapshot([(TCP, tcp_port())], &[("app", &[])])).await;
    expect_reset(&mut scene.connect(TCP).await).await;
    scene
        .until_metric(
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="no_endpoints"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_given_up() {
    let hole = BlackHole::new();
    let config = snapshot([(TCP, tcp_port())], &[("app", &[hole.address])]);
    let scene = Scene::with(quick(), &config).await;
    expect_reset(&mut scene.connect(TCP).await).await;
    scene
        .until_metric(
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="connect_timeout"} 1"#,
        )
        .await;
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_passed_over_for_one_that_does() {
    let (hole, live) = (BlackHole::new(), echo().await);
    let config = snapshot([(TCP, tcp_port())], &[("app", &[hole.address, live])]);
    let scene = Scene::with(quick(), &config).await;
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..3 {
        let mut client = scene.connect(TCP).await;
        ping(&mut client).await.unwrap();
        clients.push(client);
    }
}

#[tokio::test]
async fn an_endpoint_with_a_name_is_resolved() {
    let (listener, address) = backend().await;
    let mut config = snapshot([(TCP, tcp_port())], &[("app", &[])]);
    config.backends.insert(
        super::scene::backend_id("app"),
        Backend::new(vec![Endpoint::Name("localhost".into(), address.port())]),
    );
    let scene = Scene::new(&config).await;
    let _client = scene.connect(TCP).await;
    within(listener.accept()).await.unwrap();
}
