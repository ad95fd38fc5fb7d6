//! Ways to endpoints: from this host, or from a node into its tailnet.

use crate::{
    model::Endpoint,
    net::Outbound,
    tailnet::{self, Node},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// Why no endpoint was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    NoEndpoints,
    /// It is in a tailnet, and there is no node to reach it from, or that has yet to join.
    NoTailnet,
    Name,
    Timeout,
    Refused,
    /// Its certificate is not believed, or not the one that was asked for.
    Distrusted,
    /// No TLS could be agreed on.
    Tls,
    Other,
}

/// Connects to an endpoint. `node`: from which those of a tailnet are reached.
pub(super) async fn reach(
    endpoint: &Endpoint,
    node: Option<&Node>,
    timeout: Duration,
) -> Result<Outbound, Unreachable> {
    let connect = async {
        match endpoint {
            Endpoint::Address(ip, port) => TcpStream::connect(SocketAddr::new(*ip, *port))
                .await
                .map(Outbound::Host)
                .map_err(Unreachable::of),
            Endpoint::Name(name, port) => {
                let addresses: Vec<_> = tokio::net::lookup_host((name.as_str(), *port))
                    .await
                    .map_err(|_| Unreachable::Name)?
                    .collect();
                let stream = TcpStream::connect(addresses.as_slice()).await;
                stream.map(Outbound::Host).map_err(Unreachable::of)
            }
            // On the heap: few need it, and what connects is part of every connection.
            Endpoint::Tailnet(host, port) => Box::pin(dial(host, *port, node, timeout)).await,
        }
    };
    tokio::time::timeout_at(Instant::now() + timeout, connect)
        .await
        .unwrap_or(Err(Unreachable::Timeout))
}

async fn dial(
    host: &str,
    port: u16,
    node: Option<&Node>,
    timeout: Duration,
) -> Result<Outbound, Unreachable> {
    let node = running(node)?;
    // Looked up apart, so that what is not there is told from what does not answer.
    let ip = node.look_up(host).map_err(|_| Unreachable::Name)?;
    let to = SocketAddr::new(ip, port).to_string();
    let dialled = node.dial(&to, timeout).await;
    let connection = dialled.map_err(Unreachable::of_tailnet)?;
    let stream = connection.open().map_err(Unreachable::of)?;
    Ok(Outbound::tailnet(stream))
}

/// The address that a host of a tailnet has.
pub(super) fn look_up(host: &str, node: Option<&Node>) -> Result<IpAddr, Unreachable> {
    running(node)?.look_up(host).map_err(|_| Unreachable::Name)
}

/// A node that can send.
pub(super) fn running(node: Option<&Node>) -> Result<&Node, Unreachable> {
    let running = node.filter(|node| node.watch().borrow().is_running());
    running.ok_or(Unreachable::NoTailnet)
}

// === impl Unreachable ===

impl Unreachable {
    pub(super) fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other,
        }
    }

    /// The library tells by text alone.
    fn of_tailnet(error: tailnet::Error) -> Self {
        let text = error.to_string();
        if text.contains("refused") {
            Self::Refused
        } else if text.contains("deadline") || text.contains("timed out") {
            Self::Timeout
        } else {
            Self::Other
        }
    }

    /// A label for metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::NoTailnet => "no_tailnet",
            Self::Name => "name_not_resolved",
            Self::Timeout => "connect_timeout",
            Self::Refused => "connection_refused",
            Self::Distrusted => "certificate_not_believed",
            Self::Tls => "tls_error",
            Self::Other => "connect_error",
        }
    }
}
