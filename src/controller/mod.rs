//! The controller: makes each Gateway's pod, keys, device and status.
//!
//! ```text
//!   source::watch_cluster ─→ Engine (index) ─→ World ─┬─→ discovery (every replica)
//!                              ↑   ↑                  ├─→ Writer: statuses      ┐
//!   reports of the pods ───────┘   │                  ├─→ Gateways: workloads   │ lease holder
//!   verdicts on credentials ───────┤                  ├─→ Classes: credentials  │
//!   what tailnets have ────────────┘                  ├─→ Egresses: workloads   │
//!                                                     ├─→ Envoy: its objects    │
//!                                                     └─→ Discoverer            ┘
//! ```

mod authority;
mod classes;
mod discovered;
mod egress;
mod envoy;
mod events;
mod failure;
mod gateways;
mod inquiry;
mod labels;
mod minter;
mod names;
mod objects;
mod owned;
mod parameters;
mod removal;
mod requests;
mod schedule;
mod status;
mod steps;
mod workload;
mod world;
mod writer;

pub use authority::{AuthorityKeeper, KeepError};
pub use classes::{Classes, Clients};
pub use discovered::{Discovered, Discoverer};
pub use egress::{EgressFollower, EgressOwned, EgressSettings, Egresses};
pub use envoy::{Envoy, desired as egress_objects};
pub use events::{Events, Weight};
pub use gateways::{FINALIZER, Gateways, GatewaysSettings};
pub use minter::Minter;
pub use names::workload_name;
pub use owned::{Follower, Owned};
pub use parameters::Defaults;
pub use requests::unless_gone;
pub use status::{FEATURES, News, StatusWrite, changed, plan};
pub use workload::{AUTHORITY, Egress, EgressPort, Made, Site, WorkloadInput};
pub use world::{EgressState, Engine, Note, Values, World};
pub use writer::{FIELD_MANAGER, Writer};
