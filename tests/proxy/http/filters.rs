//! What filters do, from the client's request to the backend's and back.

use super::scene::{ask, below, filtered, get, mirror_of, request, rule, serve, site, text, told};
use crate::proxy::scene::{Scene, backend_id, within};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tailway::model::{
    Cors, HeaderChange, HttpFilter, HttpRule, Mirror, PathChange, Redirect, Rewrite,
};
use tokio::sync::mpsc;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

async fn scene(rule: HttpRule) -> Scene {
    let app = mirror_of("app").await;
    Scene::new(&site(&[("route", vec![rule])], &[("app", &[app])])).await
}

#[tokio::test]
async fn headers_of_requests_are_set_added_and_removed() {
    let change = HeaderChange {
        set: pairs(&[("x-set", "new"), ("x-fresh", "1")]),
        add: pairs(&[("x-add", "more")]),
        remove: vec!["x-gone".into()],
    };
    let scene = scene(filtered(vec![HttpFilter::RequestHeaders(change)])).await;
    let asked = request(
        Method::GET,
        "/",
        &[("x-set", "old"), ("x-add", "some"), ("x-gone", "1")],
    );
    let headers = told(ask(&scene, asked).await).await["headers"].take();
    assert_eq!(headers["x-set"], "new");
    assert_eq!(headers["x-fresh"], "1");
    assert_eq!(headers["x-add"], "some, more");
    assert_eq!(headers["x-gone"], serde_json::Value::Null);
}

#[tokio::test]
async fn headers_of_responses_are_changed_by_backend_and_rule() {
    let change = |value: &str| {
        HttpFilter::ResponseHeaders(HeaderChange {
            set: pairs(&[("x-who", value)]),
            add: pairs(&[("x-all", value)]),
            remove: vec!["date".into()],
        })
    };
    let mut rule = filtered(vec![change("rule")]);
    rule.backends[0].filters = vec![change("backend")];
    let scene = scene(rule).await;
    let response = ask(&scene, get("/")).await;
    assert_eq!(response.headers()["x-who"], "rule");
    let all: Vec<_> = response.headers().get_all("x-all").iter().collect();
    assert_eq!(all, ["backend", "rule"]);
}

#[tokio::test]
async fn a_redirect_is_answered_here() {
    let redirect = Redirect {
        scheme: Some("https".into()),
        hostname: None,
        path: Some(PathChange::Prefix("/new".into())),
        port: None,
        status: 308,
    };
    let rule = HttpRule {
        filters: vec![HttpFilter::Redirect(redirect)],
        backends: Vec::new(),
        ..rule(vec![below("/old")], "app")
    };
    let scene = scene(rule).await;
    let response = ask(&scene, get("/old/page?a=b")).await;
    assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(
        response.headers()["location"],
        "https://web.example.com/new/page?a=b"
    );
}

