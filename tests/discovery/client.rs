//! The pod's side, as the program makes it.

use super::scene::{
    DEADLINE, Road, TOKEN, Way, World, authority, logged, other, pod_state, snapshot, until_link,
    until_snapshot, web, with_endpoints, within,
};
use std::time::{Duration, SystemTime};
use tailway::discovery::{
    AuthError, ClientTiming, Link, PodState, Refusal, authority::SecretData, subscribe,
};
use tracing::Level;

#[tokio::test]
async fn what_is_published_arrives_and_the_answers_go_back() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    assert_eq!(*pod.link().borrow(), Link::Connected);
    pod.applied(&received.version);
    world.until_pods(&[pod_state(&received.version)]).await;

    let second = with_endpoints(&first, "app", &[3, 4]);
    world.publish(&[&second]);
    let next = until_snapshot(&pod, &second).await;
    assert_ne!(next.version, received.version);
    pod.refused(&next.version, "port 443 is taken");
    let refused = PodState {
        refused: Some(Refusal {
            version: next.version.clone(),
            reason: "port 443 is taken".into(),
        }),
        ..pod_state(&received.version)
    };
    world.until_pods(&[refused]).await;
    drop(pod);
    world.until_pods(&[]).await;
}

#[tokio::test]
async fn a_snapshot_outlives_its_controller_and_is_not_sent_again() {
    let world = World::new();
    let server = world.serve().await;
    let road = Road::new(Way::To(server.address)).await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(road.address).await;
    let received = until_snapshot(&pod, &first).await;
    pod.applied(&received.version);
    world.until_pods(&[pod_state(&received.version)]).await;

    road.lead(Way::Closed);
    drop(server);
    until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    let mut snapshots = pod.snapshots();
    let kept = snapshots.borrow_and_update().clone().unwrap();
    assert_eq!(*kept.snapshot, first);

    let server = world.serve().await;
    road.lead(Way::To(server.address));
    until_link(&pod, |link| *link == Link::Connected).await;
    // The answer that was given is given again, as this is another server for all that is known.
    world.until_pods(&[pod_state(&received.version)]).await;
    assert!(!snapshots.has_changed().unwrap());
    let full = world.metric("tailway_discovery_pushes_total{kind=\"full\"}");
    assert_eq!(full, Some("1".into()));
    let second = with_endpoints(&first, "app", &[3]);
    world.publish(&[&second]);
    until_snapshot(&pod, &second).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_given_up() {
    let world = World::new();
    let server = world.serve().await;
    let road = Road::new(Way::To(server.address)).await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut settings = world.client_settings(road.address);
    settings.timing.keepalive = Duration::from_millis(100);
    settings.timing.connect = Duration::from_secs(1);
    let pod = subscribe(settings, world.metrics.clone()).await;
    until_snapshot(&pod, &first).await;
    road.lead(Way::Frozen);
    until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    let second = with_endpoints(&first, "app", &[3]);
    world.publish(&[&second]);
    road.lead(Way::To(server.address));
    until_snapshot(&pod, &second).await;
}

#[tokio::test]
async fn a_refused_token_is_told_and_a_better_one_is_read_when_it_is_there() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    world.write("token", "forged");
    let pod = world.pod(server.address).await;
    let lost = until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    assert_eq!(
        lost,
        Link::Lost("the token is not valid: nobody knows it (Unauthenticated)".into())
    );
    // As kubelet writes it, and with the line's end of an editor.
    world.write("token", format!("{TOKEN}\n"));
    until_snapshot(&pod, &first).await;
}

#[tokio::test]
async fn a_pod_that_asks_for_another_gateway_is_given_nothing() {
    let world = World::new();
    let server = world.serve().await;
    let mut foreign = snapshot();
    foreign.gateway = other();
    world.publish(&[&foreign]);
    let mut settings = world.client_settings(server.address);
    settings.gateway = other();
    let pod = subscribe(settings, world.metrics.clone()).await;
    let lost = until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    assert_eq!(
        lost,
        Link::Lost(
            "the token is of a pod of Gateway default/web, not of default/other (PermissionDenied)"
                .into()
        )
    );
    assert!(pod.snapshots().borrow().is_none());
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let world = World::new();
    let server = world.serve().await;
    for (file, message) in [
        ("token", "No such file or directory (os error 2)"),
        ("ca.crt", "No such file or directory (os error 2)"),
    ] {
        let world = World::new();
        std::fs::remove_file(world.path(file)).unwrap();
        let pod = world.pod(server.address).await;
        let lost = until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
        let path = world.path(file).display().to_string();
        assert_eq!(
            lost,
            Link::Lost(format!("{path} cannot be read: {message}"))
        );
    }
}

#[tokio::test]
async fn a_gateway_without_a_snapshot_is_waited_for_and_the_reason_is_known() {
    let world = World::new();
    let server = world.serve().await;
    let pod = world.pod(server.address).await;
    let waiting = until_link(&pod, |link| matches!(link, Link::Waiting(_))).await;
    assert_eq!(
        waiting,
        Link::Waiting("there is no snapshot of Gateway default/web: it is not accepted, or the controller has just started".into())
    );
    let first = snapshot();
    world.publish(&[&first]);
    let received = until_snapshot(&pod, &first).await;
    assert_eq!(*pod.link().borrow(), Link::Connected);
    pod.applied(&received.version);
    // One that is withdrawn is served on.
    world.publish(&[]);
    until_link(&pod, |link| matches!(link, Link::Waiting(_))).await;
    let snapshots = pod.snapshots();
    assert_eq!(*snapshots.borrow().as_ref().unwrap().snapshot, first);
}

