//! The extension server of Envoy Gateway: services of the tailnet as routes and clusters of Envoy.
//!
//! ```text
//!   Envoy Gateway ══ gRPC ══ Server ─→ Hooks ─→ Plan ─→ cluster, route
//!        ↑ what is echoed is never decoded │
//!        └── wire: the bytes that came ←───┴── placement, splice: and ours between them
//! ```
//!
//! Envoy's messages stay bytes. What Envoy Gateway sends is looked at field by field, and what is
//! added is written among its fields, so that what this program does not know of leaves as it came.

mod cluster;
mod hooks;
mod keeper;
mod listener;
mod placement;
mod plan;
mod record;
mod refusal;
mod route;
mod server;
mod set;
mod splice;
mod tls;
mod wire;

pub use cluster::{Settings, check};
pub use hooks::{Answer, Hooks, Told, Untouched};
pub use keeper::{Keeper, Notes};
pub use listener::{BindError, Listener};
pub use plan::{Plan, Routed, Served};
pub use record::{FIELD_MANAGER, Record, RecordedSkip};
pub use refusal::Refusal;
pub use server::{Call, Hook, Known, Observer, ServeError, Server, ServerSettings};
pub use set::{EgressSet, SetError, Skipped};
pub use tls::{Tls, TlsError, TlsFiles};
pub use wire::Malformed;

/// The messages of `service.proto`.
#[allow(
    clippy::all,
    clippy::expect_used,
    clippy::unwrap_used,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("envoygateway.extension");
}

/// Those of Envoy's messages that are written.
#[allow(
    clippy::all,
    dead_code,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy.rs"));
}
use generated::envoy;
