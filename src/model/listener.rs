use super::{AttachedRoute, Certificate, ClientValidation, Forward, HostnamePattern, HttpListener};
use serde::Serialize;

/// What one TCP port of the node speaks.
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

/// Datagrams are passed on as they are, a flow to one backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UdpListener {
    /// `spec.listeners[].name`
    pub name: String,
    /// `None`: no route is attached, datagrams are dropped.
    pub route: Option<Forward>,
}

/// Connections of TLS for one hostname.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TlsListener {
    /// `spec.listeners[].name`
    pub name: String,
    /// `None` takes every server name; of those that are terminated, every one that there is a
    /// certificate for.
    pub hostname: Option<HostnamePattern>,
    #[serde(flatten)]
    pub mode: TlsMode,
}

/// Where TLS ends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TlsMode {
    /// Here.
    Terminate(Termination),
    /// At the backend, which the server name finds.
    Passthrough(Vec<NamedForward>),
}

/// How TLS is terminated, and what becomes of what is in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Termination {
    pub certificates: Certificates,
    /// Protocols offered by ALPN, in order of preference; empty: ALPN is not used.
    pub alpn: Vec<String>,
    /// `None`: clients are not asked for certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientValidation>,
    #[serde(flatten)]
    pub routes: TlsRoutes,
}

/// What becomes of the plain bytes of TLS.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TlsRoutes {
    /// They are passed on. None of them: connections are refused.
    Forwards(Vec<NamedForward>),
    /// They are HTTP (protocol `HTTPS`); routes in the order of their precedence.
    HttpRoutes(Vec<AttachedRoute>),
}

/// Where connections of some server names go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedForward {
    /// Empty: every name of the listener that no other is for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<HostnamePattern>,
    #[serde(flatten)]
    pub forward: Forward,
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

// === impl TlsListener ===

impl TlsListener {
    /// How TLS is terminated, if it is.
    pub fn termination(&self) -> Option<&Termination> {
        match &self.mode {
            TlsMode::Terminate(termination) => Some(termination),
            TlsMode::Passthrough(_) => None,
        }
    }
}

// === impl Termination ===

impl Termination {
    /// Without ALPN, and without asking clients for certificates.
    pub fn new(certificates: Certificates, routes: TlsRoutes) -> Self {
        Self {
            certificates,
            alpn: Vec::new(),
            clients: None,
            routes,
        }
    }
}

// === impl TlsRoutes ===

impl TlsRoutes {
    /// One route for all server names, or none.
    pub fn all(forward: Option<Forward>) -> Self {
        let named = forward.map(|forward| NamedForward {
            hostnames: Vec::new(),
            forward,
        });
        Self::Forwards(named.into_iter().collect())
    }
}
