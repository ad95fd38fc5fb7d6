//! Tests on a real Kubernetes, which `lab` starts in network, mount and process namespaces of its
//! own. They take root and a build of ten minutes at first, so `cargo test` passes them over, and
//! `make cluster` runs them.

pub mod lab;
pub mod network;
mod life;
mod scene;
mod smoke;
pub mod tailnet;
