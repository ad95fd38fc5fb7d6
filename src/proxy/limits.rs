use crate::{
    metrics::ListenerMetrics,
    net::{Admission, Flow},
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How much the data plane lets in and waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A TLS handshake, from the first byte on.
    pub handshake_timeout: Duration,
    /// Connecting to an endpoint, name resolution included.
    pub connect_timeout: Duration,
    /// A connection on which no byte moves; `None` never ends one.
    pub idle_timeout: Option<Duration>,
    /// The head of a request of HTTP, and what may come before it.
    pub head_timeout: Duration,
    /// A request or response of HTTP whose bodies both do not move; `None` never ends one.
    pub body_timeout: Option<Duration>,
    /// Open connections of a port.
    pub connections: usize,
    /// Open connections of a port that come from one address.
    pub connections_per_peer: usize,
    /// A flow of UDP on which no datagram passes.
    pub udp_idle_timeout: Duration,
    /// Open flows of a port of UDP.
    pub udp_flows: usize,
    /// Open flows of a port of UDP that come from one address.
    pub udp_flows_per_peer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: None,
            head_timeout: Duration::from_secs(60),
            body_timeout: Some(Duration::from_secs(300)),
            connections: 10_000,
            connections_per_peer: 1_000,
            udp_idle_timeout: Duration::from_secs(60),
            udp_flows: 10_000,
            udp_flows_per_peer: 1_000,
        }
    }
}

impl Limits {
    /// For ports to which few proxies bring what many clients ask for: there is no limit for each
    /// address.
    pub(super) fn for_egress(self) -> Self {
        Self {
            connections_per_peer: self.connections,
            udp_flows_per_peer: self.udp_flows,
            ..self
        }
    }
}

/// Counts the open connections of a port. Asked before a handshake, it only looks; a place is
/// taken when the connection is there, since a handshake that never completes tells nobody.
pub(super) struct Gate {
    places: Arc<Places>,
    /// Those of the listener that stands for the port now.
    metrics: ArcSwap<ListenerMetrics>,
}

/// Places of a port, and how many of them one peer may have.
pub(super) struct Places {
    all: usize,
    per_peer: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A place that a connection holds until it is dropped.
pub(super) struct Place {
    gate: Arc<Gate>,
    _seat: Seat,
}

/// One of [`Places`], taken until it is dropped.
pub(super) struct Seat {
    places: Arc<Places>,
    peer: IpAddr,
}

// === impl Gate ===

impl Gate {
    pub(super) fn new(limits: &Limits, metrics: ListenerMetrics) -> Self {
        Self {
            places: Arc::new(Places::new(limits.connections, limits.connections_per_peer)),
            metrics: ArcSwap::from_pointee(metrics),
        }
    }

    /// Counts what is refused with other metrics from now on.
    pub(super) fn count_with(&self, metrics: ListenerMetrics) {
        self.metrics.store(Arc::new(metrics));
    }

    /// Takes a place, or counts the refusal.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        match self.places.take(peer) {
            Ok(seat) => Some(Place {
                gate: Arc::clone(self),
                _seat: seat,
            }),
            Err(reason) => {
                self.metrics.load().refused(reason);
                None
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Admission for Gate {
    fn admit(&self, flow: &Flow) -> bool {
        match self.places.full(&self.places.counts(), flow.source.ip()) {
            Some(reason) => {
                self.metrics.load().refused(reason);
                false
            }
            None => true,
        }
    }
}

impl Place {
    /// Metrics of what cannot be said of one listener of the port.
    pub(super) fn port_metrics(&self) -> Arc<ListenerMetrics> {
        self.gate.metrics.load_full()
    }
}

// === impl Places ===

impl Places {
    pub(super) fn new(all: usize, per_peer: usize) -> Self {
        Self {
            all,
            per_peer,
            counts: Mutex::default(),
        }
    }

    /// Takes one, or says by which limit there is none.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Seat, &'static str> {
        let mut counts = self.counts();
        if let Some(reason) = self.full(&counts, peer) {
            return Err(reason);
        }
        counts.all += 1;
        *counts.by_peer.entry(peer).or_default() += 1;
        Ok(Seat {
            places: Arc::clone(self),
            peer,
        })
    }

    fn full(&self, counts: &Counts, peer: IpAddr) -> Option<&'static str> {
        if counts.all >= self.all {
            Some("listener_limit")
        } else if counts
            .by_peer
            .get(&peer)
            .is_some_and(|&open| open >= self.per_peer)
        {
            Some("peer_limit")
        } else {
            None
        }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        counts.all -= 1;
        if let Some(open) = counts.by_peer.get_mut(&self.peer) {
            *open -= 1;
            if *open == 0 {
                counts.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn places_are_counted_by_port_and_by_peer_and_come_back() {
        let limits = Limits {
            connections: 3,
            connections_per_peer: 2,
            ..Limits::default()
        };
        let gate = Arc::new(Gate::new(
            &limits,
            Metrics::default().listener("a/b", "tcp"),
        ));
        let (one, two) = (IpAddr::from([100, 64, 0, 1]), IpAddr::from([100, 64, 0, 2]));
        let first = gate.enter(one);
        let second = gate.enter(one);
        assert!(first.is_some() && second.is_some());
        assert!(gate.enter(one).is_none(), "the peer's places are taken");
        let third = gate.enter(two);
        assert!(third.is_some());
        assert!(gate.enter(two).is_none(), "the port's places are taken");
        drop(first);
        assert!(gate.enter(one).is_some());
    }
}
