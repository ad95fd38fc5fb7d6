//! The stream on which a proxy pod gets the Snapshot of its Gateway from the controller.
//!
//! ```text
//!   controller                                            pod
//!   publish ─→ Publisher ─→ Server ══ gRPC over TLS ══ Subscription ─→ proxy
//!                           │  ↑   Push, AuthKey  ──→    │   ↑
//!     TokenReviewer ────────┘  │   ←── Ack, Nack,        │   └─ applied, refused, need_key
//!     KeyMinter ───────────────┘       NeedKey           └─→ copy on disk
//!     authority: CA, certificate
//! ```
//!
//! A Snapshot travels as resources ([`proto::Resource`]) of which only those are sent whose content
//! the pod does not hold. One push is on its way to a pod at a time; what changes meanwhile is one
//! push afterwards. A pod goes on with the Snapshot it has while the controller is away, also across
//! its own restart.

pub mod authority;
mod client;
mod copy;
mod keys;
mod listener;
mod publisher;
mod server;
mod session;
mod stream;
mod token;
mod wire;

pub use client::{ClientSettings, ClientTiming, KeyError, Link, Received, Subscription, subscribe};
pub use keys::KeyMinter;
pub use listener::{BindError, Listener, ServerIdentity};
pub use publisher::{PodState, Publisher, Refusal};
pub use server::{AuthError, Authenticator, ServeError, Server, ServerSettings};
pub use token::{AUDIENCE, TokenReviewer};
pub use wire::{Malformed, WireError};

/// The messages of `snapshot.proto`.
#[allow(
    clippy::all,
    clippy::expect_used,
    clippy::unwrap_used,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("tailway.discovery.v1");
}

use std::fmt;

impl fmt::Debug for proto::AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(redacted)")
    }
}

impl fmt::Debug for proto::Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}
