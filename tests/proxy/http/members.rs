//! Backends whose endpoints have shares, TLS and checks of their own.

use super::{
    scene::{ask, below, get, rule, site, text},
    secured::{Ca, policy, secure},
};
use crate::proxy::scene::{Scene, backend_id, within};
use http::StatusCode;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tailway::model::{
    Backend, BackendTls, Endpoint, Health, HealthCheck, Member, Probe, Snapshot, Trust,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

fn at(address: SocketAddr) -> Endpoint {
    Endpoint::Address(address.ip(), address.port())
}

fn member(name: &str, endpoint: Endpoint) -> Member {
    Member {
        name: name.into(),
        endpoint,
        weight: 1,
        tls: None,
        check: None,
    }
}

/// All requests go to these.
fn to(members: Vec<Member>) -> Snapshot {
    let rules = vec![rule(vec![below("/")], "app")];
    let mut snapshot = site(&[("route", rules)], &[]);
    let backend = Backend {
        members,
        ..Backend::default()
    };
    snapshot.backends.insert(backend_id("app"), backend);
    snapshot
}

/// How often each answer came.
async fn answers(scene: &Scene, times: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let response = ask(scene, get("/")).await;
        let answer = match response.status() {
            StatusCode::OK => text(response).await,
            status => status.as_u16().to_string(),
        };
        *answers.entry(answer).or_insert(0) += 1;
    }
    answers
}

/// Answers each request with its name, or with 503 while it is not well.
async fn named(name: &'static str, is_well: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let status = match is_well.load(Ordering::Relaxed) {
                true => "200 OK",
                false => "503 Busy",
            };
            let response = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}",
                name.len()
            );
            let _ = stream.write_all(response.as_bytes()).await;
        }
    });
    address
}

fn well() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

#[tokio::test]
async fn members_get_their_shares_and_each_is_spoken_to_in_its_own_way() {
    let ca = Ca::new("ours");
    let secured = at(secure(ca.issue(|_| {}), None, &["h2", "http/1.1"]).await);
    let members = vec![
        Member {
            weight: 3,
            ..member("plain", at(named("plain", well()).await))
        },
        Member {
            tls: Some(policy(ca.trusted())),
            ..member("secured", secured)
        },
    ];
    let scene = Scene::new(&to(members)).await;
    let answers = answers(&scene, 400).await;
    let names: Vec<_> = answers.keys().map(String::as_str).collect();
    assert_eq!(names, ["h2 backend.example.com 0", "plain"]);
    let secured = answers["h2 backend.example.com 0"];
    assert!((60..=140).contains(&secured), "{answers:?}");
}

#[tokio::test]
async fn a_member_that_anybody_may_be_is_believed_whatever_it_shows() {
    let ca = Ca::new("unknown");
    let expired = ca.issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let address = secure(expired, None, &["http/1.1"]).await;
    let with = |tls: BackendTls| {
        let member = member("secured", at(address));
        to(vec![Member {
            tls: Some(tls),
            ..member
        }])
    };
    let mut named = policy(Trust::Anybody);
    named.hostname = "another.example.com".into();
    let scene = Scene::new(&with(named)).await;
    let expected = [("http/1.1 another.example.com 0".to_owned(), 1)];
    assert_eq!(answers(&scene, 1).await, expected.into());
    let scene = Scene::new(&with(policy(Trust::System))).await;
    assert_eq!(answers(&scene, 1).await, [("503".to_owned(), 1)].into());
}

#[tokio::test]
async fn a_member_whose_checks_fail_gets_nothing_until_it_is_well_and_when_all_fail_all_are_used() {
    let check = HealthCheck {
        probe: Probe::Http {
            path: "/".into(),
            host: "app".into(),
        },
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        healthy_threshold: 1,
        unhealthy_threshold: 2,
    };
    let (one, two) = (well(), well());
    let members = [("one", &one), ("two", &two)];
    let mut checked = Vec::new();
    for (name, is_well) in members {
        checked.push(Member {
            check: Some(check.clone()),
            ..member(name, at(named(name, Arc::clone(is_well)).await))
        });
    }
    let mut scene = Scene::new(&to(checked.clone())).await;
    let mut health = scene.proxy.health();
    let mut until = async |expected: [(&str, bool); 2]| {
        let expected = expected.map(|(name, is_healthy)| {
            let reason = "status 503".into();
            let health = match is_healthy {
                true => Health::Healthy,
                false => Health::Unhealthy { reason },
            };
            (name.to_owned(), health)
        });
        let expected = BTreeMap::from(expected);
        within(health.wait_for(|health| *health == expected))
            .await
            .unwrap();
    };
    until([("one", true), ("two", true)]).await;
    assert_eq!(answers(&scene, 50).await.len(), 2);
    one.store(false, Ordering::Relaxed);
    until([("one", false), ("two", true)]).await;
    assert_eq!(answers(&scene, 50).await, [("two".to_owned(), 50)].into());
    two.store(false, Ordering::Relaxed);
    until([("one", false), ("two", false)]).await;
    assert_eq!(answers(&scene, 50).await, [("503".to_owned(), 50)].into());
    one.store(true, Ordering::Relaxed);
    until([("one", true), ("two", false)]).await;
    assert_eq!(answers(&scene, 50).await, [("one".to_owned(), 50)].into());

    // What is not checked any more is used, and counted no more.
    let unchecked = checked.into_iter().map(|member| Member {
        check: None,
        ..member
    });
    scene.apply(&to(unchecked.collect())).await;
    assert_eq!(*scene.proxy.health().borrow(), BTreeMap::new());
    assert_eq!(answers(&scene, 50).await.len(), 2);
    let metrics = scene.metrics.encode();
    assert!(!metrics.contains("tailway_endpoint_healthy{"), "{metrics}");
}

#[tokio::test]
async fn what_is_in_a_tailnet_is_not_reached_where_there_is_no_node() {
    let tailnet = Endpoint::Tailnet("web".into(), 80);
    let mut members = vec![member("away", tailnet)];
    let scene = Scene::new(&to(members.clone())).await;
    assert_eq!(answers(&scene, 1).await, [("503".to_owned(), 1)].into());
    let line = "tailway_backend_errors_total{gateway=\"default/web\",backend=\"default/app:80\",reason=\"no_tailnet\"}";
    let metrics = scene.metrics.encode();
    assert!(metrics.contains(line), "{metrics}");
    // Another one of the same backend is as good.
    members.push(member("here", at(named("here", well()).await)));
    let scene = Scene::new(&to(members)).await;
    assert_eq!(answers(&scene, 5).await, [("here".to_owned(), 5)].into());
}
