//! Connections to an endpoint that are kept for further requests.

use super::body::RequestBody;
use crate::{
    model::BackendProtocol,
    proxy::balance::{Connected, Unreachable},
};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// The kept connections of one endpoint.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pool {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Idle ones, the one used last at the end.
    http1: Vec<(http1::SendRequest<RequestBody>, Instant)>,
    /// One that all requests share.
    http2: Option<http2::SendRequest<RequestBody>>,
}

/// A connection, for one request.
#[derive(Debug)]
pub(super) struct Sender {
    connection: Connection,
    /// Whether others used it before: it may have ended without our knowing.
    pub(super) reused: bool,
}

#[derive(Debug)]
enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// The place of a request at an endpoint, and its connection when that can be kept.
#[derive(Debug)]
pub(super) struct Lease {
    endpoint: Connected,
    http1: Option<http1::SendRequest<RequestBody>>,
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum SendError {
    /// Nothing of it was sent; here it is back.
    Unsent(Box<Request<RequestBody>>),
    Failed(hyper::Error),
}

/// How long a connection is kept without a request, below what servers usually do.
const KEEP: Duration = Duration::from_secs(50);

/// Idle connections that are kept of an endpoint.
const IDLE: usize = 128;

// === impl Pool ===

impl Pool {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, protocol: BackendProtocol) -> Option<Sender> {
        let mut kept = self.kept();
        let connection = match protocol {
            BackendProtocol::Http1 => loop {
                let (sender, since) = kept.http1.pop()?;
                if !sender.is_closed() && since.elapsed() < KEEP {
                    break Connection::Http1(sender);
                }
            },
            BackendProtocol::H2c => match &kept.http2 {
                Some(sender) if !sender.is_closed() => Connection::Http2(sender.clone()),
                _ => return None,
            },
        };
        Some(Sender {
            connection,
            reused: true,
        })
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

// === impl Sender ===

impl Sender {
    /// A connection to an endpoint: a kept one, unless `fresh`, or a new one.
    pub(super) async fn to(
        endpoint: &Connected,
        protocol: BackendProtocol,
        timeout: Duration,
        fresh: bool,
    ) -> Result<Self, Unreachable> {
        let pool = endpoint.pool();
        if !fresh && let Some(sender) = pool.take(protocol) {
            return Ok(sender);
        }
        let deadline = Instant::now() + timeout;
        let stream = endpoint.open_stream(timeout).await?;
        let handshake = Self::handshake(endpoint, stream, protocol);
        let connection = tokio::time::timeout_at(deadline, handshake).await;
        let connection = connection.map_err(|_| Unreachable::Timeout)?;
        Ok(Self {
            connection: connection.map_err(|_| Unreachable::Other)?,
            reused: false,
        })
    }

    async fn handshake(
        endpoint: &Connected,
        stream: TcpStream,
        protocol: BackendProtocol,
    ) -> hyper::Result<Connection> {
        let stream = TokioIo::new(stream);
        Ok(match protocol {
            BackendProtocol::Http1 => {
                let (sender, connection) = http1::Builder::new().handshake(stream).await?;
                tokio::spawn(async move {
                    // Requests are told of its errors.
                    let _ = connection.with_upgrades().await;
                });
                Connection::Http1(sender)
            }
            BackendProtocol::H2c => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .adaptive_window(true)
                    .keep_alive_interval(Duration::from_secs(30))
                    .handshake(stream)
                    .await?;
                tokio::spawn(async move {
                    // Requests are told of its errors.
                    let _ = connection.await;
                });
                endpoint.pool().kept().http2 = Some(sender.clone());
                Connection::Http2(sender)
            }
        })
    }

    /// Sends a request; the response, and what is held until its body has ended.
    pub(super) async fn send(
        self,
        request: Request<RequestBody>,
        endpoint: Connected,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let (response, http1) = match self.connection {
            Connection::Http1(mut sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(match self.reused {
                        true => SendError::Unsent(Box::new(request)),
                        false => SendError::Failed(error),
                    });
                }
                let response = sender.try_send_request(request).await;
                (response.map_err(SendError::of)?, Some(sender))
            }
            Connection::Http2(mut sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(match self.reused {
                        true => SendError::Unsent(Box::new(request)),
                        false => SendError::Failed(error),
                    });
                }
                let response = sender.try_send_request(request).await;
                (response.map_err(SendError::of)?, None)
            }
        };
        Ok((response, Lease { endpoint, http1 }))
    }
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
