//! What the tailnet does to a node, as the Gateway's conditions and events tell it.

use super::scene::{Scene, site};
use serde_json::{Value, json};

const NAME: &str = "troubles";
const PROGRAMMED: (&str, &str, &str) = ("Programmed", "True", "Programmed");
const READY: (&str, &str, &str) = ("TailnetReady", "True", "Ready");

/// Waits until the Gateway has this condition, with a message that holds the fix.
async fn told(scene: &Scene, condition: (&str, &str, &str), fix: &str) {
    let gateway = format!("gateway/{NAME}");
    let message = scene.condition(NAME, &gateway, condition).await;
    assert!(message.contains(fix), "{condition:?}: {message}");
}

/// Does something to the Gateway's node by the tailnet's admin API.
async fn node(scene: &Scene, what: &str, body: Value) {
    let path = format!("/nodes/{NAME}/{what}");
    scene.tailnet.post(&path, body).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_is_the_matter_in_the_tailnet_is_told_with_the_fix() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    scene.tailnet.post("/control/stop", json!({})).await;
    scene
        .tailnet
        .post("/https", json!({ "enabled": false }))
        .await;
    lab.apply(&scene.class(NAME)).await;
    lab.apply(&site(NAME, NAME)).await;
    let away = ("TailnetReady", "False", "ControlUnavailable");
    told(&scene, away, "the control server cannot be reached").await;
    scene.tailnet.post("/control/start", json!({})).await;
    told(&scene, READY, "").await;

    of_the_certificate(&scene).await;
    of_the_node(&scene).await;
    told_as_often(&scene).await;

    // None of it took another key.
    assert_eq!(scene.keys_minted().await, 1);
    lab.kubectl(["delete", "namespace", NAME]).await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    assert_eq!(scene.nodes().await, ["visitor"]);
    lab.delete(&scene.class(NAME)).await;
}

async fn of_the_certificate(scene: &Scene) {
    let enable = "enable HTTPS certificates in the DNS page of the tailnet's admin console";
    let disabled = ("CertificateReady", "False", "HTTPSDisabled");
    told(scene, disabled, enable).await;
    told(scene, ("Programmed", "False", "Pending"), enable).await;
    // The node is there all the same.
    let gateway = scene.lab.object(NAME, "gateway/troubles").await.unwrap();
    let addresses = gateway["status"]["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 3, "{gateway}");

    let limit = json!({ "on": true, "retry_after": 5 });
    scene.tailnet.post("/acme/rate-limit", limit).await;
    scene
        .tailnet
        .post("/https", json!({ "enabled": true }))
        .await;
    let limited = ("CertificateReady", "False", "RateLimited");
    told(scene, limited, "the next try is at 2").await;
    scene
        .tailnet
        .post("/acme/rate-limit", json!({ "on": false }))
        .await;
    let issued = ("CertificateReady", "True", "Issued");
    told(scene, issued, "it expires at 2").await;
    told(scene, PROGRAMMED, "").await;
}

async fn of_the_node(scene: &Scene) {
    let magic_dns = async |enabled: bool| {
        let body = json!({ "enabled": enabled });
        scene.tailnet.post("/magic-dns", body).await;
    };
    magic_dns(false).await;
    let nameless = ("TailnetReady", "False", "MagicDNSDisabled");
    told(scene, nameless, "enable MagicDNS in the DNS page").await;
    // Who knows the address is served on.
    told(scene, PROGRAMMED, "").await;
    magic_dns(true).await;
    told(scene, READY, "").await;

    node(scene, "expire", json!({})).await;
    let expired = ("TailnetReady", "False", "KeyExpired");
    let fix = "disable key expiry for it in the admin console";
    told(scene, expired, fix).await;
    told(scene, ("Programmed", "False", "Pending"), fix).await;
    node(scene, "expire", json!({ "never": true })).await;
    told(scene, READY, "").await;
    told(scene, PROGRAMMED, "").await;
    // What happens again is told again.
    node(scene, "expire", json!({})).await;
    told(scene, expired, fix).await;
    node(scene, "expire", json!({ "never": true })).await;
    told(scene, READY, "").await;

    node(scene, "approve", json!({ "approved": false })).await;
    let waits = ("TailnetReady", "False", "ApprovalNeeded");
    told(scene, waits, "approved in the admin console").await;
    node(scene, "approve", json!({})).await;
    told(scene, READY, "").await;
    told(scene, PROGRAMMED, "").await;
    let url = format!("https://{NAME}.{}/", scene.tailnet.domain());
    scene.page(&url, "troubles /\n").await;
    let row = scene.row(NAME, "gateway/troubles").await;
    assert_eq!(row["PROGRAMMED"], "True");
}

/// Each trouble is an event, as often as it came.
async fn told_as_often(scene: &Scene) {
    let troubles = [
        ("ApprovalNeeded", 1),
        ("ControlUnavailable", 1),
        ("HTTPSDisabled", 1),
        ("KeyExpired", 2),
        ("MagicDNSDisabled", 1),
        ("RateLimited", 1),
    ];
    let warnings = scene
        .lab
        .eventually("every trouble is told", || async {
            let told = scene.events(NAME, NAME).await;
            let warnings = told.into_iter().filter(|told| told.weight == "Warning");
            let warnings: Vec<_> = warnings.map(|told| (told.reason, told.times)).collect();
            (warnings.len() >= troubles.len()).then_some(warnings)
        })
        .await;
    let troubles = troubles.map(|(reason, times)| (reason.to_owned(), times));
    assert_eq!(warnings, troubles);
}
