//! Auth keys: asked for by a node without identity, given once, shown nowhere.

use super::scene::{
    KEY, Played, Road, TOKEN, Way, World, snapshot, until_link, until_snapshot, web, within,
};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tailway::discovery::{
    KeyError, Link,
    proto::{AuthKey, KeyRefused, NeedKey, from_pod, to_pod},
};

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

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// One thread: the subscriber is that of the thread, and everything runs on it.
#[tokio::test]
async fn neither_key_nor_token_is_in_any_log_line_or_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    let key = within(pod.need_key()).await.unwrap();
    pod.applied(&received.version);
    let shown = format!("{key:?} {received:?} {pod:?} {:?}", world.publisher);
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("auth key given to the pod"), "{logged}");
    for secret in [KEY, TOKEN] {
        assert!(!shown.contains(secret), "{shown}");
        let line = logged.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}
