//! The controller: makes each Gateway's pod, keys, device and status.
//!
//! ```text
//!   source::watch_cluster ─→ Engine (index) ─→ World ─┬─→ discovery (every replica)
//!                              ↑   ↑                  ├─→ Writer: statuses      ┐
//!   reports of the pods ───────┘   │                  ├─→ Gateways: workloads   │ lease holder
//!   verdicts on credentials ───────┴──────────────────┴─→ Classes: credentials  ┘
//! ```

mod status;
mod world;
mod writer;

pub use status::{StatusWrite, plan};
pub use world::{Engine, Note, Values, World};
pub use writer::{FIELD_MANAGER, Writer};
