//! The data plane on loopback sockets, from the client's first byte to the backend's last.

mod backends;
mod drain;
pub mod http;
mod limits;
mod live;
mod metrics;
pub mod scene;
mod tls;
mod transfer;
