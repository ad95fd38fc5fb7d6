//! Snapshots that change under open and arriving connections.

use super::scene::{
    HOST, Scene, TCP, TLS, accept, backend, certificate, client, echo, greeter, handshake, leaf,
    pass, ping, read_all, route, snapshot, tcp_port, tcp_port_to, tls_port, within,
};
use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

const OTHER_TCP: u16 = 81;

#[tokio::test]
async fn another_certificate_is_served_to_new_connections_and_open_ones_go_on() {
    let (old, new) = (certificate(&[HOST]), certificate(&[HOST]));
    let app = echo().await;
    let before = snapshot([(TLS, tls_port(&old))], &[("app", &[app])]);
    let mut scene = Scene::new(&before).await;
    let mut first = scene.connect_tls(TLS, &client(&[&old])).await;
    ping(&mut first).await.unwrap();
    let after = snapshot([(TLS, tls_port(&new))], &[("app", &[app])]);
    scene.apply(&after).await;
    let mut second = scene.connect_tls(TLS, &client(&[&old, &new])).await;
    let served = second.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(served, leaf(&new));
    ping(&mut first).await.unwrap();
    ping(&mut second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_fails_while_certificates_change() {
    const CHANGES: usize = 20;
    let certificates = [certificate(&[HOST]), certificate(&[HOST])];
    let app = echo().await;
    let serving = |n: usize| snapshot([(TLS, tls_port(&certificates[n % 2]))], &[("app", &[app])]);
    let mut scene = Scene::new(&serving(0)).await;
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            let address = scene.address(TLS);
            let trusted = [&certificates[0], &certificates[1]];
            let config = client(&trusted);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = handshake(address, &config, HOST).await.unwrap();
                    ping(&mut stream).await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for change in 1..=CHANGES {
        let before = count.load(Ordering::Relaxed);
        scene.apply(&serving(change)).await;
        within(async {
            while count.load(Ordering::Relaxed) < before + 8 {
                assert!(clients.iter().all(|client| !client.is_finished()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        within(client).await.unwrap();
    }
}

#[tokio::test]
async fn a_route_that_changes_moves_new_connections_and_cuts_no_running_one() {
    let (listener, old) = backend().await;
    let new = greeter("new").await;
    let before = snapshot([(TCP, tcp_port())], &[("app", &[old])]);
    let mut scene = Scene::new(&before).await;
    let mut running = scene.connect(TCP).await;
    let mut served = accept(&listener).await;

    // Another endpoint, another backend, no route at all.
    let same_backend = snapshot([(TCP, tcp_port())], &[("app", &[new])]);
    let port = tcp_port_to(route(&[(1, Some("other"))]));
    let other_backend = snapshot([(TCP, port)], &[("other", &[new])]);
    for config in [&same_backend, &other_backend] {
        scene.apply(config).await;
        let greeting = read_all(&mut scene.connect(TCP).await).await.unwrap();
        assert_eq!(greeting, b"new");
        pass(&mut running, &mut served, b"still here").await;
    }
    scene
        .apply(&snapshot([(TCP, tcp_port_to(None))], &[]))
        .await;
    let refused = read_all(&mut scene.connect(TCP).await).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    pass(&mut running, &mut served, b"still here").await;
    pass(&mut served, &mut running, b"so am I").await;
}

#[tokio::test]
async fn ports_come_and_go_and_connections_of_a_port_that_went_finish() {
    let app = echo().await;
    let backends: &[(&str, &[_])] = &[("app", &[app])];
    let mut scene = Scene::new(&snapshot([(TCP, tcp_port())], backends)).await;
    let mut old = scene.connect(TCP).await;
    ping(&mut old).await.unwrap();
    let gone = scene.address(TCP);

    scene
        .apply(&snapshot([(OTHER_TCP, tcp_port())], backends))
        .await;
    // At once: a port that is taken up again must be free.
    let refused = std::net::TcpStream::connect(gone).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(
        scene.proxy.addresses().into_keys().collect::<Vec<_>>(),
        [OTHER_TCP]
    );
    ping(&mut scene.connect(OTHER_TCP).await).await.unwrap();
    ping(&mut old).await.unwrap();

    let both = snapshot([(TCP, tcp_port()), (OTHER_TCP, tcp_port())], backends);
    scene.apply(&both).await;
    ping(&mut scene.connect(TCP).await).await.unwrap();
    ping(&mut scene.connect(OTHER_TCP).await).await.unwrap();
}

#[tokio::test]
async fn a_port_changes_its_protocol_while_it_is_open() {
    let app = echo().await;
    let backends: &[(&str, &[_])] = &[("app", &[app])];
    let certificate = certificate(&[HOST]);
    let config = client(&[&certificate]);
    let mut scene = Scene::new(&snapshot([(TCP, tcp_port())], backends)).await;
    let mut plain = scene.connect(TCP).await;
    ping(&mut plain).await.unwrap();

    scene
        .apply(&snapshot([(TCP, tls_port(&certificate))], backends))
        .await;
    let mut secret = scene.connect_tls(TCP, &config).await;
    ping(&mut secret).await.unwrap();
    scene.apply(&snapshot([(TCP, tcp_port())], backends)).await;
    ping(&mut scene.connect(TCP).await).await.unwrap();
    ping(&mut plain).await.unwrap();
    ping(&mut secret).await.unwrap();
}

#[tokio::test]
async fn what_a_port_refuses_is_counted_for_the_listener_that_it_has_now() {
    let app = echo().await;
    let backends: &[(&str, &[_])] = &[("app", &[app])];
    let certificate = certificate(&[HOST]);
    let mut scene = Scene::new(&snapshot([(TCP, tcp_port())], backends)).await;
    scene
        .apply(&snapshot([(TCP, tls_port(&certificate))], backends))
        .await;
    drop(scene.connect(TCP).await);
    scene
        .until_metric(
            r#"tailway_tls_failures_total{gateway="default/web",listener="tls",reason="closed_by_peer"} 1"#,
        )
        .await;
}
