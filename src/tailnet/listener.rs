use super::{
    Error, Node, Pending,
    ffi::{Acceptor, ConnHandle, RawFlow},
};
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::mpsc;

/// Whether a connection from the first address to the second may come in.
pub type Admit = Arc<dyn Fn(SocketAddr, SocketAddr) -> bool + Send + Sync>;

/// Accepted connections that wait to be taken, per port. More than that means that the process
/// does not keep up, and the rest is better reset than kept waiting.
const BACKLOG: usize = 1024;

/// A port of a node. Dropping it refuses further connections; open ones go on.
pub struct Listener {
    node: Node,
    port: u16,
    ports: Arc<Ports>,
    connections: mpsc::Receiver<(ConnHandle, RawFlow)>,
}

/// The open ports of a node, as its acceptor sees them.
#[derive(Default)]
pub(super) struct Ports {
    open: RwLock<HashMap<u16, Port>>,
}

struct Port {
    admit: Admit,
    connections: mpsc::Sender<(ConnHandle, RawFlow)>,
}

// === impl Listener ===

impl Listener {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection; `None` once the node is closed. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Pending> {
        let (connection, flow) = self.connections.recv().await?;
        Some(Pending::new(connection, flow, self.node.clone()))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ports
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.port);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

// === impl Ports ===

impl Ports {
    pub(super) fn listen(
        self: &Arc<Self>,
        node: &Node,
        port: u16,
        admit: Admit,
    ) -> Result<Listener, Error> {
        let (sender, connections) = mpsc::channel(BACKLOG);
        match self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(port)
        {
            Entry::Occupied(_) => {
                return Err(Error::Engine(format!("port {port} already has a listener")));
            }
            Entry::Vacant(slot) => slot.insert(Port {
                admit,
                connections: sender,
            }),
        };
        Ok(Listener {
            node: node.clone(),
            port,
            ports: Arc::clone(self),
            connections,
        })
    }
}

impl Acceptor for Ports {
    fn admit(&self, flow: &RawFlow) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&flow.destination.port())
            .is_some_and(|port| (port.admit)(flow.source, flow.destination))
    }

    /// A connection that finds no listener or a full one is dropped, which resets it.
    fn accept(&self, connection: ConnHandle, flow: RawFlow) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = open.get(&flow.destination.port()) {
            let _ = port.connections.try_send((connection, flow));
        }
    }

    fn closed(&self) {
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
