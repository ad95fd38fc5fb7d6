//! Datagrams on loopback, from a peer to a backend and back.

use super::scene::{Scene, backend_id, route, snapshot, within};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tailway::{
    model::{Endpoint, Forward, Snapshot, UdpListener},
    proxy::Limits,
};
use tokio::net::UdpSocket;

const UDP: u16 = 53;

/// A snapshot whose listener "udp" has this route.
fn udp_to(route: Option<Forward>, backends: &[(&str, &[SocketAddr])]) -> Snapshot {
    let listener = UdpListener {
        name: "udp".into(),
        route,
    };
    Snapshot {
        udp_ports: [(UDP, listener)].into(),
        ..snapshot([], backends)
    }
}

/// The same to the backend "app".
fn udp(endpoints: &[SocketAddr]) -> Snapshot {
    udp_to(route(&[(1, Some("app"))]), &[("app", endpoints)])
}

/// A backend that sends back its name and what it gets.
async fn echo(name: &'static str) -> SocketAddr {
    let socket = socket([127, 0, 0, 1]).await;
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, source)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            let _ = socket.send_to(&answer, source).await;
        }
    });
    address
}

async fn socket(ip: [u8; 4]) -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::from(ip), 0)).await.unwrap()
}

/// A peer, which hears nobody but the port.
async fn peer_from(ip: [u8; 4], scene: &Scene) -> UdpSocket {
    let peer = socket(ip).await;
    peer.connect(scene.proxy.udp_addresses()[&UDP])
        .await
        .unwrap();
    peer
}

async fn peer(scene: &Scene) -> UdpSocket {
    peer_from([127, 0, 0, 1], scene).await
}

