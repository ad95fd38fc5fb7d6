//! Endpoints of a tailnet as backends.

use super::{
    streams::{ask, echo as udp_echo, serving},
    world::{DEADLINE, Tailnet, Tailway, backend, eventually, soon},
};
use crate::proxy::{
    http::{
        grpc::server_of_calls,
        scene::{Client, request},
    },
    scene::{self, route, snapshot, tcp_port_to},
};
use http::{Method, StatusCode, Version};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tailway::{
    model::{Snapshot, UdpListener},
    proxy::Proxy,
    tailnet::Node,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A page that is there or not.
async fn page(is_well: Arc<AtomicBool>) -> u16 {
    backend(move |mut stream| {
        let is_well = Arc::clone(&is_well);
        async move {
            let mut request = vec![0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let status = match is_well.load(Ordering::Relaxed) {
                    true => "200 OK",
                    false => "503 Busy",
                };
                let response = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
                );
                let _ = stream.write_all(response.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
}

/// Serves a page at port 80 of a node, an echo of TCP at 7000 and one of UDP at 5353.
pub async fn target(node: &Node, is_well: Arc<AtomicBool>) -> Proxy<Node> {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let to = |name: &str| tcp_port_to(route(&[(1, Some(name))]));
    let backends = [
        ("page", vec![at(page(is_well).await)]),
        ("echo", vec![scene::echo().await]),
        ("udp", vec![udp_echo().await]),
    ];
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, addresses)| (*name, addresses.as_slice()))
        .collect();
    let listener = UdpListener {
        name: "udp".into(),
        route: route(&[(1, Some("udp"))]),
    };
    let snapshot = Snapshot {
        udp_ports: [(5353, listener)].into(),
        ..snapshot([(80, to("page")), (7000, to("echo"))], &backends)
    };
    serving(node, &snapshot).await
}

/// A Gateway `gw` with routes to endpoints of a node that is called `target`.
fn gateway(target_ip: &str) -> String {
    let reference = |port: u16| {
        format!(
            "{{group: gateway.tailscale.com, kind: TailscaleEndpoints, name: target, port: {port}}}"
        )
    };
    let route = |kind: &str, listener: &str, port: u16| {
        let version = match kind {
            "HTTPRoute" => "v1",
            _ => "v1alpha2",
        };
        format!(
            "---
apiVersion: gateway.networking.k8s.io/{version}
kind: {kind}
metadata: {{name: {listener}}}
spec:
  parentRefs: [{{name: gw, sectionName: {listener}}}]
  rules: [{{backendRefs: [{}]}}]
",
            reference(port)
        )
    };
    let routes = [
        route("HTTPRoute", "http", 80),
        route("TCPRoute", "tcp", 7000),
        route("UDPRoute", "udp", 5353),
    ];
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: tailnet}}
spec: {{controllerName: tailway.michaelbeaumont.github.io/controller}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec:
  gatewayClassName: tailnet
  addresses: [{{type: Hostname, value: gw}}]
  listeners:
    - {{name: http, port: 80, protocol: HTTP}}
    - {{name: tcp, port: 7000, protocol: TCP}}
    - {{name: udp, port: 5353, protocol: UDP}}
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {{name: target}}
spec:
  endpoints:
    - name: web
      port: 80
      tailscaleFQDN: target
      healthCheck: {{path: /, interval: 200ms, timeout: 200ms, healthyThreshold: 1, unhealthyThreshold: 2}}
    - {{name: echo, port: 7000, protocol: TCP, tailscaleIP: {target_ip}}}
    - {{name: datagrams, port: 5353, protocol: UDP, tailscaleFQDN: target}}
{}",
        routes.concat()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_lead_to_endpoints_of_the_tailnet_over_the_gateways_own_node() {
    let tailnet = Tailnet::start().await;
    let node = tailnet.node("target").await;
    let is_well = Arc::new(AtomicBool::new(true));
    let _target = target(&node, Arc::clone(&is_well)).await;
    let ip = node.status().unwrap().ips[0].to_string();
    let tailway = Tailway::start(&tailnet, &gateway(&ip)).await;
    tailway.ready().await;
    let url = format!("http://gw.{}/", tailnet.domain());
    for _ in 0..3 {
        let answer = eventually("the page of the target", || async {
            tailnet.visit(&url).await.ok()
        })
        .await;
        assert_eq!(
            (answer["status"].as_u64(), answer["body"].as_str()),
            (Some(200), Some("hello"))
        );
    }
    let mut tunnel = tailnet.tunnel("gw:7000").await.unwrap();
    tunnel.write_all(b"there and back").await.unwrap();
    let mut answer = [0; 14];
    soon("the echo", tunnel.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"there and back");
    let client = tailnet.node("client").await;
    let own = client.status().unwrap().ips[0];
    let socket = client.listen_packet((own, 0).into()).unwrap();
    let gateway = tailnet.get("/nodes/gw").await;
    let gateway = gateway["addresses"][0].as_str().unwrap();
    let gateway = gateway.split('/').next().unwrap().parse().unwrap();
    ask(&socket, SocketAddr::new(gateway, 5353), b"a datagram").await;

    let health = async |value: u8| {
        let line = format!(
            "tailway_endpoint_healthy{{gateway=\"default/gw\",endpoint=\"default/target/web\"}} {value}"
        );
        eventually(&line, || async {
            let metrics = tailway.page("/metrics").await.1;
            metrics.lines().any(|found| found == line).then_some(())
        })
        .await;
    };
    health(1).await;
    is_well.store(false, Ordering::Relaxed);
    health(0).await;
    // It is the only one, and better than none.
    assert_eq!(tailnet.visit(&url).await.unwrap()["status"], 503);
    is_well.store(true, Ordering::Relaxed);
    health(1).await;
    let told = tailway.logs("the endpoint is unhealthy").await;
    assert!(told.contains("status 503"), "{told}");
}

/// A Gateway `web` whose routes lead to endpoints of a node that is called `target`: of HTTP to port
/// 81, of gRPC to port 80.
const WEB: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: tailnet}
spec: {controllerName: tailway.michaelbeaumont.github.io/controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: tailnet
  addresses: [{type: Hostname, value: web}]
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {name: target}
spec:
  endpoints:
    - {name: calls, port: 80, tailscaleFQDN: target}
    - {name: chat, port: 81, tailscaleFQDN: target}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: chat}
spec:
  parentRefs: [{name: web}]
  hostnames: [chat.example.com]
  rules: [{backendRefs: [{group: gateway.tailscale.com, kind: TailscaleEndpoints, name: target, port: 81}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls}
spec:
  parentRefs: [{name: web}]
  hostnames: [calls.example.com]
  rules: [{backendRefs: [{group: gateway.tailscale.com, kind: TailscaleEndpoints, name: target, port: 80}]}]
";

/// A WebSocket that says hello, and bye when the client has ended.
async fn chat() -> u16 {
    backend(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
        let _ = stream.write_all(answer.as_bytes()).await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let _ = stream.write_all(&[&heard, &b", bye"[..]].concat()).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_websockets_pass_from_node_to_node() {
    let tailnet = Tailnet::start().await;
    let node = tailnet.node("target").await;
    let to = |name: &str| tcp_port_to(route(&[(1, Some(name))]));
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (calls, chat) = (server_of_calls().await, at(chat().await));
    let backends = [("calls", &[calls][..]), ("chat", &[chat][..])];
    let _target = serving(
        &node,
        &snapshot([(80, to("calls")), (81, to("chat"))], &backends),
    )
    .await;
    let tailway = Tailway::start(&tailnet, WEB).await;
    tailway.ready().await;

    let connect = async || TokioIo::new(tailnet.tunnel("web:80").await.unwrap());
    let mut client = Client::over(connect().await, Version::HTTP_2).await;
    let headers = [
        ("host", "calls.example.com"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut call = request(Method::POST, "/shop.Orders/List", &headers);
    *call.body_mut() = "one".into();
    let answer = client.send(call).await.into_body().collect();
    let answer = soon("its trailers", answer).await.unwrap();
    let trailers = answer.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(
        trailers["x-target"],
        "http://calls.example.com/shop.Orders/List"
    );
    assert_eq!(answer.to_bytes(), "re: one");

    let mut client = Client::over(connect().await, Version::HTTP_11).await;
    let headers = [
        ("host", "chat.example.com"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    let response = client.send(request(Method::GET, "/", &headers)).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = soon("the tunnel", hyper::upgrade::on(response)).await;
    let mut tunnel = TokioIo::new(upgraded.unwrap());
    let mut hello = [0; 5];
    soon("its hello", tunnel.read_exact(&mut hello))
        .await
        .unwrap();
    assert_eq!(&hello, b"hello");
    tunnel.write_all(b"well met").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut rest = String::new();
    soon("its end", tunnel.read_to_string(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, "well met, bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_tailnet_are_found_and_nothing_else_is() {
    let tailnet = Tailnet::start().await;
    let (one, other) = (tailnet.node("one").await, tailnet.node("other").await);
    let ip = other.status().unwrap().ips[0];
    let domain = tailnet.domain();
    eventually("one knows the other", || async {
        one.look_up("other").ok()
    })
    .await;
    for host in [
        "other",
        "OTHER",
        &format!("other.{domain}"),
        &format!("other.{domain}."),
        &ip.to_string(),
    ] {
        assert_eq!(one.look_up(host), Ok(ip), "{host}");
    }
    for host in [
        "nobody",
        "svc:other",
        "localhost",
        "example.com",
        "127.0.0.1",
        "1.1.1.1",
        "",
    ] {
        assert!(one.look_up(host).is_err(), "{host}");
    }
    let refused = one.dial(&format!("{ip}:9"), DEADLINE).await.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn https_in_the_tailnet_is_spoken_where_its_certificate_is_believed_and_checked_alike() {
    let tailnet = Tailnet::start().await;
    let page = page(Arc::new(AtomicBool::new(true))).await;
    let name = format!("inner.{}", tailnet.domain());
    let root = tailnet.field("root_ca_pem").replace('\n', "\n    ");
    let gateway = |name: &str, listener: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: tailnet
  addresses: [{{type: Hostname, value: {name}}}]
  listeners: [{listener}]
"
        )
    };
    let route = |gateway: &str, rule: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {gateway}}}
spec:
  parentRefs: [{{name: {gateway}}}]
  rules: [{rule}]
"
        )
    };
    let to = |port: u16| {
        format!(
            "backendRefs: [{{group: gateway.tailscale.com, kind: TailscaleEndpoints, name: inner, port: {port}}}]"
        )
    };
    // The listener is for its own name alone.
    let rewrite = format!("filters: [{{type: URLRewrite, urlRewrite: {{hostname: {name}}}}}]");
    let prefix = "matches: [{path: {value: /distrusted}}]";
    let rules = format!(
        "{{{}, {rewrite}}}, {{{prefix}, {}, {rewrite}}}",
        to(443),
        to(444)
    );
    let check = "healthCheck: {path: /, interval: 200ms, timeout: 200ms, healthyThreshold: 1, unhealthyThreshold: 1}";
    let yaml = [
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: tailnet}
spec: {controllerName: tailway.michaelbeaumont.github.io/controller}
"
        .to_owned(),
        gateway(
            "inner",
            "{name: https, port: 443, protocol: HTTPS, tls: {options: {gateway.tailscale.com/certificate: tailnet}}}, \
             {name: again, port: 444, protocol: HTTPS, tls: {options: {gateway.tailscale.com/certificate: tailnet}}}",
        ),
        route("inner", "{backendRefs: [{name: page, port: 80}]}"),
        gateway("outer", "{name: http, port: 80, protocol: HTTP}"),
        route("outer", &rules),
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: page}}
spec:
  type: ExternalName
  externalName: 127.0.0.1
  ports: [{{port: 80, targetPort: {page}}}]
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEndpoints
metadata: {{name: inner}}
spec:
  endpoints:
    - {{name: trusted, port: 443, protocol: HTTPS, tailscaleFQDN: {name}, tls: {{caCertificateRef: {{name: root}}}}, {check}}}
    - {{name: distrusted, port: 444, protocol: HTTPS, tailscaleFQDN: {name}, {check}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: root}}
data:
  ca.crt: |
    {root}
"
        ),
    ];
    let tailway = Tailway::start(&tailnet, &yaml.concat()).await;
    tailway.ready().await;
    let url = format!("http://outer.{}/", tailnet.domain());
    let answer = eventually("the page", || async {
        let answer = tailnet.visit(&url).await.ok()?;
        (answer["status"] == 200).then_some(answer)
    })
    .await;
    assert_eq!(answer["body"], "hello");
    let answer = tailnet.visit(&format!("{url}distrusted")).await.unwrap();
    assert_eq!(answer["status"], 503);
    for (endpoint, value) in [("trusted", 1), ("distrusted", 0)] {
        let line = format!(
            "tailway_endpoint_healthy{{gateway=\"default/outer\",endpoint=\"default/inner/{endpoint}\"}} {value}"
        );
        eventually(&line, || async {
            let metrics = tailway.page("/metrics").await.1;
            metrics.lines().any(|found| found == line).then_some(())
        })
        .await;
    }
    // The other one may have been so too, until it had its certificate.
    let told = tailway.logs("certificate not believed").await;
    assert!(told.contains("default/inner/distrusted"), "{told}");
}
