use super::*;
use crate::model::{BackendKind, Member, ObjectName, Transport, WeightedBackend};

fn id(name: &str) -> BackendId {
    BackendId {
        kind: BackendKind::Service,
        object: ObjectName::new("default", name),
        port: 80,
        transport: Transport::Tcp,
    }
}

fn balancer(name: &str, ports: &[u16], before: Option<&Arc<Balancer>>) -> Arc<Balancer> {
    let endpoints = ports
        .iter()
        .map(|&port| Endpoint::Address([127, 0, 0, 1].into(), port))
        .collect();
    let backend = Backend::new(endpoints);
    Arc::new(made(name, &backend, before, &Checks::default()))
}

fn made(
    name: &str,
    backend: &Backend,
    before: Option<&Arc<Balancer>>,
    checks: &Checks,
) -> Balancer {
    Balancer::of(&id(name), backend, before, checks, None)
}

#[test]
fn connections_are_drawn_by_weight_and_invalid_backends_keep_their_share() {
    let backends = Backends {
        by_id: [("a", 1), ("b", 2)]
            .map(|(name, port)| (id(name), balancer(name, &[port], None)))
            .into(),
    };
    let weighted = |weight, backend: Option<&str>| WeightedBackend {
        weight,
        backend: backend.map(id),
    };
    let route = backends.route(&Forward {
        route: ObjectName::new("default", "route"),
        backends: vec![
            weighted(6, Some("a")),
            weighted(0, Some("b")),
            weighted(3, Some("b")),
            weighted(1, None),
        ],
        proxy_protocol: None,
    });
    let mut drawn = HashMap::new();
    for _ in 0..20_000 {
        *drawn
            .entry(route.draw().map_or("none", |balancer| &balancer.name))
            .or_insert(0) += 1;
    }
    for (name, expected) in [
        ("default/a:80", 12_000),
        ("default/b:80", 6_000),
        ("none", 2_000),
    ] {
        let count: i32 = drawn[name];
        assert!(
            (count - expected).abs() < 700,
            "{name}: {count}, not about {expected}"
        );
    }
}

#[test]
fn a_route_without_weight_draws_nothing() {
    let route = Backends::default().route(&Forward {
        route: ObjectName::new("default", "route"),
        backends: vec![WeightedBackend {
            weight: 0,
            backend: Some(id("a")),
        }],
        proxy_protocol: None,
    });
    assert!(route.draw().is_none());
}

#[test]
fn of_two_endpoints_the_one_with_fewer_connections_is_taken() {
    let balancer = balancer("a", &[1, 2], None);
    balancer.choices[0].tracked.open.store(5, Ordering::Relaxed);
    for _ in 0..100 {
        let picked = balancer.pick(None).unwrap();
        assert_eq!(picked.endpoint, balancer.choices[1].tracked.endpoint);
    }
}

#[test]
fn an_endpoint_that_was_not_reached_is_passed_over_while_there_are_others() {
    let balancer = balancer("a", &[1, 2], None);
    balancer.choices[0]
        .tracked
        .failed
        .store(clock(), Ordering::Relaxed);
    balancer.choices[1].tracked.open.store(5, Ordering::Relaxed);
    for _ in 0..100 {
        let picked = balancer.pick(None).unwrap();
        assert_eq!(picked.endpoint, balancer.choices[1].tracked.endpoint);
    }
    let other = balancer.pick(Some(&balancer.choices[1].tracked)).unwrap();
    assert_eq!(other.endpoint, balancer.choices[0].tracked.endpoint);
}

#[test]
fn endpoints_that_stay_keep_their_counts() {
    let before = balancer("a", &[1, 2], None);
    before.choices[1].tracked.open.store(7, Ordering::Relaxed);
    let after = balancer("a", &[2, 3], Some(&before));
    let open: Vec<_> = after
        .choices
        .iter()
        .map(|choice| choice.tracked.open.load(Ordering::Relaxed))
        .collect();
    assert_eq!(open, [7, 0]);
}

/// Members at ports of this host with these weights; the checked are named after their ports.
fn members(weighted: &[(u16, u32)]) -> Backend {
    let members = weighted.iter().map(|&(port, weight)| Member {
        name: port.to_string(),
        endpoint: Endpoint::Address([127, 0, 0, 1].into(), port),
        weight,
        tls: None,
        check: None,
    });
    Backend {
        members: members.collect(),
        ..Backend::default()
    }
}

fn drawn(balancer: &Balancer) -> HashMap<u16, i32> {
    let mut drawn = HashMap::new();
    for _ in 0..10_000 {
        let picked = balancer.pick(None).unwrap();
        *drawn.entry(picked.endpoint.port()).or_insert(0) += 1;
    }
    drawn
}

#[test]
fn members_are_drawn_by_their_shares_also_while_they_are_busy() {
    let backend = members(&[(1, 6), (2, 3), (3, 1)]);
    let balancer = Arc::new(made("a", &backend, None, &Checks::default()));
    for (port, count) in drawn(&balancer) {
        let expected = [0, 6_000, 3_000, 1_000][usize::from(port)];
        assert!((count - expected).abs() < 500, "{port}: {count}");
    }
    // Each has as many as its share, so that no count speaks for another.
    for (choice, open) in balancer.choices.iter().zip([60, 30, 10]) {
        choice.tracked.open.store(open, Ordering::Relaxed);
    }
    for (port, count) in drawn(&balancer) {
        let expected = [0, 6_000, 3_000, 1_000][usize::from(port)];
        assert!((count - expected).abs() < 500, "{port}: {count}");
    }
    let fewer = Arc::new(made(
        "a",
        &members(&[(2, 3)]),
        Some(&balancer),
        &Checks::default(),
    ));
    assert_eq!(fewer.choices[0].tracked.open.load(Ordering::Relaxed), 30);
}

#[test]
fn the_unhealthy_are_left_out_unless_all_are() {
    let checks = Checks::for_tests(["1", "2"]);
    let balancer = made("a", &members(&[(1, 1), (2, 1), (3, 1)]), None, &checks);
    let ports = |balancer: &Balancer| {
        let mut ports: Vec<_> = drawn(balancer).into_keys().collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(&balancer), [1, 2, 3]);
    checks.tell("1", false);
    assert_eq!(ports(&balancer), [2, 3]);
    checks.tell("2", false);
    assert_eq!(ports(&balancer), [3]);
    checks.tell("1", true);
    assert_eq!(ports(&balancer), [1, 3]);
    let balancer = made("a", &members(&[(2, 1)]), None, &checks);
    assert_eq!(ports(&balancer), [2]);
}
