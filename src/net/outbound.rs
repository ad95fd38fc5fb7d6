//! Connections that this process makes: from a socket of this host, or from a node into its tailnet.

use super::{
    End, SpliceOptions, Transfer,
    host::{close_in_order, reset_on_close},
    relay::copy_both,
};
use crate::tailnet::{Connection, EndReason};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

/// A connection to a backend.
#[derive(Debug)]
pub enum Outbound {
    Host(TcpStream),
    // In a box, so that the others cost no more than a socket.
    Tailnet(Box<IntoTailnet>),
}

/// A connection of a node to somebody in its tailnet. What the other side reset ends with an error,
/// as it does with sockets.
#[derive(Debug)]
pub struct IntoTailnet {
    connection: Connection,
    /// Whether dropping it is a reset.
    resets: AtomicBool,
}

/// Copies both ways between a peer and its backend until both ended. Unless they ended in order,
/// both are reset, also when the future is dropped.
pub(super) async fn copy(
    mut peer: Outbound,
    mut backend: Outbound,
    options: SpliceOptions,
) -> Transfer {
    peer.reset_on_close();
    backend.reset_on_close();
    let progress = &options.progress;
    let end = match backend.write_all(&options.prefix).await {
        Ok(()) => copy_both(&mut peer, &mut backend, options.idle_timeout, progress).await,
        Err(_) => End::BackendReset,
    };
    if end == End::Eof {
        peer.close_in_order();
        backend.close_in_order();
    }
    Transfer {
        received: progress.received.load(Ordering::Relaxed),
        sent: progress.sent.load(Ordering::Relaxed),
        end,
    }
}

// === impl Outbound ===

impl Outbound {
    /// One of a node.
    pub fn tailnet(connection: Connection) -> Self {
        Self::Tailnet(Box::new(IntoTailnet {
            connection,
            resets: AtomicBool::new(false),
        }))
    }

    /// Makes dropping it a reset.
    pub fn reset_on_close(&self) {
        match self {
            Self::Host(stream) => reset_on_close(stream),
            Self::Tailnet(stream) => stream.resets.store(true, Ordering::Relaxed),
        }
    }

    /// Undoes [`Outbound::reset_on_close`].
    pub fn close_in_order(&self) {
        match self {
            Self::Host(stream) => close_in_order(stream),
            Self::Tailnet(stream) => stream.resets.store(false, Ordering::Relaxed),
        }
    }

    /// Sends what is written at once, without waiting for more.
    pub fn set_nodelay(&self) {
        if let Self::Host(stream) = self {
            // One that refuses is gone, which the next write tells.
            let _ = stream.set_nodelay(true);
        }
    }
}

impl Drop for IntoTailnet {
    fn drop(&mut self) {
        if self.resets.load(Ordering::Relaxed) {
            self.connection.reset();
        }
    }
}

impl AsyncRead for Outbound {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tailnet(stream) => {
                let before = buffer.filled().len();
                let has_room = buffer.remaining() > 0;
                ready!(Pin::new(&mut stream.connection).poll_read(context, buffer))?;
                let ended = has_room && buffer.filled().len() == before;
                if ended && stream.connection.end() == EndReason::PeerReset {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Outbound {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tailnet(stream) => Pin::new(&mut stream.connection).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tailnet(stream) => {
                Pin::new(&mut stream.connection).poll_write_vectored(context, slices)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Host(stream) => stream.is_write_vectored(),
            Self::Tailnet(stream) => stream.connection.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_flush(context),
            Self::Tailnet(stream) => Pin::new(&mut stream.connection).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tailnet(stream) => Pin::new(&mut stream.connection).poll_shutdown(context),
        }
    }
}
