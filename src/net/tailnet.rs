//! Listeners on a tailnet node.

use super::{
    Accepted, Admission, BindError, End, Flow, Listener, Network, Outbound, SpliceOptions, Stream,
    Transfer, outbound::copy, packets::NodeDatagrams,
};
use crate::{
    model::Identity,
    tailnet::{Connection, EndReason, Ended, Node, Pending, Splice},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

impl Network for Node {
    type Listener = NodeListener;
    type Datagrams = NodeDatagrams;

    async fn bind(
        &self,
        port: u16,
        admission: Arc<dyn Admission>,
    ) -> Result<NodeListener, BindError> {
        let admit = move |source, destination| {
            admission.admit(&Flow {
                source,
                destination,
            })
        };
        let listener = self
            .listen(port, Arc::new(admit))
            .map_err(|error| BindError::Tailnet { port, error })?;
        Ok(NodeListener {
            listener,
            address: address(self, port),
        })
    }

    async fn bind_datagrams(&self, port: u16) -> Result<NodeDatagrams, BindError> {
        NodeDatagrams::bind(self, port)
    }

    fn node(&self) -> Option<&Node> {
        Some(self)
    }
}

/// The first address of a node, if it has one yet.
pub(super) fn address(node: &Node, port: u16) -> SocketAddr {
    let ip = node.watch().borrow().ips.first().copied();
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port)
}

/// A port of a node.
#[derive(Debug)]
pub struct NodeListener {
    listener: crate::tailnet::Listener,
    address: SocketAddr,
}

impl Listener for NodeListener {
    type Accepted = Pending;

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> Option<Pending> {
        self.listener.accept().await
    }
}

impl Accepted for Pending {
    type Stream = Connection;

    fn flow(&self) -> Flow {
        Flow {
            source: self.source(),
            destination: self.destination(),
        }
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        Pending::identity(self)
    }

    fn open(self) -> io::Result<Connection> {
        Pending::open(self)
    }

    async fn splice(self, backend: Outbound, options: SpliceOptions) -> Transfer {
        let backend = match backend {
            Outbound::Host(stream) => stream,
            // The library splices to sockets of the host: a reset would be lost on the way to
            // another that it has itself.
            Outbound::Tailnet(_) => return splice_back(self, backend, options).await,
        };
        let progress = options.progress;
        let splice = Splice {
            prefix: options.prefix,
            idle_timeout: options.idle_timeout,
        };
        let ended = Pending::splice(self, backend, &splice, |received, sent| {
            progress.received.store(received, Ordering::Relaxed);
            progress.sent.store(sent, Ordering::Relaxed);
        })
        .await;
        match ended {
            Ok(ended) => ended.into(),
            Err(_) => Transfer {
                received: progress.received.load(Ordering::Relaxed),
                sent: progress.sent.load(Ordering::Relaxed),
                end: End::Aborted,
            },
        }
    }

    fn reset(self) {
        Pending::reset(self);
    }
}

/// Copies between a peer of the tailnet and a backend in it.
async fn splice_back(peer: Pending, backend: Outbound, options: SpliceOptions) -> Transfer {
    match Pending::open(peer) {
        Ok(stream) => Box::pin(copy(Outbound::tailnet(stream), backend, options)).await,
        Err(_) => Transfer {
            received: 0,
            sent: 0,
            end: End::PeerReset,
        },
    }
}

impl Stream for Connection {
    fn reset(&self) {
        Connection::reset(self);
    }

    fn was_reset(&self) -> bool {
        self.end() == EndReason::PeerReset
    }
}

impl From<Ended> for Transfer {
    fn from(ended: Ended) -> Self {
        Self {
            received: ended.received,
            sent: ended.sent,
            end: match ended.reason {
                EndReason::Open | EndReason::Eof => End::Eof,
                EndReason::PeerReset => End::PeerReset,
                EndReason::LocalReset => End::BackendReset,
                EndReason::Idle => End::Idle,
                EndReason::Aborted | EndReason::NodeClosed => End::Aborted,
            },
        }
    }
}
