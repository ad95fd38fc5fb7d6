//! What may never happen to what Envoy Gateway sends.

use super::messages::{
    Draft, Match, cluster_json, configuration, draft, eds_cluster, fields, host, host_of, hosts,
    json, made_from, route, route_names,
};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use tailway::{
    extension::{
        EgressSet, Hooks, Settings, Untouched,
        proto::{
            ExtensionResource, PostClusterExtensionContext, PostClusterModifyRequest,
            PostTranslateExtensionContext, PostTranslateModifyRequest, PostTranslateModifyResponse,
        },
    },
    model::ObjectName,
};

pub fn service(name: &str) -> Value {
    json!({
        "name": name,
        "source": "default/endpoints",
        "route": format!("tailscale-egress-{name}"),
        "pathPrefix": format!("/api/{name}"),
        "cluster": format!("external-backend-{name}"),
        "upstream": {
            "protocol": "HTTP",
            "host": "example.com",
            "targets": [{ "host": "example.com", "port": 80 }],
        },
    })
}

pub fn set(namespace: &str, gateway: &str, services: Vec<Value>) -> Value {
    json!({
        "apiVersion": "gateway.tailscale.com/v1alpha1",
        "kind": "TailscaleEgressSet",
        "metadata": { "namespace": namespace, "name": format!("{gateway}-egress") },
        "spec": {
            "targetRefs": [
                { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway },
            ],
            "revision": "r1",
            "resync": 3,
            "services": services,
        },
    })
}

pub fn resource(object: &Value) -> ExtensionResource {
    ExtensionResource {
        unstructured_bytes: serde_json::to_vec(object).unwrap().into(),
    }
}

pub fn request(policies: &[Value], routes: Vec<Draft>) -> PostTranslateModifyRequest {
    PostTranslateModifyRequest {
        post_translate_context: Some(PostTranslateExtensionContext {
            extension_resources: policies.iter().map(resource).collect(),
        }),
        clusters: vec![
            eds_cluster("httproute/default/user/rule/0")
                .of_the_future()
                .done(),
        ],
        secrets: vec![draft().bytes(1, "certificate").of_the_future().done()],
        listeners: vec![draft().bytes(1, "listener").of_the_future().done()],
        routes: routes.into_iter().map(Draft::done).collect(),
    }
}

fn hooks() -> Hooks {
    Hooks::new(Settings::default())
}

fn user(name: &str) -> Draft {
    route(name, Match::Prefix("/")).of_the_future()
}

/// The answer that leaves everything as it is.
fn echo(request: &PostTranslateModifyRequest) -> PostTranslateModifyResponse {
    PostTranslateModifyResponse {
        clusters: request.clusters.clone(),
        secrets: request.secrets.clone(),
        listeners: request.listeners.clone(),
        routes: request.routes.clone(),
    }
}

fn names(clusters: &[Bytes]) -> Vec<String> {
    let name = |cluster: &Bytes| cluster_json(cluster)["name"].as_str().unwrap().to_owned();
    clusters.iter().map(name).collect()
}

/// A message whose fields are changed or left out.
fn rebuild(message: &[u8], change: impl Fn(u32, &[u8]) -> Option<Bytes>) -> Bytes {
    let mut out = draft();
    let mut rest = message;
    while !rest.is_empty() {
        let (number, _) = prost::encoding::decode_key(&mut rest).unwrap();
        let length = prost::encoding::decode_varint(&mut rest).unwrap() as usize;
        let (bytes, after) = rest.split_at(length);
        rest = after;
        if let Some(bytes) = change(number, bytes) {
            out = out.bytes(number, bytes);
        }
    }
    out.done()
}

/// A route configuration without the routes that are ours.
fn without_ours(configuration: &[u8]) -> Bytes {
    let is_ours = |route: &[u8]| fields(route, 14)[0].starts_with(b"tailscale-egress-");
    let route = |number, bytes: &[u8]| match number == 3 && is_ours(bytes) {
        true => None,
        false => Some(Bytes::copy_from_slice(bytes)),
    };
    rebuild(configuration, |number, bytes| match number {
        2 => Some(rebuild(bytes, route)),
        _ => Some(Bytes::copy_from_slice(bytes)),
    })
}

