//! What a client asked for, made into what a backend is asked.

use super::{
    body::RequestBody,
    filters::{Filters, changed_path},
    headers::{Caller, introduce, strip_hop_by_hop},
    rule::Rule,
};
use crate::model::BackendProtocol;
use http::{
    HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, HOST, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::ext::Protocol;

/// Why a request is answered without looking for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It has no host, several, or none that can be one (RFC 9112 §3.2).
    Host,
    /// CONNECT asks for a tunnel, which no route can give.
    Connect,
}

/// What becomes of a connection after the request, when it asks for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    None,
    /// `Upgrade` of HTTP/1.1 (RFC 9110 §7.8).
    Http1(HeaderValue),
    /// Extended CONNECT of HTTP/2 (RFC 8441).
    Http2(HeaderValue),
}

/// The host of a request, as its client wrote it.
pub(super) fn authority(request: &Request<impl Sized>) -> Result<Authority, Malformed> {
    if request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none() {
        return Err(Malformed::Connect);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(Malformed::Host);
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let host = host.ok_or(Malformed::Host)?;
    let authority: Authority = host.as_bytes().try_into().map_err(|_| Malformed::Host)?;
    // No user, no empty name.
    match authority.host().is_empty() || authority.as_str().contains('@') {
        true => Err(Malformed::Host),
        false => Ok(authority),
    }
}

/// The name in a host, in lower case and without what may follow it.
pub(super) fn host_name(authority: &Authority) -> String {
    let name = authority.host().trim_end_matches('.');
    name.to_ascii_lowercase()
}

impl Upgrade {
    pub(super) fn of(request: &Request<impl Sized>) -> Self {
        if let Some(protocol) = request.extensions().get::<Protocol>() {
            return match HeaderValue::from_str(protocol.as_str()) {
                Ok(protocol) => Self::Http2(protocol),
                Err(_) => Self::None,
            };
        }
        let headers = request.headers();
        let connection = headers.get_all(CONNECTION).iter();
        let mut options = connection
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let asked = options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
        match headers.get(UPGRADE) {
            // An upgrade to HTTP/2 is of the connection, and passed over (RFC 9113 §3.1).
            Some(protocol) if asked && protocol != "h2c" => Self::Http1(protocol.clone()),
            _ => Self::None,
        }
    }
}

/// A request to a backend. What does not fit into a URI any more is an error.
pub(super) fn outgoing(
    mut parts: Parts,
    body: RequestBody,
    rule: &Rule,
    filters: &[&Filters],
    prefix: Option<usize>,
    caller: &Caller<'_>,
    upgrade: &Upgrade,
) -> Result<Request<RequestBody>, http::Error> {
    strip_hop_by_hop(&mut parts.headers);
    let mut host = HeaderValue::from_str(caller.authority)?;
    introduce(&mut parts.headers, caller);
    let mut path = None;
    for filters in filters {
        filters
            .requests
            .iter()
            .for_each(|change| change.apply(&mut parts.headers));
        if let Some(hostname) = &filters.hostname {
            host = hostname.clone();
        }
        if let Some(change) = &filters.path {
            path = Some(changed_path(parts.uri.path(), change, prefix));
        }
    }
    // A filter may set it, as any other header.
    if filters.iter().all(|filters| filters.requests.is_empty())
        || !parts.headers.contains_key(HOST)
        || filters.iter().any(|filters| filters.hostname.is_some())
    {
        parts.headers.insert(HOST, host);
    }
    let _ = rule;
    parts.uri = target(&parts.uri, path)?;
    parts.version = Version::HTTP_11;
    match upgrade {
        Upgrade::None => {}
        Upgrade::Http1(protocol) => announce(&mut parts, protocol),
        Upgrade::Http2(protocol) => {
            parts.method = Method::GET;
            announce(&mut parts, protocol);
            // HTTP/2 has no key; the backend's answer to it is for us alone.
            let key = HeaderValue::from_static("dGFpbHdheSBvdmVyIEhUVFAyIQ==");
            parts.headers.insert("sec-websocket-key", key);
        }
    }
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, body))
}

fn announce(parts: &mut Parts, protocol: &HeaderValue) {
    let upgrade = HeaderValue::from_static("upgrade");
    parts.headers.insert(CONNECTION, upgrade);
    parts.headers.insert(UPGRADE, protocol.clone());
}

/// Path and query alone.
fn target(uri: &Uri, path: Option<String>) -> Result<Uri, http::Error> {
    let target = match (path, uri.query()) {
        (None, _) => return origin_form(uri),
        (Some(path), None) => path,
        (Some(path), Some(query)) => format!("{path}?{query}"),
    };
    Ok(Uri::from(PathAndQuery::try_from(target)?))
}

fn origin_form(uri: &Uri) -> Result<Uri, http::Error> {
    let target = uri.path_and_query().cloned();
    Ok(Uri::from(
        target.unwrap_or_else(|| PathAndQuery::from_static("/")),
    ))
}

/// The same request for a protocol: HTTP/2 has the host in its URI (RFC 9113 §8.3.1).
pub(super) fn spoken(
    mut request: Request<RequestBody>,
    protocol: BackendProtocol,
) -> Result<Request<RequestBody>, http::Error> {
    match protocol {
        BackendProtocol::Http1 => Ok(request),
        BackendProtocol::H2c => {
            let host = request.headers_mut().remove(HOST);
            let mut uri = std::mem::take(request.uri_mut()).into_parts();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = match &host {
                Some(host) => Some(host.as_bytes().try_into()?),
                None => None,
            };
            *request.uri_mut() = Uri::from_parts(uri)?;
            *request.version_mut() = Version::HTTP_2;
            Ok(request)
        }
    }
}
