use super::*;
use crate::{
    api::Object,
    index::{Index, Key},
    model::Authorities,
};
use serde_json::{Value, json};

const NAME: &str = "example";

/// What is read of a TailscaleEndpoints with this spec, and this status, besides a ConfigMap `ca`.
fn read(spec: &Value, status: &Value) -> Reading {
    let mut index = Index::default();
    let object = |value: Value| serde_json::from_value(value).unwrap();
    let map = json!({"metadata": {"name": "ca", "namespace": "x"}, "data": {"ca.crt": pem()}});
    let endpoints = json!({
        "metadata": {"name": NAME, "namespace": "x", "generation": 3},
        "spec": spec,
        "status": status,
    });
    let endpoints = Object::Endpoints(Box::new(serde_json::from_value(endpoints).unwrap()));
    let name = Key::of(&endpoints).name;
    index.apply(endpoints);
    index.apply(Object::ConfigMap(object(map)));
    Reading::clone(&index.subjects().readings[&name])
}

fn pem() -> &'static str {
    static PEM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PEM.get_or_init(|| {
        let issued = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        issued.cert.pem()
    })
}

fn one(endpoint: Value) -> Reading {
    let mut whole = json!({"name": "web", "port": 80});
    whole
        .as_object_mut()
        .unwrap()
        .extend(endpoint.as_object().unwrap().clone());
    read(&json!({"endpoints": [whole]}), &Value::Null)
}

fn place(endpoint: Value) -> Place {
    let reading = one(endpoint);
    assert_eq!(reading.wrong, []);
    reading.places.into_iter().next().unwrap()
}

/// What keeps an endpoint from being used.
fn refused(endpoint: Value) -> String {
    let reading = one(endpoint);
    assert_eq!(reading.places, []);
    assert!(reading.wrong[0].is_fatal);
    reading.wrong[0].finding.message.clone()
}

#[test]
fn a_target_is_outside_the_tailnet_or_in_it_and_a_name_goes_before_an_address() {
    let named = |name: &str, port| Endpoint::Name(name.into(), port);
    let tailnet = |host: &str| Endpoint::Tailnet(host.into(), 80);
    let ip = |ip: &str, port| Endpoint::Address(ip.parse().unwrap(), port);
    for (spec, target, host, authority) in [
        (
            json!({"externalTarget": "Example.com:80"}),
            named("example.com", 80),
            "example.com",
            "example.com",
        ),
        (
            json!({"externalTarget": "my_db.example.com.:5432"}),
            named("my_db.example.com", 5432),
            "my_db.example.com",
            "my_db.example.com:5432",
        ),
        (
            json!({"externalTarget": "192.0.2.1:8080"}),
            ip("192.0.2.1", 8080),
            "192.0.2.1",
            "192.0.2.1:8080",
        ),
        (
            json!({"externalTarget": "[2001:db8::1]:80"}),
            ip("2001:db8::1", 80),
            "2001:db8::1",
            "[2001:db8::1]",
        ),
        (
            json!({"externalTarget": "a.example:1", "tailscaleFQDN": "b"}),
            named("a.example", 1),
            "a.example",
            "a.example:1",
        ),
        (
            json!({"tailscaleFQDN": "Web.Tail.ts.net."}),
            tailnet("web.tail.ts.net"),
            "web.tail.ts.net",
            "web.tail.ts.net",
        ),
        (
            json!({"tailscaleFQDN": "svc:db"}),
            tailnet("svc:db"),
            "db",
            "db",
        ),
        (
            json!({"tailscaleFQDN": "web", "tailscaleIP": "100.64.0.7"}),
            tailnet("web"),
            "web",
            "web",
        ),
        (
            json!({"tailscaleIP": "100.127.255.254"}),
            tailnet("100.127.255.254"),
            "100.127.255.254",
            "100.127.255.254",
        ),
        (
            json!({"tailscaleIP": "fd7a:115c:a1e0::7"}),
            tailnet("fd7a:115c:a1e0::7"),
            "fd7a:115c:a1e0::7",
            "[fd7a:115c:a1e0::7]",
        ),
    ] {
        let place = place(spec.clone());
        assert_eq!(place.target, target, "{spec}");
        assert_eq!(place.host, host, "{spec}");
        assert_eq!(place.authority(), authority, "{spec}");
    }
}