/// Of a user: how it matches is drawn, too.
fn any_route() -> impl Strategy<Value = Draft> {
    let path = prop_oneof![
        Just("/".to_owned()),
        Just("/api".to_owned()),
        Just("/api/web".to_owned()),
        Just("/api/web/inner".to_owned()),
        "(/[a-z]{1,3}){1,3}",
    ];
    (path, 0..7, "[a-z]{1,8}", any::<bool>()).prop_map(|(path, kind, name, future)| {
        let matches = match kind {
            0 => Match::Prefix(&path),
            1 => Match::Segments(&path),
            2 => Match::Exact(&path),
            3 => Match::Regex(&path),
            4 => Match::Folded(&path),
            5 => Match::WithHeader(&path),
            _ => Match::WithMore(&path),
        };
        let route = route(&name, matches);
        if future { route.of_the_future() } else { route }
    })
}

/// A virtual host with fields that nobody knows, somewhere among its routes.
fn any_host() -> impl Strategy<Value = Draft> {
    let routes = || proptest::collection::vec(any_route(), 0..5);
    (routes(), routes(), any::<[u8; 8]>()).prop_map(|(before, after, future)| {
        draft()
            .bytes(1, "default/eg/http/*")
            .bytes(2, "*")
            .all(3, before)
            .bytes(4_242, future)
            .bytes(24, made_from("default", "eg"))
            .all(3, after)
    })
}

proptest! {
    #[test]
    fn without_what_is_ours_the_answer_is_what_came(
        hosts in proptest::collection::vec(any_host(), 1..4),
        names in proptest::collection::btree_set("[a-z]{1,4}", 1..4),
    ) {
        let services = names.iter().map(|name| service(name)).collect();
        let routes = draft().bytes(1, "default/eg/http").all(2, hosts).of_the_future();
        let request = request(&[set("default", "eg", services)], vec![routes]);
        let answer = hooks().translation(request.clone(), None);
        prop_assert_eq!(&answer.told.untouched, &None);
        prop_assert!(answer.told.routes > 0);
        prop_assert_eq!(without_ours(&answer.message.routes[0]), request.routes[0].clone());
        let theirs = request.clusters.len();
        prop_assert_eq!(&answer.message.clusters[..theirs], &request.clusters[..]);
        prop_assert_eq!(answer.message.clusters.len(), theirs + 2 * names.len());
        prop_assert_eq!(&answer.message.secrets, &request.secrets);
        prop_assert_eq!(&answer.message.listeners, &request.listeners);
    }

    #[test]
    fn an_answer_that_comes_again_stays_as_it_is(
        hosts in proptest::collection::vec(any_host(), 0..3),
    ) {
        let set = set("default", "eg", vec![service("web"), service("web-service")]);
        let routes = draft().bytes(1, "default/eg/http").all(2, hosts);
        let first = request(&[set], vec![routes]);
        let once = hooks().translation(first.clone(), None).message;
        let again = PostTranslateModifyRequest {
            clusters: once.clusters.clone(),
            secrets: once.secrets.clone(),
            listeners: once.listeners.clone(),
            routes: once.routes.clone(),
            ..first
        };
        prop_assert!(hooks().translation(again, None).message == once);
    }

    #[test]
    fn what_is_no_message_comes_back_untouched(
        bytes in proptest::collection::vec(any::<u8>(), 1..64),
        cluster in any::<bool>(),
    ) {
        let mut request = request(&[set("default", "eg", vec![service("web")])], Vec::new());
        if cluster {
            request.clusters.push(bytes.into());
        } else {
            request.routes.push(bytes.into());
        }
        let answer = hooks().translation(request.clone(), None);
        if answer.told.untouched.is_some() {
            prop_assert!(answer.message == echo(&request));
            prop_assert_eq!((answer.told.routes, answer.told.clusters), (0, 0));
        }
        // Whatever they are, all lists are there.
        prop_assert!(answer.message.clusters.len() >= request.clusters.len());
        prop_assert_eq!(answer.message.routes.len(), request.routes.len());
        prop_assert_eq!(&answer.message.secrets, &request.secrets);
    }
}

