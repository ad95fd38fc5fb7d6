//! One request and its response.

use super::{
    HttpPort, Peer, Site,
    account::Account,
    body::{Patience, RequestBody, ResponseBody},
    filters::{self, Filters, Origin},
    headers::{Caller, strip_hop_by_hop},
    refusal::{Refusal, is_grpc},
    request::{Upgrade, authority, check, host_name, outgoing},
    router::Asked,
    rule::{Attached, Target},
    sending::Sending,
    tunnel,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header::ORIGIN};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::time::Instant;

/// Answers a request.
pub(super) async fn answer(peer: &Peer, request: Request<Incoming>) -> Response<ResponseBody> {
    let port = peer.port.load();
    let account = Account::open(peer, &port.options, port.unmatched.upgrade(), &request);
    let (grpc, is_head) = (is_grpc(request.headers()), request.method() == Method::HEAD);
    let response = match route(peer, &port, request, &account).await {
        Ok(response) => response,
        Err(refusal) => refuse(peer, &account, refusal, grpc),
    };
    let status = response.status();
    account.answered(status.as_u16());
    // The bytes of a tunnel come after its answer.
    if status == StatusCode::SWITCHING_PROTOCOLS || response.extensions().get::<Tunnel>().is_some()
    {
        return response;
    }
    let is_empty =
        is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    response.map(|body| body.told_in(account, is_empty))
}

/// Marks the response of a connection that is another protocol's from here on.
#[derive(Clone, Copy, Debug)]
struct Tunnel;

fn refuse(peer: &Peer, account: &Account, refusal: Refusal, grpc: bool) -> Response<ResponseBody> {
    let reason = refusal.as_str();
    tracing::debug!(
        gateway = peer.context.gateway,
        reason,
        milliseconds = account.elapsed().as_millis() as u64,
        "request refused"
    );
    if let Some(meter) = account.meter() {
        meter.refused(reason);
    }
    account.ends(reason);
    refusal.response(grpc)
}

async fn route(
    peer: &Peer,
    port: &HttpPort,
    request: Request<Incoming>,
    account: &Arc<Account>,
) -> Result<Response<ResponseBody>, Refusal> {
    check(&request).map_err(Refusal::Malformed)?;
    let authority = authority(&request).map_err(Refusal::Malformed)?;
    let host = host_name(&authority);
    account.note(|line| line.host.clone_from(&host));
    let site = peer.site(port, &host)?;
    account.note(|line| line.listener.clone_from(&site.listener));
    let asked = Asked {
        host: &host,
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        method: request.method(),
        headers: request.headers(),
    };
    let Some(matched) = site.router.find(&asked) else {
        account.of(site.unmatched.upgrade());
        return Err(Refusal::NoRoute);
    };
    let rule = &matched.rule.rule;
    account.note(|line| line.follows(&site.listener, &rule.route, &rule.name));
    let exchange = Exchange {
        peer,
        account,
        site,
        host: &host,
        authority: authority.as_str(),
        attached: matched.rule,
        prefix: matched.prefix,
        port,
    };
    let result = exchange.run(request).await;
    // What came to no backend is the rule's own.
    account.of(matched.rule.meters.own.upgrade());
    result
}

/// A request that a rule is for.
struct Exchange<'a> {
    peer: &'a Peer,
    account: &'a Arc<Account>,
    site: &'a Site,
    host: &'a str,
    authority: &'a str,
    attached: &'a Attached,
    prefix: Option<usize>,
    port: &'a HttpPort,
}

