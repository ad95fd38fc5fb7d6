//! What a client asked for, made into what a backend is asked.

use super::{
    body::RequestBody,
    filters::{Filters, changed_path},
    headers::{Caller, introduce, join_cookies, strip_hop_by_hop},
};
use crate::proxy::balance::below;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE},
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
    /// Its body is in a coding that is not undone here (RFC 9112 §6.1).
    Coding,
    /// Its target is longer than [`MAX_TARGET`].
    Target,
    /// It has more than [`MAX_FIELDS`] header fields.
    Fields,
}

/// Bytes of a target, twice what everybody should understand (RFC 9110 §4.1).
pub(super) const MAX_TARGET: usize = 16 * 1024;

/// Header fields of a request.
pub(super) const MAX_FIELDS: usize = 100;

/// What becomes of a connection after the request, when it asks for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    None,
    /// `Upgrade` of HTTP/1.1 (RFC 9110 §7.8).
    Http1(HeaderValue),
    /// Extended CONNECT of HTTP/2 (RFC 8441).
    Http2(HeaderValue),
}

// === impl Malformed ===

impl Malformed {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Target => StatusCode::URI_TOO_LONG,
            Self::Fields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "bad_host",
            Self::Connect => "connect",
            Self::Coding => "transfer_coding",
            Self::Target => "target_too_long",
            Self::Fields => "too_many_headers",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => "the request has no usable host\n",
            Self::Connect => "this is no proxy for CONNECT\n",
            Self::Coding => "the transfer coding is not known here\n",
            Self::Target => "the target is too long\n",
            Self::Fields => "the request has too many header fields\n",
        }
    }
}

/// Looks for what no route should see, whatever it matches.
pub(super) fn check(request: &Request<impl Sized>) -> Result<(), Malformed> {
    let target = request.uri().path_and_query().map(PathAndQuery::as_str);
    if target.is_some_and(|target| target.len() > MAX_TARGET) {
        return Err(Malformed::Target);
    }
    let headers = request.headers();
    if headers.len() > MAX_FIELDS {
        return Err(Malformed::Fields);
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Malformed::Coding),
    }
}

/// The host of a request, as its client wrote it. That of an absolute target counts more than the
/// header of HTTP/1.1 (RFC 9112 §3.2.2); in HTTP/2 they must be the same (RFC 9113 §8.3.1).
pub(super) fn authority(request: &Request<impl Sized>) -> Result<Authority, Malformed> {
    if request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none() {
        return Err(Malformed::Connect);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(Malformed::Host);
    }
    let authority = match (request.uri().authority(), host) {
        (Some(authority), Some(host))
            if request.version() == Version::HTTP_2
                && !host
                    .as_bytes()
                    .eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return Err(Malformed::Host);
        }
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => host.as_bytes().try_into().map_err(|_| Malformed::Host)?,
        (None, None) => return Err(Malformed::Host),
    };
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
        let mut protocols = headers.get_all(UPGRADE).iter();
        match (protocols.next(), protocols.next()) {
            (Some(protocol), None) if asked && !is_http2(protocol) && !has_body(headers) => {
                Self::Http1(protocol.clone())
            }
            _ => Self::None,
        }
    }
}

/// An upgrade to HTTP/2 is of the connection, and passed over (RFC 9113 §3.1).
fn is_http2(protocol: &HeaderValue) -> bool {
    let protocols = protocol.to_str().unwrap_or("h2c").split(',');
    let mut names = protocols.map(|name| name.trim().split('/').next().unwrap_or_default());
    names.any(|name| ["h2c", "h2", "http", "tls"].contains(&&*name.to_ascii_lowercase()))
}

/// What follows such a request is its body, and cannot be another protocol's.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// A request to a backend. What does not fit into a URI any more is an error.
pub(super) fn outgoing(
    mut parts: Parts,
    body: RequestBody,
    filters: &[&Filters],
    prefix: Option<usize>,
    caller: &Caller<'_>,
    upgrade: &Upgrade,
) -> Result<Request<RequestBody>, http::Error> {
    strip_hop_by_hop(&mut parts.headers);
    join_cookies(&mut parts.headers);
    // As it was understood here, so that a header that was not is not passed on.
    let host = HeaderValue::from_str(caller.authority)?;
    parts.headers.insert(HOST, host.clone());
    introduce(&mut parts.headers, caller);
    let mut path = None;
    for filters in filters {
        filters
            .requests
            .iter()
            .for_each(|change| change.apply(&mut parts.headers));
        if let Some(hostname) = &filters.hostname {
            parts.headers.insert(HOST, hostname.clone());
        }
        if let Some(change) = &filters.path {
            path = Some(changed_path(parts.uri.path(), change, prefix));
        }
    }
    // A filter may have removed it.
    parts.headers.entry(HOST).or_insert(host);
    parts.uri = target(&parts.uri, path)?;
    parts.version = Version::HTTP_11;
    match upgrade {
        Upgrade::None => {}
        Upgrade::Http1(protocol) => announce(&mut parts, protocol),
        Upgrade::Http2(protocol) => {
            parts.method = Method::GET;
            announce(&mut parts, protocol);
            // HTTP/2 has no key; the backend's answer to it is for us alone.
            parts.headers.insert("sec-websocket-key", websocket_key()?);
        }
    }
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, body))
}

/// A nonce of 16 random bytes in base64 (RFC 6455 §4.1).
fn websocket_key() -> Result<HeaderValue, http::Error> {
    let nonce: [u8; 16] = std::array::from_fn(|_| below(256) as u8);
    Ok(HeaderValue::try_from(STANDARD.encode(nonce))?)
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

/// The same request as a version has it: HTTP/2 has the host in its URI (RFC 9113 §8.3.1).
pub(super) fn spoken(
    mut request: Request<RequestBody>,
    version: Version,
    scheme: &Scheme,
) -> Result<Request<RequestBody>, http::Error> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    if version == Version::HTTP_2 {
        if let Some(host) = request.headers_mut().remove(HOST) {
            uri.authority = Some(host.as_bytes().try_into()?);
        }
        uri.scheme = Some(scheme.clone());
    } else {
        if let Some(authority) = uri.authority.take() {
            let host = HeaderValue::from_str(authority.as_str())?;
            request.headers_mut().insert(HOST, host);
        }
        uri.scheme = None;
    }
    *request.uri_mut() = Uri::from_parts(uri)?;
    *request.version_mut() = version;
    Ok(request)
}
