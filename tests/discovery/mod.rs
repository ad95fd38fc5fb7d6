//! Snapshots on their way from the controller to the pods, over TLS on loopback.

mod authority;
mod client;
mod copies;
mod keys;
pub mod scene;
mod script;
mod stream;
mod token;
