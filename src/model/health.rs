//! Whether an endpoint can be used, and how that is found out.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How it is found out whether an endpoint can be used. Where it is spoken to by TLS, each try
/// begins with a handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    pub probe: Probe,
    /// From the end of a try to the next one.
    pub interval: Duration,
    /// How long a try may take.
    pub timeout: Duration,
    /// Good tries in a row until it is used again; at least 1.
    pub healthy_threshold: u32,
    /// Failed tries in a row until it is left out; at least 1.
    pub unhealthy_threshold: u32,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// A GET that is answered with a status from 200 to 299.
    Http { path: String, host: String },
    /// A connection.
    Tcp,
    /// A datagram that nobody refuses.
    Udp,
}

/// What became of the checks of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    Healthy,
    Unhealthy {
        /// Why the last try failed.
        reason: String,
    },
}
