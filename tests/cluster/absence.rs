//! What goes on while the controller or the API server is away.

use super::{
    hands::{echo, echo_site},
    scene::{Scene, site},
};

#[tokio::test]
#[ignore = "make cluster"]
async fn no_connection_fails_while_the_api_server_is_away() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("traffic")).await;
    lab.apply(&site("pages", "traffic")).await;
    lab.apply(&echo_site("echo", "traffic")).await;
    scene.programmed("pages", "pages").await;
    scene.programmed("echo", "echo").await;
    let address = format!("echo.{}:7", scene.tailnet.domain());
    let url = format!("https://pages.{}/", scene.tailnet.domain());
    scene.page(&url, "pages /\n").await;
    let mut open = scene.tailnet.tunnel(&address).await.unwrap();
    echo(&mut open, "before").await;

    lab.kill("kube-apiserver").await;
    for number in 0..10 {
        echo(&mut open, "while it is away").await;
        let mut new = scene.tailnet.tunnel(&address).await.unwrap();
        echo(&mut new, &format!("connection {number}")).await;
        let answer = scene.tailnet.visit(&url).await.unwrap();
        assert_eq!(answer["status"], 200, "{answer}");
    }
    scene.api_back().await;

    echo(&mut open, "after").await;
    drop(open);
    // What changes then arrives.
    let route = "apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: pages, namespace: pages}
spec:
  parentRefs: [{name: pages}]
  rules: [{backendRefs: [{name: other, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: pages}
spec: {selector: {app: other}, ports: [{port: 80, targetPort: 8080}]}
---
";
    let pod = site("pages", "traffic");
    let pod = pod.rsplit_once("---\n").unwrap().1;
    lab.apply(&format!(
        "{route}{}",
        pod.replace("name: pages,", "name: other,")
            .replace("app: pages", "app: other")
    ))
    .await;
    scene.page(&url, "other /\n").await;
    assert_eq!(scene.restarts("pages-pages-0").await, Some(0));
    assert_eq!(scene.restarts("echo-echo-0").await, Some(0));
    scene.end(&["pages", "echo"], "traffic").await;
}

#[tokio::test]
#[ignore = "make cluster"]
async fn a_pod_that_restarts_while_controller_and_api_server_are_away_serves_its_last_copy() {
    let scene = Scene::start().await;
    let lab = scene.lab;
    lab.apply(&scene.class("copy")).await;
    lab.apply(&site("copy", "copy")).await;
    scene.programmed("copy", "copy").await;
    let url = format!("https://copy.{}/", scene.tailnet.domain());
    scene.page(&url, "copy /\n").await;
    let before = (
        scene.device("copy").await,
        scene.certificates().await,
        scene.keys_minted().await,
    );
    let pod = "copy-copy-0";

    scene.scale(0).await;
    let process = scene.container(pod).await;
    lab.kill("kube-apiserver").await;
    scene.kill_process(&process).await;
    scene.page(&url, "copy /\n").await;
    scene.api_back().await;
    scene.scale(2).await;

    lab.eventually("the kubelet tells of the restart", || async {
        (scene.restarts(pod).await? == 1).then_some(())
    })
    .await;
    scene.programmed("copy", "copy").await;
    let after = (
        scene.device("copy").await,
        scene.certificates().await,
        scene.keys_minted().await,
    );
    assert_eq!(after, before);
    scene.end(&["copy"], "copy").await;
}
