//! The extension server, by its own protocol and by Envoy's.

mod bootstrap;
mod golden;
mod hooks;
mod keeper;
mod messages;
mod process;
pub mod secured;
mod serving;
