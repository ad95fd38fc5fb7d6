//! Bytes and datagrams of real peers through the data plane.

use super::world::{DEADLINE, Tailnet, eventually, soon};
use crate::proxy::{
    proxy_protocol::Header,
    scene::{self, named, passing_listener, route, snapshot},
    tls::client_hello,
};
use std::{io, net::SocketAddr, sync::Arc};
use tailway::{
    drain::Drain,
    metrics::Metrics,
    model::{Port, ProxyProtocol, Snapshot, UdpListener},
    proxy::{Limits, Proxy, TailnetCertificate},
    tailnet::{Node, PacketSocket, State},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

pub(super) async fn serving(node: &Node, snapshot: &Snapshot) -> Proxy<Node> {
    let mut proxy = Proxy::new(
        node.clone(),
        "default/web".into(),
        Limits::default(),
        Metrics::default(),
        Drain::default(),
        Arc::new(TailnetCertificate::default()),
    );
    let errors = proxy.apply(snapshot).await;
    assert!(errors.is_empty(), "{errors:?}");
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_told_the_user_and_the_node_of_a_peer() {
    let tailnet = Tailnet::start().await;
    let (server, client) = (tailnet.node("server").await, tailnet.node("client").await);
    let (listener, address) = scene::backend().await;
    let mut route = route(&[(1, Some("app"))]);
    route.as_mut().unwrap().proxy_protocol = Some(ProxyProtocol::V2);
    let snapshot = snapshot([(7000, scene::tcp_port_to(route))], &[("app", &[address])]);
    let _proxy = serving(&server, &snapshot).await;
    let dialled = client.dial("server:7000", DEADLINE).await.unwrap();
    let (source, destination) = (dialled.source(), dialled.destination());
    let mut stream = dialled.open().unwrap();
    let mut served = scene::accept(&listener).await;
    let header = Header::read(&mut served).await;
    let user = client.watch().borrow().user.clone();
    assert!(user.contains('@'), "{user:?} is no login");
    assert_eq!(
        header,
        Header {
            source,
            destination,
            fields: vec![(0xe0, user), (0xe1, format!("client.{}", tailnet.domain()))],
        }
    );
    stream.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    soon("a word", served.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_passed_on_carries_bytes_ends_and_resets_of_a_peer() {
    let tailnet = Tailnet::start().await;
    let (server, client) = (tailnet.node("server").await, tailnet.node("client").await);
    let (listener, address) = scene::backend().await;
    let port = Port::Tls(vec![passing_listener(
        "passed",
        Some("*.example.com"),
        vec![named("app", &[])],
    )]);
    let snapshot = snapshot([(443, port)], &[("app", &[address])]);
    let _proxy = serving(&server, &snapshot).await;
    let hello = client_hello(&scene::client(&[]), "web.example.com");
    let connect = async || {
        let dialled = client.dial("server:443", DEADLINE).await.unwrap();
        let mut stream = dialled.open().unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut served = scene::accept(&listener).await;
        let mut got = vec![0; hello.len()];
        soon("the hello", served.read_exact(&mut got))
            .await
            .unwrap();
        assert_eq!(got, hello);
        (stream, served)
    };
    let (mut stream, mut served) = connect().await;
    stream.shutdown().await.unwrap();
    assert_eq!(scene::read_all(&mut served).await.unwrap(), b"");
    served.write_all(b"still heard").await.unwrap();
    drop(served);
    let heard = scene::read_all(&mut stream).await.unwrap();
    assert_eq!(heard, b"still heard");

    let (stream, mut served) = connect().await;
    stream.reset();
    let error = soon("the reset", served.read(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (mut stream, served) = connect().await;
    scene::reset(served);
    let _ = soon("the end", stream.read(&mut [0; 8])).await;
    assert!(tailway::net::Stream::was_reset(&stream));
}

/// A backend that sends back what it gets.
pub(super) async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, source)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], source).await;
        }
    });
    address
}

/// Asks until there is an answer: datagrams may be lost before the path is there.
pub(super) async fn ask(socket: &PacketSocket, to: SocketAddr, question: &[u8]) {
    let what = format!("an answer of {to} to {} bytes", question.len());
    eventually(&what, || async {
        socket.send(question, to).await.unwrap();
        let second = std::time::Duration::from_secs(1);
        loop {
            let heard = tokio::time::timeout(second, socket.receive()).await;
            let (answer, from) = heard.ok()?.unwrap();
            assert_eq!(from, to, "an answer of another address");
            // Else it is one to an earlier question, come late.
            if answer == question {
                return Some(());
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_a_peer_are_answered_from_the_address_that_it_asked() {
    let tailnet = Tailnet::start().await;
    // Served before it has an address, as Gateways are.
    let server = Node::start(tailnet.config("server", State::Memory))
        .await
        .unwrap();
    let listener = UdpListener {
        name: "udp".into(),
        route: route(&[(1, Some("app"))]),
    };
    let snapshot = Snapshot {
        udp_ports: [(5353, listener)].into(),
        ..snapshot([], &[("app", &[echo().await])])
    };
    let mut proxy = serving(&server, &snapshot).await;
    soon("the node is up", server.up(None)).await.unwrap();
    let client = tailnet.node("client").await;
    let ips = |node: &Node| node.watch().borrow().ips.clone();
    assert_eq!(ips(&server).len(), 2, "an address of each family");
    for (from, to) in ips(&client).into_iter().zip(ips(&server)) {
        let to = SocketAddr::new(to, 5353);
        let (one, two) = (
            client.listen_packet((from, 0).into()).unwrap(),
            client.listen_packet((from, 0).into()).unwrap(),
        );
        ask(&one, to, b"from one").await;
        ask(&two, to, b"from two").await;
        // The largest that fits the tailnet's MTU of 1280 with IPv6.
        ask(&one, to, &[1; 1232]).await;
        ask(&two, to, &[2; 1232]).await;
    }
    // The port is free once it is served no more.
    let nothing = scene::snapshot([], &[]);
    assert!(proxy.apply(&nothing).await.is_empty());
    for ip in ips(&server) {
        eventually("the port is free", || async {
            server.listen_packet((ip, 5353).into()).ok()
        })
        .await;
    }
}
