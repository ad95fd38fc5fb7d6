//! What filters do to requests and responses (Gateway API `HTTPRouteFilter`).

use super::headers::is_framing;
use crate::model::{self, Cors, HeaderChange, HttpFilter, PathChange, Redirect};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        LOCATION, ORIGIN, VARY,
    },
};

/// The filters of a rule or backend, ready to be applied.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) requests: Vec<Headers>,
    pub(super) responses: Vec<Headers>,
    pub(super) redirect: Option<Redirect>,
    pub(super) hostname: Option<HeaderValue>,
    pub(super) path: Option<PathChange>,
    pub(super) mirrors: Vec<model::Mirror>,
    pub(super) cors: Option<Cors>,
    /// Requests get status 500.
    pub(super) broken: bool,
}

/// Changes of headers, in the order of the specification: set, add, remove. Where a message ends
/// is not theirs to say.
#[derive(Debug, Default)]
pub(super) struct Headers {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

// === impl Filters ===

impl Filters {
    /// What cannot be applied makes the filters broken, as the specification asks of all that is
    /// not understood.
    pub(super) fn new(filters: &[HttpFilter]) -> Self {
        let mut ready = Self::default();
        for filter in filters {
            match filter {
                HttpFilter::RequestHeaders(change) => match Headers::new(change) {
                    Some(headers) => ready.requests.push(headers),
                    None => ready.broken = true,
                },
                HttpFilter::ResponseHeaders(change) => match Headers::new(change) {
                    Some(headers) => ready.responses.push(headers),
                    None => ready.broken = true,
                },
                HttpFilter::Redirect(redirect) => ready.redirect = Some(redirect.clone()),
                HttpFilter::Rewrite(rewrite) => {
                    match rewrite.hostname.as_deref().map(HeaderValue::from_str) {
                        Some(Ok(hostname)) => ready.hostname = Some(hostname),
                        Some(Err(_)) => ready.broken = true,
                        None => {}
                    }
                    ready.path.clone_from(&rewrite.path);
                }
                HttpFilter::Mirror(mirror) => ready.mirrors.push(mirror.clone()),
                HttpFilter::Cors(cors) => ready.cors = Some(cors.clone()),
                HttpFilter::Broken => ready.broken = true,
            }
        }
        ready
    }
}

// === impl Headers ===

impl Headers {
    fn new(change: &HeaderChange) -> Option<Self> {
        let pair = |(name, value): &(String, String)| {
            Some((
                HeaderName::try_from(name).ok()?,
                HeaderValue::try_from(value).ok()?,
            ))
        };
        let pairs = |pairs: &[(String, String)]| -> Option<Vec<_>> {
            let mut pairs: Vec<_> = pairs.iter().map(pair).collect::<Option<_>>()?;
            pairs.retain(|(name, _)| !is_framing(name));
            Some(pairs)
        };
        let names = change.remove.iter();
        let mut remove: Vec<_> = names
            .map(|name| HeaderName::try_from(name).ok())
            .collect::<Option<_>>()?;
        remove.retain(|name| !is_framing(name));
        Some(Self {
            set: pairs(&change.set)?,
            add: pairs(&change.add)?,
            remove,
        })
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

// === paths ===

/// A path with a part of it replaced. `prefix` is the length of the prefix that was matched.
pub(super) fn changed_path(path: &str, change: &PathChange, prefix: Option<usize>) -> String {
    match change {
        PathChange::Full(full) => rooted(full),
        PathChange::Prefix(replacement) => {
            let start = replacement.trim_end_matches('/');
            match &path[prefix.unwrap_or(0).min(path.len())..] {
                "" if start.is_empty() => "/".into(),
                "" => rooted(replacement),
                rest => rooted(&format!("{start}/{}", rest.trim_start_matches('/'))),
            }
        }
    }
}

fn rooted(path: &str) -> String {
    match path.starts_with('/') {
        true => path.into(),
        false => format!("/{path}"),
    }
}

// === redirects ===

/// What a client asked for, as far as redirects depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Of the listener: `http` or `https`.
    pub(super) scheme: &'a str,
    /// Without a port.
    pub(super) host: &'a str,
    /// Of the listener.
    pub(super) port: u16,
    pub(super) uri: &'a Uri,
}

/// Where a redirect leads (Gateway API `HTTPRequestRedirectFilter`).
pub(super) fn location(redirect: &Redirect, origin: &Origin<'_>, prefix: Option<usize>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(origin.scheme);
    let host = redirect.hostname.as_deref().unwrap_or(origin.host);
    // Without a port in the filter, that of its scheme; without a scheme, the listener's.
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => None,
        (None, None) => Some(origin.port),
    };
    let well_known = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != well_known);
    let path = origin.uri.path();
    let path = match &redirect.path {
        Some(change) => changed_path(path, change, prefix),
        None => path.to_owned(),
    };
    let query = origin.uri.query();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    match port {
        Some(port) => format!("{scheme}://{host}:{port}{path}{query}"),
        None => format!("{scheme}://{host}{path}{query}"),
    }
}