#[tokio::test]
async fn a_rewrite_changes_what_the_backend_is_asked() {
    let rewrite = Rewrite {
        hostname: Some("inner.example.com".into()),
        path: Some(PathChange::Prefix("/".into())),
    };
    let rule = HttpRule {
        filters: vec![HttpFilter::Rewrite(rewrite)],
        ..rule(vec![below("/app")], "app")
    };
    let scene = scene(rule).await;
    for (path, target) in [
        ("/app/x?y=z", "/x?y=z"),
        ("/app", "/"),
        ("/app/", "/"),
        ("/app?y", "/?y"),
    ] {
        let told = told(ask(&scene, get(path)).await).await;
        assert_eq!(told["target"], target, "{path}");
        assert_eq!(told["headers"]["host"], "inner.example.com");
        assert_eq!(told["headers"]["x-forwarded-host"], "web.example.com");
    }
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_its_answer_counts_for_nothing() {
    let (sender, mut copies) = mpsc::unbounded_channel();
    let copied = serve(move |request| {
        let sender = sender.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            sender.send((parts, body)).unwrap();
            let mut response = Response::new(Full::<Bytes>::from("copy"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    })
    .await;
    let mirror = |backend: Option<&str>| {
        HttpFilter::Mirror(Mirror {
            backend: backend.map(backend_id),
            numerator: 1,
            denominator: 1,
        })
    };
    let rule = filtered(vec![
        mirror(Some("copied")),
        mirror(None),
        mirror(Some("dead")),
    ]);
    let app = mirror_of("app").await;
    let (_socket, dead) = crate::proxy::scene::dead();
    let backends = [
        ("app", &[app][..]),
        ("copied", &[copied]),
        ("dead", &[dead]),
    ];
    let scene = Scene::new(&site(&[("route", vec![rule])], &backends)).await;
    let mut post: Request<Full<Bytes>> = request(Method::POST, "/x?y", &[("x-mine", "1")]);
    *post.body_mut() = Full::from("body");
    let told = told(ask(&scene, post).await).await;
    assert_eq!(
        (told["backend"].as_str(), told["body"].as_str()),
        (Some("app"), Some("body"))
    );
    let (parts, body) = within(copies.recv()).await.unwrap();
    assert_eq!(
        (parts.method, parts.uri.to_string()),
        (Method::POST, "/x?y".into())
    );
    assert_eq!(parts.headers["x-mine"], "1");
    assert_eq!(body, "body");
}

#[tokio::test]
async fn a_share_of_nothing_mirrors_nothing() {
    let never = serve(|_| async { panic!("nothing is to be mirrored") }).await;
    let mirror = Mirror {
        backend: Some(backend_id("copied")),
        numerator: 0,
        denominator: 100,
    };
    let app = mirror_of("app").await;
    let rule = filtered(vec![HttpFilter::Mirror(mirror)]);
    let backends = [("app", &[app][..]), ("copied", &[never])];
    let scene = Scene::new(&site(&[("route", vec![rule])], &backends)).await;
    for _ in 0..50 {
        told(ask(&scene, get("/")).await).await;
    }
}

#[tokio::test]
async fn pages_from_elsewhere_are_let_in_as_the_filter_says() {
    let cors = Cors {
        allow_origins: vec!["https://app.example.com".into()],
        allow_credentials: true,
        allow_methods: vec!["GET".into()],
        allow_headers: vec!["x-token".into()],
        expose_headers: vec!["x-total".into()],
        max_age: 600,
    };
    let scene = scene(filtered(vec![HttpFilter::Cors(cors)])).await;
    let preflight = |origin| {
        request(
            Method::OPTIONS,
            "/",
            &[("origin", origin), ("access-control-request-method", "GET")],
        )
    };
    let allowed = ask(&scene, preflight("https://app.example.com")).await;
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
    let headers = allowed.headers();
    assert_eq!(
        headers["access-control-allow-origin"],
        "https://app.example.com"
    );
    assert_eq!(headers["access-control-max-age"], "600");
    let refused = ask(&scene, preflight("https://evil.example.com")).await;
    assert!(
        !refused
            .headers()
            .contains_key("access-control-allow-origin")
    );
    let asked = request(Method::GET, "/", &[("origin", "https://app.example.com")]);
    let response = ask(&scene, asked).await;
    let headers = response.headers();
    assert_eq!(
        headers["access-control-allow-origin"],
        "https://app.example.com"
    );
    assert_eq!(headers["access-control-allow-credentials"], "true");
    assert_eq!(headers["access-control-expose-headers"], "x-total");
    assert_eq!(told(response).await["backend"], "app");
}

#[tokio::test]
async fn a_filter_that_cannot_be_applied_is_never_passed_over() {
    let change = HeaderChange {
        set: pairs(&[("not a name", "x")]),
        ..HeaderChange::default()
    };
    for filter in [HttpFilter::Broken, HttpFilter::RequestHeaders(change)] {
        let scene = scene(filtered(vec![filter])).await;
        let response = ask(&scene, get("/")).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!text(response).await.contains("backend"));
    }
}
