//! The ground the other tests of this folder stand on.

use super::scene::{Scene, Wiring, route};

#[tokio::test]
#[ignore = "make envoy"]
async fn envoy_gateway_has_its_envoy_send_requests_where_a_route_says() {
    let scene = Scene::shared(Wiring::Alone).await;
    let plain = scene.scene().service("plain").await;
    let site = scene
        .scene()
        .site("alone", &route("plain", "/plain", plain.address));

    site.until("/plain/page?x=1", 200, "plain").await;
    assert_eq!(plain.last().line, "GET /plain/page?x=1 HTTP/1.1");
    assert_eq!(site.get("/elsewhere").await.status, 404);

    let info = site.admin("/server_info").await.unwrap();
    let version = info["version"].as_str().unwrap();
    assert!(version.contains("/1.39.1/"), "{version}");
}
