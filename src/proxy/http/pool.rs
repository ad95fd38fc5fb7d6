//! Connections to an endpoint that are kept for further requests.

use super::{body::RequestBody, request::spoken};
use crate::{
    net::Outbound,
    proxy::{
        backend_tls::{BackendStream, Link, Offer},
        balance::Connected,
        reach::Unreachable,
    },
};
use http::{Request, Response, Version, uri::Scheme};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::either::Either;

/// The kept connections of one endpoint.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pool {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Idle ones, the one used last at the end.
    http1: Vec<(http1::SendRequest<RequestBody>, Instant)>,
    /// Those that requests share.
    http2: Vec<Shared>,
}

/// A connection of HTTP/2.
#[derive(Clone, Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// Held by each of its requests.
    requests: Arc<()>,
}

/// What a connection must speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    Http1,
    Http2,
    /// As the backend says by ALPN.
    Either,
}

/// A connection, for one request.
#[derive(Debug)]
pub(super) struct Sender {
    connection: Connection,
    scheme: Scheme,
    /// Whether others used it before: it may have ended without our knowing.
    pub(super) reused: bool,
}

#[derive(Debug)]
enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    Http2(Shared),
}

/// The place of a request at an endpoint, and its connection when that can be kept.
#[derive(Debug)]
pub(super) struct Lease {
    endpoint: Connected,
    http1: Option<http1::SendRequest<RequestBody>>,
    _shared: Option<Arc<()>>,
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum SendError {
    /// Nothing of it was sent; here it is back.
    Unsent(Box<Request<RequestBody>>),
    /// It makes no request of the connection's version.
    Unsayable(http::Error),
    Failed(hyper::Error),
}

/// How long a connection is kept without a request, below what servers usually do.
const KEEP: Duration = Duration::from_secs(50);

/// Idle connections that are kept of an endpoint.
const IDLE: usize = 128;

/// Requests at a time on a connection of HTTP/2, as many as servers usually allow.
const STREAMS: usize = 100;

// === impl Pool ===

impl Pool {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, speech: Speech) -> Option<Connection> {
        let mut kept = self.kept();
        match speech {
            Speech::Http1 => kept.take_http1(),
            Speech::Http2 => kept.share_http2(),
            Speech::Either => kept.share_http2().or_else(|| kept.take_http1()),
        }
    }

    fn keep(&self, sender: http1::SendRequest<RequestBody>) {
        let mut kept = self.kept();
        let now = Instant::now();
        kept.http1
            .retain(|(sender, since)| !sender.is_closed() && now - *since < KEEP);
        if kept.http1.len() < IDLE && !sender.is_closed() {
            kept.http1.push((sender, now));
        }
    }
}

impl Kept {
    fn take_http1(&mut self) -> Option<Connection> {
        loop {
            let (sender, since) = self.http1.pop()?;
            if !sender.is_closed() && since.elapsed() < KEEP {
                return Some(Connection::Http1(sender));
            }
        }
    }

    fn share_http2(&mut self) -> Option<Connection> {
        self.http2.retain(|shared| !shared.sender.is_closed());
        let mut known = self.http2.iter();
        let shared = known.find(|shared| Arc::strong_count(&shared.requests) <= STREAMS)?;
        Some(Connection::Http2(shared.clone()))
    }
}

// === impl Sender ===

impl Sender {
    /// A connection to an endpoint: a kept one, unless `fresh`, or a new one.
    pub(super) async fn to(
        endpoint: &Connected,
        speech: Speech,
        timeout: Duration,
        fresh: bool,
    ) -> Result<Self, Unreachable> {
        let scheme = match endpoint.link() {
            Link::Plain => Scheme::HTTP,
            Link::Tls(_) | Link::Broken => Scheme::HTTPS,
        };
        let kept = (!fresh).then(|| endpoint.pool().take(speech)).flatten();
        let reused = kept.is_some();
        let connection = match kept {
            Some(connection) => connection,
            None => open(endpoint, speech, timeout).await?,
        };
        Ok(Self {
            connection,
            scheme,
            reused,
        })
    }

