//! The controller's side: who may follow which Gateway.

use super::{
    keys::{KeyMinter, Keys},
    listener::{Bounds, Connection, Listener, Peer, ServerIdentity},
    proto::{
        self,
        discovery_server::{Discovery, DiscoveryServer},
        from_pod,
    },
    publisher::{PodState, Publisher},
    stream, wire,
};
use crate::{drain::Drain, metrics::Metrics, model::ObjectName, tailnet::Secret};
use std::{convert::Infallible, fmt, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tonic::{
    Request, Response, Status, Streaming, codegen::tokio_stream::wrappers::ReceiverStream,
    metadata::MetadataMap,
};

/// Who knows the tokens of pods.
pub trait Authenticator: Send + Sync + 'static {
    /// The Gateway whose Snapshot the bearer of this token may read.
    fn authenticate(
        &self,
        token: &str,
    ) -> impl Future<Output = Result<ObjectName, AuthError>> + Send;
}

/// Why a token opens nothing. The messages never hold the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the token is not valid: {0}")]
    Invalid(String),
    #[error("the token is of no Gateway's pod: {0}")]
    Stranger(String),
    #[error("the token cannot be checked now: {0}")]
    Unavailable(String),
}

/// How patient the server is, and with how many.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Open connections; more wait until one closes.
    pub connections: usize,
    /// How long a connection may stay on which nobody has shown a good token.
    pub admission: Duration,
    /// Streams of one Gateway, more than one only while a pod replaces another, or of one egress,
    /// which has up to 16 pods.
    pub streams_per_gateway: usize,
    /// How often HTTP/2 asks a quiet client whether it is there, and how long the answer may take.
    pub keepalive: Duration,
    /// How often the token of an open stream is checked.
    pub recheck: Duration,
    /// How long newer Snapshots wait for the answer to the one that was sent.
    pub answer: Duration,
    /// How long clients may take to leave when the server stops.
    pub farewell: Duration,
}

/// Serves the Snapshots of a [`Publisher`] to the pods of their Gateways.
pub struct Server<A, K> {
    shared: Arc<Shared<A, K>>,
}

/// What all streams share.
pub(super) struct Shared<A, K> {
    pub(super) publisher: Publisher,
    pub(super) authenticator: A,
    pub(super) minter: K,
    pub(super) keys: Keys,
    pub(super) metrics: Metrics,
    pub(super) settings: ServerSettings,
}

/// A client says within this time what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Of one message from a pod: 10,000 resources that it holds have room.
const MAX_MESSAGE: usize = 2 << 20;

/// Streams of one connection: a pod has one.
const STREAMS_PER_CONNECTION: u32 = 4;

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            connections: 4096,
            admission: Duration::from_secs(30),
            streams_per_gateway: 32,
            keepalive: Duration::from_secs(20),
            recheck: Duration::from_secs(300),
            answer: Duration::from_secs(10),
            farewell: Duration::from_secs(5),
        }
    }
}

// === impl Server ===

impl<A: Authenticator, K: KeyMinter> Server<A, K> {
    pub fn new(
        publisher: Publisher,
        authenticator: A,
        minter: K,
        metrics: Metrics,
        settings: ServerSettings,
    ) -> Self {
        let shared = Shared {
            publisher,
            authenticator,
            minter,
            keys: Keys::default(),
            metrics,
            settings,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves until the drain stops; pods are then told to connect elsewhere.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve(
        self,
        listener: Listener,
        identity: Arc<ServerIdentity>,
        drain: Drain,
    ) -> Result<(), ServeError> {
        let settings = &self.shared.settings;
        let (keepalive, farewell) = (settings.keepalive, settings.farewell);
        let bounds = Bounds {
            connections: settings.connections,
            admission: settings.admission,
        };
        let incoming = listener.accept(identity, bounds, drain.clone())?;
        let service = Service {
            shared: self.shared,
            drain: drain.clone(),
        };
        let stopping = drain.clone();
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(keepalive))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .serve_with_incoming_shutdown(
                DiscoveryServer::new(service)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(usize::MAX),
                ReceiverStream::<Result<Connection, Infallible>>::new(incoming),
                async move { stopping.stopping().await },
            );
        let forced = async {
            drain.stopping().await;
            tokio::time::sleep(farewell).await;
        };
        tokio::select! {
            served = serving => Ok(served?),
            () = forced => Ok(()),
        }
    }
}

/// Why snapshots cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("TLS for the pods cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("snapshots cannot be served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl<A, K> fmt::Debug for Server<A, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("publisher", &self.shared.publisher)
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

struct Service<A, K> {
    shared: Arc<Shared<A, K>>,
    drain: Drain,
}

#[tonic::async_trait]
impl<A: Authenticator, K: KeyMinter> Discovery for Service<A, K> {
    type FollowStream = ReceiverStream<Result<proto::ToPod, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::FromPod>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let admitted = self.admit(request).await;
        match (&admitted, peer) {
            (Ok(_), Some(peer)) => peer.admit(),
            (Err(status), Some(Peer { address, .. })) => {
                let message = status.message();
                tracing::debug!(%address, code = ?status.code(), message, "a pod is not admitted");
            }
            (_, None) => {}
        }
        admitted.map(Response::new)
    }
}

