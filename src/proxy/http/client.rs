//! The bytes of a client's connection, below HTTP: counted, bounded in time, and cut where what
//! they carried was.

use super::{Version, framing::Framing};
use crate::net::Progress;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A connection that can end otherwise than in order.
pub(in crate::proxy) trait Reset {
    fn reset(&self);
}

/// A client's connection. Dropping it resets it when a response was cut: an end in order would
/// make a whole of it for clients of HTTP/1.0.
#[derive(Debug)]
pub(super) struct Client<S: Reset> {
    stream: S,
    /// What was read to tell the version, until it is read again.
    ahead: Vec<u8>,
    cut: Arc<AtomicBool>,
    progress: Arc<Progress>,
    stall: Stall,
    /// Of HTTP/1.
    framing: Option<Framing>,
    /// Whether nothing that came after a head could be trusted, and was left out.
    is_spoiled: bool,
}

/// How long a client may take nothing of what is written to it.
#[derive(Debug)]
struct Stall {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// How HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What follows a spoiled head: hyper looks for an end before it looks at the rest.
const SPOILED: &[u8] = b"\r\n\r\n";

/// Reads as much as it takes to tell the version.
pub(super) async fn greet<S>(
    mut client: Client<S>,
    agreed: Version,
) -> io::Result<(Client<S>, Version)>
where
    S: AsyncRead + Reset + Unpin,
{
    if agreed == Version::Http1 {
        client.framing = Some(Framing::new());
        return Ok((client, agreed));
    }
    let mut bytes = [0; PREFACE.len()];
    let mut length = 0;
    while length < bytes.len() && PREFACE.starts_with(&bytes[..length]) {
        match client.stream.read(&mut bytes[length..]).await? {
            0 => break,
            read => length += read,
        }
    }
    client
        .progress
        .received
        .fetch_add(length as u64, Ordering::Relaxed);
    let version = match agreed {
        Version::Either if bytes == PREFACE => Version::Http2,
        Version::Either => Version::Http1,
        agreed => agreed,
    };
    if version == Version::Http1 {
        client.framing = Some(Framing::new());
        let length = client.followed_by_framing(&mut bytes[..length]);
        client.ahead.splice(..0, bytes[..length].iter().copied());
        return Ok((client, version));
    }
    client.ahead = bytes[..length].to_vec();
    Ok((client, version))
}

// === impl Client ===

impl<S: Reset> Client<S> {
    pub(super) fn new(
        stream: S,
        cut: Arc<AtomicBool>,
        progress: Arc<Progress>,
        stall: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            ahead: Vec::new(),
            cut,
            progress,
            stall: Stall {
                limit: stall,
                timer: None,
            },
            framing: None,
            is_spoiled: false,
        }
    }

    /// Spoils a head that must not be read, so that hyper refuses it as one that cannot be: how
    /// many bytes there are to read.
    fn followed_by_framing(&mut self, bytes: &mut [u8]) -> usize {
        let bad = self
            .framing
            .as_mut()
            .and_then(|framing| framing.follow(bytes));
        let Some(at) = bad else {
            return bytes.len();
        };
        bytes[at] = 0;
        self.is_spoiled = true;
        self.ahead = SPOILED.to_vec();
        at + 1
    }

    fn written(
        &mut self,
        context: &mut Context<'_>,
        sent: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = sent {
            self.progress
                .sent
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.stall.watch(context, sent)
    }
}

impl<S: Reset> Drop for Client<S> {
    fn drop(&mut self) {
        if self.cut.load(Ordering::Relaxed) {
            self.stream.reset();
        }
    }
}

impl<S: AsyncRead + Reset + Unpin> AsyncRead for Client<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let taken = buffer.remaining().min(this.ahead.len());
            buffer.put_slice(&this.ahead[..taken]);
            this.ahead.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        if this.is_spoiled {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        this.progress.received.fetch_add(read, Ordering::Relaxed);
        let length = this.followed_by_framing(&mut buffer.filled_mut()[before..]);
        buffer.set_filled(before + length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Reset + Unpin> AsyncWrite for Client<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.stall.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.stall.watch(context, shut)
    }
}

// === impl Stall ===

impl Stall {
    /// Ends what waits for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(limit) = self.limit.filter(|_| done.is_pending()) else {
            self.timer = None;
            return done;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}