    /// Sends a request; the response, and what is held until its body has ended.
    pub(super) async fn send(
        self,
        request: Request<RequestBody>,
        endpoint: Connected,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let reused = self.reused;
        let unready = |request, error| match reused {
            true => SendError::Unsent(Box::new(request)),
            false => SendError::Failed(error),
        };
        let version = match &self.connection {
            Connection::Http1(_) => Version::HTTP_11,
            Connection::Http2(_) => Version::HTTP_2,
        };
        let request = spoken(request, version, &self.scheme).map_err(SendError::Unsayable)?;
        let (response, http1, shared) = match self.connection {
            Connection::Http1(mut sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(unready(request, error));
                }
                let response = sender.try_send_request(request).await;
                (response.map_err(SendError::of)?, Some(sender), None)
            }
            Connection::Http2(Shared {
                mut sender,
                requests,
            }) => {
                if let Err(error) = sender.ready().await {
                    return Err(unready(request, error));
                }
                let response = sender.try_send_request(request).await;
                (response.map_err(SendError::of)?, None, Some(requests))
            }
        };
        let lease = Lease {
            endpoint,
            http1,
            _shared: shared,
        };
        Ok((response, lease))
    }
}

/// A new connection, with all that comes before the first request.
async fn open(
    endpoint: &Connected,
    speech: Speech,
    timeout: Duration,
) -> Result<Connection, Unreachable> {
    if matches!(endpoint.link(), Link::Broken) {
        return Err(Unreachable::Tls);
    }
    let deadline = Instant::now() + timeout;
    let stream = endpoint.open_stream(timeout).await?;
    let greeting = greet(endpoint, stream, speech);
    tokio::time::timeout_at(deadline, greeting)
        .await
        .unwrap_or(Err(Unreachable::Timeout))
        .inspect_err(|_| endpoint.set_aside())
}

async fn greet(
    endpoint: &Connected,
    stream: Outbound,
    speech: Speech,
) -> Result<Connection, Unreachable> {
    let offer = match speech {
        Speech::Http1 => Offer::Http1,
        Speech::Http2 => Offer::Http2,
        Speech::Either => Offer::Either,
    };
    let stream = endpoint.link().secure(stream, offer).await?;
    let agreed = match &stream {
        Either::Left(_) => None,
        Either::Right(stream) => stream.get_ref().1.alpn_protocol(),
    };
    let is_http2 = speech == Speech::Http2 || agreed == Some(b"h2");
    let connection = match is_http2 {
        true => speak_http2(endpoint, stream).await,
        false => speak_http1(stream).await,
    };
    connection.map_err(|_| Unreachable::Other)
}

async fn speak_http1(stream: BackendStream) -> hyper::Result<Connection> {
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        // Requests are told of its errors.
        let _ = connection.with_upgrades().await;
    });
    Ok(Connection::Http1(sender))
}

async fn speak_http2(endpoint: &Connected, stream: BackendStream) -> hyper::Result<Connection> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .keep_alive_interval(Duration::from_secs(30))
        .max_header_list_size(super::MAX_HEAD as u32)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        // Requests are told of its errors.
        let _ = connection.await;
    });
    let shared = Shared {
        sender,
        requests: Arc::default(),
    };
    endpoint.pool().kept().http2.push(shared.clone());
    Ok(Connection::Http2(shared))
}

impl SendError {
    fn of(mut error: TrySendError<Request<RequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Failed(error.into_error()),
        }
    }
}

// === impl Lease ===

impl Lease {
    /// The body has ended: its connection can take another request.
    pub(super) fn give_back(self) {
        if let Some(sender) = self.http1 {
            self.endpoint.pool().keep(sender);
        }
    }
}