#[test]
fn a_target_that_cannot_be_is_told_with_the_fix() {
    for (spec, message) in [
        (
            json!({"externalTarget": "example.com"}),
            "write example.com:443",
        ),
        (
            json!({"externalTarget": "example.com:0"}),
            "is no host:port",
        ),
        (
            json!({"externalTarget": "example.com:70000"}),
            "is no host:port",
        ),
        (
            json!({"externalTarget": "2001:db8::1:80"}),
            "is no host:port",
        ),
        (json!({"externalTarget": "300.1.1.1:80"}), "is no host:port"),
        (json!({"externalTarget": "[::1:80"}), "is no host:port"),
        (
            json!({"tailscaleFQDN": "a..b"}),
            "names neither a device nor a service",
        ),
        (
            json!({"tailscaleFQDN": "svc:"}),
            "names neither a device nor a service",
        ),
        (json!({"tailscaleIP": "web"}), "is no IP address"),
        (json!({"tailscaleIP": "10.0.0.1"}), "set externalTarget"),
        (json!({"tailscaleIP": "100.128.0.0"}), "set externalTarget"),
        (json!({}), "say where it is"),
        (json!({"port": 0, "tailscaleFQDN": "a"}), "0 is no port"),
        (json!({"weight": 101, "tailscaleFQDN": "a"}), "weight 101"),
    ] {
        let told = refused(spec.clone());
        assert!(told.contains(message), "{spec}: {told}");
    }
}

#[test]
fn https_is_checked_for_the_host_of_the_target_or_as_tls_says() {
    let tls = |spec: Value| {
        let mut whole = json!({"protocol": "HTTPS", "externalTarget": "api.example.com:443"});
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        place(whole).tls
    };
    let checked = |hostname: &str, trust| {
        Some(BackendTls {
            hostname: hostname.into(),
            trust,
            names: Vec::new(),
            certificate: None,
        })
    };
    assert_eq!(tls(json!({})), checked("api.example.com", Trust::System));
    let own =
        json!({"tls": {"serverName": "Other.example.com", "caCertificateRef": {"name": "ca"}}});
    let authorities = Authorities::from_pem(pem().as_bytes()).unwrap();
    assert_eq!(
        tls(own),
        checked("other.example.com", Trust::Authorities(authorities.clone()))
    );
    assert_eq!(
        Authorities::from_pem(authorities.to_pem().as_bytes()),
        Ok(authorities)
    );
    let anybody = json!({"tls": {"insecureSkipVerify": true}});
    assert_eq!(tls(anybody), checked("api.example.com", Trust::Anybody));
    assert_eq!(tls(json!({"protocol": "TCP"})), None);
    assert_eq!(
        tls(json!({"protocol": "TCP", "tls": {}})),
        checked("api.example.com", Trust::System)
    );
    for (spec, message) in [
        (
            json!({"protocol": "HTTP", "tls": {}}),
            "tls is for protocol HTTPS or TCP",
        ),
        (
            json!({"tls": {"caCertificateRef": {"name": "gone"}}}),
            "there is no ConfigMap x/gone",
        ),
        (
            json!({"tls": {"caCertificateRef": {"name": "ca"}, "insecureSkipVerify": true}}),
            "leave caCertificateRef out",
        ),
        (
            json!({"externalTarget": "a_b.example.com:443", "tls": {"serverName": "a b"}}),
            "set tls.serverName",
        ),
    ] {
        let mut whole = json!({"protocol": "HTTPS", "externalTarget": "api.example.com:443"});
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let told = refused(whole);
        assert!(told.contains(message), "{spec}: {told}");
    }
}

