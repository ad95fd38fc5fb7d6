use super::{BackendTls, HealthCheck, ObjectName};
use serde::Serialize;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// Where connections of a route go: one of `backends`, drawn by weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// The route this comes from.
    pub route: ObjectName,
    pub backends: Vec<WeightedBackend>,
    /// `None`: backends are told nothing of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// How a backend of bytes is told who the client is (HAProxy's PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyProtocol {
    V1,
    /// Also with the user and the node of the tailnet.
    V2,
}

/// One `backendRef` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedBackend {
    /// Share of connections; 0 takes none.
    pub weight: u32,
    /// `None`: the reference is invalid. It keeps its share, and those connections are refused
    /// (Gateway API `TCPRouteRule.backendRefs`).
    pub backend: Option<BackendId>,
}

/// An object that can be a backend, and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId {
    pub kind: BackendKind,
    pub object: ObjectName,
    pub port: u16,
    /// An object can have a port twice.
    pub transport: Transport,
}

/// What a backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendKind {
    #[default]
    Service,
    /// `TailscaleEndpoints`
    Endpoints,
}

/// What carries bytes to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
}

/// The endpoints of a [`BackendId`]; none means that nothing is ready now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Backend {
    #[serde(skip_serializing_if = "BackendProtocol::is_default")]
    pub protocol: BackendProtocol,
    /// `None`: in plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
    /// All alike.
    pub endpoints: Vec<Endpoint>,
    /// Those that have something of their own: the endpoints of a `TailscaleEndpoints`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
}

/// An endpoint with a name, a share and a check of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its health is told by this name, which no other of the snapshot has, unless that is the
    /// very same endpoint.
    pub name: String,
    pub endpoint: Endpoint,
    /// Share of what goes to the backend, above 0.
    pub weight: u32,
    /// `None`: in plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
    /// `None`: it is not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
}

/// What a backend speaks to a proxy of HTTP (`appProtocol` of the Service's port).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendProtocol {
    #[default]
    Http1,
    /// HTTP/2, known beforehand (`kubernetes.io/h2c`); gRPC is always spoken so.
    H2c,
}

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    Address(IpAddr, u16),
    /// A DNS name, resolved when it is connected to.
    Name(String, u16),
    /// Somebody in the tailnet, by IP address, by name (full, or its first label) or as a service
    /// (`svc:name`): found by the Gateway's own node when it is connected to.
    Tailnet(String, u16),
}

// === impl Forward ===

impl Forward {
    /// The sum of all weights; 0 means that every connection is refused.
    pub fn total_weight(&self) -> u64 {
        self.backends.iter().map(|b| u64::from(b.weight)).sum()
    }
}

// === impl Backend ===

impl Backend {
    /// One that speaks HTTP/1.1, if it speaks HTTP at all.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            ..Self::default()
        }
    }
}

// === impl BackendProtocol ===

impl BackendProtocol {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Transport ===

impl Transport {
    /// As Kubernetes spells it (`TCP`, `UDP`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

// === impl BackendId ===

impl BackendId {
    /// Whether it is a port of this Service.
    pub fn is_service(&self, service: &ObjectName) -> bool {
        self.kind == BackendKind::Service && self.object == *service
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            BackendKind::Service => {}
            BackendKind::Endpoints => f.write_str("TailscaleEndpoints ")?,
        }
        write!(f, "{}:{}", self.object, self.port)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

impl Serialize for BackendId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Whether only a node of the tailnet reaches it.
    pub fn is_in_tailnet(&self) -> bool {
        matches!(self, Self::Tailnet(..))
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Address(_, port) | Self::Name(_, port) | Self::Tailnet(_, port) => *port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
            Self::Address(ip, port) => write!(f, "{ip}:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Tailnet(host, port) if host.parse::<Ipv6Addr>().is_ok() => {
                write!(f, "tailnet:[{host}]:{port}")
            }
            Self::Tailnet(host, port) => write!(f, "tailnet:{host}:{port}"),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
