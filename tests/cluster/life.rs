//! The life of a Gateway, from `kubectl apply` to its end.

use super::scene::{SYSTEM, Scene, site};

#[tokio::test]
#[ignore = "make cluster"]
async fn a_gateway_joins_serves_and_leaves_nothing_behind() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("life")).await;
    lab.apply(&site("life", "life")).await;
    let accepted = ("Accepted", "True", "Accepted");
    scene
        .condition("default", "gatewayclass/life", accepted)
        .await;
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

#[tokio::test]
#[ignore = "make cluster"]
async fn uninstalling_leaves_nothing_but_what_is_the_user_s() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("uninstalled")).await;
    lab.apply(&site("uninstalled", "uninstalled")).await;
    scene.programmed("uninstalled", "uninstalled").await;
    assert!(scene.nodes().await.contains(&"uninstalled".to_owned()));

    let uninstall = scene.adapted("manifests/uninstall.yaml", &[]);
    lab.apply(&uninstall).await;
    let complete = ["--for=condition=complete", "job/tailway-cleanup"];
    lab.wait(complete.into_iter().chain(["--namespace", SYSTEM]))
        .await;
    assert_eq!(scene.made().await, Vec::<String>::new());
    assert!(!scene.nodes().await.contains(&"uninstalled".to_owned()));
    for own in [
        "secret/tailway-discovery-ca",
        "configmap/tailway-discovery-ca",
        "lease/tailway-controller",
    ] {
        assert_eq!(lab.object(SYSTEM, own).await, None, "{own}");
    }
    for (namespace, object) in [
        ("uninstalled", "gateway/uninstalled"),
        ("default", "gatewayclass/uninstalled"),
    ] {
        let object = lab.object(namespace, object).await.unwrap();
        assert_eq!(object["metadata"]["finalizers"], serde_json::Value::Null);
    }

    lab.delete(&uninstall).await;
    lab.delete(&scene.adapted("manifests/install.yaml", &[]))
        .await;
    let kinds = "namespace,clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding";
    let ours = ["--selector=app.kubernetes.io/name=tailway", "--output=name"];
    let left = lab.kubectl(["get", kinds].into_iter().chain(ours)).await;
    assert_eq!(left, "");
    lab.kubectl([
        "delete",
        "namespace/uninstalled",
        "gatewayclass/uninstalled",
    ])
    .await;
}
