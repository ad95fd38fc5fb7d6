//! What happens to a set arrives, and nothing else is touched by it.

use super::{
    client,
    scene::{Scene, Site, Wiring, route, routed},
    upstream::{HERE, Service},
};
use crate::tailnet::world::eventually;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use tailway::api::upstream::{HealthCheck, Target};

#[tokio::test]
#[ignore = "make envoy"]
async fn a_change_of_a_set_arrives_without_any_other_and_its_end_leaves_the_users_routes() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (users, old) = (scene.service("users").await, scene.service("old").await);
    let new = scene.service("new").await;
    let site = scene.site("changes", &route("users", "/users", users.address));
    site.set(&[routed("web", "web.example.com", old.address)]);
    site.until("/api/web", 200, "old").await;

    site.set(&[
        routed("more", "web.example.com", old.address),
        routed("web", "web.example.com", new.address),
    ]);
    site.until("/api/web", 200, "new").await;
    assert_eq!(site.answer("/api/more").await, (200, "old".into()));

    site.set(&[]);
    site.until_status("/api/web", 404).await;
    site.set(&[routed("web", "web.example.com", new.address)]);
    site.until("/api/web", 200, "new").await;
    site.remove_set();
    site.until_status("/api/web", 404).await;
    assert_eq!(site.answer("/users").await, (200, "users".into()));
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_gateway_without_any_route_serves_what_its_set_brings() {
    let shared = Scene::shared(Wiring::Policies).await;
    let web = shared.scene().service("web").await;
    let site = shared.scene().site("bare", "");
    site.set(&[routed("web", "web.example.com", web.address)]);
    site.until("/api/web", 200, "web").await;
    assert_eq!(site.get("/").await.status, 404);
}

