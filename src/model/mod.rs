//! What a Gateway serves: the [`Snapshot`] and its parts.
//!
//! ```text
//!   Snapshot (one Gateway, or one egress)
//!   ├── node: NodeSpec                     the tailnet node to be
//!   ├── ports: port → Port                 Tcp(TcpListener) | Http([HttpListener]) | Tls([TlsListener])
//!   │                └── route: Forward    weighted BackendIds, or routes: RouteIds
//!   ├── udp_ports: port → UdpListener
//!   ├── http_routes: RouteId → HttpRoute   rules, filters, weighted BackendIds
//!   └── backends: BackendId → Backend      endpoints, or members with checks of their own
//! ```
//!
//! The model knows neither Kubernetes nor Tailscale nor a wire format. A value that exists is
//! valid: what the specification forbids has been turned into a condition before it got here.

mod backend;
mod certificate;
mod health;
mod hostname;
mod http;
mod identity;
mod listener;
mod name;
mod report;
mod table;
mod trust;

pub use backend::{
    Backend, BackendId, BackendKind, BackendProtocol, Endpoint, Forward, Member, ProxyProtocol,
    Transport, WeightedBackend,
};
pub use certificate::{Certificate, CertificateError};
pub use health::{Health, HealthCheck, Probe};
pub use hostname::{HostnameError, HostnamePattern};
pub use http::{
    AttachedRoute, Cors, HeaderChange, HttpBackend, HttpFilter, HttpListener, HttpMatch,
    HttpOptions, HttpRoute, HttpRouteKind, HttpRule, Mirror, PathChange, PathMatch, Redirect,
    Retry, Rewrite, RouteId, Timeouts, Value, ValueMatch,
};
pub use identity::Identity;
pub use listener::{
    Certificates, NamedForward, Port, TcpListener, Termination, TlsListener, TlsMode, TlsRoutes,
    UdpListener,
};
pub use name::{NodeName, NodeNameError, ObjectName};
pub use report::{
    CertificateReport, Issuance, NodeReport, Programmed, TailnetReport, TailnetState, Unready,
};
pub use table::{Table, differences};
pub use trust::{Authorities, AuthoritiesError, BackendTls, ClientValidation, SubjectName, Trust};

use serde::Serialize;
use std::collections::BTreeMap;

/// Everything the data plane of one Gateway needs, secrets included (they serialize redacted).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// What it is of; of an egress, `tailscaleendpoints/<name>` in the namespace of the object.
    pub gateway: ObjectName,
    #[serde(skip_serializing_if = "Role::is_ingress")]
    pub role: Role,
    /// `metadata.generation` of the Gateway this was made from; 0 when the object has none.
    pub generation: i64,
    pub node: NodeSpec,
    /// Of TCP.
    pub ports: BTreeMap<u16, Port>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub udp_ports: BTreeMap<u16, UdpListener>,
    #[serde(skip_serializing_if = "HttpOptions::is_empty")]
    pub http_options: HttpOptions,
    /// Rules that the listeners of HTTP refer to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub http_routes: BTreeMap<RouteId, HttpRoute>,
    pub backends: BTreeMap<BackendId, Backend>,
}

/// On which side of its node a snapshot is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Listeners are in the tailnet.
    #[default]
    Ingress,
    /// Listeners are on the network of the pod, so that others of the cluster reach the tailnet.
    Egress,
}

/// The tailnet node that a Gateway becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeSpec {
    pub name: NodeName,
}

// === impl Role ===

impl Role {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature is serde's"
    )]
    fn is_ingress(&self) -> bool {
        *self == Self::Ingress
    }
}