proptest! {
    #[test]
    fn what_nobody_knows_of_a_cluster_stays_when_it_is_filled(
        future in proptest::collection::vec((1_000u32..1 << 29, any::<Vec<u8>>()), 0..8),
    ) {
        let name = "httproute/default/web/rule/0";
        let cluster = future.iter().fold(eds_cluster(name), |cluster, (number, bytes)| {
            cluster.bytes(*number, bytes)
        });
        let answer = hooks().cluster(cluster_request(cluster.clone(), &[backend(upstream())]));
        prop_assert_eq!(answer.told.clusters, 1);
        for (number, _) in future {
            let theirs = fields(cluster.as_ref(), number);
            prop_assert_eq!(fields(&answer.message, number), theirs);
        }
    }
}

#[test]
fn a_gateway_without_a_policy_stays_as_it_is() {
    let of_another_kind = json!({
        "apiVersion": "example.com/v1",
        "kind": "TailscaleEgressSet",
        "metadata": { "namespace": "default", "name": "eg" },
    });
    for policies in [Vec::new(), vec![of_another_kind]] {
        let request = request(&policies, vec![configuration([host("*", [user("user")])])]);
        let answer = hooks().translation(request.clone(), None);
        assert!(answer.message == echo(&request));
        assert_eq!(answer.told, tailway::extension::Told::default());
    }
}

#[test]
fn a_policy_that_cannot_be_read_changes_nothing() {
    let mut aimless = set("default", "eg", vec![service("web")]);
    aimless["spec"]["targetRefs"] = json!([]);
    let mut wrong = set("default", "eg", vec![service("web")]);
    wrong["spec"]["services"] = json!("none");
    let unnamed = json!({ "kind": "TailscaleEgressSet" });
    for policy in [aimless, wrong, unnamed] {
        let request = request(&[policy], vec![configuration([host("*", [user("user")])])]);
        let answer = hooks().translation(request.clone(), None);
        assert!(answer.message == echo(&request));
        assert!(matches!(answer.told.untouched, Some(Untouched::Object(_))));
    }
}

#[test]
fn a_thousand_services_are_all_there_and_sorted() {
    let services = (0..1000)
        .map(|number| service(&format!("s{number:03}")))
        .collect();
    let set = set("default", "eg", services);
    let request = request(&[set], vec![configuration([host("*", [user("user")])])]);
    let answer = hooks().translation(request, None);
    let clusters = names(&answer.message.clusters);
    assert_eq!(clusters.len(), 2001);
    assert!(clusters[1..].is_sorted());
    let routes = route_names(&hosts(&answer.message.routes[0])[0]);
    assert_eq!(routes.len(), 2001);
    assert_eq!(routes[2000], "user");
    let served = answer.told.served.values().next().unwrap();
    assert_eq!((served.services.len(), served.resync), (1000, 3));
}

#[test]
fn routes_go_to_the_virtual_hosts_of_their_gateway_only() {
    let ours = configuration([
        host("*", [user("user")]),
        host_of("default", "other", "other.example.com", [user("other")]),
        host_of("team", "eg", "team.example.com", [user("team")]),
    ]);
    let empty_of_another = draft().bytes(1, "default/other/http");
    let empty_of_nobody = draft().bytes(1, "http-8080");
    let routes = vec![ours, empty_of_another.clone(), empty_of_nobody.clone()];
    let request = request(&[set("default", "eg", vec![service("web")])], routes);
    let answer = hooks().translation(request, None).message;
    let all: Vec<_> = hosts(&answer.routes[0])
        .iter()
        .map(|host| route_names(host))
        .collect();
    assert_eq!(
        all,
        [
            vec!["tailscale-egress-web/grpc", "tailscale-egress-web", "user"],
            vec!["other"],
            vec!["team"],
        ]
    );
    assert_eq!(
        answer.routes[1..],
        [empty_of_another.done(), empty_of_nobody.done()]
    );
}

