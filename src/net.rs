//! The network that a listener lives on: the tailnet or the host.
//!
//! The data plane is generic over [`Network`], so that the same code serves both. A connection
//! arrives as an [`Accepted`] before any of its bytes were moved; the proxy then either opens it
//! as a stream or splices it to a backend, whichever the network does best.

pub mod host;
mod outbound;
mod packets;
pub mod pod;
pub mod relay;
pub mod tailnet;

pub use outbound::Outbound;

use crate::{model::Identity, tailnet::Node};
use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Source and destination of a connection or a datagram, as the network sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A place where listeners can be bound.
pub trait Network: Clone + Send + Sync + 'static {
    type Listener: Listener;
    type Datagrams: Datagrams;

    /// Listens on `port` of every address of the network.
    ///
    /// `admission` is asked before a handshake is answered where the network can (the tailnet),
    /// else right after it (the host).
    fn bind(
        &self,
        port: u16,
        admission: Arc<dyn Admission>,
    ) -> impl Future<Output = Result<Self::Listener, BindError>> + Send;

    /// Receives datagrams on `port` of every address of the network, also of those that it gets
    /// later.
    fn bind_datagrams(
        &self,
        port: u16,
    ) -> impl Future<Output = Result<Self::Datagrams, BindError>> + Send;

    /// The node by which those of a tailnet are reached; `None`: they are not.
    fn node(&self) -> Option<&Node> {
        None
    }
}

/// Says whether a connection may come in. Must not block.
pub trait Admission: Send + Sync + 'static {
    fn admit(&self, flow: &Flow) -> bool;
}

/// A bound port. Dropping it refuses further connections; open ones go on.
pub trait Listener: Send + 'static {
    type Accepted: Accepted;

    /// The address it is bound to; the port is the one asked for on a tailnet, and may be another
    /// on the host, where port 0 lets the system choose.
    fn address(&self) -> SocketAddr;

    /// Waits for the next connection; `None` once the network is gone. Cancel-safe.
    fn accept(&mut self) -> impl Future<Output = Option<Self::Accepted>> + Send;
}

/// A bound port of UDP. It is free once this and its replies are dropped.
pub trait Datagrams: Send + 'static {
    type Replies: Replies;

    /// The address it is bound to, as [`Listener::address`].
    fn address(&self) -> SocketAddr;

    /// What answers are sent by.
    fn replies(&self) -> Arc<Self::Replies>;

    /// Waits for the next datagram: its payload, in `buffer`, and who asked whom. Cancel-safe.
    /// A buffer of [`relay::BUFFER`] bytes holds any.
    ///
    /// # Errors
    /// `UnexpectedEof` once the network is gone.
    fn receive<'b>(
        &mut self,
        buffer: &'b mut [u8],
    ) -> impl Future<Output = io::Result<(&'b [u8], Flow)>> + Send;
}

/// Sends answers to datagrams.
pub trait Replies: Send + Sync + 'static {
    /// Sends a payload to the source of a flow, from the flow's destination.
    fn send(&self, payload: &[u8], flow: &Flow) -> impl Future<Output = io::Result<()>> + Send;

    /// Who a peer is; `None` where the network does not know.
    fn identity(&self, peer: IpAddr) -> Option<Arc<Identity>>;
}

/// A connection that was accepted and not yet used. Dropping it resets it.
pub trait Accepted: Send + 'static {
    type Stream: Stream;

    fn flow(&self) -> Flow;

    /// Who the peer is; `None` where the network does not know.
    fn identity(&self) -> Option<Arc<Identity>>;

    /// Opens it as a stream of bytes.
    fn open(self) -> io::Result<Self::Stream>;

    /// Copies both ways between it and `backend` until both ended, carrying half-close and
    /// resets. Dropping the future resets both.
    fn splice(
        self,
        backend: Outbound,
        options: SpliceOptions,
    ) -> impl Future<Output = Transfer> + Send;

    /// Resets it.
    fn reset(self);
}

/// An open connection. `poll_shutdown` is a half-close; dropping it without one resets it when
/// bytes are unread and closes it otherwise.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Resets it instead of closing it, at the latest when it is dropped.
    fn reset(&self);

    /// Whether the end of the bytes read was a reset by the peer and no orderly end.
    fn was_reset(&self) -> bool;
}

/// How [`Accepted::splice`] copies.
#[derive(Clone, Debug, Default)]
pub struct SpliceOptions {
    /// Written to the backend before anything else, and not counted.
    pub prefix: Vec<u8>,
    /// Ends the connection when no byte moved either way for so long.
    pub idle_timeout: Option<Duration>,
    /// Where bytes are counted while they move.
    pub progress: Arc<Progress>,
}

/// Bytes moved so far, readable at any time.
#[derive(Debug, Default)]
pub struct Progress {
    /// From the peer to the backend.
    pub received: std::sync::atomic::AtomicU64,
    /// From the backend to the peer.
    pub sent: std::sync::atomic::AtomicU64,
}

/// What a finished connection moved, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes from the peer to the backend.
    pub received: u64,
    /// Bytes from the backend to the peer.
    pub sent: u64,
    pub end: End,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both sides finished.
    Eof,
    /// The peer reset it or vanished.
    PeerReset,
    /// The backend reset it or vanished.
    BackendReset,
    /// Nothing moved for the idle timeout.
    Idle,
    /// This process ended it: drain deadline, or the node was closed.
    Aborted,
}

/// Why a port could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("port {0} is already in use by this node")]
    InUse(u16),
    #[error("cannot listen on port {port}: {error}")]
    Io { port: u16, error: io::Error },
    #[error("cannot listen on port {port}: {error}")]
    Tailnet {
        port: u16,
        error: crate::tailnet::Error,
    },
}

// === impl End ===

impl End {
    /// A label for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::PeerReset => "peer_reset",
            Self::BackendReset => "backend_reset",
            Self::Idle => "idle_timeout",
            Self::Aborted => "aborted",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<F: Fn(&Flow) -> bool + Send + Sync + 'static> Admission for F {
    fn admit(&self, flow: &Flow) -> bool {
        self(flow)
    }
}
