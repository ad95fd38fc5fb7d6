//! The end of Gateways when something is away, and in any order.

use super::scene::{SYSTEM, Scene, site};
use serde_json::json;

const FINALIZER: &str = "tailway.michaelbeaumont.github.io/gateway";
const IN_USE: &str = "gateway-exists-finalizer.gateway.networking.k8s.io";

#[tokio::test]
#[ignore = "make cluster"]
async fn a_deletion_waits_for_an_api_that_is_away_and_then_leaves_nothing() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("waits")).await;
    lab.apply(&site("waits", "waits")).await;
    scene.programmed("waits", "waits").await;
    scene.stray_key("tailway waits-waits").await;
    scene.stray_key("tailway others").await;

    scene.tailnet.post("/api/stop", json!({})).await;
    scene.ask_to_delete("default", &["namespace/waits"]).await;
    scene.gone(SYSTEM, "pod/waits-waits-0").await;
    let leader = scene.leader().await;
    lab.eventually("the removal was tried more than once", || async {
        let labels = ["step=\"remove\"", "result=\"error\""];
        let failed = scene
            .metric(&leader, "tailway_reconciles_total", &labels)
            .await?;
        (failed > 1).then_some(())
    })
    .await;
    assert_eq!(
        scene.finalizers("waits", "gateway/waits").await,
        [FINALIZER]
    );
    assert!(scene.nodes().await.contains(&"waits".to_owned()));

    scene.tailnet.post("/api/start", json!({})).await;
    scene.gone("waits", "gateway/waits").await;
    scene.nothing_left().await;
    assert_eq!(scene.keys_minted().await, 3);
    assert_eq!(scene.calls("DELETE", "/keys/", 200).await, 1);
    lab.delete(&scene.class("waits")).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn after_its_patience_a_deletion_lets_go_and_an_event_names_what_stays() {
    let scene = Scene::start_with(&[("TAILWAY_REMOVAL_PATIENCE", "5s")]).await;
    let lab = scene.lab;
    lab.apply(&scene.class("patience")).await;
    for name in ["impatient", "homeless"] {
        lab.apply(&site(name, "patience")).await;
    }
    let mut devices = Vec::new();
    for name in ["impatient", "homeless"] {
        scene.programmed(name, name).await;
        devices.push(scene.device(name).await);
    }

    scene.tailnet.post("/api/stop", json!({})).await;
    scene
        .ask_to_delete("impatient", &["gateway/impatient"])
        .await;
    // It takes no events while it is being deleted: they are told of the class.
    scene
        .ask_to_delete("default", &["namespace/homeless"])
        .await;
    scene.gone("impatient", "gateway/impatient").await;
    scene.gone("homeless", "gateway/homeless").await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    for (namespace, name, device) in [
        ("impatient", "impatient", &devices[0]),
        ("default", "homeless", &devices[1]),
    ] {
        let what = format!("an event tells that {name} stays");
        let note = lab
            .eventually(&what, || async {
                let events = lab.object(namespace, "events").await?;
                let events = events["items"].as_array()?.iter();
                let mut notes = events
                    .filter(|event| event["reason"] == "DeviceLeftBehind")
                    .filter(|event| event["type"] == "Warning")
                    .map(|event| event["message"].as_str().unwrap().to_owned());
                notes.find(|note| note.contains(device))
            })
            .await;
        assert!(note.contains(&format!("{name}.")), "{note}");
    }
    scene.tailnet.post("/api/start", json!({})).await;
    scene
        .ask_to_delete("default", &["namespace/impatient"])
        .await;
    lab.delete(&scene.class("patience")).await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn in_whatever_order_objects_go_nothing_is_left() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("order")).await;
    let names = ["first", "last", "whole"];
    for name in names {
        lab.apply(&site(name, "order")).await;
    }
    for name in names {
        scene.programmed(name, name).await;
    }
    lab.eventually("the class is held by its Gateways", || async {
        let held_by = scene.finalizers("default", "gatewayclass/order").await;
        (held_by == [IN_USE]).then_some(())
    })
    .await;

    // The class and its credentials first of all.
    scene
        .ask_to_delete("default", &["gatewayclass/order"])
        .await;
    scene.ask_to_delete(SYSTEM, &["secret/order-oauth"]).await;
    // Before the rest of what it needs, after it, and all at once.
    scene.ask_to_delete("first", &["gateway/first"]).await;
    scene.gone("first", "gateway/first").await;
    for object in ["tcproute/last", "service/last", "pod/last", "gateway/last"] {
        scene.ask_to_delete("last", &[object]).await;
        scene.gone("last", object).await;
    }
    scene
        .ask_to_delete(
            "default",
            &["namespace/first", "namespace/whole", "namespace/last"],
        )
        .await;
    scene.nothing_left().await;
    for object in [
        "gatewayclass/order",
        "namespace/first",
        "namespace/whole",
        "namespace/last",
    ] {
        scene.gone("default", object).await;
    }
}

