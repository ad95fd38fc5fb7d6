//! The data plane on loopback sockets, from the client's first byte to the backend's last.

mod backends;
mod client_certificates;
mod drain;
pub mod http;
mod limits;
mod live;
mod metrics;
mod passthrough;
pub mod proxy_protocol;
pub mod scene;
pub mod tls;
mod transfer;
mod udp;
