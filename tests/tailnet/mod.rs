//! Tests on real tailnet nodes: control server, DERP, STUN and ACME of `localtailnet`, on loopback.

mod api;
mod certificates;
mod connections;
mod egress;
mod endpoints;
mod headers;
mod nodes;
mod run;
mod streams;
pub mod world;
