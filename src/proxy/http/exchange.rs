//! One request and its response.

use super::{
    Peer, Site,
    body::{RequestBody, ResponseBody},
    filters::{self, Filters, Origin},
    headers::{Caller, strip_hop_by_hop},
    pool::{Lease, SendError, Sender},
    request::{Malformed, Upgrade, authority, host_name, outgoing, spoken},
    router::Asked,
    rule::{Mirror, Rule, Target},
    tunnel,
};
use crate::proxy::balance::{Balancer, Tracked, Unreachable, below};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, ORIGIN},
};
use http_body::Body;
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Why a request was not answered by a backend. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(Malformed),
    /// No listener of the port is for this host.
    NoListener,
    /// Another listener of the port is for this host (RFC 9110 §15.5.20).
    Misdirected,
    NoRoute,
    BrokenFilter,
    InvalidBackend,
    NotReached(Unreachable),
    /// The backend ended the connection before its response.
    Failed,
    TooLate,
}

/// How often a request is sent because a kept connection had ended.
const STALE: u32 = 3;

// === impl Refusal ===

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Malformed(Malformed::Host) => StatusCode::BAD_REQUEST,
            Self::Malformed(Malformed::Connect) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoListener | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::BrokenFilter | Self::InvalidBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReached(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed => StatusCode::BAD_GATEWAY,
            Self::TooLate => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Malformed(Malformed::Host) => "the request has no usable host\n",
            Self::Malformed(Malformed::Connect) => "this is no proxy for CONNECT\n",
            Self::NoListener | Self::NoRoute => "no route is for this request\n",
            Self::Misdirected => "this connection is for another host\n",
            Self::BrokenFilter => "a filter of the route cannot be applied\n",
            Self::InvalidBackend => "the route has no valid backend\n",
            Self::NotReached(_) => "the backend could not be reached\n",
            Self::Failed => "the backend ended the connection\n",
            Self::TooLate => "the backend did not answer in time\n",
        }
    }

    /// As gRPC tells it (gRPC over HTTP/2, "HTTP to gRPC Status Code Mapping"; a route that
    /// nobody has is a method that nobody implements).
    fn grpc(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Misdirected => "13",
            Self::NoListener | Self::NoRoute => "12",
            Self::TooLate => "4",
            Self::BrokenFilter | Self::InvalidBackend | Self::NotReached(_) | Self::Failed => "14",
        }
    }

    fn response(self, headers: &HeaderMap) -> Response<ResponseBody> {
        if !is_grpc(headers) {
            let mut response = Response::new(ResponseBody::text(self.text()));
            *response.status_mut() = self.status();
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            return response;
        }
        let mut response = Response::new(ResponseBody::default());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(self.grpc()));
        let message = HeaderValue::from_static(self.text().trim_ascii_end());
        headers.insert("grpc-message", message);
        response
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Answers a request.
pub(super) async fn answer(peer: &Peer, request: Request<Incoming>) -> Response<ResponseBody> {
    let asked = Told {
        grpc: is_grpc(request.headers()),
        started: Instant::now(),
    };
    let headers = match asked.grpc {
        true => request.headers().clone(),
        false => HeaderMap::new(),
    };
    match route(peer, request).await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::debug!(
                gateway = peer.context.gateway,
                reason = ?refusal,
                milliseconds = asked.started.elapsed().as_millis() as u64,
                "request refused"
            );
            refusal.response(&headers)
        }
    }
}

/// What has to be known of a request once it is gone.
struct Told {
    grpc: bool,
    started: Instant,
}

async fn route(peer: &Peer, request: Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
    let authority = authority(&request).map_err(Refusal::Malformed)?;
    let host = host_name(&authority);
    let port = peer.port.load();
    let site = peer.site(&port, &host)?;
    let asked = Asked {
        host: &host,
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        method: request.method(),
        headers: request.headers(),
    };
    let matched = site.router.find(&asked).ok_or(Refusal::NoRoute)?;
    let (rule, prefix) = (Arc::clone(matched.rule), matched.prefix);
    if rule.filters.broken {
        return Err(Refusal::BrokenFilter);
    }
    if let Some(cors) = &rule.filters.cors
        && filters::is_preflight(request.method(), request.headers())
    {
        return Ok(filters::preflight(cors, request.headers()));
    }
    let exchange = Exchange {
        peer,
        site,
        host: &host,
        authority: authority.as_str(),
        rule: &rule,
        prefix,
        port: port.number,
    };
    exchange.run(request).await
}

/// A request that a rule is for.
struct Exchange<'a> {
    peer: &'a Peer,
    site: &'a Site,
    host: &'a str,
    authority: &'a str,
    rule: &'a Rule,
    prefix: Option<usize>,
    port: u16,
}