#[test]
fn two_gateways_that_are_translated_together_each_have_their_own() {
    let mut other = service("web");
    other["upstream"]["targets"][0]["host"] = json!("other.example.com");
    let sets = [
        set("default", "eg", vec![service("web"), service("same")]),
        set("default", "other", vec![other, service("same")]),
    ];
    let routes = configuration([
        host("*", [user("user")]),
        host_of("default", "other", "other.example.com", [user("other")]),
    ]);
    let answer = hooks()
        .translation(request(&sets, vec![routes]), None)
        .message;
    assert_eq!(
        names(&answer.clusters)[1..],
        [
            "external-backend-same",
            "external-backend-same/grpc",
            "external-backend-web",
            "external-backend-web/default/other",
            "external-backend-web/default/other/grpc",
            "external-backend-web/grpc",
        ]
    );
    let hosts = hosts(&answer.routes[0]);
    let goes_to = |host: &[u8]| -> Vec<String> {
        let host = json("envoy.config.route.v3.VirtualHost", host);
        let routes = host["routes"].as_array().unwrap().iter();
        let clusters = routes.filter_map(|route| route["route"]["cluster"].as_str());
        clusters.map(str::to_owned).collect()
    };
    assert_eq!(
        goes_to(&hosts[1]),
        [
            "external-backend-same/grpc",
            "external-backend-same",
            "external-backend-web/default/other/grpc",
            "external-backend-web/default/other",
        ]
    );
}

