//! The controller's side, against pods that the test plays message by message.

use super::scene::{
    OTHER_TOKEN, Played, TOKEN, World, brings, other, pod_state, snapshot, subscription_of,
    trusting, web, with_endpoints, within,
};
use crate::proxy::scene::{certificate, handshake, read_all, tcp_port, tls_port};
use std::time::Duration;
use tailway::{
    discovery::{
        AuthError, PodState, Refusal,
        proto::{FromPod, Waiting, to_pod},
    },
    model::{Backend, Endpoint},
};
use tonic::Code;

#[tokio::test]
async fn everything_is_sent_first_and_then_only_what_changed() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let push = pod.push().await;
    assert!(push.full);
    assert_eq!(
        brings(&push),
        [
            "backend/default/api:80",
            "backend/default/app:80",
            "certificate",
            "gateway",
            "port/443",
        ]
    );
    assert_eq!(push.removed, Vec::<String>::new());
    let certificate_id = push.upserted[2].id.clone();
    pod.ack(&push).await;

    // Endpoints bring their backend, and no certificate.
    let mut changed = with_endpoints(&first, "app", &[3, 4]);
    world.publish(&[&changed]);
    let push = pod.push().await;
    assert!(!push.full);
    assert_eq!(brings(&push), ["backend/default/app:80"]);
    assert_eq!(push.removed, Vec::<String>::new());
    pod.ack(&push).await;

    // Nor does a generation, or a port.
    changed.generation = 2;
    changed.ports.insert(80, tcp_port());
    world.publish(&[&changed]);
    let push = pod.push().await;
    assert_eq!(brings(&push), ["gateway", "port/80"]);
    pod.ack(&push).await;

    // A renewed certificate comes with the port that names it, and the old one goes.
    let renewed = certificate(&["web.example.com"]);
    changed.ports.insert(443, tls_port(&renewed));
    changed.backends.pop_first();
    world.publish(&[&changed]);
    let push = pod.push().await;
    assert_eq!(brings(&push), ["certificate", "port/443"]);
    assert_eq!(push.removed, ["backend/default/api:80", &certificate_id]);
    assert_eq!(
        world.metric("tailway_discovery_pushes_total{kind=\"full\"}"),
        Some("1".into())
    );
    assert_eq!(
        world.metric("tailway_discovery_pushes_total{kind=\"delta\"}"),
        Some("3".into())
    );
}

#[tokio::test]
async fn a_pod_that_holds_a_part_is_sent_the_rest() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let all = Played::web(&world, &server).await.push().await;

    let mut same = Played::holding(&world, &server, &all.upserted).await;
    let push = same.push().await;
    assert!(!push.full);
    assert_eq!(brings(&push), Vec::<&str>::new());
    assert_eq!(push.removed, Vec::<String>::new());
    assert_eq!(push.version, all.version);

    let mut held = all.upserted.clone();
    held[0].id = "backend/default/gone:80".into();
    held[1].hash = vec![0];
    let mut stale = Played::holding(&world, &server, &held).await;
    let push = stale.push().await;
    assert!(!push.full);
    assert_eq!(
        brings(&push),
        ["backend/default/api:80", "backend/default/app:80"]
    );
    assert_eq!(push.removed, ["backend/default/gone:80"]);
}

#[tokio::test]
async fn what_changes_while_a_push_is_unanswered_is_one_push() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let unanswered = pod.push().await;
    // Another pod of the Gateway answers, and is told each change.
    let mut quick = Played::web(&world, &server).await;
    let mut told = quick.push().await;
    quick.ack(&told).await;
    let mut last = first.clone();
    for port in 10..15 {
        last = with_endpoints(&last, "app", &[port]);
        last.generation += 1;
        world.publish(&[&last]);
        told = quick.push().await;
        quick.ack(&told).await;
    }
    pod.ack(&unanswered).await;
    let push = pod.push().await;
    assert_eq!(push.version, told.version);
    assert_eq!(brings(&push), ["backend/default/app:80", "gateway"]);
    pod.ack(&push).await;
    let both = [pod_state(&push.version), pod_state(&push.version)];
    world.until_pods(&both).await;
}