#[test]
fn a_check_is_made_as_the_protocol_says_and_one_that_is_wrong_leaves_the_endpoint_in_use() {
    let seconds = Duration::from_secs;
    let check = |protocol: &str, check: Value| {
        place(json!({"protocol": protocol, "tailscaleFQDN": "web", "healthCheck": check})).check
    };
    let defaults = |probe| {
        Some(HealthCheck {
            probe,
            interval: seconds(10),
            timeout: seconds(3),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        })
    };
    let get = |path: &str| Probe::Http {
        path: path.into(),
        host: "web".into(),
    };
    assert_eq!(check("HTTP", json!({})), defaults(get("/health")));
    assert_eq!(check("TCP", json!({})), defaults(Probe::Tcp));
    assert_eq!(check("UDP", json!({})), defaults(Probe::Udp));
    assert_eq!(check("HTTP", json!({"enabled": false})), None);
    let own = json!({
        "path": "/a?b=c",
        "interval": "1m30s",
        "timeout": "250ms",
        "healthyThreshold": 1,
        "unhealthyThreshold": 10,
    });
    let expected = HealthCheck {
        probe: get("/a?b=c"),
        interval: seconds(90),
        timeout: Duration::from_millis(250),
        healthy_threshold: 1,
        unhealthy_threshold: 10,
    };
    assert_eq!(check("HTTP", own), Some(expected));
    for (spec, message) in [
        (json!({"interval": "1d"}), "interval: \"1d\" is no duration"),
        (
            json!({"interval": "1ms", "timeout": "1ms"}),
            "below the least",
        ),
        (json!({"timeout": "11s"}), "at most the interval, 10s"),
        (json!({"timeout": "0s"}), "not above 0"),
        (
            json!({"healthyThreshold": 0}),
            "healthyThreshold is not from 1 to 10",
        ),
        (
            json!({"unhealthyThreshold": 11}),
            "unhealthyThreshold is not from 1 to 10",
        ),
        (json!({"path": "health"}), "begin it with a slash"),
        (json!({"path": "/a b"}), "write spaces as %20"),
    ] {
        let reading = one(json!({"tailscaleFQDN": "web", "healthCheck": spec}));
        assert_eq!(reading.places[0].check, None, "{spec}");
        let wrong = &reading.wrong[0];
        assert!(!wrong.is_fatal);
        let told = &wrong.finding.message;
        assert!(told.contains(message), "{spec}: {told}");
        assert!(told.ends_with("it is not checked"), "{told}");
    }
}

#[test]
fn discovered_endpoints_join_those_of_the_spec_which_win_and_a_bad_one_hurts_nobody() {
    let spec = json!({
        "autoDiscovery": {"enabled": true},
        "endpoints": [
            {"name": "web", "port": 80, "tailscaleFQDN": "mine"},
            {"name": "bad", "port": 80, "externalTarget": "nothing"},
            {"name": "web", "port": 81, "tailscaleFQDN": "again"},
        ],
    });
    let status = json!({"endpointStatus": [
        {"name": "web", "port": 80, "discoverySource": "AutoDiscovery", "tailscaleFQDN": "found"},
        {"name": "bad", "port": 80, "discoverySource": "Manual"},
        {
            "name": "api",
            "port": 443,
            "protocol": "HTTPS",
            "discoverySource": "VIPService",
            "tailscaleFQDN": "svc:api",
            "tailscaleIP": "100.100.1.2",
            "tags": ["tag:api"],
        },
        {"name": "old", "port": 1, "discoverySource": "Manual", "tailscaleIP": "100.100.1.3"},
    ]});
    let reading = read(&spec, &status);
    assert_eq!(reading.generation, 3);
    let places: Vec<_> = reading
        .places
        .iter()
        .map(|place| (place.name.as_str(), place.target.to_string(), place.source))
        .collect();
    let expected = [
        (
            "api",
            "tailnet:svc:api:443".to_owned(),
            DiscoverySource::VipService,
        ),
        ("web", "tailnet:mine:80".to_owned(), DiscoverySource::Manual),
    ];
    assert_eq!(places, expected);
    let wrong: Vec<_> = reading
        .wrong
        .iter()
        .map(|wrong| wrong.endpoint.as_str())
        .collect();
    assert_eq!(wrong, ["bad", "web"]);
    assert_eq!(
        reading.names().collect::<BTreeSet<_>>(),
        ["api", "bad", "web"].into()
    );
    // Nothing is looked for any more.
    let mut stopped = spec;
    stopped["autoDiscovery"]["enabled"] = json!(false);
    assert_eq!(read(&stopped, &status).places.len(), 1);
}

#[test]
fn what_is_local_to_a_host_is_known() {
    for (target, local) in [
        ("127.0.0.1:80", true),
        ("[::ffff:127.0.0.1]:80", true),
        ("[::1]:80", true),
        ("0.0.0.0:80", true),
        ("169.254.169.254:80", true),
        ("[fe80::1]:80", true),
        ("localhost:80", true),
        ("10.0.0.1:80", false),
        ("example.com:80", false),
    ] {
        assert_eq!(
            place(json!({"externalTarget": target})).is_local(),
            local,
            "{target}"
        );
    }
}
