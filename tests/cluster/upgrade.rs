//! Another version of tailway, under connections.

use super::{
    hands::{echo, echo_site},
    lab::{IMAGE, succeed},
    scene::{SYSTEM, Scene, site},
};

#[tokio::test]
#[ignore = "make cluster"]
async fn an_upgrade_drains_connections_and_keeps_node_and_certificate() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("next")).await;
    lab.apply(&site("pages", "next")).await;
    lab.apply(&echo_site("held", "next")).await;
    scene.programmed("pages", "pages").await;
    scene.programmed("held", "held").await;
    let url = format!("https://pages.{}/", scene.tailnet.domain());
    scene.page(&url, "pages /\n").await;
    let address = format!("held.{}:7", scene.tailnet.domain());
    let mut open = scene.tailnet.tunnel(&address).await.unwrap();
    echo(&mut open, "the old version").await;
    let set = scene.uid("statefulset/held-held").await;
    let nodes = (scene.device("pages").await, scene.device("held").await);
    let old = scene.uid("pod/held-held-0").await;

    let next = "docker.io/tailway/tailway:next";
    let mut tag = lab.command("ctr");
    tag.args([
        "images",
        "tag",
        "--force",
        &format!("docker.io/{IMAGE}"),
        next,
    ]);
    succeed(tag, None).await;
    let controller = format!("tailway={next}");
    scene
        .system(["set", "image", "deployment/tailway-controller", &controller])
        .await;
    let image = format!("TAILWAY_PROXY_IMAGE={next}");
    scene
        .system(["set", "env", "deployment/tailway-controller", &image])
        .await;
    lab.eventually("the pod of the old version ends", || async {
        let pod = lab.object(SYSTEM, "pod/held-held-0").await?;
        pod["metadata"]["deletionTimestamp"].as_str().map(drop)
    })
    .await;
    for _ in 0..5 {
        echo(&mut open, "while it drains").await;
    }
    assert_eq!(scene.uid("pod/held-held-0").await, old);
    drop(open);

    for name in ["pages", "held"] {
        let pod = format!("pod/{name}-{name}-0");
        lab.eventually("the pod of the new version is ready", || async {
            let pod = lab.object(SYSTEM, &pod).await?;
            let is_next = pod["spec"]["containers"][0]["image"] == next;
            let is_ready = pod["status"]["containerStatuses"][0]["ready"].as_bool()?;
            (is_next && is_ready).then_some(())
        })
        .await;
        scene.programmed(name, name).await;
    }
    scene.page(&url, "pages /\n").await;
    let mut new = scene.tailnet.tunnel(&address).await.unwrap();
    echo(&mut new, "the new version").await;
    assert_eq!(scene.uid("statefulset/held-held").await, set);
    assert_eq!(
        (scene.device("pages").await, scene.device("held").await),
        nodes
    );
    assert_eq!(scene.certificates().await, 1);
    assert_eq!(scene.keys_minted().await, 2);
    drop(new);
    scene.end(&["pages", "held"], "next").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_stateful_set_that_cannot_be_changed_is_replaced_under_its_pod() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("fixed")).await;
    lab.apply(&echo_site("fixed", "fixed")).await;
    scene.programmed("fixed", "fixed").await;
    let address = format!("fixed.{}:7", scene.tailnet.domain());
    let mut open = scene.tailnet.tunnel(&address).await.unwrap();
    echo(&mut open, "before").await;
    let (device, pod) = (
        scene.device("fixed").await,
        scene.uid("pod/fixed-fixed-0").await,
    );

    // As another version could have made it.
    scene.scale(0).await;
    let mut set = lab.object(SYSTEM, "statefulset/fixed-fixed").await.unwrap();
    let metadata = set["metadata"].as_object_mut().unwrap();
    metadata
        .retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    set["spec"]["podManagementPolicy"] = "OrderedReady".into();
    set.as_object_mut().unwrap().remove("status");
    scene
        .system(["delete", "statefulset/fixed-fixed", "--cascade=orphan"])
        .await;
    lab.apply(&set.to_string()).await;
    scene.scale(2).await;

    lab.eventually("the StatefulSet is as it should be", || async {
        let set = lab.object(SYSTEM, "statefulset/fixed-fixed").await?;
        (set["spec"]["podManagementPolicy"] == "Parallel"
            && set["metadata"]["deletionTimestamp"].is_null())
        .then_some(())
    })
    .await;
    let set = scene.uid("statefulset/fixed-fixed").await;
    lab.eventually("it has the pod that was there", || async {
        let pod_now = lab.object(SYSTEM, "pod/fixed-fixed-0").await?;
        let owner = pod_now["metadata"]["ownerReferences"][0]["uid"].as_str();
        (owner == set.as_deref()).then_some(())
    })
    .await;
    echo(&mut open, "after").await;
    scene.programmed("fixed", "fixed").await;
    assert_eq!(scene.uid("pod/fixed-fixed-0").await, pod);
    assert_eq!(scene.device("fixed").await, device);
    drop(open);

    // A pod that lost its StatefulSet while its Gateway goes is no reason to wait for ever.
    scene.scale(0).await;
    scene
        .system(["delete", "statefulset/fixed-fixed", "--cascade=orphan"])
        .await;
    scene.ask_to_delete("default", &["namespace/fixed"]).await;
    scene.scale(2).await;
    scene.gone("fixed", "gateway/fixed").await;
    scene.nothing_left().await;
    lab.delete(&scene.class("fixed")).await;
}
