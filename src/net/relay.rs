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
pub const BUFFER: usize = 64 * 1024;

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
    /// What came behind the pending bytes, found while the buffer was filled.
    behind: Option<Behind>,
    state: HalfState,
    unflushed: bool,
}

#[derive(Clone, Copy)]
enum Behind {
    End,
    Failure,
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

    /// Fills a fresh buffer with what is there; `false` at the end. A TLS stream gives a record at a
    /// time, which would make a system call of each towards the backend.
    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<bool>> {
        match self.behind {
            Some(Behind::End) => return Poll::Ready(Ok(false)),
            Some(Behind::Failure) => {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            None => {}
        }
        let mut buffer = Buffer::take();
        let mut slice = ReadBuf::new(buffer.bytes());
        while slice.remaining() > 0 {
            let before = slice.filled().len();
            let polled = Pin::new(&mut *from).poll_read(context, &mut slice);
            let first = before == 0;
            match polled {
                Poll::Ready(Ok(())) if slice.filled().len() > before => {}
                Poll::Ready(Ok(())) if first => return Poll::Ready(Ok(false)),
                Poll::Ready(Err(error)) if first => return Poll::Ready(Err(error)),
                Poll::Pending if first => return Poll::Pending,
                Poll::Ready(Ok(())) => self.behind = Some(Behind::End),
                Poll::Ready(Err(_)) => self.behind = Some(Behind::Failure),
                Poll::Pending => {}
            }
            if slice.filled().len() == before {
                break;
            }
        }
        let length = slice.filled().len();
        self.pending = Some((buffer, 0, length));
        Poll::Ready(Ok(true))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A copied connection, and its two ends.
    fn connection(
        idle_timeout: Option<Duration>,
    ) -> (impl Future<Output = End>, [DuplexStream; 2]) {
        let (peer, mut peer_side) = duplex(1024);
        let (backend, mut backend_side) = duplex(1024);
        let copying = async move {
            let progress = Progress::default();
            copy_both(&mut peer_side, &mut backend_side, idle_timeout, &progress).await
        };
        (copying, [peer, backend])
    }

    fn pooled() -> usize {
        BUFFERS.with_borrow(Vec::len)
    }

    #[tokio::test]
    async fn idle_connections_hold_no_buffer() {
        let mut open = Vec::new();
        for _ in 0..8 {
            let (copying, mut ends) = connection(None);
            let task = tokio::spawn(copying);
            let mut word = [0; 4];
            ends[0].write_all(b"ping").await.unwrap();
            ends[1].read_exact(&mut word).await.unwrap();
            ends[1].write_all(b"pong").await.unwrap();
            ends[0].read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"pong");
            open.push((task, ends));
        }
        let idle = pooled();
        assert!((1..=2).contains(&idle), "{idle}");
        for (task, ends) in open {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            drop(ends);
        }
        assert_eq!(pooled(), idle, "a connection held a buffer");
    }

    #[tokio::test]
    async fn bytes_that_wait_keep_their_buffer_and_arrive() {
        let (copying, [mut peer, mut backend]) = connection(None);
        let task = tokio::spawn(copying);
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let send = async {
            peer.write_all(&sent).await.unwrap();
            peer.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let receive = async {
            backend.read_to_end(&mut got).await.unwrap();
            backend.shutdown().await.unwrap();
        };
        tokio::join!(send, receive);
        assert_eq!(got, sent);
        assert_eq!(task.await.unwrap(), End::Eof);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_either_way_put_off_the_idle_timeout() {
        let timeout = Duration::from_secs(10);
        let (copying, mut ends) = connection(Some(timeout));
        let started = Instant::now();
        let task = tokio::spawn(copying);
        for turn in 0..4 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            let mut byte = [0];
            ends[turn % 2].write_all(b"x").await.unwrap();
            ends[(turn + 1) % 2].read_exact(&mut byte).await.unwrap();
        }
        assert_eq!(task.await.unwrap(), End::Idle);
        assert_eq!(started.elapsed().as_secs(), 4 * 7 + 10);
    }

    /// Gives what it was told to, piece by piece, and takes everything.
    struct Script {
        pieces: VecDeque<io::Result<&'static [u8]>>,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.pieces.pop_front() {
                Some(Ok(piece)) => {
                    out.put_slice(piece);
                    Poll::Ready(Ok(()))
                }
                Some(Err(error)) => Poll::Ready(Err(error)),
                None => Poll::Ready(Ok(())),
            }
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn script(pieces: Vec<io::Result<&'static [u8]>>) -> Script {
        Script {
            pieces: pieces.into(),
            writes: Vec::new(),
        }
    }

    #[tokio::test]
    async fn pieces_that_are_there_are_written_at_once() {
        let mut peer = script(vec![Ok(b"one "), Ok(b"two "), Ok(b"three")]);
        let mut backend = script(vec![]);
        let progress = Progress::default();
        assert_eq!(
            copy_both(&mut peer, &mut backend, None, &progress).await,
            End::Eof
        );
        assert_eq!(backend.writes, [b"one two three"]);
        assert_eq!(progress.received.load(Ordering::Relaxed), 13);
    }

    #[tokio::test]
    async fn what_came_before_a_failure_is_delivered_before_it_shows() {
        let mut peer = script(vec![
            Ok(b"last words"),
            Err(io::ErrorKind::ConnectionReset.into()),
        ]);
        let mut backend = script(vec![]);
        let progress = Progress::default();
        assert_eq!(
            copy_both(&mut peer, &mut backend, None, &progress).await,
            End::PeerReset
        );
        assert_eq!(backend.writes, [b"last words"]);
    }
}
