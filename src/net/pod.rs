//! The network of a pod, with a node of a tailnet for what leaves it.

use super::{
    Admission, BindError, Network,
    host::{HostDatagrams, HostListener, HostNetwork},
};
use crate::tailnet::Node;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    sync::Arc,
};

/// Listeners on all addresses of this host, and backends in the tailnet of a node.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    host: HostNetwork,
    node: Node,
}

// === impl PodNetwork ===

impl PodNetwork {
    pub fn new(node: Node) -> Self {
        // Where there is IPv6, sockets of it take IPv4 too.
        let everywhere = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
            Ok(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            Err(_) => Ipv4Addr::UNSPECIFIED.into(),
        };
        Self {
            host: HostNetwork::new(everywhere),
            node,
        }
    }
}

impl Network for PodNetwork {
    type Listener = HostListener;
    type Datagrams = HostDatagrams;

    async fn bind(
        &self,
        port: u16,
        admission: Arc<dyn Admission>,
    ) -> Result<HostListener, BindError> {
        self.host.bind(port, admission).await
    }

    async fn bind_datagrams(&self, port: u16) -> Result<HostDatagrams, BindError> {
        self.host.bind_datagrams(port).await
    }

    fn node(&self) -> Option<&Node> {
        Some(&self.node)
    }
}
