//! Pods of the program against a controller that the test plays message by message.

use super::scene::{Played, World, snapshot, until_snapshot, within};
use std::{collections::VecDeque, pin::Pin, sync::Mutex};
use tailway::{
    discovery::{
        Received, Subscription,
        proto::{
            Ack, FromPod, Nack, Port, Push, Resource, ToPod,
            discovery_server::{Discovery, DiscoveryServer},
            from_pod, resource, to_pod,
        },
    },
    model::Snapshot,
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    codegen::tokio_stream::{
        Stream,
        wrappers::{ReceiverStream, TcpListenerStream},
    },
    transport::{Identity, ServerTlsConfig},
};

/// Says what it is given, and passes on what it hears.
struct Script {
    /// For each stream.
    says: Mutex<VecDeque<Says>>,
    hears: mpsc::UnboundedSender<from_pod::Message>,
}

type Says = mpsc::Receiver<Result<ToPod, Status>>;

#[tonic::async_trait]
impl Discovery for Script {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<ToPod, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<FromPod>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let Some(says) = self.says.lock().unwrap().pop_front() else {
            return Err(Status::unavailable("there is no more to say"));
        };
        let hears = self.hears.clone();
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let _ = hears.send(message.message.unwrap());
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(says))))
    }
}

/// A pod that serves a good snapshot from a controller that is played.
struct Talk {
    good: Push,
    snapshot: Snapshot,
    pod: Subscription,
    say: mpsc::Sender<Result<ToPod, Status>>,
    /// On the second stream.
    _say_again: mpsc::Sender<Result<ToPod, Status>>,
    heard: mpsc::UnboundedReceiver<from_pod::Message>,
    _world: World,
    _serving: AbortOnDropHandle<()>,
}

impl Talk {
    async fn new() -> Self {
        let world = World::new();
        let snapshot = snapshot();
        world.publish(&[&snapshot]);
        let good = {
            let server = world.serve().await;
            Played::web(&world, &server).await.push().await
        };
        let ((say, first), (say_again, second)) = (mpsc::channel(4), mpsc::channel(4));
        let (hears, heard) = mpsc::unbounded_channel();
        let script = Script {
            says: Mutex::new([first, second].into()),
            hears,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = world.pod(listener.local_addr().unwrap()).await;
        let text = |key: &str| String::from_utf8(world.authority.data[key].clone()).unwrap();
        let identity = Identity::from_pem(text("tls.crt"), text("tls.key"));
        let serving = tonic::transport::Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .serve_with_incoming(
                DiscoveryServer::new(script),
                TcpListenerStream::new(listener),
            );
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        let mut talk = Self {
            good,
            snapshot,
            pod,
            say,
            _say_again: say_again,
            heard,
            _world: world,
            _serving: AbortOnDropHandle::new(serving),
        };
        assert_eq!(talk.hear_beginning().await, 0);
        talk.push(&talk.good).await;
        let received = until_snapshot(&talk.pod, &talk.snapshot).await;
        talk.pod.applied(&received.version);
        talk.expect_ack().await;
        talk
    }

    async fn say(&self, message: Result<ToPod, Status>) {
        within(self.say.send(message)).await.unwrap();
    }

    async fn push(&self, push: &Push) {
        let message = Some(to_pod::Message::Push(push.clone()));
        self.say(Ok(ToPod { message })).await;
    }

    async fn hear(&mut self) -> from_pod::Message {
        within(self.heard.recv()).await.unwrap()
    }

    /// How much is held at the beginning of a stream, which comes next.
    async fn hear_beginning(&mut self) -> usize {
        match self.hear().await {
            from_pod::Message::Subscribe(subscribe) => subscribe.held.len(),
            other => panic!("no beginning of a stream: {other:?}"),
        }
    }

    async fn expect_ack(&mut self) {
        let version = self.good.version.clone();
        let ack = from_pod::Message::Ack(Ack { version });
        assert_eq!(self.hear().await, ack);
    }

    async fn expect_nack(&mut self, version: &str, reason: &str) {
        let nack = Nack {
            version: version.into(),
            reason: reason.into(),
        };
        assert_eq!(self.hear().await, from_pod::Message::Nack(nack));
    }

    fn serves(&self) -> Snapshot {
        let received: Option<Received> = self.pod.snapshots().borrow().clone();
        Snapshot::clone(&received.unwrap().snapshot)
    }
}

/// A port of a kind that came later.
fn unknown_port() -> Push {
    let port = Port {
        number: 443,
        protocol: None,
    };
    Push {
        version: "broken".into(),
        full: false,
        upserted: vec![Resource {
            id: "port/443".into(),
            hash: vec![1],
            content: Some(resource::Content::Port(port)),
        }],
        removed: Vec::new(),
    }
}

const UNKNOWN_PORT: &str = "resource port/443: the protocol is missing, or of a kind that came after this version of tailway";

#[tokio::test]
async fn a_broken_snapshot_is_refused_and_the_last_good_one_stays() {
    let mut talk = Talk::new().await;
    talk.push(&unknown_port()).await;
    talk.expect_nack("broken", UNKNOWN_PORT).await;
    assert_eq!(talk.serves(), talk.snapshot);
    // What follows mends it.
    talk.push(&talk.good).await;
    talk.expect_ack().await;
}

#[tokio::test]
async fn on_a_broken_snapshot_no_stream_is_built() {
    let mut talk = Talk::new().await;
    talk.push(&unknown_port()).await;
    talk.expect_nack("broken", UNKNOWN_PORT).await;
    talk.say(Err(Status::unavailable("the controller stops")))
        .await;
    assert_eq!(talk.hear_beginning().await, 0);
    assert_eq!(talk.serves(), talk.snapshot);
}

#[tokio::test]
async fn a_good_snapshot_is_held_through_the_next_stream() {
    let mut talk = Talk::new().await;
    talk.say(Err(Status::unavailable("the controller stops")))
        .await;
    assert_eq!(talk.hear_beginning().await, talk.good.upserted.len());
}

#[tokio::test]
async fn the_snapshot_of_another_gateway_is_refused() {
    let mut talk = Talk::new().await;
    let mut foreign = talk.good.clone();
    foreign.version = "foreign".into();
    for resource in &mut foreign.upserted {
        if let Some(resource::Content::Gateway(gateway)) = &mut resource.content {
            gateway.name.as_mut().unwrap().name = "other".into();
        }
    }
    talk.push(&foreign).await;
    talk.expect_nack("foreign", "it is of Gateway default/other")
        .await;
    assert_eq!(talk.serves(), talk.snapshot);
}

#[tokio::test]
async fn a_message_of_a_kind_that_came_later_is_passed_over() {
    let mut talk = Talk::new().await;
    talk.say(Ok(ToPod { message: None })).await;
    talk.push(&talk.good).await;
    talk.expect_ack().await;
}
