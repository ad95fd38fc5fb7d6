//! HTTP on loopback sockets: what clients send, what backends get, and what comes back.

mod connections;
mod filters;
mod floods;
pub mod grpc;
mod matching;
mod members;
mod oracle;
mod records;
mod safety;
pub mod scene;
mod secured;
