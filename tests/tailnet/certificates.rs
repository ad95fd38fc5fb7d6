//! Certificates by a real ACME exchange: limits, slow DNS, renewal.

use super::world::{Options, Tailnet, Tailway, echo, eventually, gateway, page};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_told_and_waited_for() {
    let tailnet = Tailnet::start().await;
    tailnet
        .post("/acme/rate-limit", json!({"on": true, "retry_after": 3}))
        .await;
    let tailway = Tailway::start(&tailnet, &gateway("limited", page("x").await)).await;
    let answer = tailway.unready("limits certificates").await;
    assert!(
        answer.contains(&format!("limited.{}", tailnet.domain())),
        "{answer}"
    );
    tailnet.post("/acme/rate-limit", json!({"on": false})).await;
    tailway.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_not_ready_before_its_certificate_is_there() {
    let tailnet = Tailnet::start().await;
    tailnet.post("/dns/hold", json!({})).await;
    let tailway = Tailway::start(&tailnet, &gateway("held", page("x").await)).await;
    tailway.unready("waiting for the certificate").await;
    eventually("the node asks for its TXT record", || async {
        let dns = tailnet.get("/dns").await;
        (dns["waiting"].as_u64() > Some(0)).then_some(())
    })
    .await;
    tailway.unready("waiting for the certificate").await;
    tailnet.post("/dns/release", json!({})).await;
    tailway.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_cutting_what_is_open() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let tailnet = Tailnet::start().await;
    let yaml = gateway("renewed", echo().await);
    let auth_key = Some(tailnet.field("auth_key"));
    let options = Options {
        yaml: &yaml,
        auth_key,
        arguments: &["--certificate-check", "1s"],
    };
    // The window is asked for once per process: the second process finds it in the past.
    let first = Tailway::start_with(&tailnet, &options).await;
    first.ready().await;
    let directory = first.stop().await;
    let serial = |orders: &serde_json::Value| orders["certificates"].as_array().unwrap().len();
    assert_eq!(serial(&tailnet.get("/acme/orders").await), 1);
    tailnet.post("/dns/hold", json!({})).await;
    tailnet.post("/acme/renew", json!({})).await;
    let tailway = Tailway::start_in(&tailnet, &options, directory).await;
    tailway.ready().await;
    let client = tailnet.node("renewed-client").await;
    let name = format!("renewed.{}", tailnet.domain());
    let mut open = tailnet.tls(&client, "renewed:443", &name).await;
    let before = open.get_ref().1.peer_certificates().unwrap()[0].clone();
    tailnet.post("/dns/release", json!({})).await;
    tailway.logs("certificate renewed").await;
    let fresh = tailnet.tls(&client, "renewed:443", &name).await;
    assert_ne!(fresh.get_ref().1.peer_certificates().unwrap()[0], before);
    open.write_all(b"still open").await.unwrap();
    let mut answer = [0; 10];
    open.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"still open");
}
