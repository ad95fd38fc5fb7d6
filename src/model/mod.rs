//! What a Gateway serves: the [`Snapshot`] and its parts.
//!
//! ```text
//!   Snapshot (one Gateway)
//!   ├── node: NodeSpec                     the tailnet node to be
//!   ├── ports: port → Port                 Tcp(TcpListener) | Tls([TlsListener])
//!   │                └── route: Forward    weighted BackendIds
//!   └── backends: BackendId → Backend      endpoints
//! ```
//!
//! The model knows neither Kubernetes nor Tailscale nor a wire format. A value that exists is
//! valid: what the specification forbids has been turned into a condition before it got here.

mod backend;
mod certificate;
mod hostname;
mod identity;
mod listener;
mod name;
mod report;
mod table;

pub use backend::{Backend, BackendId, Endpoint, Forward, WeightedBackend};
pub use certificate::{Certificate, CertificateError};
pub use hostname::{HostnameError, HostnamePattern};
pub use identity::Identity;
pub use listener::{Certificates, Port, TcpListener, TlsListener};
pub use name::{NodeName, NodeNameError, ObjectName};
pub use report::{
    CertificateReport, Issuance, NodeReport, Programmed, TailnetReport, TailnetState, Unready,
};
pub use table::{Table, differences};

use serde::Serialize;
use std::collections::BTreeMap;

/// Everything the data plane of one Gateway needs, secrets included (they serialize redacted).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    pub gateway: ObjectName,
    /// `metadata.generation` of the Gateway this was made from; 0 when the object has none.
    pub generation: i64,
    pub node: NodeSpec,
    pub ports: BTreeMap<u16, Port>,
    pub backends: BTreeMap<BackendId, Backend>,
}

/// The tailnet node that a Gateway becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeSpec {
    pub name: NodeName,
}
