//! What filters do, from the client's request to the backend's and back.

use super::scene::{ask, below, filtered, get, mirror_of, request, rule, serve, site, text, told};
use crate::proxy::scene::{Scene, backend_id, within};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tailway::model::{
    Cors, HeaderChange, HttpBackend, HttpFilter, HttpRule, Mirror, PathChange, Redirect, Rewrite,
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
async fn headers_of_requests_are_changed_by_rule_and_backend() {
    let change = |value: &str| {
        HttpFilter::RequestHeaders(HeaderChange {
            set: pairs(&[("x-who", value)]),
            add: pairs(&[("x-all", value)]),
            remove: Vec::new(),
        })
    };
    let mut rule = filtered(vec![change("rule")]);
    rule.backends[0].filters = vec![change("backend")];
    let scene = scene(rule).await;
    let headers = told(ask(&scene, get("/")).await).await["headers"].take();
    assert_eq!(headers["x-who"], "backend");
    assert_eq!(headers["x-all"], "rule, backend");
}

#[tokio::test]
async fn a_rewrite_of_a_backend_is_for_its_requests_alone() {
    let (one, two) = (mirror_of("one").await, mirror_of("two").await);
    let mut rule = rule(vec![below("/")], "one");
    let rewrite = Rewrite {
        hostname: Some("two.example.com".into()),
        path: Some(PathChange::Full("/two".into())),
    };
    rule.backends.push(HttpBackend {
        weight: 1,
        backend: Some(backend_id("two")),
        filters: vec![HttpFilter::Rewrite(rewrite)],
    });
    let backends = [("one", &[one][..]), ("two", &[two])];
    let scene = Scene::new(&site(&[("route", vec![rule])], &backends)).await;
    let mut seen = BTreeSet::new();
    // Each is drawn once in two requests; that one is not in 200 is less likely than 2^-199.
    for _ in 0..200 {
        let told = told(ask(&scene, get("/a")).await).await;
        let of = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        seen.insert([&told["backend"], &told["target"], &told["headers"]["host"]].map(of));
    }
    let expected = [
        ["one", "/a", "web.example.com"],
        ["two", "/two", "two.example.com"],
    ];
    assert_eq!(
        seen,
        BTreeSet::from(expected.map(|of| of.map(str::to_owned)))
    );
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
async fn each_part_of_a_redirect_is_that_of_the_filter_or_of_the_request() {
    let redirect = |scheme: Option<&str>, hostname: Option<&str>, path, port, status| Redirect {
        scheme: scheme.map(str::to_owned),
        hostname: hostname.map(str::to_owned),
        path,
        port,
        status,
    };
    let full = Some(PathChange::Full("/all".into()));
    let prefix = Some(PathChange::Prefix("/new".into()));
    for (redirect, location) in [
        (
            redirect(None, None, None, Some(8080), 301),
            "http://web.example.com:8080/old/page?a=b",
        ),
        (
            redirect(None, Some("other.example"), None, Some(80), 302),
            "http://other.example/old/page?a=b",
        ),
        (
            redirect(Some("https"), None, full, None, 303),
            "https://web.example.com/all?a=b",
        ),
        (
            redirect(Some("https"), None, prefix, Some(8443), 307),
            "https://web.example.com:8443/new/page?a=b",
        ),
        (
            redirect(Some("https"), None, None, Some(443), 308),
            "https://web.example.com/old/page?a=b",
        ),
    ] {
        let status = redirect.status;
        let rule = HttpRule {
            filters: vec![HttpFilter::Redirect(redirect)],
            backends: Vec::new(),
            ..rule(vec![below("/old")], "app")
        };
        let scene = scene(rule).await;
        let response = ask(&scene, get("/old/page?a=b")).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["location"], location);
    }
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
async fn each_of_several_mirrors_gets_its_own_share() {
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let counted = async |count: &Arc<AtomicUsize>| {
        let count = Arc::clone(count);
        serve(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Response::new(Full::<Bytes>::default()) }
        })
        .await
    };
    let (all, some) = (counted(&counts[0]).await, counted(&counts[1]).await);
    let mirror = |name: &str, numerator| {
        HttpFilter::Mirror(Mirror {
            backend: Some(backend_id(name)),
            numerator,
            denominator: 100,
        })
    };
    let app = mirror_of("app").await;
    let rule = filtered(vec![mirror("all", 100), mirror("some", 50)]);
    let backends = [("app", &[app][..]), ("all", &[all]), ("some", &[some])];
    let scene = Scene::new(&site(&[("route", vec![rule])], &backends)).await;
    for _ in 0..200 {
        told(ask(&scene, get("/")).await).await;
    }
    // Copies may still be under way.
    while counts[0].load(Ordering::Relaxed) < 200 {
        within(tokio::task::yield_now()).await;
    }
    let some = counts[1].load(Ordering::Relaxed);
    // 50 is more than seven standard deviations from the mean.
    assert!((50..=150).contains(&some), "{some} of 200");
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
