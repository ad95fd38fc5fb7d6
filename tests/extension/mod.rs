//! The extension server, by its own protocol and by Envoy's.

mod messages;
mod serving;
