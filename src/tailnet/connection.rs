use super::{
    Error, Node,
    ffi::{ConnHandle, ConnStats, RawFlow},
};
use crate::model::Identity;
use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// A connection that no byte was read from or written to yet. Dropping it resets it.
#[derive(Debug)]
pub struct Pending {
    handle: ConnHandle,
    flow: RawFlow,
    node: Node,
}

/// An open connection. Shutting it down is a half-close; dropping it with bytes unread resets it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    handle: ConnHandle,
}

/// How [`Pending::splice`] copies.
#[derive(Clone, Debug, Default)]
pub struct Splice {
    /// Written to the backend first.
    pub prefix: Vec<u8>,
    pub idle_timeout: Option<Duration>,
}

/// What a spliced connection moved, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Bytes from the peer.
    pub received: u64,
    /// Bytes to the peer.
    pub sent: u64,
    pub reason: EndReason,
}

/// `TAILSCALE_END_*` of tailscale.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    Open,
    Eof,
    PeerReset,
    LocalReset,
    Aborted,
    Idle,
    NodeClosed,
}

/// How often the bytes of a running splice are read: soon at first, then ever more rarely while
/// nothing moves, so that idle connections cost nothing.
const PROGRESS_FIRST: Duration = Duration::from_secs(2);
const PROGRESS_LAST: Duration = Duration::from_secs(64);

// === impl Pending ===

impl Pending {
    pub(super) fn new(handle: ConnHandle, flow: RawFlow, node: Node) -> Self {
        Self { handle, flow, node }
    }

    pub fn source(&self) -> SocketAddr {
        self.flow.source
    }

    pub fn destination(&self) -> SocketAddr {
        self.flow.destination
    }

    /// Who the peer is.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.node.identity(self.flow.source.ip(), self.flow.peer)
    }

    /// Opens it as a stream.
    ///
    /// # Errors
    /// When the peer is gone or the process has no file descriptor left.
    pub fn open(self) -> io::Result<Connection> {
        let fd = self.handle.open().map_err(io::Error::other)?;
        let stream = UnixStream::from_std(fd.into())?;
        Ok(Connection {
            stream,
            handle: self.handle,
        })
    }

    /// Lets the library copy between it and `backend` until both ended; `progress` is told the
    /// bytes (from, to the peer) now and then. Dropping the future resets both.
    ///
    /// # Errors
    /// When the library refuses, or the node was closed.
    pub async fn splice(
        self,
        backend: TcpStream,
        options: &Splice,
        progress: impl Fn(u64, u64) + Send,
    ) -> Result<Ended, Error> {
        let socket = backend
            .into_std()
            .map_err(|error| Error::Engine(error.to_string()))?;
        let guard = AbortOnDrop(Some(self.handle));
        let Some(handle) = &guard.0 else {
            return Err(Error::Closed);
        };
        let mut done = handle.splice(socket.into(), &options.prefix, options.idle_timeout)?;
        let mut interval = PROGRESS_FIRST;
        let mut before = (0, 0);
        let stats = loop {
            match tokio::time::timeout(interval, &mut done).await {
                Ok(stats) => break stats?,
                Err(_) => {
                    let stats = handle.stats();
                    let now = (stats.received, stats.sent);
                    progress(now.0, now.1);
                    interval = if now == before {
                        (interval * 2).min(PROGRESS_LAST)
                    } else {
                        PROGRESS_FIRST
                    };
                    before = now;
                }
            }
        };
        guard.disarm();
        let ended = Ended::of(&stats);
        progress(ended.received, ended.sent);
        Ok(ended)
    }

    /// Resets it.
    pub fn reset(self) {
        self.handle.abort();
    }
}

/// Ends a splice whose future was dropped.
struct AbortOnDrop(Option<ConnHandle>);

impl AbortOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

// === impl Ended ===

impl Ended {
    fn of(stats: &ConnStats) -> Self {
        Self {
            received: stats.received,
            sent: stats.sent,
            reason: EndReason::of(stats),
        }
    }
}

impl EndReason {
    fn of(stats: &ConnStats) -> Self {
        match stats.end {
            0 => Self::Open,
            1 => Self::Eof,
            2 => Self::PeerReset,
            3 => Self::LocalReset,
            5 => Self::Idle,
            6 => Self::NodeClosed,
            _ => Self::Aborted,
        }
    }
}

// === impl Connection ===

impl Connection {
    /// Resets it instead of closing it.
    pub fn reset(&self) {
        self.handle.abort();
    }

    /// How it ended, if it has. Known before a read shows the end.
    pub fn end(&self) -> EndReason {
        EndReason::of(&self.handle.stats())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
