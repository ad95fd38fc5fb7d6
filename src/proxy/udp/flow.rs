//! One flow: a peer, the address that it asked, and its backend.

use super::{Table, UdpServed, way::Way};
use crate::{
    drain::Drain,
    model::Endpoint,
    net::{Flow, Replies},
    proxy::{
        access::{Access, Course},
        balance::{Balancer, Connected, Route, Tracked, clock},
        connection::Context,
        limits::Seat,
        reach::{Unreachable, look_up, running},
    },
};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Datagrams, and bytes of them, that a flow keeps until the name of its backend is resolved.
const WAITING: usize = 16;
const WAITING_BYTES: usize = 64 * 1024;

/// How long a flow may be idle once the process is ending: an answer that is due comes sooner.
const DRAIN_IDLE: Duration = Duration::from_secs(2);

/// The end of a flow whose backend says that nobody listens there (ICMP, RFC 1122 §3.2.2.1).
pub(super) const REFUSED: &str = "backend_refused";

/// What the receiver and the task of a flow share.
#[derive(Debug)]
pub(super) struct Talk {
    backend: Arc<Tracked>,
    line: Mutex<Line>,
    /// When a datagram passed last, in milliseconds of [`clock`].
    last: AtomicU64,
    received: AtomicU64,
    ended: CancellationToken,
    /// Why it was ended, unless its port was closed.
    reason: OnceLock<&'static str>,
}

/// The way to the backend.
#[derive(Debug)]
enum Line {
    Waiting(Vec<Vec<u8>>),
    Open(Arc<Way>),
}

/// Keeps a flow in its table until dropped.
#[derive(Debug)]
pub(super) struct Registration {
    table: Arc<Table>,
    flow: Flow,
    talk: Arc<Talk>,
}

/// The task of a flow. Dropping it ends the flow.
pub(super) struct Conversation<R> {
    pub(super) talk: Arc<Talk>,
    pub(super) flow: Flow,
    pub(super) balancer: Arc<Balancer>,
    pub(super) backend: Connected,
    pub(super) route: Arc<Route>,
    pub(super) served: Arc<UdpServed>,
    pub(super) replies: Arc<R>,
    pub(super) context: Arc<Context>,
    pub(super) drain: Drain,
    pub(super) seat: Seat,
    pub(super) registration: Registration,
}

// === impl Talk ===

impl Talk {
    /// One that ends by itself or with its port.
    pub(super) fn new(backend: Arc<Tracked>, port: &CancellationToken) -> Self {
        Self {
            backend,
            line: Mutex::new(Line::Waiting(Vec::new())),
            last: AtomicU64::new(clock()),
            received: AtomicU64::new(0),
            ended: port.child_token(),
            reason: OnceLock::new(),
        }
    }

    pub(super) fn backend(&self) -> &Arc<Tracked> {
        &self.backend
    }

    /// Ends it; the first reason counts.
    pub(super) fn end(&self, reason: &'static str) {
        let _ = self.reason.set(reason);
        self.ended.cancel();
    }

    /// Sends what waited for the way to the backend, and all else from now on.
    pub(super) fn begin(&self, way: Way) {
        // Held until all is sent, so that what comes now comes later.
        let mut line = self.line();
        if let Line::Waiting(datagrams) = &*line {
            for datagram in datagrams {
                // One that cannot be sent is lost, as UDP loses them.
                let _ = way.send(datagram);
            }
        }
        *line = Line::Open(Arc::new(way));
    }

    /// Passes a datagram on to the backend, or says why not. Never waits.
    pub(super) fn pass_on(&self, payload: &[u8]) -> Result<(), &'static str> {
        self.last.store(clock(), Ordering::Relaxed);
        let taken = match &mut *self.line() {
            Line::Open(way) => way.send(payload).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => "backend_busy",
                io::ErrorKind::ConnectionRefused => {
                    // An answer to an earlier datagram, told once.
                    self.end(REFUSED);
                    REFUSED
                }
                _ if error.raw_os_error() == Some(libc::EMSGSIZE) => "too_large",
                _ => "backend_unreachable",
            }),
            Line::Waiting(datagrams) => {
                let bytes: usize = datagrams.iter().map(Vec::len).sum();
                let has_room = datagrams.len() < WAITING && bytes + payload.len() <= WAITING_BYTES;
                if has_room {
                    datagrams.push(payload.to_vec());
                }
                has_room.then_some(()).ok_or("backend_busy")
            }
        };
        if taken.is_ok() {
            let length = payload.len() as u64;
            self.received.fetch_add(length, Ordering::Relaxed);
        }
        taken
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self) -> Option<Arc<Way>> {
        match &*self.line() {
            Line::Open(way) => Some(Arc::clone(way)),
            Line::Waiting(_) => None,
        }
    }
}

