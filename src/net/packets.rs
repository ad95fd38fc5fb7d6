//! Datagrams of a tailnet node: a socket for each of its addresses.

use super::{BindError, Datagrams, Flow, Replies, tailnet::address};
use crate::{
    model::Identity,
    tailnet::{Node, PacketSocket, Status},
};
use arc_swap::ArcSwap;
use std::{
    fmt,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;

/// How long to wait before an address is bound again that could not be.
const REBIND: Duration = Duration::from_secs(1);

/// A port of UDP of a node, on all the addresses that it has.
pub struct NodeDatagrams {
    port: u16,
    status: watch::Receiver<Status>,
    replies: Arc<NodeReplies>,
    /// Whether an address is not bound that should be.
    incomplete: bool,
    /// Which socket is asked first next: none is heard at the cost of another.
    turn: usize,
}

/// Answers from the addresses of a node.
pub struct NodeReplies {
    node: Node,
    sockets: ArcSwap<Vec<Arc<PacketSocket>>>,
}

// === impl NodeDatagrams ===

impl NodeDatagrams {
    /// A node that is not up yet is bound as soon as it is.
    pub(super) fn bind(node: &Node, port: u16) -> Result<Self, BindError> {
        let replies = NodeReplies {
            node: node.clone(),
            sockets: ArcSwap::default(),
        };
        let mut datagrams = Self {
            port,
            status: node.watch(),
            replies: Arc::new(replies),
            incomplete: false,
            turn: 0,
        };
        match datagrams.rebind() {
            Some(error) if datagrams.status.borrow().is_running() => {
                Err(BindError::Tailnet { port, error })
            }
            _ => Ok(datagrams),
        }
    }

    /// Binds the addresses that the node has now, and no others. Gives the last failure.
    fn rebind(&mut self) -> Option<crate::tailnet::Error> {
        let ips = self.status.borrow_and_update().ips.clone();
        let bound = self.replies.sockets.load();
        let mut failure = None;
        let sockets: Vec<_> = ips
            .iter()
            .filter_map(|&ip| {
                if let Some(socket) = bound.iter().find(|socket| socket.address().ip() == ip) {
                    return Some(Arc::clone(socket));
                }
                let address = SocketAddr::new(ip, self.port);
                match self.replies.node.listen_packet(address) {
                    Ok(socket) => Some(Arc::new(socket)),
                    Err(error) => {
                        failure = Some(error);
                        None
                    }
                }
            })
            .collect();
        let same = sockets.len() == bound.len()
            && sockets
                .iter()
                .zip(bound.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            self.replies.sockets.store(Arc::new(sockets));
        }
        if let (Some(error), false) = (&failure, self.incomplete) {
            tracing::warn!(port = self.port, %error, "cannot receive datagrams on all addresses");
        }
        self.incomplete = failure.is_some();
        failure
    }

    /// What any socket has, in turn.
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(Range<usize>, Flow)>> {
        let sockets = self.replies.sockets.load();
        for at in 0..sockets.len() {
            let socket = &sockets[(self.turn + at) % sockets.len()];
            if let Poll::Ready(received) = socket.poll_receive(context, buffer) {
                self.turn = self.turn.wrapping_add(1);
                return Poll::Ready(received.map(|(payload, source)| {
                    let destination = socket.address();
                    (
                        payload,
                        Flow {
                            source,
                            destination,
                        },
                    )
                }));
            }
        }
        Poll::Pending
    }
}

impl Datagrams for NodeDatagrams {
    type Replies = NodeReplies;

    fn address(&self) -> SocketAddr {
        address(&self.replies.node, self.port)
    }

    fn replies(&self) -> Arc<NodeReplies> {
        Arc::clone(&self.replies)
    }

    async fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<(&'b [u8], Flow)> {
        loop {
            let mut status = self.status.clone();
            let incomplete = self.incomplete;
            tokio::select! {
                received = poll_fn(|context| self.poll_receive(context, buffer)) => {
                    let (payload, flow) = received?;
                    return Ok((&buffer[payload], flow));
                }
                changed = status.changed() => {
                    changed.map_err(|_| io::ErrorKind::UnexpectedEof)?;
                }
                () = tokio::time::sleep(REBIND), if incomplete => {}
            }
            self.rebind();
        }
    }
}

impl fmt::Debug for NodeDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDatagrams")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

// === impl NodeReplies ===

impl Replies for NodeReplies {
    async fn send(&self, payload: &[u8], flow: &Flow) -> io::Result<()> {
        let socket = self
            .sockets
            .load()
            .iter()
            .find(|socket| socket.address() == flow.destination)
            .cloned();
        match socket {
            Some(socket) => socket.send(payload, flow.source).await,
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    fn identity(&self, peer: IpAddr) -> Option<Arc<Identity>> {
        self.node.whois(peer).ok().map(Arc::new)
    }
}

impl fmt::Debug for NodeReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeReplies")
    }
}