#[tokio::test]
async fn a_pod_that_never_answers_gets_newer_snapshots_all_the_same() {
    let mut world = World::new();
    world.settings.answer = Duration::from_millis(20);
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    pod.push().await;
    world.publish(&[&with_endpoints(&first, "app", &[3])]);
    assert_eq!(brings(&pod.push().await), ["backend/default/app:80"]);
}

#[tokio::test]
async fn what_pods_answer_is_known() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let good = pod.push().await;
    world.until_pods(&[pod_state("")]).await;
    pod.ack(&good).await;
    world.until_pods(&[pod_state(&good.version)]).await;
    world.publish(&[&with_endpoints(&first, "app", &[3])]);
    let bad = pod.push().await;
    pod.nack(&bad, "port 443 is taken").await;
    let refused = PodState {
        refused: Some(Refusal {
            version: bad.version.clone(),
            reason: "port 443 is taken".into(),
        }),
        ..pod_state(&good.version)
    };
    world.until_pods(&[refused]).await;
    for (start, value) in [
        ("tailway_discovery_answers_total{answer=\"ack\"}", "1"),
        ("tailway_discovery_answers_total{answer=\"nack\"}", "1"),
        (
            "tailway_discovery_answer_time_seconds_count{answer=\"ack\"}",
            "1",
        ),
        ("tailway_discovery_pods{}", "1"),
    ] {
        assert_eq!(world.metric(start), Some(value.into()), "{start}");
    }
    // The next one follows on what was refused.
    world.publish(&[&first]);
    let back = pod.push().await;
    assert_eq!(brings(&back), ["backend/default/app:80"]);
    assert_eq!(back.version, good.version);
    pod.ack(&back).await;
    world.until_pods(&[pod_state(&good.version)]).await;
    drop(pod);
    world.until_pods(&[]).await;
}

#[tokio::test]
async fn only_a_pod_of_the_gateway_is_given_its_snapshot() {
    let world = World::new();
    let server = world.serve().await;
    world.publish(&[&snapshot()]);
    let bearer = |token: &str| format!("Bearer {token}");
    for (authorization, code, message) in [
        (None, Code::Unauthenticated, "a bearer token is needed"),
        (
            Some("Basic abc".to_owned()),
            Code::Unauthenticated,
            "a bearer token is needed",
        ),
        (
            Some(bearer("forged")),
            Code::Unauthenticated,
            "the token is not valid: nobody knows it",
        ),
        (
            Some(bearer(OTHER_TOKEN)),
            Code::PermissionDenied,
            "the token is of a pod of Gateway default/other, not of default/web",
        ),
    ] {
        let asked = subscription_of(&web());
        let refused = Played::connect(&world, &server, authorization.as_deref(), asked).await;
        let status = refused.err().unwrap();
        assert_eq!((status.code(), status.message()), (code, message));
    }
    let unavailable = AuthError::Unavailable("it is away".into());
    world.tokens.set(TOKEN, Err(unavailable));
    let asked = subscription_of(&web());
    let refused = Played::connect(&world, &server, Some(&bearer(TOKEN)), asked).await;
    assert_eq!(refused.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_token_that_loses_its_right_ends_the_stream_and_an_api_server_that_is_away_does_not() {
    let mut world = World::new();
    world.settings.recheck = Duration::from_millis(20);
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let push = pod.push().await;
    pod.ack(&push).await;

    let away = AuthError::Unavailable("it is away".into());
    world.tokens.set(TOKEN, Err(away));
    world.tokens.until_asked(3).await;
    world.publish(&[&with_endpoints(&first, "app", &[3])]);
    let push = pod.push().await;
    pod.ack(&push).await;

    let expired = AuthError::Invalid("it has expired".into());
    world.tokens.set(TOKEN, Err(expired));
    let status = pod.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::Unauthenticated,
            "the token is not valid: it has expired"
        )
    );
}

