//! Auth keys: asked for by a node without identity, given once, shown nowhere.

use super::scene::{
    KEY, Played, Road, TOKEN, Way, World, logged, pod_state, snapshot, until_link, until_snapshot,
    web, with_endpoints, within,
};
use std::time::Duration;
use tailway::discovery::{
    KeyError, Link,
    proto::{AuthKey, KeyRefused, NeedKey, from_pod, to_pod},
};
use tracing::Level;

#[tokio::test]
async fn a_key_is_minted_when_it_is_asked_for_and_once_a_minute() {
    let world = World::new();
    let server = world.serve().await;
    world.publish(&[&snapshot()]);
    let mut pod = Played::web(&world, &server).await;
    pod.push().await;
    pod.send(from_pod::Message::NeedKey(NeedKey {})).await;
    let key = to_pod::Message::AuthKey(AuthKey { key: KEY.into() });
    assert_eq!(pod.next().await, key);
    // Another stream of the same Gateway has no other turn.
    let mut again = Played::web(&world, &server).await;
    again.push().await;
    for pod in [&mut pod, &mut again] {
        pod.send(from_pod::Message::NeedKey(NeedKey {})).await;
        let to_pod::Message::KeyRefused(refused) = pod.next().await else {
            panic!("a key");
        };
        assert_eq!(refused.message, "the last one was given a moment ago");
        assert!(
            (1..=60).contains(&refused.retry_after_seconds),
            "{refused:?}"
        );
    }
    assert_eq!(*world.mint.asked.lock().unwrap(), [web()]);
    for (start, value) in [
        ("tailway_discovery_keys_total{answer=\"minted\"}", "1"),
        ("tailway_discovery_keys_total{answer=\"refused\"}", "2"),
    ] {
        assert_eq!(world.metric(start), Some(value.into()), "{start}");
    }
}

#[tokio::test]
async fn who_asks_twice_is_answered_once_and_its_snapshots_do_not_wait() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let mut pod = Played::web(&world, &server).await;
    let push = pod.push().await;
    let busy = world.mint.busy.lock().await;
    for _ in 0..2 {
        pod.send(from_pod::Message::NeedKey(NeedKey {})).await;
    }
    pod.ack(&push).await;
    for port in 3..5 {
        world.publish(&[&with_endpoints(&first, "app", &[port])]);
        let push = pod.push().await;
        pod.ack(&push).await;
    }
    drop(busy);
    let key = to_pod::Message::AuthKey(AuthKey { key: KEY.into() });
    assert_eq!(pod.next().await, key);
    world.publish(&[&first]);
    pod.push().await;
    assert_eq!(*world.mint.asked.lock().unwrap(), [web()]);
}

#[tokio::test]
async fn a_failure_is_told_to_the_pod() {
    let world = World::new();
    let server = world.serve().await;
    let message = "the OAuth client lacks the scope auth_keys: add it";
    *world.mint.failure.lock().unwrap() = Some(message.into());
    let mut played = Played::web(&world, &server).await;
    assert!(matches!(played.next().await, to_pod::Message::Waiting(_)));
    played.send(from_pod::Message::NeedKey(NeedKey {})).await;
    let refused = KeyRefused {
        message: message.into(),
        retry_after_seconds: 16,
    };
    assert_eq!(played.next().await, to_pod::Message::KeyRefused(refused));

    let world = World::new();
    let server = world.serve().await;
    *world.mint.failure.lock().unwrap() = Some(message.into());
    let pod = world.pod(server.address).await;
    let error = within(pod.need_key()).await.unwrap_err();
    assert_eq!(
        error,
        KeyError::Refused {
            message: message.into(),
            retry_after: Duration::from_secs(16),
        }
    );
}

#[tokio::test]
async fn a_key_reaches_the_one_who_asked_also_when_the_controller_comes_later() {
    let world = World::new();
    let road = Road::new(Way::Closed).await;
    let pod = world.pod(road.address).await;
    let asking = pod.need_key();
    tokio::pin!(asking);
    tokio::select! {
        _ = &mut asking => panic!("a key from nowhere"),
        _ = until_link(&pod, |link| matches!(link, Link::Lost(_))) => {}
    }
    let server = world.serve().await;
    road.lead(Way::To(server.address));
    let key = within(asking).await.unwrap();
    assert_eq!(key.as_bytes(), KEY.as_bytes());
    assert_eq!(*world.mint.asked.lock().unwrap(), [web()]);
}

#[tokio::test]
async fn a_question_that_was_taken_back_costs_no_key() {
    let world = World::new();
    let road = Road::new(Way::Closed).await;
    let pod = world.pod(road.address).await;
    {
        let asking = pod.need_key();
        tokio::pin!(asking);
        tokio::select! {
            _ = &mut asking => panic!("a key from nowhere"),
            _ = until_link(&pod, |link| matches!(link, Link::Lost(_))) => {}
        }
    }
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    road.lead(Way::To(server.address));
    until_snapshot(&pod, &first).await;
    assert!(world.mint.asked.lock().unwrap().is_empty());
}

#[test]
fn neither_key_nor_token_is_in_any_log_line_or_debug_output() {
    let name = "discovery::keys::neither_key_nor_token_is_in_any_log_line_or_debug_output";
    let Some(text) = logged(name, Level::TRACE, show_everything) else {
        return;
    };
    for expected in ["auth key given to the pod", "TRACE", "Secret(redacted)"] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    for secret in [KEY, TOKEN] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

async fn show_everything() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    let key = within(pod.need_key()).await.unwrap();
    assert_eq!(key.as_bytes(), KEY.as_bytes());
    pod.applied(&received.version);
    world.until_pods(&[pod_state(&received.version)]).await;
    tracing::info!(?key, ?received, ?pod, publisher = ?world.publisher, authority = ?world.authority);
}
