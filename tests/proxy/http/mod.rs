//! HTTP on loopback sockets: what clients send, what backends get, and what comes back.

mod connections;
mod filters;
mod matching;
mod scene;
