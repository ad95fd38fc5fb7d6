//! All tests of tailway that are not beside the code they test: one binary.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(
    unreachable_pub,
    reason = "helpers are shared by the modules of one binary"
)]

mod cluster;
mod controller;
mod discovery;
mod envoy;
mod extension;
mod floors;
mod golden;
mod index;
mod manifests;
mod promises;
mod proxy;
mod source;
mod tailnet;