impl Exchange<'_> {
    async fn run(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
        if let Some(response) = self.redirect(&request, &self.rule.filters)? {
            return Ok(response);
        }
        let target = self.rule.draw().ok_or(Refusal::InvalidBackend)?;
        if target.filters.broken {
            return Err(Refusal::BrokenFilter);
        }
        if let Some(response) = self.redirect(&request, &target.filters)? {
            return Ok(response);
        }
        let backend = target.backend.as_ref().ok_or(Refusal::InvalidBackend)?;
        self.forward(request, target, backend).await
    }

    fn redirect(
        &self,
        request: &Request<Incoming>,
        filters: &Filters,
    ) -> Result<Option<Response<ResponseBody>>, Refusal> {
        let Some(redirect) = &filters.redirect else {
            return Ok(None);
        };
        let origin = Origin {
            scheme: self.peer.scheme,
            host: self.host,
            port: self.port,
            uri: request.uri(),
        };
        let location = filters::location(redirect, &origin, self.prefix);
        let mut response = filters::redirected(redirect, &location).ok_or(Refusal::BrokenFilter)?;
        self.finish(&mut response, &[filters], request.headers().get(ORIGIN));
        Ok(Some(response))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
        backend: &Balancer,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let upgrade = Upgrade::of(&request);
        let client = (upgrade != Upgrade::None).then(|| hyper::upgrade::on(&mut request));
        let origin = request.headers().get(ORIGIN).cloned();
        let deadline = self
            .rule
            .timeouts
            .request
            .map(|limit| Instant::now() + limit);
        let (parts, body) = request.into_parts();
        let body = match client {
            // The body of an upgrade is what follows it.
            Some(_) => RequestBody::empty(),
            None => RequestBody::new(body),
        };
        let caller = Caller {
            address: self.peer.address,
            identity: self.peer.identity.as_deref(),
            scheme: self.peer.scheme,
            authority: self.authority,
        };
        let all = [&self.rule.filters, &target.filters];
        let mut outgoing = outgoing(parts, body, self.rule, &all, self.prefix, &caller, &upgrade)
            .map_err(|_| Refusal::BrokenFilter)?;
        for mirror in self.rule.mirrors.iter().chain(&target.mirrors) {
            self.mirror(&mut outgoing, mirror);
        }
        let sent = self.send(outgoing, backend, deadline).await?;
        let (mut response, lease) = sent;
        if let Some(client) = client {
            let accepted = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if accepted {
                let backend = hyper::upgrade::on(&mut response);
                let idle = self.peer.context.limits.idle_timeout;
                self.peer
                    .drain
                    .spawn(tunnel::join(client, backend, lease, idle));
                return Ok(tunnel::switched(response, &upgrade));
            }
        }
        let (mut parts, body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        let body = ResponseBody::of(body, lease, deadline);
        let mut response = Response::from_parts(parts, body);
        *response.version_mut() = http::Version::default();
        self.finish(
            &mut response,
            &[&target.filters, &self.rule.filters],
            origin.as_ref(),
        );
        Ok(response)
    }

    /// Changes of the response.
    fn finish(
        &self,
        response: &mut Response<ResponseBody>,
        filters: &[&Filters],
        origin: Option<&HeaderValue>,
    ) {
        let headers = response.headers_mut();
        for filters in filters {
            filters
                .responses
                .iter()
                .for_each(|change| change.apply(headers));
            if let Some(cors) = &filters.cors {
                filters::allow_origin(cors, origin, headers);
            }
        }
    }

    /// Sends a copy beside the request, which neither waits for it nor learns of it.
    fn mirror(&self, request: &mut Request<RequestBody>, mirror: &Mirror) {
        if below(u64::from(mirror.denominator.max(1))) >= u64::from(mirror.numerator) {
            return;
        }
        let mut copy = Request::new(request.body_mut().copy());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        let (backend, timeout) = (
            Arc::clone(&mirror.backend),
            self.peer.context.limits.connect_timeout,
        );
        tokio::spawn(async move {
            let sent = async {
                let endpoint = backend.choose(None)?;
                let sender = Sender::to(&endpoint, backend.protocol, timeout, false).await;
                let copy = spoken(copy, backend.protocol).ok()?;
                let (response, lease) = sender.ok()?.send(copy, endpoint).await.ok()?;
                let mut body = ResponseBody::of(response.into_body(), lease, None);
                while let Some(Ok(_)) = next_frame(&mut body).await {}
                Some(())
            };
            let _ = tokio::time::timeout(MIRROR_TIMEOUT, sent).await;
        });
    }

    /// Sends a request until there is a response that counts.
    async fn send(
        &self,
        request: Request<RequestBody>,
        backend: &Balancer,
        deadline: Option<Instant>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let retry = self.rule.retry.as_ref();
        let mut attempts = retry.map_or(0, |retry| retry.attempts);
        let mut request = request;
        let mut tried = None;
        loop {
            // What has a body can be sent only once.
            let again = request.body().is_end_stream().then(|| copy_of(&request));
            let sent = self.try_once(request, backend, deadline, &mut tried).await;
            let wanted = match (&sent, retry) {
                (Ok((response, _)), Some(retry)) => {
                    retry.codes.contains(&response.status().as_u16())
                }
                (Err(_), Some(_)) => deadline.is_none_or(|deadline| Instant::now() < deadline),
                (_, None) => false,
            };
            match again {
                Some(again) if wanted && attempts > 0 => request = again,
                _ => return sent,
            }
            attempts -= 1;
            drop(sent);
            let pause = retry.map(|retry| retry.backoff).unwrap_or_default();
            let pause = Instant::now() + pause;
            tokio::time::sleep_until(deadline.map_or(pause, |deadline| pause.min(deadline))).await;
        }
    }

    /// One try, within the time that it has. Connecting is tried twice, at two endpoints.
    async fn try_once(
        &self,
        request: Request<RequestBody>,
        backend: &Balancer,
        deadline: Option<Instant>,
        tried: &mut Option<Arc<Tracked>>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let own = self.rule.timeouts.backend_request;
        let own = own.map(|limit| Instant::now() + limit);
        let until = match (own, deadline) {
            (Some(own), Some(deadline)) => Some(own.min(deadline)),
            (own, deadline) => own.or(deadline),
        };
        let sending = self.reach(request, backend, tried);
        match until {
            Some(until) => tokio::time::timeout_at(until, sending)
                .await
                .unwrap_or(Err(Refusal::TooLate)),
            None => sending.await,
        }
    }

    async fn reach(
        &self,
        request: Request<RequestBody>,
        backend: &Balancer,
        tried: &mut Option<Arc<Tracked>>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let timeout = self.peer.context.limits.connect_timeout;
        let mut request = spoken(request, backend.protocol).map_err(|_| Refusal::Failed)?;
        let (mut stale, mut fresh, mut moved) = (0, false, false);
        let none = Refusal::NotReached(Unreachable::NoEndpoints);
        // Another one than the last time, if there is one.
        let chosen = backend.choose(tried.as_ref());
        let chosen = chosen.or_else(|| backend.choose(None));
        let mut endpoint = chosen.ok_or_else(|| self.failed(backend, none))?;
        loop {
            let sender = match Sender::to(&endpoint, backend.protocol, timeout, fresh).await {
                Ok(sender) => sender,
                Err(error) => {
                    let refusal = self.failed(backend, Refusal::NotReached(error));
                    let other = backend.choose(Some(endpoint.tracked())).filter(|_| !moved);
                    moved = true;
                    endpoint = other.ok_or(refusal)?;
                    continue;
                }
            };
            let reused = sender.reused;
            let idempotent = reused && request.body().is_end_stream() && is_safe(request.method());
            let again = idempotent.then(|| copy_of(&request));
            let tracked = Arc::clone(endpoint.tracked());
            *tried = Some(Arc::clone(&tracked));
            match sender.send(request, endpoint).await {
                Ok(response) => return Ok(response),
                Err(SendError::Unsent(unsent)) if stale < STALE => request = *unsent,
                // A server that ends a kept connection as the request arrives has not seen it.
                Err(SendError::Failed(_)) if stale < STALE && again.is_some() => {
                    request = again.unwrap_or_default();
                }
                Err(error) => {
                    if let SendError::Failed(error) = error {
                        tracing::debug!(backend = backend.name, %error, "no response");
                    }
                    return Err(self.failed(backend, Refusal::Failed));
                }
            }
            endpoint = Tracked::count(&tracked);
            stale += 1;
            fresh = stale > 1;
        }
    }

    fn failed(&self, backend: &Balancer, refusal: Refusal) -> Refusal {
        let reason = match refusal {
            Refusal::NotReached(reason) => reason.as_str(),
            _ => "ended",
        };
        let context = &self.peer.context;
        context
            .metrics
            .backend_error(&context.gateway, &backend.name, reason);
        tracing::warn!(
            gateway = context.gateway,
            listener = self.site.listener,
            route = %self.rule.route,
            backend = backend.name,
            reason,
            "backend did not answer"
        );
        refusal
    }
}

/// How long a mirror has.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);

async fn next_frame<B: Body + Unpin>(body: &mut B) -> Option<Result<(), B::Error>> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context))
        .await
        .map(|frame| frame.map(drop))
}

/// The same request, which has no body.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Whether a request can be sent twice (RFC 9110 §9.2.2).
fn is_safe(method: &Method) -> bool {
    method.is_idempotent()
}
