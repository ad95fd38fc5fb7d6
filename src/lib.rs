//! tailway: Gateways on a tailnet.
//!
//! ```text
//!   files │ Kubernetes ─→ source ─→ index ─→ model::Snapshot ─→ proxy ─→ tailnet
//!                                     └────→ status
//! ```
//! ARCHITECTURE.md has the floors; a test holds them.
#![deny(unsafe_code)]

pub mod admin;
pub mod api;
pub mod app;
pub mod args;
pub mod check;
pub mod controller;
pub mod discovery;
pub mod drain;
pub mod extension;
pub mod index;
pub mod metrics;
pub mod model;
pub mod net;
pub mod proxy;
pub mod source;
pub mod tailnet;
pub mod telemetry;
