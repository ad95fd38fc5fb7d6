//! A stream whose bytes are read in large pieces, and whose first ones can be read twice.

use super::hello::{Hello, HelloParser, MAX_HELLO};
use crate::net::relay::{BUFFER, Buffer};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads large pieces from a stream for a reader that asks for small ones: rustls reads 4 KiB at
/// a time, which is four system calls for a record. It has a buffer only while that holds bytes.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    stream: S,
    /// The buffer, and where its unread bytes start and end.
    ahead: Option<(Buffer, usize, usize)>,
}

const _: () = assert!(MAX_HELLO <= BUFFER, "a hello is read again from one buffer");

impl<S> ReadAhead<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            ahead: None,
        }
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Reads the hello of a client, before anything else is read. All that was read is read again
    /// by who reads next.
    ///
    /// # Errors
    /// `InvalidData` when it is no hello, or when it is larger than [`MAX_HELLO`].
    pub(super) async fn hello(&mut self) -> io::Result<Hello> {
        let mut parser = HelloParser::default();
        let mut bytes = Vec::new();
        let parsed = loop {
            if self.read_more(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match parser.advance(&bytes) {
                Ok(None) => {}
                Ok(Some(hello)) => break hello,
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        };
        let mut buffer = Buffer::take();
        buffer.bytes()[..bytes.len()].copy_from_slice(&bytes);
        self.ahead = Some((buffer, 0, bytes.len()));
        Ok(parsed)
    }

    /// Takes a buffer no sooner than there is something for it: slow hellos hold but their bytes.
    async fn read_more(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|context| {
            let mut buffer = Buffer::take();
            let room = MAX_HELLO - bytes.len();
            let mut slice = ReadBuf::new(&mut buffer.bytes()[..room]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut slice))?;
            bytes.extend_from_slice(slice.filled());
            Poll::Ready(Ok(slice.filled().len()))
        })
        .await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_none() {
            if out.remaining() >= BUFFER {
                return Pin::new(&mut this.stream).poll_read(context, out);
            }
            let mut buffer = Buffer::take();
            let mut slice = ReadBuf::new(buffer.bytes());
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut slice))?;
            let length = slice.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.ahead = Some((buffer, 0, length));
        }
        if let Some((buffer, start, end)) = &mut this.ahead {
            let taken = out.remaining().min(*end - *start);
            out.put_slice(&buffer.bytes()[*start..*start + taken]);
            *start += taken;
            if start == end {
                this.ahead = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
