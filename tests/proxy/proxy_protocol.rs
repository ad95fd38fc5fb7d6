//! What backends are told of clients before their first byte.

use super::scene::{
    HOST, Scene, TCP, TLS, accept, backend, certificate, client_of, named, pass, passing_listener,
    route, snapshot, tcp_port_to, termination, tls_listener, within,
};
use std::{net::SocketAddr, sync::Arc};
use tailway::model::{NamedForward, Port, ProxyProtocol, TlsRoutes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A header of version 2, read from the specification.
#[derive(Debug, PartialEq)]
pub struct Header {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub fields: Vec<(u8, String)>,
}

impl Header {
    /// Reads one from a connection, and not a byte more.
    pub async fn read(stream: &mut TcpStream) -> Self {
        let mut head = [0; 16];
        within(stream.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(head[12..14], [0x21, 0x11], "PROXY, TCP over IPv4");
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        within(stream.read_exact(&mut rest)).await.unwrap();
        let number = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        let ip = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).unwrap();
        let mut fields = Vec::new();
        let mut at = 12;
        while at < rest.len() {
            let end = at + 3 + usize::from(number(at + 1));
            let value = String::from_utf8(rest[at + 3..end].to_vec()).unwrap();
            fields.push((rest[at], value));
            at = end;
        }
        Self {
            source: (ip(0), number(8)).into(),
            destination: (ip(4), number(10)).into(),
            fields,
        }
    }
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

/// Reads the header of a connection that a client has just made, by the version.
async fn expect_header(
    version: ProxyProtocol,
    listener: &TcpListener,
    client: &TcpStream,
    fields: &[(u8, &str)],
) -> TcpStream {
    let mut served = accept(listener).await;
    let (source, destination) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    match version {
        ProxyProtocol::V1 => assert_eq!(
            read_line(&mut served).await,
            format!(
                "PROXY TCP4 {} {} {} {}\r\n",
                source.ip(),
                destination.ip(),
                source.port(),
                destination.port()
            )
        ),
        ProxyProtocol::V2 => assert_eq!(
            Header::read(&mut served).await,
            Header {
                source,
                destination,
                fields: fields
                    .iter()
                    .map(|&(kind, value)| (kind, value.to_owned()))
                    .collect(),
            }
        ),
    }
    served
}

fn told(backend: &str, version: ProxyProtocol) -> NamedForward {
    let mut named = named(backend, &[]);
    named.forward.proxy_protocol = Some(version);
    named
}

#[tokio::test]
async fn backends_of_tcp_are_told_who_connects_to_what() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (listener, address) = backend().await;
        let mut route = route(&[(1, Some("app"))]);
        route.as_mut().unwrap().proxy_protocol = Some(version);
        let ports = [(TCP, tcp_port_to(route))];
        let scene = Scene::new(&snapshot(ports, &[("app", &[address])])).await;
        let mut client = scene.connect(TCP).await;
        let mut served = expect_header(version, &listener, &client, &[]).await;
        pass(&mut client, &mut served, b"hello").await;
        pass(&mut served, &mut client, b"back").await;
        scene
            .until_metric(r#"tailway_received_bytes_total{gateway="default/web",listener="tcp"} 5"#)
            .await;
    }
}

#[tokio::test]
async fn backends_behind_tls_are_told_of_the_name_and_the_protocol() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (listener, address) = backend().await;
        let certificate = certificate(&[HOST]);
        let mut config = tls_listener("tls", None, &[&certificate]);
        termination(&mut config).alpn = vec!["imap".into()];
        termination(&mut config).routes = TlsRoutes::Forwards(vec![told("app", version)]);
        let ports = [(TLS, Port::Tls(vec![config]))];
        let scene = Scene::new(&snapshot(ports, &[("app", &[address])])).await;
        let mut config = client_of(&[&certificate], rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![b"imap".to_vec()];
        let mut client = scene.connect_tls(TLS, &Arc::new(config)).await;
        let fields = [(0x01, "imap"), (0x02, HOST)];
        let mut served = expect_header(version, &listener, client.get_ref().0, &fields).await;
        pass(&mut client, &mut served, b"hello").await;
        pass(&mut served, &mut client, b"back").await;
        scene
            .until_metric(r#"tailway_received_bytes_total{gateway="default/web",listener="tls"} 5"#)
            .await;
    }
}

#[tokio::test]
async fn backends_that_end_tls_are_told_before_the_hello() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (listener, address) = backend().await;
        let port = Port::Tls(vec![passing_listener(
            "passed",
            None,
            vec![told("app", version)],
        )]);
        let scene = Scene::new(&snapshot([(TLS, port)], &[("app", &[address])])).await;
        let hello = super::tls::client_hello(&super::scene::client(&[]), HOST);
        let mut client = scene.connect(TLS).await;
        client.write_all(&hello).await.unwrap();
        let mut served = expect_header(version, &listener, &client, &[(0x02, HOST)]).await;
        let mut got = vec![0; hello.len()];
        within(served.read_exact(&mut got)).await.unwrap();
        assert!(got == hello, "the backend got another hello");
        scene
            .until_metric(&format!(
                "tailway_received_bytes_total{{gateway=\"default/web\",listener=\"passed\"}} {}",
                hello.len()
            ))
            .await;
    }
}