#[test]
fn the_hook_of_virtual_hosts_and_that_of_translation_say_the_same_from_what_is_known() {
    let hooks = hooks();
    let known = |gateway: &str, name: &str| {
        let mut set = set("default", gateway, vec![service(name)]);
        let name = ObjectName::new("default", gateway);
        EgressSet::from_spec(name, set["spec"].take()).unwrap()
    };
    let plan = hooks.plan(&[known("eg", "web"), known("other", "shop")]);
    let opted_in = host("*", [user("user")]).of_the_future().done();
    let answer = hooks.virtual_host(opted_in, Some(&plan));
    assert_eq!(
        route_names(&answer.message),
        ["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]
    );
    let opted_out = host_of("default", "plain", "*", [user("user")]).done();
    assert_eq!(
        hooks.virtual_host(opted_out.clone(), Some(&plan)).message,
        opted_out
    );
    assert_eq!(
        hooks.virtual_host(opted_out.clone(), None).message,
        opted_out
    );

    // As it is called when no list is included but the default ones.
    let mut request = request(&[], Vec::new());
    request.listeners.clear();
    let answer = hooks.translation(request.clone(), Some(&plan)).message;
    assert_eq!(
        names(&answer.clusters)[1..],
        [
            "external-backend-shop",
            "external-backend-shop/grpc",
            "external-backend-web",
            "external-backend-web/grpc",
        ]
    );
    assert_eq!(answer.secrets, request.secrets);
    // Where routes are sent, policies are what counts.
    request.routes = vec![configuration([host("*", [user("user")])]).done()];
    assert!(hooks.translation(request.clone(), Some(&plan)).message == echo(&request));
}

fn backend(upstream: Value) -> Value {
    json!({
        "apiVersion": "gateway.tailscale.com/v1alpha1",
        "kind": "TailscaleBackend",
        "metadata": { "namespace": "default", "name": "endpoints-web" },
        "spec": { "upstream": upstream },
    })
}

fn cluster_request(cluster: Draft, backends: &[Value]) -> PostClusterModifyRequest {
    PostClusterModifyRequest {
        cluster: cluster.done(),
        post_cluster_context: Some(PostClusterExtensionContext {
            backend_extension_resources: backends.iter().map(resource).collect(),
        }),
    }
}

fn upstream() -> Value {
    json!({
        "protocol": "HTTPS",
        "host": "example.com",
        "targets": [{ "host": "10.0.0.1", "port": 443 }, { "host": "10.0.0.2", "port": 443 }],
        "tls": { "serverName": "example.com", "insecureSkipVerify": true },
        "healthCheck": { "interval": "5s" },
    })
}

#[test]
fn the_cluster_of_a_rule_with_one_backend_becomes_its() {
    // Options of HTTP with an idle timeout that a policy set, and HTTP/1.1.
    let options = draft().bytes(1, draft().bytes(1, draft().number(1, 7)));
    let options = options.bytes(3, draft().bytes(1, draft()));
    let url = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let any = draft().bytes(1, url).bytes(2, options);
    let entry = draft().bytes(1, &url[20..]).bytes(2, any);
    let cluster = eds_cluster("httproute/default/web/rule/0")
        .bytes(36, entry)
        .of_the_future();
    let request = cluster_request(cluster, &[backend(upstream())]);
    let answer = hooks().cluster(request);
    assert_eq!((answer.told.clusters, &answer.told.untouched), (1, &None));
    let filled = &answer.message;
    let read = cluster_json(filled);
    assert_eq!(read["name"], "httproute/default/web/rule/0");
    assert_eq!(read["type"], "STATIC");
    assert_eq!(read["connectTimeout"], "10s");
    assert_eq!(
        read["loadAssignment"]["endpoints"][0]["lbEndpoints"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(read["healthChecks"][0]["interval"], "5s");
    assert_eq!(
        read["transportSocket"]["name"],
        "envoy.transport_sockets.tls"
    );
    // It is no cluster of EDS any more, and what nobody knows is still there.
    assert_eq!(fields(filled, 3), Vec::<Bytes>::new());
    assert_eq!(fields(filled, 4_242), ["from the future"]);
    let entries = fields(filled, 36);
    assert_eq!(entries.len(), 1);
    let options = &fields(&fields(&entries[0], 2)[0], 2)[0];
    assert_eq!(fields(options, 1).len(), 1, "the idle timeout stays");
    assert_eq!(fields(options, 3), Vec::<Bytes>::new());
    assert_eq!(fields(options, 5).len(), 1, "by ALPN");
}

#[test]
fn a_grpcroute_s_cluster_speaks_http2() {
    let plain = json!({ "protocol": "HTTP", "targets": [{ "host": "example.com", "port": 80 }] });
    for upstream in [plain, upstream()] {
        let cluster = eds_cluster("grpcroute/default/web/rule/0");
        let answer = hooks().cluster(cluster_request(cluster, &[backend(upstream)]));
        let read = cluster_json(&answer.message);
        let options = &read["typedExtensionProtocolOptions"];
        let options = options.as_object().unwrap().values().next().unwrap();
        assert_eq!(
            options["explicitHttpConfig"],
            json!({ "http2ProtocolOptions": {} })
        );
        if let Some(tls) = read.get("transportSocket") {
            let context = &tls["typedConfig"]["commonTlsContext"];
            assert_eq!(context["alpnProtocols"], json!(["h2"]));
        }
    }
}

#[test]
fn a_cluster_that_cannot_be_filled_comes_back_untouched() {
    let foreign = json!({
        "apiVersion": "example.com/v1",
        "kind": "Bucket",
        "metadata": { "name": "bucket" },
    });
    let bad = backend(json!({ "protocol": "UDP", "targets": [{ "host": "10.0.0.1", "port": 1 }] }));
    let ours = backend(upstream());
    let eds = || eds_cluster("httproute/default/web/rule/0").of_the_future();
    let fixed = draft().bytes(1, "fixed").number(2, 0).bytes(33, draft());
    let table = [
        (eds(), vec![], None),
        (eds(), vec![foreign.clone()], None),
        (eds(), vec![ours.clone(), ours.clone()], Some("2 backends")),
        (eds(), vec![ours.clone(), foreign], Some("2 backends")),
        (eds(), vec![bad], Some("UDP")),
        (fixed, vec![ours.clone()], Some("is not one to be filled")),
        (
            draft().bytes(4_242, [0xff]),
            vec![ours],
            Some("is not one to be filled"),
        ),
    ];
    for (cluster, backends, why) in table {
        let request = cluster_request(cluster, &backends);
        let answer = hooks().cluster(request.clone());
        assert_eq!(answer.message, request.cluster);
        let told = answer.told.untouched.map(|why| why.to_string());
        match why {
            None => assert_eq!(told, None),
            Some(why) => assert!(told.as_ref().is_some_and(|t| t.contains(why)), "{told:?}"),
        }
    }
}