/// What Envoy has of Envoy Gateway, without when and how often that came.
async fn configuration(site: &Site<'_>) -> Vec<String> {
    let dump = site.admin("/config_dump").await.unwrap();
    let mut found = Vec::new();
    for config in dump["configs"].as_array().unwrap() {
        let lists = [
            ("dynamic_active_clusters", "/cluster"),
            ("dynamic_warming_clusters", "/cluster"),
            ("dynamic_listeners", "/active_state/listener"),
            ("dynamic_route_configs", "/route_config"),
        ];
        for (list, path) in lists {
            let entries = config[list].as_array().into_iter().flatten();
            found.extend(entries.map(|entry| entry.pointer(path).unwrap().to_string()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_gateway_that_did_not_ask_is_configured_byte_for_byte_as_without_the_extension() {
    let mut found = Vec::new();
    for wiring in [Wiring::Alone, Wiring::Policies, Wiring::Held] {
        let shared = Scene::shared(wiring).await;
        let scene = shared.scene();
        // The same address each time, as it is part of what is compared.
        let address = (HERE, 6000).into();
        let _users = Service::start_on(scene.network(), "users", address, None).await;
        let routes = [route("users", "/", address), route("api", "/api", address)].concat();
        let site = scene.site_on(6001, "untouched", &routes);
        let web = scene.service("web").await;
        let asked = scene.site("asked", &route("users", "/users", address));
        if wiring != Wiring::Alone {
            asked.set(&[routed("web", "web.example.com", web.address)]);
            asked.until("/users", 200, "users").await;
            asked.added("web").await;
        }
        site.until("/api/web", 200, "users").await;
        let mut configuration = configuration(&site).await;
        if wiring == Wiring::Held {
            // Its hook for clusters is not told of which Gateway they are: no route leads to them.
            configuration.retain(|text| !text.contains("external-backend-web"));
        }
        found.push(configuration);
    }
    let own = |text: &String| text.contains("httproute/default/untouched-api/rule/0");
    assert!(found[0].iter().any(own));
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_target_by_name_is_followed_to_its_new_address() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let old = scene.service("old").await;
    let moved = (Ipv4Addr::new(192, 0, 2, 2), old.address.port()).into();
    let new = Service::start_on(scene.network(), "new", moved, None).await;
    scene.names.set("web.example.test", old.address.ip());
    let site = scene.site("names", "");
    let mut service = routed("web", "web.example.test", old.address);
    service.upstream.targets[0].host = "web.example.test".into();
    site.set(&[service]);
    site.until("/api/web/status", 200, "old").await;
    assert_eq!(old.last().line, "GET /status HTTP/1.1");
    assert_eq!(old.last().header("host"), Some("web.example.test"));

    scene.names.set("web.example.test", new.address.ip());
    site.until("/api/web/status", 200, "new").await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn bad_services_are_left_out_and_good_ones_beside_them_are_served() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (web, users) = (scene.service("web").await, scene.service("users").await);
    let site = scene.site("bad", &route("users", "/users", users.address));
    let good = |name: &str| json!(routed(name, "web.example.com", web.address));
    let bad = |path: &str, value: Value| {
        let mut service = good("bad");
        *service.pointer_mut(path).expect("a field") = value;
        service
    };
    let mut taken = good("taken");
    taken["cluster"] = "httproute/default/bad-users/rule/0".into();
    let mut check = good("check");
    check["upstream"]["healthCheck"] = json!({"interval": "0s"});
    let mut believed = good("believed");
    believed["upstream"]["tls"] = json!({"serverName": "a", "caCertificates": "none"});
    site.set_as_is(
        json!([
            good("first"),
            bad("/upstream/targets/0/host", "no host!".into()),
            bad("/upstream/targets/0/host", "127.0.0.1".into()),
            bad("/upstream/targets/0/port", 0.into()),
            bad("/upstream/targets", json!([])),
            bad("/upstream/protocol", "SPDY".into()),
            bad("/upstream/protocol", "UDP".into()),
            bad("/upstream/host", "no host!".into()),
            bad("/pathPrefix", "/api/../bad".into()),
            bad("/cluster", "".into()),
            "no service",
            taken,
            check,
            believed,
            good("last"),
        ]),
        0,
    );
    site.until("/api/last", 200, "web").await;
    assert_eq!(site.answer("/api/first").await, (200, "web".into()));
    assert_eq!(site.answer("/users").await, (200, "users".into()));
    for target in ["/api/bad", "/api/taken", "/api/check", "/api/believed"] {
        assert_eq!(site.get(target).await.status, 404, "{target}");
    }
}

#[tokio::test]
#[ignore = "make envoy"]
async fn two_objects_with_one_service_name_have_a_route_each_and_of_the_same_one_the_first_is_served()
 {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (ours, theirs) = (scene.service("ours").await, scene.service("theirs").await);
    let site = scene.site("same", "");
    let first = routed("web", "ours.example.com", ours.address);
    let mut second = routed("web", "theirs.example.com", theirs.address);
    second.source = "other/example-endpoints".into();
    let mut apart = second.clone();
    apart.route = "tailscale-egress-other-web".into();
    apart.cluster = "external-backend-other-web".into();
    apart.path_prefix = "/api/other-web".into();
    site.set(&[first, second, apart]);
    site.until("/api/other-web/x", 200, "theirs").await;
    assert_eq!(site.answer("/api/web/x").await, (200, "ours".into()));
    let requests = theirs.requests();
    let hosts = requests.iter().filter_map(|request| request.header("host"));
    assert!(hosts.clone().all(|host| host == "theirs.example.com"));
}

#[tokio::test]
#[ignore = "make envoy"]
async fn two_gateways_with_services_of_one_name_have_each_its_own() {
    for wiring in [Wiring::Policies, Wiring::Held] {
        let shared = Scene::shared(wiring).await;
        let scene = shared.scene();
        let (one, two) = (scene.service("one").await, scene.service("two").await);
        let first = scene.site("first", &route("users", "/users", one.address));
        let second = scene.site("second", &route("users", "/users", two.address));
        first.set(&[routed("web", "one.example.com", one.address)]);
        second.set(&[routed("web", "two.example.com", two.address)]);
        first.until("/users", 200, "one").await;
        second.until("/users", 200, "two").await;
        first.added("web").await;
        second.added("web").await;
        first.until("/api/web", 200, "one").await;
        second.until("/api/web", 200, "two").await;
        assert_eq!(first.answer("/api/web").await, (200, "one".into()));
        let hosts = |service: &Service| -> Vec<_> {
            let requests = service.requests().into_iter();
            let ours = requests.filter(|request| request.line == "GET / HTTP/1.1");
            ours.map(|request| request.header("host").map(str::to_owned))
                .collect()
        };
        assert!(
            hosts(&one)
                .iter()
                .all(|host| host.as_deref() == Some("one.example.com"))
        );
        assert!(
            hosts(&two)
                .iter()
                .all(|host| host.as_deref() == Some("two.example.com"))
        );
    }
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_thousand_services_are_served_by_one_gateway() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (web, users) = (scene.service("web").await, scene.service("users").await);
    let site = scene.site("many", &route("users", "/", users.address));
    let services = (0..1000).map(|number| {
        let name = format!("service-{number:04}");
        routed(&name, &format!("{name}.example.com"), web.address)
    });
    site.set(&services.collect::<Vec<_>>());
    site.until("/api/service-0999/status", 200, "web").await;
    for number in (0..1000).step_by(111) {
        let target = format!("/api/service-{number:04}/status");
        assert_eq!(site.answer(&target).await, (200, "web".into()));
        let host = format!("service-{number:04}.example.com");
        assert_eq!(web.last().header("host"), Some(&*host));
    }
    assert_eq!(site.answer("/api/service").await, (200, "users".into()));
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_target_whose_check_fails_is_left_out_until_it_is_well() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (one, two) = (scene.service("one").await, scene.service("two").await);
    let site = scene.site("health", "");
    let mut service = routed("web", "web.example.com", one.address);
    service.upstream.targets.push(Target {
        host: two.address.ip().to_string(),
        port: two.address.port(),
        weight: 1,
    });
    service.upstream.health_check = Some(HealthCheck {
        interval: "100ms".into(),
        timeout: "5s".into(),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
        ..HealthCheck::default()
    });
    site.set(&[service]);
    let answered_by = async |expected: &[&str]| {
        eventually(&format!("{expected:?} answer"), || async {
            let mut names = Vec::new();
            for _ in 0..8 {
                let answer = site.try_get("/api/web").await.ok()?;
                names.push(match answer.status {
                    200 => answer.body,
                    status => status.to_string(),
                });
            }
            names.sort();
            names.dedup();
            (names == expected).then_some(())
        })
        .await;
    };
    answered_by(&["one", "two"]).await;
    two.set_health(500);
    answered_by(&["one"]).await;
    one.set_health(500);
    // Nobody is asked rather than those that are not well.
    answered_by(&["503"]).await;
    two.set_health(201);
    answered_by(&["two"]).await;
    one.set_health(200);
    answered_by(&["one", "two"]).await;
}

#[tokio::test]
#[ignore = "make envoy"]
async fn certificates_of_listeners_stay_what_they_were() {
    for wiring in [Wiring::Policies, Wiring::Held] {
        let shared = Scene::shared(wiring).await;
        let scene = shared.scene();
        let web = scene.service("web").await;
        let users = scene.service("users").await;
        let issued = rcgen::generate_simple_self_signed(["secure.example.com".to_owned()]).unwrap();
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "secure", "namespace": "default"},
            "data": {
                "tls.crt": STANDARD.encode(issued.cert.pem()),
                "tls.key": STANDARD.encode(issued.signing_key.serialize_pem()),
            },
        });
        let site = scene.site("secure", "");
        let port = site.port;
        let listener = format!(
            "[{{name: https, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: secure}}]}}}}]"
        );
        let users = route("users", "/users", users.address);
        site.write_with(&listener, &format!("{secret}\n{users}"));
        site.set(&[routed("web", "web.example.com", web.address)]);
        site.added("web").await;
        let fetch = |target: &'static str| {
            let request = format!(
                "GET {target} HTTP/1.1\r\nHost: secure.example.com\r\nConnection: close\r\n\r\n"
            );
            let server = ("secure.example.com", issued.cert.der().clone());
            client::send_by_tls(
                scene.network(),
                site.address(),
                server,
                request.into_bytes(),
            )
        };
        eventually("the service answers by https", || async {
            let answer = fetch("/api/web/status").await.ok()?;
            (answer.body == "web").then_some(())
        })
        .await;
        assert_eq!(fetch("/users").await.unwrap().body, "users");
    }
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_backend_of_a_users_route_is_a_service_of_ours() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (old, new) = (scene.service("old").await, scene.service("new").await);
    let users = scene.service("users").await;
    let backend = |name: &str, to: &Service| {
        let upstream = routed(name, "web.example.com", to.address).upstream;
        let backend = json!({
            "apiVersion": "gateway.tailscale.com/v1alpha1",
            "kind": "TailscaleBackend",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"upstream": upstream},
        });
        format!("---\n{backend}\n")
    };
    let reference = |name: &str| {
        format!("{{group: gateway.tailscale.com, kind: TailscaleBackend, name: {name}, port: 80}}")
    };
    let (web, second) = (reference("endpoints-web"), reference("endpoints-second"));
    let routes = format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: SITE, namespace: default}}
spec:
  parentRefs: [{{name: SITE}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: /shop}}}}]
      filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}]
      backendRefs: [{web}]
    - matches: [{{path: {{type: PathPrefix, value: /both}}}}]
      backendRefs: [{web}, {second}]
"
    );
    let users = route("users", "/users", users.address);
    let second = backend("endpoints-second", &old);
    let site = scene.site("backends", "");
    site.write(
        &[
            &*routes,
            &*users,
            &*second,
            &*backend("endpoints-web", &old),
        ]
        .concat(),
    );
    site.until("/shop/cart?id=1", 200, "old").await;
    assert_eq!(old.last().line, "GET /cart?id=1 HTTP/1.1");
    // Envoy Gateway tells two of them in one rule as one cluster, and of no weights.
    assert_eq!(site.get("/both").await.status, 503);
    assert_eq!(site.answer("/users").await, (200, "users".into()));

    site.write(
        &[
            &*routes,
            &*users,
            &*second,
            &*backend("endpoints-web", &new),
        ]
        .concat(),
    );
    site.until("/shop/cart", 200, "new").await;
}
