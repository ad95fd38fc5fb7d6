//! A request on its way to a backend: tried until there is a response that counts, and copied to
//! mirrors.

use super::{
    Peer,
    account::Account,
    body::{Patience, RequestBody, ResponseBody, STALLED},
    pool::{Lease, SendError, Sender, Speech},
    refusal::Refusal,
    rule::{Mirror, Rule, Target},
};
use crate::proxy::{
    balance::{Balancer, Connected, Tracked, below},
    reach::Unreachable,
};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often a request is sent because a kept connection had ended.
const STALE: u32 = 3;

/// How long a mirror has.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);

/// What there is to know of a request that is sent.
pub(super) struct Sending<'a> {
    pub(super) peer: &'a Peer,
    pub(super) account: &'a Arc<Account>,
    pub(super) listener: &'a str,
    pub(super) rule: &'a Rule,
    pub(super) backend: &'a Balancer,
    pub(super) deadline: Option<Instant>,
    /// Whether the connection is to become another protocol's, which HTTP/1.1 alone does here.
    pub(super) is_upgrade: bool,
}

impl Sending<'_> {
    fn speech(&self) -> Speech {
        match self.is_upgrade {
            true => Speech::Http1,
            false => self.rule.speech(self.backend),
        }
    }

    /// Sends copies beside the request, which neither waits for them nor learns of them.
    pub(super) fn mirrored(
        &self,
        mut request: Request<RequestBody>,
        target: &Target,
    ) -> Request<RequestBody> {
        for mirror in self.rule.mirrors.iter().chain(&target.mirrors) {
            let share = u64::from(mirror.denominator.max(1));
            if !self.is_upgrade && below(share) < u64::from(mirror.numerator) {
                self.mirror(&mut request, mirror);
            }
        }
        request
    }

    fn mirror(&self, request: &mut Request<RequestBody>, mirror: &Mirror) {
        let body = request.body_mut().copy();
        let copy = copy_of(request).map(|_| body);
        let (backend, speech) = (
            Arc::clone(&mirror.backend),
            self.rule.speech(&mirror.backend),
        );
        let timeout = self.peer.context.limits.connect_timeout;
        if let Some(meter) = self.account.meter() {
            meter.mirrored();
        }
        tokio::spawn(async move {
            let sent = async {
                let endpoint = backend.choose(None)?;
                let sender = Sender::to(&endpoint, speech, timeout, false).await;
                let (response, lease) = sender.ok()?.send(copy, endpoint).await.ok()?;
                let patience = Patience::new(None);
                let body = response.into_body();
                let mut body = ResponseBody::backend(body, lease, None, patience, Arc::default());
                while let Some(Ok(_)) = next_frame(&mut body).await {}
                Some(())
            };
            let _ = tokio::time::timeout(MIRROR_TIMEOUT, sent).await;
        });
    }

    /// Sends a request until there is a response that counts.
    pub(super) async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let retry = self.rule.retry.as_ref();
        let mut attempts = retry.map_or(0, |retry| retry.attempts);
        let mut tried = None;
        loop {
            // What has a body can be sent only once.
            let again = request.body().is_end_stream().then(|| copy_of(&request));
            let sent = self.try_once(request, &mut tried).await;
            let wanted = match (&sent, retry) {
                (Ok((response, _)), Some(retry)) => {
                    retry.codes.contains(&response.status().as_u16())
                }
                (Err(_), Some(_)) => self.deadline.is_none_or(|end| Instant::now() < end),
                (_, None) => false,
            };
            match again {
                Some(again) if wanted && attempts > 0 => request = again,
                _ => return sent,
            }
            attempts -= 1;
            drop(sent);
            if let Some(meter) = self.account.meter() {
                meter.retried();
            }
            let pause = retry.map(|retry| retry.backoff).unwrap_or_default();
            let pause = Instant::now() + pause;
            tokio::time::sleep_until(self.deadline.map_or(pause, |end| pause.min(end))).await;
        }
    }

    /// One try, within the time that it has.
    async fn try_once(
        &self,
        request: Request<RequestBody>,
        tried: &mut Option<Arc<Tracked>>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let own = self.rule.timeouts.backend_request;
        let own = own.map(|limit| Instant::now() + limit);
        let until = match (own, self.deadline) {
            (Some(own), Some(deadline)) => Some(own.min(deadline)),
            (own, deadline) => own.or(deadline),
        };
        let sending = self.reach(request, tried);
        match until {
            Some(until) => tokio::time::timeout_at(until, sending)
                .await
                .unwrap_or(Err(Refusal::TooLate)),
            None => sending.await,
        }
    }

    async fn reach(
        &self,
        mut request: Request<RequestBody>,
        tried: &mut Option<Arc<Tracked>>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let (mut stale, mut fresh) = (0, false);
        // Another one than the last time, if there is one.
        let chosen = self.backend.choose(tried.as_ref());
        let chosen = chosen.or_else(|| self.backend.choose(None));
        let none = Refusal::NotReached(Unreachable::NoEndpoints);
        let mut endpoint = chosen.ok_or_else(|| self.failed(none))?;
        loop {
            let sender;
            (sender, endpoint) = self.connect(endpoint, fresh).await?;
            self.account
                .note(|line| line.endpoint = endpoint.endpoint().to_string());
            let idempotent = request.body().is_end_stream() && request.method().is_idempotent();
            let again = (sender.reused && idempotent).then(|| copy_of(&request));
            let tracked = Arc::clone(endpoint.tracked());
            *tried = Some(Arc::clone(&tracked));
            match (sender.send(request, endpoint).await, again) {
                (Ok(response), _) => return Ok(response),
                (Err(SendError::Unsent(unsent)), _) if stale < STALE => request = *unsent,
                // A server that ends a kept connection as the request arrives has not seen it.
                (Err(SendError::Failed(_)), Some(again)) if stale < STALE => request = again,
                (Err(error), _) => return Err(self.unanswered(error)),
            }
            endpoint = Tracked::count(&tracked);
            stale += 1;
            fresh = stale > 1;
        }
    }

    /// A connection to an endpoint, or to another one when that cannot be reached.
    async fn connect(
        &self,
        endpoint: Connected,
        fresh: bool,
    ) -> Result<(Sender, Connected), Refusal> {
        let (timeout, speech) = (self.peer.context.limits.connect_timeout, self.speech());
        let mut endpoint = endpoint;
        let mut error = match Sender::to(&endpoint, speech, timeout, fresh).await {
            Ok(sender) => return Ok((self.counted(sender), endpoint)),
            Err(error) => error,
        };
        if let Some(other) = self.backend.choose(Some(endpoint.tracked())) {
            self.failed(Refusal::NotReached(error));
            endpoint = other;
            error = match Sender::to(&endpoint, speech, timeout, fresh).await {
                Ok(sender) => return Ok((self.counted(sender), endpoint)),
                Err(error) => error,
            };
        }
        Err(self.failed(Refusal::NotReached(error)))
    }

    fn counted(&self, sender: Sender) -> Sender {
        if let Some(meter) = self.account.meter() {
            meter.connected(sender.reused);
        }
        sender
    }

    /// Whose fault it is that there is no response.
    fn unanswered(&self, error: SendError) -> Refusal {
        match error {
            SendError::Unsayable(error) => {
                tracing::debug!(backend = self.backend.name, %error, "no request can be made");
                return Refusal::BrokenFilter;
            }
            SendError::Failed(error) if error.is_user() => {
                return match self.account.is_ended_by(STALLED) {
                    true => Refusal::Stalled,
                    false => Refusal::Gone,
                };
            }
            SendError::Failed(error) => {
                tracing::debug!(backend = self.backend.name, %error, "no response");
            }
            SendError::Unsent(_) => {}
        }
        self.failed(Refusal::Failed)
    }

    fn failed(&self, refusal: Refusal) -> Refusal {
        let reason = match refusal {
            Refusal::NotReached(reason) => reason.as_str(),
            _ => "ended",
        };
        let context = &self.peer.context;
        context.backend_failed(&self.backend.name, reason);
        tracing::warn!(
            gateway = context.gateway,
            listener = self.listener,
            route = %self.rule.route,
            backend = self.backend.name,
            reason,
            "backend did not answer"
        );
        refusal
    }
}

async fn next_frame<B: Body + Unpin>(body: &mut B) -> Option<Result<(), B::Error>> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context))
        .await
        .map(|frame| frame.map(drop))
}

/// The same request without a body.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
