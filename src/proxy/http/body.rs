//! Bodies on their way through: never collected, and counted as outstanding until they end.

use super::pool::Lease;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
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
    Client(Incoming),
    /// Of a mirror.
    Copied(mpsc::Receiver<Frame<Bytes>>),
}

/// A copy of a body for a mirror. What it cannot take at once ends it: the request does not wait.
#[derive(Debug)]
struct Copy {
    frames: Option<mpsc::Sender<Frame<Bytes>>>,
}

/// The body of a response to a client.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// Made here.
    Own(Option<Bytes>),
    /// From a backend.
    Backend(Box<BackendBody>),
}

/// The body of a backend's response, with what is held until it ends.
#[derive(Debug)]
pub(super) struct BackendBody {
    body: Incoming,
    lease: Option<Lease>,
    deadline: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the response took longer than the route allows")]
struct TooLate;

/// Frames that a mirror may be behind.
const BEHIND: usize = 32;

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(body: Incoming) -> Self {
        Self::of(Source::Client(body))
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => None,
            Source::Client(body) => ready!(Pin::new(body).poll_frame(context)),
            Source::Copied(frames) => ready!(frames.poll_recv(context)).map(Ok),
        };
        match &frame {
            Some(Ok(frame)) => this.copies.iter_mut().for_each(|copy| copy.push(frame)),
            _ => this.copies.clear(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Client(body) => body.is_end_stream(),
            Source::Copied(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Client(body) => body.size_hint(),
            Source::Copied(_) => SizeHint::default(),
        }
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
        Self::Own(Some(Bytes::from_static(text.as_bytes())))
    }

    /// The body of a backend, which must end by the deadline. `lease` is given back once it has.
    pub(super) fn of(body: Incoming, lease: Lease, deadline: Option<Instant>) -> Self {
        let mut body = BackendBody {
            body,
            lease: Some(lease),
            deadline: deadline.map(|deadline| Box::pin(sleep_until(deadline))),
        };
        if body.body.is_end_stream() {
            body.give_back();
        }
        Self::Backend(Box::new(body))
    }
}

impl Default for ResponseBody {
    fn default() -> Self {
        Self::Own(None)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Backend(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Backend(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Backend(body) => body.body.size_hint(),
        }
    }
}

impl BackendBody {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(context).is_ready()
            {
                self.deadline = None;
                return Poll::Ready(Some(Err(Box::new(TooLate))));
            }
            return Poll::Pending;
        };
        if frame.is_none() || self.body.is_end_stream() {
            self.give_back();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}
