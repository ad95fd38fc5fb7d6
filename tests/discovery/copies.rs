//! The copy of the last snapshot on a pod's disk.

use super::scene::{
    KEY, World, other, pod_state, snapshot, until_link, until_snapshot, with_endpoints, within,
};
use std::{os::unix::fs::PermissionsExt, time::Duration};
use tailway::{
    discovery::{Link, Received, Subscription, proto, subscribe},
    model::Snapshot,
};

/// A server nobody listens at: the port is held, so that it stays nobody's.
fn nowhere() -> (socket2::Socket, std::net::SocketAddr) {
    crate::proxy::scene::dead()
}

fn now(subscription: &Subscription) -> Option<Received> {
    subscription.snapshots().borrow().clone()
}

/// A world whose pod served this and has ended.
async fn served(world: &World, snapshot: &Snapshot) -> String {
    let server = world.serve().await;
    world.publish(&[snapshot]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, snapshot).await;
    pod.applied(&received.version);
    until_copy(world).await;
    drop(pod);
    world.until_pods(&[]).await;
    received.version
}

async fn until_copy(world: &World) {
    within(async {
        while !world.path("copy").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_pod_starts_with_what_it_served_last_and_no_controller() {
    let world = World::new();
    let first = snapshot();
    let version = served(&world, &first).await;
    let (_held, address) = nowhere();
    let pod = world.pod(address).await;
    let received = now(&pod).unwrap();
    assert_eq!(received.version, version);
    assert_eq!(*received.snapshot, first);
    until_link(&pod, |link| matches!(link, Link::Lost(_))).await;
    assert_eq!(now(&pod).unwrap().version, version);
}

#[tokio::test]
async fn a_pod_that_starts_with_its_copy_is_sent_only_what_changed() {
    let world = World::new();
    let first = snapshot();
    let version = served(&world, &first).await;
    let server = world.serve().await;
    let pod = world.pod(server.address).await;
    assert_eq!(now(&pod).unwrap().version, version);
    pod.applied(&version);
    world.until_pods(&[pod_state(&version)]).await;
    let full = world.metric("tailway_discovery_pushes_total{kind=\"full\"}");
    assert_eq!(full, Some("1".into()));
    let second = with_endpoints(&first, "app", &[3]);
    world.publish(&[&second]);
    until_snapshot(&pod, &second).await;
}

#[tokio::test]
async fn a_copy_of_another_version_of_the_program_is_served_but_not_built_upon() {
    use prost::Message;
    let world = World::new();
    let first = snapshot();
    let version = served(&world, &first).await;
    let bytes = std::fs::read(world.path("copy")).unwrap();
    let start = b"tailway snapshot 1\n".len();
    let mut copy = proto::Copy::decode(&bytes[start + 32..]).unwrap();
    copy.program_version = "0.0.1".into();
    let body = copy.encode_to_vec();
    let checksum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &body);
    world.write("copy", [&bytes[..start], checksum.as_ref(), &body].concat());
    let server = world.serve().await;
    let pod = world.pod(server.address).await;
    assert_eq!(now(&pod).unwrap().version, version);
    pod.applied(&version);
    world.until_pods(&[pod_state(&version)]).await;
    let full = world.metric("tailway_discovery_pushes_total{kind=\"full\"}");
    assert_eq!(full, Some("2".into()));
}

#[tokio::test]
async fn a_copy_that_is_torn_or_foreign_is_passed_over() {
    let world = World::new();
    served(&world, &snapshot()).await;
    let whole = std::fs::read(world.path("copy")).unwrap();
    let (_held, address) = nowhere();
    let mut broken: Vec<Vec<u8>> = [0, 5, 18, 19, 40, 51, 100, whole.len() - 1]
        .iter()
        .map(|&length| whole[..length].to_vec())
        .collect();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    broken.push(flipped);
    let mut later = whole.clone();
    later[17] = b'2';
    broken.push(later);
    broken.push([whole.as_slice(), b"more"].concat());
    broken.push(b"something else altogether, and longer than a header and a checksum".to_vec());
    for bytes in broken {
        world.write("copy", &bytes);
        let pod = world.pod(address).await;
        assert!(now(&pod).is_none(), "{} bytes", bytes.len());
    }
    // Nor is one of another Gateway, a directory, or one that is not there.
    world.write("copy", &whole);
    let mut settings = world.client_settings(address);
    settings.gateway = other();
    let pod = subscribe(settings, world.metrics.clone()).await;
    assert!(now(&pod).is_none());
    std::fs::remove_file(world.path("copy")).unwrap();
    assert!(now(&world.pod(address).await).is_none());
    std::fs::create_dir(world.path("copy")).unwrap();
    assert!(now(&world.pod(address).await).is_none());
}

#[tokio::test]
async fn a_pod_with_a_torn_copy_gets_another_one() {
    let world = World::new();
    world.write("copy", "torn");
    world.write("copy.new", "left by a crash");
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    pod.applied(&received.version);
    within(async {
        while !std::fs::read(world.path("copy"))
            .unwrap()
            .starts_with(b"tailway snapshot 1\n")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!world.path("copy.new").exists());
}

#[tokio::test]
async fn only_the_pod_reads_its_copy_and_no_auth_key_is_in_it() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    let pod = world.pod(server.address).await;
    let received = until_snapshot(&pod, &first).await;
    assert_eq!(
        within(pod.need_key()).await.unwrap().as_bytes(),
        KEY.as_bytes()
    );
    pod.applied(&received.version);
    until_copy(&world).await;
    let mode = world.path("copy").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bytes = std::fs::read(world.path("copy")).unwrap();
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("default"));
    assert!(!holds(KEY));
    let stamp = "tailway_discovery_copy_written_timestamp_seconds{gateway=\"default/web\"}";
    within(async {
        while world.metric(stamp).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_the_data_plane_refuses_is_not_kept() {
    let world = World::new();
    let first = snapshot();
    let version = served(&world, &first).await;
    let server = world.serve().await;
    let pod = world.pod(server.address).await;
    let second = with_endpoints(&first, "app", &[3]);
    world.publish(&[&second]);
    let refused = until_snapshot(&pod, &second).await;
    pod.refused(&refused.version, "no");
    // Once the answer is known, what was to be written has been.
    within(async {
        while world.publisher.pods(&first.gateway)[0].refused.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(pod);
    let (_held, address) = nowhere();
    let pod = world.pod(address).await;
    assert_eq!(now(&pod).unwrap().version, version);
}

#[tokio::test]
async fn a_copy_that_cannot_be_written_keeps_nobody_from_serving() {
    let world = World::new();
    let server = world.serve().await;
    let first = snapshot();
    world.publish(&[&first]);
    for copy in ["no/such/directory/copy", "directory"] {
        std::fs::create_dir_all(world.path("directory/full")).unwrap();
        let mut settings = world.client_settings(server.address);
        settings.copy = world.path(copy);
        let pod = subscribe(settings, world.metrics.clone()).await;
        let received = until_snapshot(&pod, &first).await;
        pod.applied(&received.version);
        world.until_pods(&[pod_state(&received.version)]).await;
        drop(pod);
        world.until_pods(&[]).await;
    }
    // Nor does it leave anything behind.
    within(async {
        while world.path("directory.new").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
