//! The extension server, by its own protocol and by Envoy's.

mod bootstrap;
mod golden;
mod hooks;
mod messages;
mod serving;
