//! Tests on a real Kubernetes, which `lab` starts in network, mount and process namespaces of its
//! own. They take root and a build of ten minutes at first, so `cargo test` passes them over, and
//! `make cluster` runs them.

mod changes;
mod classes;
mod conflicts;
pub mod lab;
mod life;
mod manifests;
pub mod network;
mod readme;
mod rights;
mod scene;
mod smoke;
mod steady;
pub mod tailnet;
mod troubles;
mod views;