// === impl Registration ===

impl Registration {
    pub(super) fn new(table: Arc<Table>, flow: Flow, talk: Arc<Talk>) -> Self {
        Self { table, flow, talk }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.remove(&self.flow, &self.talk);
    }
}

// === impl Conversation ===

impl<R: Replies> Conversation<R> {
    /// Runs until the flow is idle, its backend refuses or is no more its own, or the port ends.
    pub(super) async fn run(self) {
        let access = Access::of(self.flow, || self.replies.identity(self.flow.source.ip()));
        let mut meter = self.served.metrics.open();
        let mut sent = 0;
        let end = tokio::select! {
            end = self.answers(&mut sent) => end,
            () = self.idle() => "idle_timeout",
            () = self.talk.ended.cancelled() => {
                self.talk.reason.get().copied().unwrap_or("port_closed")
            }
        };
        if end == REFUSED {
            self.failed("connection_refused");
        }
        meter.ended(end);
        let course = Course {
            listener: &self.served.listener,
            route: &self.route,
            endpoint: self.backend.endpoint().to_string(),
            server_name: "",
            received: self.talk.received.load(Ordering::Relaxed),
            sent,
            end,
        };
        access.log(&self.context, "flow", &course);
        // Held until here, so that neither its place nor its backend is free before.
        drop((self.seat, self.registration));
    }

    /// Passes answers on until the backend cannot be talked to.
    async fn answers(&self, sent: &mut u64) -> &'static str {
        let way = match self.way().await {
            Ok(way) => way,
            Err(reason) => {
                self.failed(reason);
                return "backend_unreachable";
            }
        };
        loop {
            let (mut buffer, payload) = match way.receive().await {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return REFUSED,
                Err(_) => {
                    self.failed("connect_error");
                    return "backend_unreachable";
                }
            };
            self.talk.last.store(clock(), Ordering::Relaxed);
            let payload = &buffer.bytes()[payload];
            match self.replies.send(payload, &self.flow).await {
                Ok(()) => {
                    *sent += payload.len() as u64;
                    self.served.metrics.sent(payload.len());
                }
                Err(_) => self.served.metrics.dropped("peer_unreachable"),
            }
        }
    }

    /// The way to the backend; its name is resolved first if it has one.
    async fn way(&self) -> Result<Arc<Way>, &'static str> {
        match self.backend.endpoint() {
            Endpoint::Address(..) => {}
            Endpoint::Name(name, port) => {
                let timeout = self.context.limits.connect_timeout;
                let resolved = tokio::net::lookup_host((name.as_str(), *port));
                let mut addresses = tokio::time::timeout(timeout, resolved)
                    .await
                    .map_err(|_| Unreachable::Timeout.as_str())?
                    .map_err(|_| Unreachable::Name.as_str())?;
                // The first that this host has a way to.
                let open = |address| Way::to_host(address).map(|way| self.talk.begin(way));
                if !addresses.any(|address| open(address).is_ok()) {
                    return Err(Unreachable::Other.as_str());
                }
            }
            Endpoint::Tailnet(host, port) => {
                let node = self.backend.tracked().node();
                let node = running(node).map_err(Unreachable::as_str)?;
                let ip = look_up(host, Some(node)).map_err(Unreachable::as_str)?;
                let way = Way::into_tailnet(node, SocketAddr::new(ip, *port));
                self.talk
                    .begin(way.map_err(|_| Unreachable::Other.as_str())?);
            }
        }
        self.talk.way().ok_or(Unreachable::Other.as_str())
    }

    /// Counts that the backend was not reached, and draws others for a while.
    fn failed(&self, reason: &'static str) {
        self.context.backend_failed(&self.balancer.name, reason);
        self.backend.set_aside();
    }

    /// Waits until no datagram passed for as long as a flow may rest.
    async fn idle(&self) {
        loop {
            let stopping = self.drain.is_stopping();
            let timeout = match self.context.limits.udp_idle_timeout {
                timeout if stopping => timeout.min(DRAIN_IDLE),
                timeout => timeout,
            };
            let due = self.talk.last.load(Ordering::Relaxed) + timeout.as_millis() as u64;
            let left = Duration::from_millis(due.saturating_sub(clock()));
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.drain.stopping(), if !stopping => {}
            }
        }
    }
}
