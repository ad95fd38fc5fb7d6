//! Datagrams: a port of UDP, its flows, and the backend of each.
//!
//! ```text
//!   datagram ─→ receiver ─→ its flow? ─ yes ─→ the flow's socket ─→ backend
//!                              └ no ─→ admitted? ─→ backend drawn ─→ a flow, until it is idle
//!   backend ─→ the flow's socket ─→ its task ─→ the address that was asked ─→ peer
//! ```
//! One task receives and one table knows the flows of a port, so that a change of configuration
//! and a new flow cannot cross.

mod flow;
mod way;

use super::{
    balance::Route,
    connection::Context,
    limits::{Places, Seat},
};
use crate::{
    drain::Drain,
    metrics::UdpMetrics,
    model::Endpoint,
    net::{Datagrams, Flow, relay::Buffer},
};
use flow::{Conversation, REFUSED, Registration, Talk};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use way::Way;

/// A port of UDP that is served. Dropping it ends its flows.
#[derive(Debug)]
pub(super) struct UdpPort {
    address: SocketAddr,
    served: watch::Sender<Arc<UdpServed>>,
    ended: CancellationToken,
    flows: TaskTracker,
    receiving: JoinHandle<()>,
}

/// A listener of UDP and the route that it has.
#[derive(Debug)]
pub(super) struct UdpServed {
    pub(super) listener: String,
    pub(super) metrics: UdpMetrics,
    pub(super) route: Option<Arc<Route>>,
}

/// The flows of a port. What is in here is not ended.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<Flow, Arc<Talk>>>);

/// The task that receives what peers send.
struct Receiver<D: Datagrams> {
    replies: Arc<D::Replies>,
    context: Arc<Context>,
    drain: Drain,
    table: Arc<Table>,
    places: Arc<Places>,
    ended: CancellationToken,
    flows: TaskTracker,
}

// === impl UdpPort ===

impl UdpPort {
    pub(super) fn open<D: Datagrams>(
        datagrams: D,
        served: UdpServed,
        context: Arc<Context>,
        drain: Drain,
    ) -> Self {
        let address = datagrams.address();
        let (served, changes) = watch::channel(Arc::new(served));
        let (ended, flows) = (CancellationToken::new(), TaskTracker::new());
        let limits = &context.limits;
        let receiver = Receiver::<D> {
            replies: datagrams.replies(),
            places: Arc::new(Places::new(limits.udp_flows, limits.udp_flows_per_peer)),
            context,
            drain,
            table: Arc::default(),
            ended: ended.clone(),
            flows: flows.clone(),
        };
        Self {
            address,
            served,
            ended,
            flows,
            receiving: tokio::spawn(receiver.run(datagrams, changes)),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves something else from now on. Flows whose backend is still there go on.
    pub(super) fn serve(&self, served: UdpServed) {
        self.served.send_replace(Arc::new(served));
    }

    /// Ends it with its flows. The port is free when this returns.
    pub(super) async fn close(mut self) {
        self.receiving.abort();
        // An error says that it was aborted.
        let _ = (&mut self.receiving).await;
        self.ended.cancel();
        self.flows.close();
        self.flows.wait().await;
    }
}

impl Drop for UdpPort {
    fn drop(&mut self) {
        self.receiving.abort();
        self.ended.cancel();
    }
}

// === impl Table ===

impl Table {
    fn flows(&self) -> std::sync::MutexGuard<'_, HashMap<Flow, Arc<Talk>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, flow: &Flow) -> Option<Arc<Talk>> {
        self.flows().get(flow).cloned()
    }

    fn add(self: &Arc<Self>, flow: Flow, talk: &Arc<Talk>) -> Registration {
        self.flows().insert(flow, Arc::clone(talk));
        Registration::new(Arc::clone(self), flow, Arc::clone(talk))
    }

    /// Takes a flow out, unless its peer has begun another since.
    fn remove(&self, flow: &Flow, talk: &Arc<Talk>) {
        let mut flows = self.flows();
        if flows
            .get(flow)
            .is_some_and(|known| Arc::ptr_eq(known, talk))
        {
            flows.remove(flow);
        }
    }

    /// Ends the flows whose backend a route has no more; their next datagram begins another.
    fn keep_to(&self, route: Option<&Route>) {
        self.flows().retain(|_, talk| {
            let stays = route.is_some_and(|route| route.reaches(talk.backend()));
            if !stays {
                talk.end("backend_gone");
            }
            stays
        });
    }
}

// === impl Receiver ===

impl<D: Datagrams> Receiver<D> {
    /// Runs until the port is closed or the network is gone.
    async fn run(self, mut datagrams: D, mut changes: watch::Receiver<Arc<UdpServed>>) {
        let mut buffer = Buffer::take();
        loop {
            let served = Arc::clone(&changes.borrow_and_update());
            self.table.keep_to(served.route.as_deref());
            loop {
                let received = tokio::select! {
                    changed = changes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    received = datagrams.receive(buffer.bytes()) => received,
                };
                match received {
                    Ok((payload, flow)) => self.take(payload, flow, &served),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return,
                    Err(error) => {
                        tracing::warn!(%error, listener = served.listener, "cannot receive datagrams");
                        // Trying again at once could spin.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
    }

    fn take(&self, payload: &[u8], flow: Flow, served: &Arc<UdpServed>) {
        let taken = match self.table.find(&flow) {
            Some(talk) => talk
                .pass_on(payload)
                .inspect_err(|&reason| self.forget_if(reason == REFUSED, &flow, &talk)),
            None => self.begin(payload, flow, served),
        };
        match taken {
            Ok(()) => served.metrics.received(payload.len()),
            Err(reason) => served.metrics.dropped(reason),
        }
    }

    /// Another flow may begin at once, before the task of the ended one is done.
    fn forget_if(&self, ended: bool, flow: &Flow, talk: &Arc<Talk>) {
        if ended {
            self.table.remove(flow, talk);
        }
    }

    /// Begins a flow with its first datagram, or says why not.
    fn begin(
        &self,
        payload: &[u8],
        flow: Flow,
        served: &Arc<UdpServed>,
    ) -> Result<(), &'static str> {
        let route = served.route.as_ref().ok_or("no_route")?;
        if self.drain.is_stopping() {
            return Err("draining");
        }
        let seat: Seat = self.places.take(flow.source.ip())?;
        let balancer = route.draw().ok_or("invalid_backend")?;
        let Some(backend) = balancer.choose(None) else {
            self.context.backend_failed(&balancer.name, "no_endpoints");
            return Err("no_endpoints");
        };
        let talk = Arc::new(Talk::new(Arc::clone(backend.tracked()), &self.ended));
        // A name is resolved by the flow's task; an address needs no waiting.
        if let Endpoint::Address(ip, port) = backend.endpoint() {
            let way = Way::to_host(SocketAddr::new(*ip, *port));
            talk.begin(way.map_err(|_| {
                self.context.backend_failed(&balancer.name, "connect_error");
                backend.set_aside();
                "backend_unreachable"
            })?);
        }
        let taken = talk.pass_on(payload);
        let conversation = Conversation {
            registration: self.table.add(flow, &talk),
            talk,
            flow,
            balancer: Arc::clone(balancer),
            backend,
            route: Arc::clone(route),
            served: Arc::clone(served),
            replies: Arc::clone(&self.replies),
            context: Arc::clone(&self.context),
            drain: self.drain.clone(),
            seat,
        };
        let conversation = conversation.run();
        self.drain.spawn(self.flows.track_future(conversation));
        taken
    }
}
