use super::{AttachedRoute, Certificate, Forward, HostnamePattern, HttpListener};
use serde::Serialize;

/// What one port of the node speaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Port {
    Tcp(TcpListener),
    /// HTTP listeners that share the port, told apart by host; most specific hostname first.
    Http(Vec<HttpListener>),
    /// TLS listeners that share the port, told apart by SNI; most specific hostname first.
    Tls(Vec<TlsListener>),
}

/// Bytes are passed on as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpListener {
    /// `spec.listeners[].name`
    pub name: String,
    /// `None`: no route is attached, connections are refused.
    pub route: Option<Forward>,
}

/// TLS is terminated; what is in it is passed on as bytes, or routed as HTTP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TlsListener {
    /// `spec.listeners[].name`
    pub name: String,
    /// `None` takes every server name it has a certificate for.
    pub hostname: Option<HostnamePattern>,
    pub certificates: Certificates,
    /// Protocols offered by ALPN, in order of preference; empty: ALPN is not used.
    pub alpn: Vec<String>,
    #[serde(flatten)]
    pub routes: TlsRoutes,
}

/// What becomes of the plain bytes of TLS.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TlsRoutes {
    /// They are passed on. `None`: no route is attached, connections are refused.
    Route(Option<Forward>),
    /// They are HTTP (protocol `HTTPS`); routes in the order of their precedence.
    HttpRoutes(Vec<AttachedRoute>),
}

/// The certificates that a TLS listener chooses from by SNI.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificates {
    /// Whether the certificate of the tailnet is served for the node's own name.
    pub tailnet: bool,
    /// Those of Secrets, in the order of `certificateRefs`.
    pub secrets: Vec<Certificate>,
}

// === impl Port ===

impl Port {
    /// Names of the listeners on this port.
    pub fn listener_names(&self) -> Vec<&str> {
        match self {
            Self::Tcp(listener) => vec![&listener.name],
            Self::Http(listeners) => listeners.iter().map(|l| l.name.as_str()).collect(),
            Self::Tls(listeners) => listeners.iter().map(|l| l.name.as_str()).collect(),
        }
    }

    /// `TCP`, `HTTP` or `TLS`, as in `spec.listeners[].protocol`.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP",
            Self::Http(_) => "HTTP",
            Self::Tls(_) => "TLS",
        }
    }
}
