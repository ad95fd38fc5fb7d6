//! The replicas of the controller: one writes, all serve.

use super::{
    hands::bare_gateway,
    scene::{SYSTEM, Scene},
};
use jiff::Timestamp;

const ECHO: &str = "{name: echo, port: 7, protocol: TCP}";

#[tokio::test]
#[ignore = "make cluster"]
async fn work_that_a_leader_left_half_done_is_done_and_others_serve_meanwhile() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("crash")).await;
    lab.apply("{apiVersion: v1, kind: Namespace, metadata: {name: crash}}")
        .await;
    let names = ["alpha", "beta", "gamma"];
    let leader = scene.leader().await;
    let gateways: Vec<_> = names
        .iter()
        .map(|name| bare_gateway("crash", name, "crash", ECHO))
        .collect();
    lab.apply(&gateways.join("---\n")).await;
    lab.eventually("its work has begun", || async {
        lab.object(SYSTEM, "statefulset/alpha-crash").await
    })
    .await;
    scene.kill_container(&leader).await;
    for name in names {
        scene.programmed("crash", name).await;
    }
    assert_eq!(scene.keys_minted().await, names.len());

    // The other has all pods as soon as the leader is away, and does not lead.
    let leader = scene.leader().await;
    let controllers = scene.controllers().await;
    let other = controllers
        .into_iter()
        .find(|name| *name != leader)
        .unwrap();
    scene.kill_container(&leader).await;
    lab.eventually("the replica that does not lead serves all pods", || async {
        let pods = scene.metric(&other, "tailway_discovery_pods", &[]).await?;
        (pods == 3).then_some(())
    })
    .await;
    scene.leader().await;
    scene.end(&["crash"], "crash").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_leader_that_ends_in_order_hands_its_lease_over() {
    let scene = Scene::start().await;
    let leader = scene.leader().await;
    let lease = scene.lease().await;
    scene.system(["delete", &format!("pod/{leader}")]).await;
    let next = scene
        .lab
        .eventually("another replica leads", || async {
            let lease = scene.lease().await;
            let holder = lease["holderIdentity"].as_str()?;
            (!holder.is_empty() && holder != leader).then_some(lease)
        })
        .await;
    let time =
        |value: &serde_json::Value| -> Timestamp { value.as_str().unwrap().parse().unwrap() };
    // It would have run out by itself so long after it was renewed.
    let seconds = lease["leaseDurationSeconds"].as_i64().unwrap();
    let end = time(&lease["renewTime"]).as_second() + seconds;
    let acquired = time(&next["acquireTime"]).as_second();
    assert!(acquired < end, "{lease} → {next}");
    scene.gone(SYSTEM, &format!("pod/{leader}")).await;
}