#[tokio::test]
#[ignore = "make cluster"]
async fn what_goes_while_the_controller_is_down_is_removed_when_it_is_back() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("down")).await;
    for name in ["quiet", "forced"] {
        lab.apply(&site(name, "down")).await;
    }
    lab.apply(&scene.class("up")).await;
    lab.apply(&site("stays", "up")).await;
    for name in ["quiet", "forced", "stays"] {
        scene.programmed(name, name).await;
    }
    let url = format!("https://stays.{}/", scene.tailnet.domain());
    scene.page(&url, "stays /\n").await;
    let device = scene.device("stays").await;

    scene.scale(0).await;
    scene
        .ask_to_delete("default", &["namespace/quiet", "gatewayclass/down"])
        .await;
    // Somebody who has no patience takes our finalizer away.
    let patch = [
        "patch",
        "gateway/forced",
        "--namespace=forced",
        "--type=json",
    ];
    let remove = r#"--patch=[{"op":"remove","path":"/metadata/finalizers"}]"#;
    lab.kubectl(patch.into_iter().chain([remove])).await;
    scene.ask_to_delete("default", &["namespace/forced"]).await;
    scene.gone("forced", "gateway/forced").await;
    lab.kubectl(["delete", "tcproute/stays", "--namespace=stays"])
        .await;
    scene.page(&url, "stays /\n").await;
    scene.scale(2).await;

    scene.gone("quiet", "gateway/quiet").await;
    scene.gone("default", "gatewayclass/down").await;
    scene.ask_to_delete(SYSTEM, &["secret/down-oauth"]).await;
    lab.eventually("the route has no more connections", || async {
        let gateway = lab.object("stays", "gateway/stays").await?;
        let routes = &gateway["status"]["listeners"][0]["attachedRoutes"];
        (*routes == 0 && scene.tailnet.visit(&url).await.is_err()).then_some(())
    })
    .await;
    assert_eq!(scene.device("stays").await, device);
    scene.end(&["stays"], "up").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_gateway_that_goes_to_a_foreign_class_is_released_and_its_old_class_waits_for_that() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("ours")).await;
    let foreign = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: foreign}
spec: {controllerName: example.com/other}
";
    lab.apply(foreign).await;
    lab.apply(&site("leaves", "ours")).await;
    scene.programmed("leaves", "leaves").await;

    scene.tailnet.post("/api/stop", json!({})).await;
    let patch = r#"--patch={"spec":{"gatewayClassName":"foreign"}}"#;
    lab.kubectl([
        "patch",
        "gateway/leaves",
        "--namespace=leaves",
        "--type=merge",
        patch,
    ])
    .await;
    scene.gone(SYSTEM, "pod/leaves-leaves-0").await;
    scene.ask_to_delete("default", &["gatewayclass/ours"]).await;
    // Whoever leads next knows no credentials but those of the class.
    scene.kill_container(&scene.leader().await).await;
    let class = scene.finalizers("default", "gatewayclass/ours").await;
    assert_eq!(class, [IN_USE]);
    scene.tailnet.post("/api/start", json!({})).await;
    scene.nothing_left().await;
    scene.gone("default", "gatewayclass/ours").await;
    lab.eventually("the finalizer is gone", || async {
        let finalizers = scene.finalizers("leaves", "gateway/leaves").await;
        finalizers.is_empty().then_some(())
    })
    .await;
    scene.ask_to_delete("default", &["namespace/leaves"]).await;
    scene.ask_to_delete(SYSTEM, &["secret/ours-oauth"]).await;
    lab.delete(foreign).await;
}
