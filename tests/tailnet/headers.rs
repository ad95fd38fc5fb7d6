//! What backends are told of the peers that call: headers of real nodes, with a user and with tags.

use super::world::{DEADLINE, Tailnet, eventually, soon};
use crate::proxy::http::scene::{HTTP, below, mirror_of, rule, site};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use tailway::{
    drain::Drain,
    metrics::Metrics,
    model::HttpOptions,
    proxy::{Limits, Proxy, TailnetCertificate},
    tailnet::Node,
};

/// The headers that a backend gets of a request of this peer, which claims to be somebody else.
async fn told(peer: &Node) -> Value {
    let stream = peer.dial("server:80", DEADLINE).await.unwrap();
    let stream = TokioIo::new(stream.open().unwrap());
    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", "server")
        .header("connection", "tailscale-user-login, tailscale-tags")
        .header("tailscale-user-login", "admin@example.com")
        .header("tailscale_user_login", "admin@example.com")
        .header("Tailscale-Tags", "tag:admin")
        .header("tailscale-app-capabilities", "{\"example.com/cap/b\":[]}")
        .header("x-forwarded-for", "100.64.0.99")
        .header("forwarded", "for=100.64.0.99")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = soon("a response", sender.send_request(request)).await;
    let body = response.unwrap().into_body().collect().await.unwrap();
    let mut told: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    told["headers"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_told_the_user_or_the_tags_of_a_peer_and_nothing_that_it_claims() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.node("server").await;
    let (user, tagged) = (tailnet.node("user").await, tailnet.node("tagged").await);
    let login = json!({
        "login": "jo@example.com",
        "display_name": "Jö Doe",
        "profile_pic_url": "https://example.com/jo.png",
    });
    tailnet.post("/nodes/user/login", login).await;
    let tags = json!({"tags": ["tag:ci", "tag:web"]});
    tailnet.post("/nodes/tagged/tags", tags).await;
    let granted = json!({"capabilities": {
        "example.com/cap/a": [{"role": "reader"}],
        "example.com/cap/b": [{"role": "writer"}],
    }});
    tailnet.post("/nodes/server/capabilities", granted).await;
    let (user_ip, tagged_ip) = (
        user.status().unwrap().ips[0],
        tagged.status().unwrap().ips[0],
    );
    eventually("the server knows its peers", || async {
        let (user, tagged) = (server.whois(user_ip).ok()?, server.whois(tagged_ip).ok()?);
        let is_known = user.login == "jo@example.com"
            && user.display_name == "Jö Doe"
            && tagged.tags.len() == 2
            && user.capabilities.len() == 2
            && tagged.capabilities.len() == 2;
        is_known.then_some(())
    })
    .await;

    let app = mirror_of("app").await;
    let rules = vec![rule(vec![below("/")], "app")];
    let mut snapshot = site(&[("route", rules)], &[("app", &[app])]);
    let mut proxy = Proxy::new(
        server,
        "default/web".into(),
        Limits::default(),
        Metrics::default(),
        Drain::default(),
        Arc::new(TailnetCertificate::default()),
    );
    assert!(proxy.apply(&snapshot).await.is_empty());
    assert!(proxy.addresses().contains_key(&HTTP));
    // What is always told.
    let expected = json!({
        "host": "server",
        "x-forwarded-for": user_ip.to_string(),
        "x-forwarded-host": "server",
        "x-forwarded-proto": "http",
        "tailscale-user-login": "jo@example.com",
        "tailscale-user-name": "=?utf-8?q?J=C3=B6_Doe?=",
        "tailscale-user-profile-pic": "https://example.com/jo.png",
        "tailscale-headers-info": "https://tailscale.com/s/serve-headers",
    });
    assert_eq!(told(&user).await, expected);
    let expected = json!({
        "host": "server",
        "x-forwarded-for": tagged_ip.to_string(),
        "x-forwarded-host": "server",
        "x-forwarded-proto": "http",
    });
    assert_eq!(told(&tagged).await, expected);

    // What is told by choice.
    snapshot.http_options = HttpOptions {
        forwarded: true,
        node: true,
        tags: true,
        capabilities: vec!["example.com/cap/a".into(), "example.com/cap/none".into()],
        access_log: None,
    };
    assert!(proxy.apply(&snapshot).await.is_empty());
    let more = |name: &str, ip: std::net::IpAddr| {
        json!({
            "host": "server",
            "x-forwarded-for": ip.to_string(),
            "x-forwarded-host": "server",
            "x-forwarded-proto": "http",
            "forwarded": format!("for={ip};host=server;proto=http"),
            "tailscale-node": format!("{name}.{}", tailnet.domain()),
            "tailscale-app-capabilities": r#"{"example.com/cap/a":[{"role":"reader"}]}"#,
        })
    };
    let mut of_user = more("user", user_ip);
    of_user["tailscale-user-login"] = "jo@example.com".into();
    of_user["tailscale-user-name"] = "=?utf-8?q?J=C3=B6_Doe?=".into();
    of_user["tailscale-user-profile-pic"] = "https://example.com/jo.png".into();
    of_user["tailscale-headers-info"] = "https://tailscale.com/s/serve-headers".into();
    assert_eq!(told(&user).await, of_user);
    let mut of_tagged = more("tagged", tagged_ip);
    of_tagged["tailscale-tags"] = "tag:ci,tag:web".into();
    assert_eq!(told(&tagged).await, of_tagged);
}