async fn hear(peer: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = within(peer.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    buffer
}

/// Says something and gives the answer.
async fn ask(peer: &UdpSocket, question: &[u8]) -> Vec<u8> {
    peer.send(question).await.unwrap();
    hear(peer).await
}

async fn dropped(scene: &Scene, reason: &str, count: u32) {
    let line = format!(
        "tailway_udp_datagrams_dropped_total{{gateway=\"default/web\",listener=\"udp\",reason=\"{reason}\"}} {count}"
    );
    scene.until_metric(&line).await;
}

async fn closed(scene: &Scene, reason: &str, count: u32) {
    let line = format!(
        "tailway_udp_flows_closed_total{{gateway=\"default/web\",listener=\"udp\",reason=\"{reason}\"}} {count}"
    );
    scene.until_metric(&line).await;
}

async fn open(scene: &Scene, count: u32) {
    let line =
        format!("tailway_udp_flows_open{{gateway=\"default/web\",listener=\"udp\"}} {count}");
    scene.until_metric(&line).await;
}

#[tokio::test]
async fn peers_are_kept_apart_and_each_hears_its_own_answers() {
    let app = echo("").await;
    let scene = Scene::new(&udp(&[app])).await;
    let mut peers = Vec::new();
    for _ in 0..5 {
        peers.push(peer(&scene).await);
    }
    for round in 0..3 {
        for (number, peer) in peers.iter().enumerate() {
            let word = format!("{number} in {round}");
            peer.send(word.as_bytes()).await.unwrap();
        }
        for (number, peer) in peers.iter().enumerate() {
            let word = format!("{number} in {round}");
            assert_eq!(hear(peer).await, word.as_bytes());
        }
    }
    open(&scene, 5).await;
    let bytes = 5 * 3 * "0 in 0".len();
    for line in [
        r#"tailway_udp_flows_opened_total{gateway="default/web",listener="udp"} 5"#.into(),
        format!(r#"tailway_received_bytes_total{{gateway="default/web",listener="udp"}} {bytes}"#),
        format!(r#"tailway_sent_bytes_total{{gateway="default/web",listener="udp"}} {bytes}"#),
    ] {
        scene.until_metric(&line).await;
    }
}

#[tokio::test]
async fn datagrams_of_any_size_keep_their_boundaries() {
    let app = echo("").await;
    let scene = Scene::new(&udp(&[app])).await;
    let peer = peer(&scene).await;
    for size in [0, 1, 1200, 1472, 9000, 65_507] {
        let payload: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        let answer = ask(&peer, &payload).await;
        assert!(answer == payload, "{size} came back as {}", answer.len());
    }
}

#[tokio::test]
async fn a_flow_keeps_its_backend_and_flows_are_spread_by_weight() {
    let (one, two) = (echo("one ").await, echo("two ").await);
    let weighted = route(&[(3, Some("one")), (1, Some("two")), (0, Some("none"))]);
    let backends: &[(&str, &[_])] = &[("one", &[one]), ("two", &[two]), ("none", &[])];
    let scene = Scene::new(&udp_to(weighted, backends)).await;
    let mut counts: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for _ in 0..200 {
        let peer = peer(&scene).await;
        let first = ask(&peer, b"x").await;
        assert_eq!(ask(&peer, b"x").await, first, "the flow has moved");
        *counts.entry(first).or_default() += 1;
    }
    // A tenth of a chance in a billion to be outside.
    assert!(
        (110..190).contains(&counts[&b"one x"[..]]),
        "about 150 of {counts:?}"
    );
}

#[tokio::test]
async fn a_backend_is_found_by_its_name() {
    let app = echo("").await;
    let mut snapshot = udp(&[]);
    let backend = snapshot.backends.get_mut(&backend_id("app")).unwrap();
    backend.endpoints = vec![Endpoint::Name(app.ip().to_string(), app.port())];
    let scene = Scene::new(&snapshot).await;
    let peer = peer(&scene).await;
    for word in [b"first", b"other", b"third"] {
        peer.send(word).await.unwrap();
    }
    for word in [b"first", b"other", b"third"] {
        assert_eq!(hear(&peer).await, word);
    }
}

#[tokio::test]
async fn an_idle_flow_ends_and_its_peer_begins_another() {
    let limits = Limits {
        udp_idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let app = echo("").await;
    let scene = Scene::with(limits, &udp(&[app])).await;
    let peer = peer(&scene).await;
    for count in 1..=2 {
        assert_eq!(ask(&peer, b"hello").await, b"hello");
        closed(&scene, "idle_timeout", count).await;
        open(&scene, 0).await;
    }
}

#[tokio::test]
async fn flows_beyond_the_limits_are_dropped_and_others_go_on() {
    let limits = Limits {
        udp_flows: 3,
        udp_flows_per_peer: 2,
        ..Limits::default()
    };
    let app = echo("").await;
    let scene = Scene::with(limits, &udp(&[app])).await;
    let (one, two) = (
        peer_from([127, 0, 0, 2], &scene).await,
        peer_from([127, 0, 0, 2], &scene).await,
    );
    for peer in [&one, &two] {
        assert_eq!(ask(peer, b"hello").await, b"hello");
    }
    let beyond = peer_from([127, 0, 0, 2], &scene).await;
    beyond.send(b"lost").await.unwrap();
    dropped(&scene, "peer_limit", 1).await;
    let other = peer_from([127, 0, 0, 3], &scene).await;
    assert_eq!(ask(&other, b"hello").await, b"hello");
    let beyond = peer_from([127, 0, 0, 4], &scene).await;
    beyond.send(b"lost").await.unwrap();
    dropped(&scene, "listener_limit", 1).await;
    for peer in [&one, &two, &other] {
        assert_eq!(ask(peer, b"still here").await, b"still here");
    }
}

#[tokio::test]
async fn datagrams_without_a_backend_are_dropped_and_counted() {
    let mut scene = Scene::new(&udp_to(None, &[])).await;
    let peer = peer(&scene).await;
    peer.send(b"lost").await.unwrap();
    dropped(&scene, "no_route", 1).await;
    scene.apply(&udp_to(route(&[(1, None)]), &[])).await;
    peer.send(b"lost").await.unwrap();
    dropped(&scene, "invalid_backend", 1).await;
    scene.apply(&udp(&[])).await;
    peer.send(b"lost").await.unwrap();
    dropped(&scene, "no_endpoints", 1).await;
    open(&scene, 0).await;
    // The places of flows that did not come to be are free.
    let app = echo("").await;
    scene.apply(&udp(&[app])).await;
    assert_eq!(ask(&peer, b"hello").await, b"hello");
}

#[tokio::test]
async fn a_backend_that_refuses_ends_the_flow_and_others_are_drawn() {
    let (app, gone) = (echo("").await, socket([127, 0, 0, 1]).await);
    let dead = gone.local_addr().unwrap();
    drop(gone);
    let mut scene = Scene::new(&udp(&[dead])).await;
    let peer = peer(&scene).await;
    peer.send(b"lost").await.unwrap();
    closed(&scene, "backend_refused", 1).await;
    scene
        .until_metric(
            r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="connection_refused"} 1"#,
        )
        .await;
    scene.apply(&udp(&[dead, app])).await;
    // The dead one is set aside by now.
    assert_eq!(ask(&peer, b"hello").await, b"hello");
}

#[tokio::test]
async fn flows_stay_with_backends_that_stay_and_leave_those_that_are_gone() {
    let (old, new) = (echo("old ").await, echo("new ").await);
    let mut scene = Scene::new(&udp(&[old])).await;
    let first = peer(&scene).await;
    assert_eq!(ask(&first, b"x").await, b"old x");
    scene.apply(&udp(&[old, new])).await;
    assert_eq!(ask(&first, b"x").await, b"old x");
    open(&scene, 1).await;

    scene.apply(&udp(&[new])).await;
    closed(&scene, "backend_gone", 1).await;
    assert_eq!(ask(&first, b"x").await, b"new x");

    let weightless = route(&[(0, Some("app")), (1, Some("other"))]);
    let backends: &[(&str, &[_])] = &[("app", &[new]), ("other", &[old])];
    scene.apply(&udp_to(weightless, backends)).await;
    assert_eq!(ask(&first, b"x").await, b"old x");
    scene.apply(&udp_to(None, &[])).await;
    closed(&scene, "backend_gone", 3).await;
}

#[tokio::test]
async fn a_port_that_goes_ends_its_flows_and_is_free_at_once() {
    let app = echo("").await;
    let mut scene = Scene::new(&udp(&[app])).await;
    let peer = peer(&scene).await;
    assert_eq!(ask(&peer, b"hello").await, b"hello");
    let address = scene.proxy.udp_addresses()[&UDP];
    scene.apply(&snapshot([], &[])).await;
    std::net::UdpSocket::bind(address).unwrap();
    closed(&scene, "port_closed", 1).await;
    assert!(scene.proxy.udp_addresses().is_empty());
    scene.apply(&udp(&[app])).await;
    let again = self::peer(&scene).await;
    assert_eq!(ask(&again, b"hello").await, b"hello");
}

#[tokio::test]
async fn a_draining_port_begins_no_flow_and_those_that_are_open_finish() {
    let app = echo("").await;
    let scene = Scene::new(&udp(&[app])).await;
    let (old, late) = (peer(&scene).await, peer(&scene).await);
    assert_eq!(ask(&old, b"hello").await, b"hello");
    let drain = scene.drain.clone();
    let ended = tokio::spawn(async move { drain.end(Duration::from_secs(600)).await });
    within(async {
        while !scene.drain.is_stopping() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    late.send(b"lost").await.unwrap();
    dropped(&scene, "draining", 1).await;
    assert_eq!(ask(&old, b"still here").await, b"still here");
    assert!(within(ended).await.unwrap(), "nothing had to be forced");
    closed(&scene, "idle_timeout", 1).await;
}

#[tokio::test]
async fn what_is_open_at_the_deadline_is_ended() {
    let app = echo("").await;
    let scene = Scene::new(&udp(&[app])).await;
    let peer = peer(&scene).await;
    assert_eq!(ask(&peer, b"hello").await, b"hello");
    assert!(!scene.drain.end(Duration::ZERO).await);
    closed(&scene, "aborted", 1).await;
    open(&scene, 0).await;
}
