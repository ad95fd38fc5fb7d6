//! The life of a Gateway, from `kubectl apply` to its end.

use super::scene::{Scene, site};

#[tokio::test]
#[ignore = "make cluster"]
async fn a_gateway_joins_serves_and_leaves_nothing_behind() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("life")).await;
    lab.apply(&site("life", "life")).await;
    let accepted = ("Accepted", "True", "Accepted");
    scene.condition("default", "gatewayclass/life", accepted).await;
    let status = scene.programmed("life", "life").await;
    let name = format!("life.{}", scene.tailnet.domain());
    assert_eq!(
        status["addresses"][0],
        serde_json::json!({ "type": "Hostname", "value": name })
    );
    assert_eq!(status["addresses"].as_array().unwrap().len(), 3, "{status}");
    scene
        .page(&format!("https://{name}/hello"), "life /hello\n")
        .await;

    lab.kubectl(["delete", "namespace", "life"]).await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    assert!(!scene.nodes().await.contains(&"life".to_owned()));
    lab.delete(&scene.class("life")).await;
}
