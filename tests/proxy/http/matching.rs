//! Which rule a request belongs to.

use super::scene::{
    HTTP, asked, attached, below, exact, get, is, listener, looks_like, mirror_of, request, rule,
    site, with_routes,
};
use crate::proxy::scene::Scene;
use http::Method;
use tailway::model::{HttpMatch, HttpRule, PathMatch};

/// Backends "a" to "d".
async fn four() -> Vec<(&'static str, std::net::SocketAddr)> {
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d"] {
        backends.push((name, mirror_of(name).await));
    }
    backends
}

/// Asserts where requests go to.
async fn expect(
    rules: Vec<HttpRule>,
    requests: &[(http::Request<http_body_util::Full<bytes::Bytes>>, &str)],
) {
    let backends = four().await;
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, address)| (*name, std::slice::from_ref(address)))
        .collect();
    let scene = Scene::new(&site(&[("route", rules)], &backends)).await;
    for (request, expected) in requests {
        let got = asked(&scene, request.clone()).await;
        assert_eq!(got, *expected, "{request:?}");
    }
}

#[tokio::test]
async fn a_prefix_is_of_whole_segments_and_the_longest_wins() {
    let rules = vec![
        rule(vec![below("/shop")], "a"),
        rule(vec![below("/shop/cart/")], "b"),
        rule(vec![exact("/shop/cart")], "c"),
    ];
    expect(
        rules,
        &[
            (get("/shop"), "a"),
            (get("/shop/"), "a"),
            (get("/shop/x?y=z"), "a"),
            (get("/shopping"), "404"),
            (get("/shop/cart"), "c"),
            (get("/shop/cart/"), "b"),
            (get("/shop/cart/1"), "b"),
            (get("/shop/carts"), "a"),
            (get("/"), "404"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_regular_expression_is_of_the_whole_path() {
    let regex = |text: &str| HttpMatch {
        path: PathMatch::Regex(text.into()),
        ..below("")
    };
    let rules = vec![
        rule(vec![regex("/[a-z]+/[0-9]+")], "a"),
        rule(vec![below("/")], "b"),
        rule(vec![exact("/users/1")], "c"),
    ];
    expect(
        rules,
        &[
            (get("/users/12"), "a"),
            (get("/users/1"), "c"),
            (get("/users/12/x"), "b"),
            (get("/x/users/12"), "b"),
        ],
    )
    .await;
}

#[tokio::test]
async fn method_headers_and_query_parameters_are_asked_for_together() {
    let rules = vec![
        rule(
            vec![HttpMatch {
                method: Some("POST".into()),
                ..below("/")
            }],
            "a",
        ),
        rule(
            vec![HttpMatch {
                headers: vec![is("x-version", "2"), looks_like("x-user", "j.*")],
                ..below("/")
            }],
            "b",
        ),
        rule(
            vec![HttpMatch {
                query: vec![is("beta", "yes please")],
                ..below("/")
            }],
            "c",
        ),
        rule(vec![below("/")], "d"),
    ];
    let with = |headers: &[(&str, &str)]| request(Method::GET, "/", headers);
    expect(
        rules,
        &[
            (request(Method::POST, "/", &[]), "a"),
            (with(&[("x-version", "2"), ("x-user", "joe")]), "b"),
            (with(&[("x-version", "2")]), "d"),
            (with(&[("x-version", "2"), ("x-user", "ajoe")]), "d"),
            (with(&[("x-version", "2, 3"), ("x-user", "joe")]), "d"),
            (get("/?beta=yes+please"), "c"),
            (get("/?a=b&beta=yes%20please&beta=no"), "c"),
            (get("/?beta=no&beta=yes+please"), "d"),
            (get("/?abeta=yes+please"), "d"),
        ],
    )
    .await;
}

#[tokio::test]
async fn more_is_asked_for_goes_before_less_and_then_the_order_counts() {
    let header = |names: &[&str]| HttpMatch {
        headers: names.iter().map(|name| is(name, "1")).collect(),
        ..below("/")
    };
    let rules = vec![
        rule(vec![header(&["x"])], "a"),
        rule(vec![header(&["x", "y"])], "b"),
        rule(vec![header(&["z"])], "c"),
        rule(vec![header(&["x"])], "d"),
    ];
    let with = |headers: &[(&str, &str)]| request(Method::GET, "/", headers);
    expect(
        rules,
        &[
            (with(&[("x", "1")]), "a"),
            (with(&[("x", "1"), ("y", "1")]), "b"),
            (with(&[("x", "1"), ("z", "1")]), "a"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_host_belongs_to_the_listener_that_is_most_specific_and_to_no_other() {
    let backends = four().await;
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, address)| (*name, std::slice::from_ref(address)))
        .collect();
    let routes = [
        ("any", vec![rule(vec![below("/any")], "a")]),
        ("wild", vec![rule(vec![below("/")], "b")]),
        ("exact", vec![rule(vec![below("/exact")], "c")]),
    ];
    let listeners = vec![
        listener("any", None, vec![attached("any", &[])]),
        listener("wild", Some("*.example.com"), vec![attached("wild", &[])]),
        listener("exact", Some("a.example.com"), vec![attached("exact", &[])]),
    ];
    let scene = Scene::new(&with_routes(listeners, &routes, &backends)).await;
    let table = [
        ("a.example.com", "/exact", "c"),
        ("A.Example.COM:80", "/exact", "c"),
        ("a.example.com", "/", "404"),
        ("b.example.com", "/exact", "b"),
        ("b.c.example.com.", "/", "b"),
        ("example.com", "/", "404"),
        ("example.com", "/any", "a"),
        ("[::1]:80", "/any", "a"),
    ];
    for (host, path, expected) in table {
        let got = asked(&scene, request(Method::GET, path, &[("host", host)])).await;
        assert_eq!(got, expected, "{host}{path}");
    }
    let _ = HTTP;
}

#[tokio::test]
async fn a_more_specific_hostname_of_a_route_goes_before_and_what_it_lacks_falls_through() {
    let backends = four().await;
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, address)| (*name, std::slice::from_ref(address)))
        .collect();
    let routes = [
        ("one", vec![rule(vec![exact("/x")], "a")]),
        ("two", vec![rule(vec![below("/")], "b")]),
        ("three", vec![rule(vec![below("/x")], "c")]),
    ];
    let attached = vec![
        attached("one", &[]),
        attached("two", &["*.com", "*.example.com"]),
        attached("three", &["web.example.com"]),
    ];
    let listeners = vec![listener("http", None, attached)];
    let scene = Scene::new(&with_routes(listeners, &routes, &backends)).await;
    let table = [
        ("web.example.com", "/x", "c"),
        ("web.example.com", "/y", "b"),
        ("other.com", "/x", "b"),
        ("example.org", "/x", "a"),
        ("example.org", "/y", "404"),
    ];
    for (host, path, expected) in table {
        let got = asked(&scene, request(Method::GET, path, &[("host", host)])).await;
        assert_eq!(got, expected, "{host}{path}");
    }
}
