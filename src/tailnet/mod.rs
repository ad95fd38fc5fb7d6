//! Tailnet nodes: safe, async, owned types over `libtailscale-sys`.
//!
//! ```text
//!   Node ──listen(port)──→ Listener ──accept──→ Pending ──open──→ Connection (a stream)
//!    │                                             └────splice──→ Ended
//!    ├──dial(address)─────────────────────────────→ Pending
//!    ├──listen_packet(address)──→ PacketSocket
//!    └──status, watch, whois, certificate, metrics
//! ```
//!
//! `unsafe` stays in [`ffi`]; that a connection is a file descriptor stays in [`connection`].

pub mod api;
mod connection;
mod error;
mod ffi;
mod listener;
mod node;
mod packet;
mod process;
mod secret_store;
mod status;

pub use connection::{Connection, EndReason, Ended, Pending, Splice};
pub use error::Error;
pub use ffi::Counts;
pub use listener::{Admit, Listener};
pub use node::{Auth, Node, NodeConfig, Secret, State, StateStore};
pub use packet::PacketSocket;
pub use process::{
    counts, forward_logs, patch_signal_handlers, set_environment, set_memory, tailscale_version,
};
pub use secret_store::{SecretStore, StoreError};
pub use status::{Peers, Status};

/// Whether this is a tag of a tailnet's policy: `tag:` and a letter, then letters, digits and
/// dashes (tailcfg.CheckTag).
pub fn is_tag(text: &str) -> bool {
    text.strip_prefix("tag:").is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}
