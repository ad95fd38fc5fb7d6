//! The bytes of a peer of TLS, which ends here or at the backend.

use super::{http, read_ahead::ReadAhead};
use crate::net::Stream;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{self, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

/// A peer of TLS; unless it ended in order, dropping it resets it.
pub(super) struct TlsPeer<T: Transport> {
    pub(super) stream: T,
    pub(super) server_name: String,
    pub(super) in_order: bool,
}

/// Bytes from a peer, whose end by reset is an error.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Whether it ends here, so that a backend may have one of its own.
    const ENDS_HERE: bool;

    fn reset(&self);

    /// The protocol that ALPN agreed on, where TLS ends here.
    fn protocol(&self) -> Option<&[u8]>;
}

/// TLS that ends at the backend.
pub(super) struct Passed<S>(pub(super) ReadAhead<S>);

// === impl TlsPeer ===

impl<T: Transport> http::Reset for Box<TlsPeer<T>> {
    fn reset(&self) {
        self.stream.reset();
    }
}

impl<T: Transport> Drop for TlsPeer<T> {
    fn drop(&mut self) {
        if !self.in_order {
            self.stream.reset();
        }
    }
}

impl<S: Stream> Transport for TlsStream<ReadAhead<S>> {
    const ENDS_HERE: bool = true;

    fn reset(&self) {
        self.get_ref().0.stream().reset();
    }

    fn protocol(&self) -> Option<&[u8]> {
        self.get_ref().1.alpn_protocol()
    }
}

impl<S: Stream> Transport for Passed<S> {
    const ENDS_HERE: bool = false;

    fn reset(&self) {
        self.0.stream().reset();
    }

    fn protocol(&self) -> Option<&[u8]> {
        None
    }
}

impl<T: Transport> AsyncRead for TlsPeer<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: Transport> AsyncWrite for TlsPeer<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl Passed ===

impl<S: Stream> AsyncRead for Passed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        let ended = buffer.filled().len() == before;
        // Nothing in the bytes tells here, as it does where TLS ends, that they were cut.
        if ended && self.0.stream().was_reset() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Passed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
