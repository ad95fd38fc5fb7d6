//! HTTP: what a listener serves, and how requests are matched, changed and passed on.

use super::{BackendId, HostnamePattern, ObjectName};
use serde::Serialize;
use std::{fmt, num::NonZeroU32, time::Duration};

/// Requests of one hostname of a port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpListener {
    /// `spec.listeners[].name`
    pub name: String,
    /// `None`: those that no other listener of the port is for.
    pub hostname: Option<HostnamePattern>,
    /// In the order of their precedence: oldest first, then by name.
    pub routes: Vec<AttachedRoute>,
}

/// A route of a listener, for requests to hosts that both mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedRoute {
    pub route: RouteId,
    /// The route's own, so that what they say decides on precedence. Empty: all of the listener's.
    pub hostnames: Vec<HostnamePattern>,
}

/// Names a route of HTTP rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId {
    pub kind: HttpRouteKind,
    pub name: ObjectName,
}

/// Where the rules come from, which decides how errors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum HttpRouteKind {
    #[serde(rename = "HTTPRoute")]
    Http,
    #[serde(rename = "GRPCRoute")]
    Grpc,
}

/// The rules of an HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpRoute {
    pub rules: Vec<HttpRule>,
}

/// What is done with requests that one of `matches` fits.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Never empty: what says nothing matches every path.
    pub matches: Vec<HttpMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
    pub backends: Vec<HttpBackend>,
    #[serde(skip_serializing_if = "Timeouts::is_empty")]
    pub timeouts: Timeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// All of it must fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpMatch {
    pub path: PathMatch,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    Exact(String),
    /// By whole segments; without a final slash, so that all paths have the empty one.
    Prefix(String),
    /// Of the whole path.
    Regex(String),
}

/// A header or query parameter. Header names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ValueMatch {
    pub name: String,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Value {
    Exact(String),
    /// Of the whole value.
    Regex(String),
}

/// What is done with a request or its response, in the order of the rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HttpFilter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
    /// A filter that cannot be applied: requests get status 500 (Gateway API `HTTPRouteFilter`).
    Broken,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderChange {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// What is left out stays as the client had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathChange>,
    pub port: Option<u16>,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathChange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathChange {
    Full(String),
    /// In place of the prefix that was matched.
    Prefix(String),
}

/// A copy of `numerator` in `denominator` requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// `None`: the reference is invalid, and nothing is mirrored.
    pub backend: Option<BackendId>,
    pub numerator: u32,
    pub denominator: u32,
}

/// Cross-origin requests (Fetch standard, CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// `*`, origins, or origins with a `*` in their host.
    pub allow_origins: Vec<String>,
    pub allow_credentials: bool,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    /// Seconds.
    pub max_age: u32,
}

/// A `backendRef` with filters of its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpBackend {
    /// Share of requests; 0 takes none.
    pub weight: u32,
    /// `None`: the reference is invalid; its share gets status 500.
    pub backend: Option<BackendId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
}

/// `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Of a request, with all tries.
    pub request: Option<Duration>,
    /// Of one try.
    pub backend_request: Option<Duration>,
}

/// When a request is tried again (Gateway API `HTTPRouteRetry`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Statuses of a backend after which it is.
    pub codes: Vec<u16>,
    /// How often at most, after the first try.
    pub attempts: u32,
    /// How long to wait before.
    pub backoff: Duration,
}

/// What backends and the log are told of requests beyond what they always are, by choice of a
/// Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpOptions {
    /// Header `Forwarded` (RFC 7239).
    pub forwarded: bool,
    /// Header `Tailscale-Node`: the name of the peer's node.
    pub node: bool,
    /// Header `Tailscale-Tags`: the tags of a tagged peer.
    pub tags: bool,
    /// Header `Tailscale-App-Capabilities`: those of these that the peer was granted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// One in how many requests is logged; `None`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<NonZeroU32>,
}

// === impl HttpOptions ===

impl HttpOptions {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl RouteId ===

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HttpRouteKind::Http => "HTTPRoute",
            HttpRouteKind::Grpc => "GRPCRoute",
        };
        write!(f, "{kind} {}", self.name)
    }
}

impl Serialize for RouteId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl Timeouts ===

impl Timeouts {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl PathMatch ===

impl PathMatch {
    /// A prefix, of which a final slash says nothing (Gateway API `HTTPPathMatch`).
    pub fn prefix(prefix: &str) -> Self {
        Self::Prefix(prefix.trim_end_matches('/').into())
    }
}