#[tokio::test]
async fn a_server_with_a_certificate_of_a_strange_ca_is_told_nothing() {
    let world = World::new();
    let stranger = authority(&SecretData::new(), SystemTime::now());
    let server = world.serve_as(&stranger.certificate).await;
    world.publish(&[&snapshot()]);
    let pod = world.pod(server.address).await;
    let lost = until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    assert_eq!(
        lost,
        Link::Lost("transport error: invalid peer certificate: UnknownIssuer".into())
    );
}

#[tokio::test]
async fn a_ca_is_rotated_under_a_live_stream_and_trusted_on_the_next() {
    let day = |day: u32| SystemTime::now() - Duration::from_secs(3600) * 24 * (320 - day);
    let mut world = World::new();
    // 310 days later there is a successor; a week after that it signs. Today is day 320.
    let first = authority(&SecretData::new(), day(0));
    let overlap = authority(&first.data, day(310));
    let rotated = authority(&overlap.data, day(320));
    assert!(
        rotated
            .changes
            .contains(&"signs with the next CA from now on")
    );
    world.write("ca.crt", &first.bundle);
    world.authority = overlap;

    let server = world.serve().await;
    let road = Road::new(Way::To(server.address)).await;
    let one = snapshot();
    world.publish(&[&one]);
    let pod = world.pod(road.address).await;
    let received = until_snapshot(&pod, &one).await;
    pod.applied(&received.version);

    server.identity.replace(&rotated.certificate);
    let two = with_endpoints(&one, "app", &[3]);
    world.publish(&[&two]);
    let received = until_snapshot(&pod, &two).await;
    pod.applied(&received.version);
    assert_eq!(*pod.link().borrow(), Link::Connected);

    // A pod that has not seen the new bundle cannot come back, until it sees it.
    road.lead(Way::Closed);
    until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    road.lead(Way::To(server.address));
    let unknown = "transport error: invalid peer certificate: UnknownIssuer";
    until_link(&pod, |link| *link == Link::Lost(unknown.into())).await;
    world.write("ca.crt", &world.authority.bundle);
    until_link(&pod, |link| *link == Link::Connected).await;
    let three = with_endpoints(&one, "app", &[4]);
    world.publish(&[&three]);
    until_snapshot(&pod, &three).await;
}

#[tokio::test]
async fn a_pod_whose_token_expires_comes_back_with_the_next_one() {
    let mut world = World::new();
    world.settings.recheck = Duration::from_millis(20);
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    pod.applied(&received.version);
    world.tokens.set("token-2", Ok(web()));
    world.write("token", "token-2");
    let expired = AuthError::Invalid("it has expired".into());
    world.tokens.set(TOKEN, Err(expired));
    let second = with_endpoints(&first, "app", &[3]);
    until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    world.publish(&[&second]);
    until_snapshot(&pod, &second).await;
}

#[tokio::test(start_paused = true)]
async fn an_absent_controller_is_tried_ever_more_rarely() {
    let world = World::new();
    let mut settings = world.client_settings("127.0.0.1:1".parse().unwrap());
    // Told apart by what it says, without a network whose time does not stand still.
    std::fs::remove_file(&settings.token).unwrap();
    settings.timing = ClientTiming::default();
    let pod = subscribe(settings, world.metrics.clone()).await;
    let mut link = pod.link();
    let started = tokio::time::Instant::now();
    let mut tries = 0;
    let counted = tokio::time::timeout(Duration::from_secs(3600), async {
        loop {
            link.changed().await.unwrap();
            tries += 1;
        }
    });
    assert!(counted.await.is_err());
    assert!(started.elapsed() <= DEADLINE + Duration::from_secs(3600));
    // Half of a minute on average, after the first few.
    assert!((60..=200).contains(&tries), "{tries}");
}

#[test]
fn how_it_stands_with_the_controller_is_logged_when_it_changes_only() {
    let name =
        "discovery::client::how_it_stands_with_the_controller_is_logged_when_it_changes_only";
    let Some(text) = logged(name, Level::INFO, go_and_come_twice) else {
        return;
    };
    let said = |line: &str| {
        let (_, said) = line.split_once("tailway::discovery::client: ")?;
        Some(
            said.split_once(" e")
                .map_or(said, |(said, _)| said)
                .to_owned(),
        )
    };
    let lines: Vec<_> = text.lines().filter_map(said).collect();
    let (lost, found) = (
        "cannot follow the controller; trying again",
        "following the controller",
    );
    assert_eq!(lines, [lost, found, lost, found], "{text}");
}

async fn go_and_come_twice() {
    let world = World::new();
    let server = world.serve().await;
    world.publish(&[&snapshot()]);
    let road = Road::new(Way::Closed).await;
    let pod = world.pod(road.address).await;
    let mut link = pod.link();
    for _ in 0..2 {
        for _ in 0..5 {
            within(link.changed()).await.unwrap();
            assert!(matches!(&*link.borrow_and_update(), Link::Lost(_)));
        }
        road.lead(Way::To(server.address));
        until_link(&pod, |link| *link == Link::Connected).await;
        link.mark_unchanged();
        road.lead(Way::Closed);
    }
}