impl Exchange<'_> {
    async fn run(&self, request: Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
        let rule = &*self.attached.rule;
        if rule.filters.broken {
            return Err(Refusal::BrokenFilter);
        }
        if let Some(cors) = &rule.filters.cors
            && filters::is_preflight(request.method(), request.headers())
        {
            return Ok(filters::preflight(cors, request.headers()));
        }
        if let Some(response) = self.redirect(&request, &rule.filters)? {
            return Ok(response);
        }
        let (index, target) = rule.draw().ok_or(Refusal::InvalidBackend)?;
        if let Some(backend) = &target.backend {
            self.account.of(self.attached.meters.backend(index));
            self.account
                .note(|line| line.backend.clone_from(&backend.name));
        }
        if target.filters.broken {
            return Err(Refusal::BrokenFilter);
        }
        if let Some(response) = self.redirect(&request, &target.filters)? {
            return Ok(response);
        }
        self.forward(request, target).await
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
            port: self.port.number,
            uri: request.uri(),
        };
        let location = filters::location(redirect, &origin, self.prefix);
        let mut response = filters::redirected(redirect, &location).ok_or(Refusal::BrokenFilter)?;
        finish(&mut response, &[filters], request.headers().get(ORIGIN));
        Ok(Some(response))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let rule = &*self.attached.rule;
        let backend = target.backend.as_ref().ok_or(Refusal::InvalidBackend)?;
        let upgrade = Upgrade::of(&request);
        let client = (upgrade != Upgrade::None).then(|| hyper::upgrade::on(&mut request));
        let origin = request.headers().get(ORIGIN).cloned();
        let is_http2 = request.version() == Version::HTTP_2;
        let deadline = rule.timeouts.request.map(|limit| Instant::now() + limit);
        let outgoing = self.outgoing(request, &upgrade, target)?;
        let sending = Sending {
            peer: self.peer,
            account: self.account,
            listener: &self.site.listener,
            rule,
            backend,
            deadline,
            is_upgrade: client.is_some(),
        };
        let outgoing = sending.mirrored(outgoing, target);
        let (mut response, lease) = sending.send(outgoing).await?;
        if let Some(client) = client
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let backend = hyper::upgrade::on(&mut response);
            let joined = tunnel::Ends {
                client,
                backend,
                lease,
                idle_timeout: self.peer.context.limits.idle_timeout,
                account: Arc::clone(self.account),
                cut: Arc::clone(&self.peer.cut),
            };
            self.peer.drain.spawn(tunnel::join(joined));
            let mut response = tunnel::switched(response, &upgrade);
            response.extensions_mut().insert(Tunnel);
            return Ok(response);
        }
        // A switch that nobody asked for, or an answer that is none.
        if response.status().is_informational() {
            return Err(Refusal::Failed);
        }
        let (mut parts, body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        // Of HTTP/2 one request is cut, not the connection.
        let cut = match is_http2 {
            true => Arc::default(),
            false => Arc::clone(&self.peer.cut),
        };
        let body = ResponseBody::backend(body, lease, deadline, self.patience(), cut);
        let mut response = Response::from_parts(parts, body);
        *response.version_mut() = Version::default();
        let filters = [&target.filters, &rule.filters];
        finish(&mut response, &filters, origin.as_ref());
        Ok(response)
    }

    /// What the backend is asked.
    fn outgoing(
        &self,
        request: Request<Incoming>,
        upgrade: &Upgrade,
        target: &Target,
    ) -> Result<Request<RequestBody>, Refusal> {
        let (parts, body) = request.into_parts();
        let body = match upgrade {
            Upgrade::None => RequestBody::new(body, self.account, self.patience()),
            // The body of an upgrade is what follows it.
            _ => RequestBody::empty(),
        };
        let caller = Caller {
            address: self.peer.address,
            identity: self.peer.identity.as_deref(),
            scheme: self.peer.scheme,
            authority: self.authority,
            options: &self.port.options,
        };
        let filters = [&self.attached.rule.filters, &target.filters];
        outgoing(parts, body, &filters, self.prefix, &caller, upgrade)
            .map_err(|_| Refusal::BrokenFilter)
    }

    fn patience(&self) -> Patience {
        Patience::new(self.peer.context.limits.body_timeout)
    }
}

/// Changes of the response.
fn finish(
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
