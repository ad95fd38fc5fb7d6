//! Bodies on their way through: never collected, and counted as outstanding until they end.

use super::{
    account::{Account, COMPLETE},
    headers::scrub_trailers,
    pool::Lease,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request to a backend.
#[derive(Debug)]
pub(super) struct RequestBody {
    source: Source,
    copies: Vec<Copy>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Client(Box<ClientBody>),
    /// Of a mirror.
    Copied(mpsc::Receiver<Frame<Bytes>>),
}

#[derive(Debug)]
struct ClientBody {
    body: Incoming,
    account: Arc<Account>,
    patience: Patience,
}

/// A copy of a body for a mirror. What it cannot take at once ends it: the request does not wait.
#[derive(Debug)]
struct Copy {
    frames: Option<mpsc::Sender<Frame<Bytes>>>,
}

/// The body of a response to a client.
#[derive(Debug, Default)]
pub(super) struct ResponseBody {
    source: Answer,
    account: Option<Arc<Account>>,
}

#[derive(Debug, Default)]
enum Answer {
    #[default]
    Nothing,
    /// Made here.
    Own(Bytes),
    /// From a backend.
    Backend(Box<BackendBody>),
}

/// The body of a backend's response, with what is held until it ends.
#[derive(Debug)]
pub(super) struct BackendBody {
    body: Incoming,
    lease: Option<Lease>,
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    /// Told when the body is cut, so that the client's connection is as well.
    cut: Arc<AtomicBool>,
}

/// Waits until neither body has moved for too long. A timer is made only by one that waits.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the response took longer than the route allows")]
    TooLate,
    #[error("neither body moved for too long")]
    Stalled,
}

/// A request whose body did not move for too long.
pub(super) const STALLED: &str = "body_stalled";

/// Frames that a mirror may be behind.
const BEHIND: usize = 32;

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(body: Incoming, account: &Arc<Account>, patience: Patience) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self::of(Source::Client(Box::new(ClientBody {
            body,
            account: Arc::clone(account),
            patience,
        })))
    }

    pub(super) fn empty() -> Self {
        Self::of(Source::Empty)
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            copies: Vec::new(),
        }
    }

    /// A copy of what is still to come.
    pub(super) fn copy(&mut self) -> Self {
        if self.is_end_stream() {
            return Self::empty();
        }
        let (sender, frames) = mpsc::channel(BEHIND);
        self.copies.push(Copy {
            frames: Some(sender),
        });
        Self::of(Source::Copied(frames))
    }
}

impl Default for RequestBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => Poll::Ready(None),
            Source::Client(body) => body.poll(context),
            Source::Copied(frames) => frames.poll_recv(context).map(|frame| frame.map(Ok)),
        };
        match &frame {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                this.copies.iter_mut().for_each(|copy| copy.push(frame));
            }
            Poll::Ready(_) => this.copies.clear(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Client(client) => client.body.is_end_stream(),
            Source::Copied(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Client(client) => client.body.size_hint(),
            Source::Copied(_) => SizeHint::default(),
        }
    }
}

impl ClientBody {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            if self.patience.is_out(context, &self.account) {
                self.account.ends(STALLED);
                return Poll::Ready(Some(Err(Box::new(Cut::Stalled))));
            }
            return Poll::Pending;
        };
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame?;
            if let Some(data) = frame.data_ref() {
                self.account.received(data.len());
            }
            if let Some(trailers) = frame.trailers_mut() {
                scrub_trailers(trailers);
            }
            Ok(frame)
        }))
    }
}

impl Copy {
    fn push(&mut self, frame: &Frame<Bytes>) {
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Frame::data(data.clone()),
            (None, Some(trailers)) => Frame::trailers(trailers.clone()),
            (None, None) => return,
        };
        if let Some(frames) = &self.frames
            && frames.try_send(copy).is_err()
        {
            self.frames = None;
        }
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    pub(super) fn text(text: &'static str) -> Self {
        Self::of(Answer::Own(Bytes::from_static(text.as_bytes())))
    }

    fn of(source: Answer) -> Self {
        Self {
            source,
            account: None,
        }
    }

    /// The body of a backend, which must end by the deadline. `lease` is given back once it has.
    pub(super) fn backend(
        body: Incoming,
        lease: Lease,
        deadline: Option<Instant>,
        patience: Patience,
        cut: Arc<AtomicBool>,
    ) -> Self {
        let mut body = BackendBody {
            body,
            lease: Some(lease),
            deadline: deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            patience,
            cut,
        };
        if body.body.is_end_stream() {
            body.give_back();
        }
        Self::of(Answer::Backend(Box::new(body)))
    }

    /// The same, told of in this account.
    pub(super) fn told_in(mut self, account: Arc<Account>, is_empty: bool) -> Self {
        if is_empty || self.is_end_stream() {
            account.ends(COMPLETE);
        }
        self.account = Some(account);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Answer::Nothing => Poll::Ready(None),
            Answer::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Answer::Backend(body) => body.poll(context, this.account.as_deref()),
        };
        if matches!(this.source, Answer::Own(_)) {
            this.source = Answer::Nothing;
        }
        if let (Some(account), Poll::Ready(frame)) = (&this.account, &frame) {
            match frame {
                Some(Ok(frame)) => account.sent(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => account.ends("backend_cut"),
                None => {}
            }
            if frame.is_none() || this.is_end_stream() {
                account.ends(COMPLETE);
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Answer::Nothing => true,
            Answer::Own(_) => false,
            Answer::Backend(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Answer::Nothing => SizeHint::with_exact(0),
            Answer::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answer::Backend(body) => body.body.size_hint(),
        }
    }
}

impl BackendBody {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        account: Option<&Account>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return match self.is_over(context, account) {
                Some(cut) => Poll::Ready(Some(Err(self.cut(cut)))),
                None => Poll::Pending,
            };
        };
        if frame.is_none() || self.body.is_end_stream() {
            self.give_back();
        }
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame.map_err(|error| self.cut(error))?;
            if let Some(trailers) = frame.trailers_mut() {
                scrub_trailers(trailers);
            }
            Ok(frame)
        }))
    }

    /// Whether a body that has not ended has no more time.
    fn is_over(&mut self, context: &mut Context<'_>, account: Option<&Account>) -> Option<Cut> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.deadline = None;
            account.inspect(|account| account.ends("timeout"));
            return Some(Cut::TooLate);
        }
        if account.is_some_and(|account| self.patience.is_out(context, account)) {
            account.inspect(|account| account.ends(STALLED));
            return Some(Cut::Stalled);
        }
        None
    }

    fn cut(&self, error: impl Into<BoxError>) -> BoxError {
        self.cut.store(true, Ordering::Relaxed);
        error.into()
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

// === impl Patience ===

impl Patience {
    /// `None`: it has no end.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, timer: None }
    }

    fn is_out(&mut self, context: &mut Context<'_>, account: &Account) -> bool {
        let Some(limit) = self.limit else {
            return false;
        };
        loop {
            let left = limit.saturating_sub(account.idle());
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + left)));
            if timer.as_mut().poll(context).is_pending() {
                return false;
            }
            // The other body may have moved meanwhile.
            if left.is_zero() {
                return true;
            }
            timer.as_mut().reset(Instant::now() + left);
        }
    }
}
