//! Copying between two streams, for networks that have no splice of their own and for TLS.
//!
//! One task serves both directions. A buffer is taken from the thread's pool only while bytes are
//! in flight, so that an idle connection holds none.

use super::{End, Progress};
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// What one read moves at most: four TLS records of full size (RFC 8446 §5.1).
const BUFFER: usize = 64 * 1024;

/// Buffers that a thread keeps for the next connection.
const POOL: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of 64 KiB that goes back to its thread's pool.
#[derive(Debug)]
pub struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub fn take() -> Self {
        let pooled = BUFFERS.with_borrow_mut(Vec::pop);
        Self(Some(
            pooled.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()),
        ))
    }

    /// All of it, with whatever was left in it.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.0.take() {
            // A thread that is ending has no pool any more; the buffer is freed then.
            let _ = BUFFERS.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < POOL {
                    pool.push(bytes);
                }
            });
        }
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Bytes read and not yet written: buffer, start, end.
    pending: Option<(Buffer, usize, usize)>,
    state: HalfState,
    unflushed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum HalfState {
    #[default]
    Copying,
    ShuttingDown,
    Done,
}

/// Which side failed.
enum Failure {
    Reading,
    Writing,
}

/// Copies both ways between `peer` and `backend` until both ended or one failed, and says how it
/// ended. The caller then closes or resets the two.
pub async fn copy_both<P, B>(
    peer: &mut P,
    backend: &mut B,
    idle_timeout: Option<Duration>,
    progress: &Progress,
) -> End
where
    P: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Half::default();
    let mut down = Half::default();
    let mut idle = idle_timeout.map(|timeout| (timeout, Box::pin(tokio::time::sleep(timeout)), 0));
    poll_fn(|context| {
        let upward = match up.poll(context, peer, backend, &progress.received) {
            Poll::Ready(Err(Failure::Reading)) => return Poll::Ready(End::PeerReset),
            Poll::Ready(Err(Failure::Writing)) => return Poll::Ready(End::BackendReset),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let downward = match down.poll(context, backend, peer, &progress.sent) {
            Poll::Ready(Err(Failure::Reading)) => return Poll::Ready(End::BackendReset),
            Poll::Ready(Err(Failure::Writing)) => return Poll::Ready(End::PeerReset),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if upward && downward {
            return Poll::Ready(End::Eof);
        }
        match &mut idle {
            Some(idle) => poll_idle(context, idle, progress).map(|()| End::Idle),
            None => Poll::Pending,
        }
    })
    .await
}

/// Ready once nothing moved for the timeout.
fn poll_idle(
    context: &mut Context<'_>,
    (timeout, sleep, seen): &mut (Duration, Pin<Box<Sleep>>, u64),
    progress: &Progress,
) -> Poll<()> {
    let moved = progress.received.load(Ordering::Relaxed) + progress.sent.load(Ordering::Relaxed);
    if moved != *seen {
        *seen = moved;
        sleep.as_mut().reset(Instant::now() + *timeout);
    }
    sleep.as_mut().poll(context)
}

impl Half {
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                HalfState::Done => return Poll::Ready(Ok(())),
                HalfState::ShuttingDown => {
                    ready!(Pin::new(&mut *to).poll_shutdown(context))
                        .map_err(|_| Failure::Writing)?;
                    self.state = HalfState::Done;
                }
                HalfState::Copying if self.pending.is_some() => {
                    ready!(self.poll_write(context, to, count)).map_err(|_| Failure::Writing)?;
                }
                HalfState::Copying => match self.poll_read(context, from) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => self.state = HalfState::ShuttingDown,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Reading)),
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(context))
                                .map_err(|_| Failure::Writing)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Reads into a fresh buffer; `false` at the end.
    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<bool>> {
        let mut buffer = Buffer::take();
        let mut slice = ReadBuf::new(buffer.bytes());
        ready!(Pin::new(from).poll_read(context, &mut slice))?;
        let length = slice.filled().len();
        if length > 0 {
            self.pending = Some((buffer, 0, length));
        }
        Poll::Ready(Ok(length > 0))
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        to: &mut W,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while let Some((buffer, start, end)) = &mut self.pending {
            let bytes = &buffer.bytes()[*start..*end];
            let written = ready!(Pin::new(&mut *to).poll_write(context, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            count.fetch_add(written as u64, Ordering::Relaxed);
            self.unflushed = true;
            *start += written;
            if start == end {
                self.pending = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}
