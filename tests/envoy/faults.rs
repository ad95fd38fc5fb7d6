//! What clients of Envoy notice when the extension is in trouble: nothing but that changes wait.

use super::scene::{Scene, Site, Wiring, route, routed};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tailway::api::upstream::egress::RoutedService;
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;

/// What Envoy Gateway logs when it has read its objects and goes on to ask the extension.
const TRANSLATING: &str = "reconciled gateways successfully";

/// A Gateway in a scene of its own, with two services to switch between, and one of its user's.
struct Course {
    old: RoutedService,
    new: RoutedService,
    users: String,
}

impl Course {
    async fn new(scene: &Scene) -> Self {
        let (old, new) = (scene.service("old").await, scene.service("new").await);
        let users = scene.service("users").await;
        Self {
            old: routed("web", "web.example.com", old.address),
            new: routed("web", "web.example.com", new.address),
            users: route("users", "/users", users.address),
        }
    }

    /// With the old service.
    async fn begin<'a>(&self, scene: &'a Scene) -> Site<'a> {
        let site = scene.site("web", &self.users);
        site.set(std::slice::from_ref(&self.old));
        site.until("/api/web", 200, "old").await;
        site
    }

    /// Asks for the new service.
    fn change(&self, site: &Site<'_>) {
        site.set(std::slice::from_ref(&self.new));
    }
}

/// Sees that all is served as it was.
async fn serves_on(site: &Site<'_>) {
    for _ in 0..20 {
        assert_eq!(site.answer("/api/web").await, (200, "old".into()));
        assert_eq!(site.answer("/users").await, (200, "users".into()));
    }
}

#[tokio::test]
#[ignore = "make envoy"]
async fn an_extension_that_comes_last_is_not_too_late() {
    let scene = Scene::start_without_extension(Wiring::Policies, "64M").await;
    let course = Course::new(&scene).await;
    let site = scene.site("web", &course.users);
    site.set(std::slice::from_ref(&course.old));
    // It waits for the extension before it configures any Envoy.
    scene.says(TRANSLATING, 0).await;
    site.try_get("/users").await.unwrap_err();
    scene.start_extension().await;
    site.until("/api/web", 200, "old").await;
    serves_on(&site).await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn while_the_extension_is_down_or_hangs_envoy_serves_and_then_catches_up() {
    let scene = Scene::start(Wiring::Policies).await;
    let course = Course::new(&scene).await;
    let site = course.begin(&scene).await;

    scene.kill_extension();
    let from = scene.log().len();
    course.change(&site);
    scene.says(TRANSLATING, from).await;
    serves_on(&site).await;
    scene.start_extension().await;
    site.until("/api/web", 200, "new").await;

    site.set(std::slice::from_ref(&course.old));
    site.until("/api/web", 200, "old").await;
    scene.signal_extension("STOP").await;
    let from = scene.log().len();
    course.change(&site);
    scene.says(TRANSLATING, from).await;
    serves_on(&site).await;
    scene.signal_extension("CONT").await;
    site.until("/api/web", 200, "new").await;
}

/// Answers every call on the extension's socket with an error, until its value ends.
fn refuse_calls(scene: &Scene) -> AbortOnDropHandle<()> {
    let path = scene.directory().join("extension.sock");
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let answer = |_: Request<Incoming>| async {
            let response = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "13")
                .header("grpc-message", "on purpose");
            Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
        };
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let builder = server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(builder.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    }))
}

#[tokio::test]
#[ignore = "make envoy"]
async fn after_errors_a_count_in_the_set_has_envoy_catch_up() {
    let scene = Scene::start(Wiring::Policies).await;
    let course = Course::new(&scene).await;
    let site = course.begin(&scene).await;

    scene.kill_extension();
    let refusing = refuse_calls(&scene);
    let from = scene.log().len();
    course.change(&site);
    scene.says("on purpose", from).await;
    serves_on(&site).await;
    drop(refusing);
    scene.start_extension().await;
    // Nothing is tried again by itself.
    serves_on(&site).await;
    site.set_anew(std::slice::from_ref(&course.new), 1);
    site.until("/api/web", 200, "new").await;
    assert_eq!(site.answer("/users").await, (200, "users".into()));
}

#[tokio::test]
#[ignore = "make envoy"]
async fn an_answer_that_envoy_gateway_finds_too_large_changes_nothing() {
    let scene = Scene::start_without_extension(Wiring::Policies, "256k").await;
    scene.start_extension().await;
    let course = Course::new(&scene).await;
    let site = course.begin(&scene).await;

    let from = scene.log().len();
    let many = (0..1000).map(|number| RoutedService {
        path_prefix: format!("/api/{number}"),
        route: format!("tailscale-egress-{number}"),
        cluster: format!("external-backend-{number}"),
        ..course.new.clone()
    });
    site.set(&many.collect::<Vec<_>>());
    scene.says("ResourceExhausted", from).await;
    serves_on(&site).await;
    course.change(&site);
    site.until("/api/web", 200, "new").await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn an_extension_that_starts_again_gives_no_answer_before_it_holds_its_sets() {
    let scene = Scene::start(Wiring::Held).await;
    let course = Course::new(&scene).await;
    let later = scene.service("later").await;
    let site = scene.site("web", &course.users);
    site.set(std::slice::from_ref(&course.old));
    site.until("/users", 200, "users").await;
    site.added("web").await;

    scene.kill_extension();
    let from = scene.log().len();
    let routes = [&*course.users, &*route("later", "/later", later.address)];
    site.write(&routes.concat());
    scene.says(TRANSLATING, from).await;
    serves_on(&site).await;
    // The call that waits is the first thing it gets.
    scene.start_extension().await;
    site.until("/later", 200, "later").await;
    serves_on(&site).await;
}