#[tokio::test]
async fn a_gateway_without_a_snapshot_is_waited_for() {
    let world = World::new();
    let server = world.serve().await;
    let mut pod = Played::web(&world, &server).await;
    let waiting = || {
        let message = "there is no snapshot of Gateway default/web: it is not accepted, or the controller has just started";
        to_pod::Message::Waiting(Waiting {
            message: message.into(),
        })
    };
    assert_eq!(pod.next().await, waiting());
    let first = snapshot();
    let mut neighbour = first.clone();
    neighbour.gateway = other();
    world.publish(&[&first, &neighbour]);
    let push = pod.push().await;
    assert!(push.full);
    pod.ack(&push).await;
    world.publish(&[&neighbour]);
    assert_eq!(pod.next().await, waiting());
    world.publish(&[&first]);
    let push = pod.push().await;
    assert_eq!(brings(&push), Vec::<&str>::new());
}

#[tokio::test]
async fn a_pod_that_reads_nothing_holds_up_no_other() {
    let mut world = World::new();
    world.settings.answer = Duration::from_millis(1);
    let server = world.serve().await;
    // More than the windows of HTTP/2 and the kernel's buffers take.
    let mut large = snapshot();
    let name = "x".repeat(250);
    let endpoint = |port| Endpoint::Name(format!("{name}.{port}"), port);
    let endpoints: Vec<_> = (0..60_000).map(endpoint).collect();
    for backend in large.backends.values_mut() {
        *backend = Backend {
            endpoints: endpoints.clone(),
        };
    }
    let mut small = snapshot();
    small.gateway = other();
    world.publish(&[&large, &small]);
    let slow = Played::web(&world, &server).await;
    let bearer = format!("Bearer {OTHER_TOKEN}");
    let mut quick = Played::connect(&world, &server, Some(&bearer), subscription_of(&other()))
        .await
        .unwrap();
    let push = quick.push().await;
    quick.ack(&push).await;
    for port in 1000..1050 {
        small = with_endpoints(&small, "app", &[port]);
        large = with_endpoints(&large, "app", &[port]);
        world.publish(&[&large, &small]);
        let push = quick.push().await;
        assert_eq!(brings(&push), ["backend/default/app:80"]);
        quick.ack(&push).await;
    }
    // It was sent once, and has room for no more.
    let pushes = |kind: &str| {
        let start = format!("tailway_discovery_pushes_total{{kind=\"{kind}\"}}");
        world.metric(&start).unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(pushes("full"), 2);
    assert!((50..=52).contains(&pushes("delta")), "{}", pushes("delta"));
    drop(slow);
}

#[tokio::test]
async fn a_gateway_has_few_streams() {
    let mut world = World::new();
    world.settings.streams_per_gateway = 2;
    let server = world.serve().await;
    world.publish(&[&snapshot()]);
    let _first = Played::web(&world, &server).await;
    let second = Played::web(&world, &server).await;
    let bearer = format!("Bearer {TOKEN}");
    let third = || Played::connect(&world, &server, Some(&bearer), subscription_of(&web()));
    let status = third().await.err().unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::ResourceExhausted,
            "Gateway default/web is followed by too many pods already"
        )
    );
    drop(second);
    world.until_pods(&[pod_state("")]).await;
    assert!(third().await.is_ok());
}

#[tokio::test]
async fn a_connection_without_a_good_token_does_not_stay() {
    let mut world = World::new();
    world.settings.admission = Duration::from_millis(200);
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let push = pod.push().await;
    pod.ack(&push).await;
    let mut idle = handshake(server.address, &trusting(&world.authority), "127.0.0.1")
        .await
        .unwrap();
    // Whichever way it ends.
    let _ = read_all(&mut idle).await;
    // The pod, which is older, stays.
    world.publish(&[&with_endpoints(&first, "app", &[3])]);
    pod.push().await;
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_ends() {
    let world = World::new();
    let server = world.serve().await;
    world.publish(&[&snapshot()]);
    let mut pod = Played::web(&world, &server).await;
    pod.push().await;
    server.drain.stop();
    let status = pod.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "the controller stops; connect again")
    );
    drop(pod);
    within(server.task).await.unwrap();
    assert!(
        tokio::net::TcpStream::connect(server.address)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn what_a_server_does_not_know_is_passed_over() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let push = pod.push().await;
    let empty = FromPod { message: None };
    within(pod.outbound.send(empty)).await.unwrap();
    pod.ack(&push).await;
    world.publish(&[&with_endpoints(&first, "app", &[9])]);
    assert_eq!(brings(&pod.push().await), ["backend/default/app:80"]);
}