impl<A: Authenticator, K: KeyMinter> Service<A, K> {
    async fn admit(
        &self,
        request: Request<Streaming<proto::FromPod>>,
    ) -> Result<ReceiverStream<Result<proto::ToPod, Status>>, Status> {
        let token = bearer(request.metadata())?;
        let gateway = self.shared.authenticate(&token).await?;
        let mut inbound = request.into_inner();
        let subscribe = first(&mut inbound).await?;
        let asked = wire::name_in(subscribe.gateway.as_ref())
            .map_err(|error| Status::invalid_argument(format!("Subscribe: {error}")))?;
        if asked != gateway {
            return Err(Status::permission_denied(format!(
                "the token is of a pod of Gateway {gateway}, not of {asked}"
            )));
        }
        let shared = &self.shared;
        let state = PodState {
            pod: stream::cut(subscribe.pod),
            program_version: stream::cut(subscribe.program_version),
            served: String::new(),
            refused: None,
        };
        let follower = shared
            .publisher
            .follow(
                &gateway,
                state,
                shared.settings.streams_per_gateway,
                &shared.metrics,
            )
            .map_err(|_| {
                Status::resource_exhausted(format!(
                    "Gateway {gateway} is followed by too many pods already"
                ))
            })?;
        let held = subscribe.held.into_iter().map(|held| (held.id, held.hash));
        // One message: what changes while it waits is told by the next.
        let (outbound, messages) = mpsc::channel(1);
        let pod = stream::Pod::new(Arc::clone(shared), gateway, token, follower, held.collect());
        tokio::spawn(pod.run(inbound, outbound, self.drain.clone()));
        Ok(ReceiverStream::new(messages))
    }
}

async fn first(inbound: &mut Streaming<proto::FromPod>) -> Result<proto::Subscribe, Status> {
    let message = tokio::time::timeout(FIRST_MESSAGE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("Subscribe did not come"))??;
    match message.and_then(|message| message.message) {
        Some(from_pod::Message::Subscribe(subscribe)) => Ok(subscribe),
        _ => Err(Status::invalid_argument("the first message is Subscribe")),
    }
}

/// The token of RFC 6750 §2.1.
fn bearer(metadata: &MetadataMap) -> Result<Secret, Status> {
    let value = metadata.get("authorization");
    let value = value.and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer "));
    match token {
        Some(token) if !token.is_empty() => Ok(Secret::new(token)),
        _ => Err(Status::unauthenticated("a bearer token is needed")),
    }
}

// === impl Shared ===

impl<A: Authenticator, K> Shared<A, K> {
    pub(super) async fn authenticate(&self, token: &Secret) -> Result<ObjectName, Status> {
        // It was made from a str.
        let token = str::from_utf8(token.as_bytes()).unwrap_or_default();
        self.authenticator
            .authenticate(token)
            .await
            .map_err(|error| {
                let message = error.to_string();
                match error {
                    AuthError::Invalid(_) => Status::unauthenticated(message),
                    AuthError::Stranger(_) => Status::permission_denied(message),
                    AuthError::Unavailable(_) => Status::unavailable(message),
                }
            })
    }
}
