//! Tests with real Envoy Gateway and real Envoy, which `lab` gets. Each scene is a network namespace
//! in which they run as processes, beside the extension and the services behind it. They take root
//! and a build of a quarter of an hour at first, so `cargo test` passes them over, and `make envoy`
//! runs them.

mod alone;
mod changes;
pub mod client;
mod faults;
pub mod lab;
mod paths;
mod protocols;
mod scene;
pub mod secured;
mod upstream;
