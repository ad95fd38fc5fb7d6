//! Tests on a real Kubernetes, which `lab` starts in network, mount and process namespaces of its
//! own. They take root and a build of ten minutes at first, so `cargo test` passes them over, and
//! `make cluster` runs them.

mod absence;
mod changes;
mod classes;
mod conflicts;
mod envoy;
mod hands;
pub mod lab;
mod leader;
mod life;
mod manifests;
mod many;
pub mod network;
mod readme;
mod removal;
mod rights;
mod routes;
mod scene;
mod smoke;
mod state;
mod steady;
pub mod tailnet;
mod troubles;
mod upgrade;
mod views;
