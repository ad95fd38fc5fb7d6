//! What of a request arrives at a service, in either wiring.

use super::{
    scene::{Scene, Site, Wiring, route, routed},
    upstream::Service,
};

/// A Gateway with these services, and a route of its user's below /users.
async fn site<'a>(scene: &'a Scene, name: &str, [first, second]: [&Service; 2]) -> Site<'a> {
    let users = scene.service("users").await;
    let site = scene.site(name, &route("users", "/users", users.address));
    site.set(&[
        routed("web", "web.example.com", first.address),
        routed("web-service", "example.com", second.address),
    ]);
    site.until("/users", 200, "users").await;
    site.added("web-service").await;
    site
}

async fn a_service_is_asked_for_what_follows_its_name(wiring: Wiring) {
    let shared = Scene::shared(wiring).await;
    let scene = shared.scene();
    let web_service = scene.service("web-service").await;
    let other = scene.service("web").await;
    let site = site(scene, "walk", [&other, &web_service]).await;

    assert_eq!(
        site.answer("/api/web-service/status").await,
        (200, "web-service".into())
    );
    let request = web_service.last();
    assert_eq!(request.line, "GET /status HTTP/1.1");
    assert_eq!(request.header("host"), Some("example.com"));
    assert_eq!(request.header("x-forwarded-host"), Some("walk"));
}

#[tokio::test]
#[ignore = "make envoy"]
async fn get_api_web_service_status_arrives_as_get_status_with_the_host_of_the_target() {
    a_service_is_asked_for_what_follows_its_name(Wiring::Policies).await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn get_api_web_service_status_arrives_so_with_hooks_for_virtual_hosts_and_translation() {
    a_service_is_asked_for_what_follows_its_name(Wiring::Held).await;
}

async fn paths_are_cut_at_segments(wiring: Wiring) {
    let shared = Scene::shared(wiring).await;
    let scene = shared.scene();
    let web = scene.service("web").await;
    let web_service = scene.service("web-service").await;
    let site = site(scene, "paths", [&web, &web_service]).await;

    for (target, service, arrives) in [
        ("/api/web", &web, "/"),
        ("/api/web/", &web, "/"),
        ("/api/web/status", &web, "/status"),
        ("/api/web/status/", &web, "/status/"),
        (
            "/api/web/status?x=1&y=/api/web",
            &web,
            "/status?x=1&y=/api/web",
        ),
        ("/api/web?x=1", &web, "/?x=1"),
        ("/api/web/?x=1", &web, "/?x=1"),
        ("/api/web/a%20b", &web, "/a%20b"),
        ("/api/web/api/web", &web, "/api/web"),
        ("/api/web-service", &web_service, "/"),
        ("/api/web-service/status", &web_service, "/status"),
        ("/api/web/../web-service/x", &web_service, "/x"),
    ] {
        let before = service.requests().len();
        assert_eq!(site.get(target).await.status, 200, "{target}");
        assert_eq!(service.requests().len(), before + 1, "{target}");
        assert_eq!(
            service.last().line,
            format!("GET {arrives} HTTP/1.1"),
            "{target}"
        );
    }
    for target in [
        "/api/webx",
        "/api/web-",
        "/api",
        "/api/",
        "/",
        "/API/web",
        "/web",
    ] {
        assert_eq!(site.get(target).await.status, 404, "{target}");
    }
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_service_gets_the_path_behind_its_own_segment_and_nobody_elses() {
    paths_are_cut_at_segments(Wiring::Policies).await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_service_gets_that_path_with_hooks_for_virtual_hosts_and_translation() {
    paths_are_cut_at_segments(Wiring::Held).await;
}

async fn users_keep_what_is_more_specific(wiring: Wiring) {
    let shared = Scene::shared(wiring).await;
    let scene = shared.scene();
    let (all, narrow) = (scene.service("all").await, scene.service("narrow").await);
    let web = scene.service("web").await;
    let routes = [
        route("all", "/", all.address),
        route("narrow", "/api/web/v2", narrow.address),
    ];
    let site = scene.site("order", &routes.concat());
    site.set(&[routed("web", "web.example.com", web.address)]);
    site.until("/", 200, "all").await;
    site.until("/api/web/v2", 200, "narrow").await;
    site.added("web").await;

    for (target, name) in [
        ("/api/web", "web"),
        ("/api/web/v1", "web"),
        ("/api/web/v20", "web"),
        ("/api/web/v2/items", "narrow"),
        ("/api/webx", "all"),
        ("/api", "all"),
    ] {
        assert_eq!(site.answer(target).await, (200, name.into()), "{target}");
    }
    assert_eq!(narrow.last().line, "GET /api/web/v2/items HTTP/1.1");
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_route_for_all_does_not_swallow_a_service_and_a_more_specific_one_keeps_its_requests() {
    users_keep_what_is_more_specific(Wiring::Policies).await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn routes_of_users_keep_theirs_with_hooks_for_virtual_hosts_and_translation() {
    users_keep_what_is_more_specific(Wiring::Held).await;
}