/// The answer of a redirect; `None` when its parts make no header.
pub(super) fn redirected<B: Default>(redirect: &Redirect, location: &str) -> Option<Response<B>> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::from_u16(redirect.status).ok()?;
    let location = HeaderValue::try_from(location).ok()?;
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

// === CORS ===

/// Whether a request only asks what another one may do.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a browser is told before it sends a request from elsewhere.
pub(super) fn preflight<B: Default>(cors: &Cors, asked: &HeaderMap) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let Some(origin) = allowed_origin(cors, asked) else {
        return response;
    };
    let headers = response.headers_mut();
    allow(headers, cors, origin);
    let method = asked.get(ACCESS_CONTROL_REQUEST_METHOD);
    let methods = list(&cors.allow_methods, cors.allow_credentials, method);
    put(headers, ACCESS_CONTROL_ALLOW_METHODS, methods);
    let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS);
    let names = list(&cors.allow_headers, cors.allow_credentials, wanted);
    put(headers, ACCESS_CONTROL_ALLOW_HEADERS, names);
    headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.into());
    response
}

/// Adds to a response what a browser needs to show it to a page from elsewhere.
pub(super) fn allow_origin(cors: &Cors, asked: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let Some(origin) = asked.and_then(|origin| origin_if_allowed(cors, origin)) else {
        return;
    };
    for name in [
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_EXPOSE_HEADERS,
    ] {
        headers.remove(name);
    }
    allow(headers, cors, origin);
    let exposed = list(&cors.expose_headers, false, None);
    put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

fn allow(headers: &mut HeaderMap, cors: &Cors, origin: HeaderValue) {
    if origin != "*" {
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if cors.allow_credentials {
        let yes = HeaderValue::from_static("true");
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
}

fn allowed_origin(cors: &Cors, asked: &HeaderMap) -> Option<HeaderValue> {
    origin_if_allowed(cors, asked.get(ORIGIN)?)
}

/// The origin to name in an answer. With credentials `*` means nothing to browsers, so that the
/// origin itself is named.
fn origin_if_allowed(cors: &Cors, origin: &HeaderValue) -> Option<HeaderValue> {
    let text = origin.to_str().ok()?;
    let is_any = |allowed: &String| allowed == "*";
    if cors.allow_origins.iter().any(is_any) {
        return Some(match cors.allow_credentials {
            true => origin.clone(),
            false => HeaderValue::from_static("*"),
        });
    }
    let mut allowed = cors.allow_origins.iter();
    allowed
        .any(|allowed| is_origin(allowed, text))
        .then(|| origin.clone())
}

/// Whether an origin is the one allowed, whose host may begin with `*`.
fn is_origin(allowed: &str, origin: &str) -> bool {
    match allowed.split_once('*') {
        None => allowed.eq_ignore_ascii_case(origin),
        Some((start, end)) => {
            let origin = origin.to_ascii_lowercase();
            origin.len() > start.len() + end.len()
                && origin.starts_with(&start.to_ascii_lowercase())
                && origin.ends_with(&end.to_ascii_lowercase())
        }
    }
}

/// A list of names, or of all that was asked for where `*` would mean nothing.
fn list(names: &[String], credentials: bool, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    if names.iter().any(|name| name == "*") && credentials {
        return asked.cloned();
    }
    HeaderValue::try_from(names.join(", ")).ok()
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_as_the_specification_has_it() {
        // HTTPPathModifier.replacePrefixMatch: path, prefix, replacement, result.
        let table = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
        ];
        for (path, prefix, replacement, result) in table {
            let change = PathChange::Prefix(replacement.into());
            let length = prefix.trim_end_matches('/').len();
            let changed = changed_path(path, &change, Some(length));
            assert_eq!(changed, result, "{path} {prefix} {replacement}");
        }
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_name() {
        let uri: Uri = "/a/b?c=d".parse().unwrap();
        let origin = |scheme, port| Origin {
            scheme,
            host: "example.com",
            port,
            uri: &uri,
        };
        let redirect = |scheme: Option<&str>, port| Redirect {
            scheme: scheme.map(str::to_owned),
            hostname: None,
            path: None,
            port,
            status: 302,
        };
        let table = [
            (
                redirect(None, None),
                origin("http", 80),
                "http://example.com/a/b?c=d",
            ),
            (
                redirect(None, None),
                origin("http", 8080),
                "http://example.com:8080/a/b?c=d",
            ),
            (
                redirect(None, None),
                origin("https", 443),
                "https://example.com/a/b?c=d",
            ),
            (
                redirect(Some("https"), None),
                origin("http", 80),
                "https://example.com/a/b?c=d",
            ),
            (
                redirect(Some("https"), None),
                origin("http", 8080),
                "https://example.com/a/b?c=d",
            ),
            (
                redirect(None, Some(80)),
                origin("http", 8080),
                "http://example.com/a/b?c=d",
            ),
            (
                redirect(None, Some(8083)),
                origin("http", 80),
                "http://example.com:8083/a/b?c=d",
            ),
            (
                redirect(Some("http"), Some(443)),
                origin("https", 443),
                "http://example.com:443/a/b?c=d",
            ),
        ];
        for (redirect, origin, expected) in table {
            assert_eq!(location(&redirect, &origin, None), expected);
        }
        let mut other = redirect(None, None);
        other.hostname = Some("example.org".into());
        other.path = Some(PathChange::Prefix("/x".into()));
        let expected = "http://example.org/x/b?c=d";
        assert_eq!(location(&other, &origin("http", 80), Some(2)), expected);
    }

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Cors {
            allow_origins: list(origins),
            allow_credentials: credentials,
            allow_methods: list(&["GET", "PUT"]),
            allow_headers: list(&["x-one"]),
            expose_headers: list(&["x-two"]),
            max_age: 60,
        }
    }

    #[test]
    fn an_origin_is_allowed_when_it_is_listed() {
        let allowed = |cors: &Cors, origin: &'static str| {
            origin_if_allowed(cors, &HeaderValue::from_static(origin))
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let listed = cors(&["https://a.example.com", "https://*.example.org"], false);
        let same = |origin: &str| Some(origin.to_owned());
        assert_eq!(
            allowed(&listed, "https://a.example.com"),
            same("https://a.example.com")
        );
        assert_eq!(
            allowed(&listed, "https://b.example.org"),
            same("https://b.example.org")
        );
        for other in [
            "http://a.example.com",
            "https://.example.org",
            "https://a.example.com:1",
            "null",
        ] {
            assert_eq!(allowed(&listed, other), None, "{other}");
        }
        assert_eq!(allowed(&cors(&["*"], false), "https://x"), same("*"));
        assert_eq!(allowed(&cors(&["*"], true), "https://x"), same("https://x"));
    }

    #[test]
    fn a_preflight_of_a_stranger_is_told_nothing() {
        let asked = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://b"))]);
        let response: Response<()> = preflight(&cors(&["https://a"], false), &asked);
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert!(response.headers().is_empty());
        let response: Response<()> = preflight(&cors(&["https://b"], true), &asked);
        let header = |name: HeaderName| response.headers()[name].to_str().unwrap();
        assert_eq!(header(ACCESS_CONTROL_ALLOW_ORIGIN), "https://b");
        assert_eq!(header(ACCESS_CONTROL_ALLOW_CREDENTIALS), "true");
        assert_eq!(header(ACCESS_CONTROL_ALLOW_METHODS), "GET, PUT");
        assert_eq!(header(ACCESS_CONTROL_ALLOW_HEADERS), "x-one");
        assert_eq!(header(ACCESS_CONTROL_MAX_AGE), "60");
        assert_eq!(header(VARY), "origin");
    }
}
