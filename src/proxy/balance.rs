//! Which endpoint a connection or request goes to.

use super::{backend_tls::Link, http::Pool};
use crate::model::{
    Backend, BackendId, BackendProtocol, Endpoint, Forward, ProxyProtocol, Snapshot,
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// The backends of a snapshot, with the open connections of their endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Backends {
    by_id: BTreeMap<BackendId, Arc<Balancer>>,
}

/// A route, ready to draw from.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) name: String,
    /// How its backends are told of clients.
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    backends: Vec<Option<Arc<Balancer>>>,
    weights: Weights,
}

/// Shares of several.
#[derive(Debug)]
pub(super) struct Weights {
    /// Running sum.
    upto: Vec<u64>,
}

/// The endpoints of a backend.
#[derive(Debug)]
pub(super) struct Balancer {
    pub(super) name: String,
    pub(super) protocol: BackendProtocol,
    pub(super) link: Link,
    endpoints: Vec<Arc<Tracked>>,
}

/// An endpoint and how many connections or requests it has. Survives snapshots that still name
/// it and reach it in the same way.
#[derive(Debug)]
pub(super) struct Tracked {
    endpoint: Endpoint,
    link: Link,
    pool: Pool,
    open: AtomicUsize,
    /// When connecting failed last, in milliseconds of [`clock`]; 0 when it did not.
    failed: AtomicU64,
}

/// How long an endpoint that could not be reached is passed over. Without that, it would draw
/// connections, having the fewest.
const SET_ASIDE: Duration = Duration::from_secs(5);

/// Milliseconds since the first question, from 1.
pub(super) fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let millis = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)
}

/// A connection or request to an endpoint; counted until dropped.
#[derive(Debug)]
pub(super) struct Connected {
    tracked: Arc<Tracked>,
}

/// Why no endpoint was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    NoEndpoints,
    /// It is in a tailnet, and there is no node to reach it from.
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

// === impl Backends ===

impl Backends {
    /// Those of a snapshot; endpoints that stay keep their counts.
    pub(super) fn of(snapshot: &Snapshot, before: &Self) -> Self {
        let by_id = snapshot
            .backends
            .iter()
            .map(|(id, backend)| {
                let balancer = Balancer::of(id, backend, before.by_id.get(id));
                (id.clone(), Arc::new(balancer))
            })
            .collect();
        Self { by_id }
    }

    pub(super) fn find(&self, id: &BackendId) -> Option<Arc<Balancer>> {
        self.by_id.get(id).cloned()
    }

    pub(super) fn route(&self, forward: &Forward) -> Route {
        let backends = forward.backends.iter();
        Route {
            name: forward.route.to_string(),
            proxy_protocol: forward.proxy_protocol,
            weights: Weights::new(backends.clone().map(|weighted| weighted.weight)),
            backends: backends
                .map(|weighted| self.find(weighted.backend.as_ref()?))
                .collect(),
        }
    }
}

impl Route {
    /// Draws a backend by weight; `None` when the draw falls on an invalid one, or on none.
    pub(super) fn draw(&self) -> Option<&Arc<Balancer>> {
        self.backends.get(self.weights.draw()?)?.as_ref()
    }

    /// Whether a draw may fall on this endpoint.
    pub(super) fn reaches(&self, endpoint: &Arc<Tracked>) -> bool {
        let mut drawn = self.backends.iter().zip(self.weights.each());
        drawn.any(|(backend, weight)| {
            weight > 0
                && backend.as_ref().is_some_and(|balancer| {
                    let mut endpoints = balancer.endpoints.iter();
                    endpoints.any(|known| Arc::ptr_eq(known, endpoint))
                })
        })
    }
}

impl Weights {
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let mut total = 0;
        let upto = weights.map(|weight| {
            total += u64::from(weight);
            total
        });
        Self {
            upto: upto.collect(),
        }
    }

    fn each(&self) -> impl Iterator<Item = u64> {
        let before = std::iter::once(&0).chain(&self.upto);
        self.upto
            .iter()
            .zip(before)
            .map(|(upto, before)| upto - before)
    }

    /// Draws one of them; `None` when all weigh nothing.
    pub(super) fn draw(&self) -> Option<usize> {
        let total = *self.upto.last().filter(|total| **total > 0)?;
        let point = below(total);
        Some(self.upto.partition_point(|upto| *upto <= point))
    }
}

impl Balancer {
    fn of(id: &BackendId, backend: &Backend, before: Option<&Arc<Self>>) -> Self {
        let name = id.to_string();
        let link = Link::new(
            &name,
            backend.tls.as_ref(),
            before.map(|before| &before.link),
        );
        // A connection made under another policy is never used again.
        let known: HashMap<&Endpoint, &Arc<Tracked>> = before
            .iter()
            .flat_map(|balancer| &balancer.endpoints)
            .filter(|tracked| tracked.link.is_same(&link))
            .map(|tracked| (&tracked.endpoint, tracked))
            .collect();
        let endpoints = backend
            .endpoints
            .iter()
            .map(|endpoint| match known.get(endpoint) {
                Some(tracked) => Arc::clone(tracked),
                None => Arc::new(Tracked {
                    endpoint: endpoint.clone(),
                    link: link.clone(),
                    pool: Pool::default(),
                    open: AtomicUsize::new(0),
                    failed: AtomicU64::new(0),
                }),
            })
            .collect();
        Self {
            name,
            protocol: backend.protocol,
            link,
            endpoints,
        }
    }

    /// An endpoint for a request: of two drawn at random, that with fewer.
    pub(super) fn choose(&self, not: Option<&Arc<Tracked>>) -> Option<Connected> {
        Some(Tracked::count(&self.pick(not)?))
    }

    /// Connects to one of two endpoints drawn at random, that with fewer open connections; once
    /// more to another one when that fails. `failed` is told of every try that did; `None` when
    /// none was left.
    pub(super) async fn connect(
        &self,
        timeout: Duration,
        failed: impl Fn(Unreachable),
    ) -> Option<(TcpStream, Connected)> {
        let Some(first) = self.pick(None) else {
            failed(Unreachable::NoEndpoints);
            return None;
        };
        match Tracked::connect(&first, timeout).await {
            Ok(connected) => return Some(connected),
            Err(reason) => failed(reason),
        }
        let second = self.pick(Some(&first))?;
        let connected = Tracked::connect(&second, timeout).await;
        connected.map_err(failed).ok()
    }

    /// One that was reached lately, if there is any; the rest are better than none.
    fn pick(&self, not: Option<&Arc<Tracked>>) -> Option<Arc<Tracked>> {
        let others = || {
            self.endpoints
                .iter()
                .filter(|e| not.is_none_or(|not| !Arc::ptr_eq(e, not)))
        };
        let mut left: Vec<_> = others().filter(|e| !e.is_set_aside()).collect();
        if left.is_empty() {
            left = others().collect();
        }
        let picked = match left.as_slice() {
            [] => return None,
            [only] => only,
            several => {
                let count = several.len() as u64;
                let one = below(count);
                // A second one that is another.
                let two = (one + 1 + below(count - 1)) % count;
                let (one, two) = (several[one as usize], several[two as usize]);
                if two.open.load(Ordering::Relaxed) < one.open.load(Ordering::Relaxed) {
                    two
                } else {
                    one
                }
            }
        };
        Some(Arc::clone(picked))
    }
}

impl Tracked {
    fn is_set_aside(&self) -> bool {
        let failed = self.failed.load(Ordering::Relaxed);
        failed > 0 && clock().saturating_sub(failed) < SET_ASIDE.as_millis() as u64
    }

    pub(super) fn count(this: &Arc<Self>) -> Connected {
        this.open.fetch_add(1, Ordering::Relaxed);
        Connected {
            tracked: Arc::clone(this),
        }
    }

    async fn connect(
        this: &Arc<Self>,
        timeout: Duration,
    ) -> Result<(TcpStream, Connected), Unreachable> {
        // Counted from here on, so that many connecting at once spread out.
        let connected = Self::count(this);
        let stream = connected.open_stream(timeout).await?;
        Ok((stream, connected))
    }

    async fn open_stream(&self, timeout: Duration) -> Result<TcpStream, Unreachable> {
        let deadline = Instant::now() + timeout;
        let connect = async {
            match &self.endpoint {
                Endpoint::Address(ip, port) => TcpStream::connect(SocketAddr::new(*ip, *port))
                    .await
                    .map_err(Unreachable::of),
                Endpoint::Name(name, port) => {
                    let addresses: Vec<_> = tokio::net::lookup_host((name.as_str(), *port))
                        .await
                        .map_err(|_| Unreachable::Name)?
                        .collect();
                    TcpStream::connect(addresses.as_slice())
                        .await
                        .map_err(Unreachable::of)
                }
                Endpoint::Tailnet(..) => Err(Unreachable::NoTailnet),
            }
        };
        tokio::time::timeout_at(deadline, connect)
            .await
            .unwrap_or(Err(Unreachable::Timeout))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.tracked.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected {
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.tracked.endpoint
    }

    pub(super) fn tracked(&self) -> &Arc<Tracked> {
        &self.tracked
    }

    pub(super) fn link(&self) -> &Link {
        &self.tracked.link
    }

    /// Has others drawn for a while, as this one was of no use.
    pub(super) fn set_aside(&self) {
        self.tracked.failed.store(clock(), Ordering::Relaxed);
    }

    /// The connections to it that are kept for requests.
    pub(super) fn pool(&self) -> &Pool {
        &self.tracked.pool
    }

    /// A new connection to it. When that fails, others are drawn for a while.
    pub(super) async fn open_stream(&self, timeout: Duration) -> Result<TcpStream, Unreachable> {
        let tracked = &self.tracked;
        let stream = tracked
            .open_stream(timeout)
            .await
            .inspect_err(|_| tracked.failed.store(clock(), Ordering::Relaxed))?;
        tracked.failed.store(0, Ordering::Relaxed);
        // A proxy passes on what it gets when it gets it.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

// === impl Unreachable ===

impl Unreachable {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other,
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

/// A number below `limit`, evenly; `limit` is above 0.
pub(super) fn below(limit: u64) -> u64 {
    // Lemire's multiplication: the bias is below 2^-32 for any limit of ours.
    ((u128::from(random()) * u128::from(limit)) >> 64) as u64
}

/// xorshift64* seeded per thread by the hasher's keys: good enough to spread load, and free.
fn random() -> u64 {
    use std::{
        cell::Cell,
        hash::{BuildHasher, RandomState},
    };
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0u8) | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackendKind, ObjectName, Transport, WeightedBackend};

    fn id(name: &str) -> BackendId {
        BackendId {
            kind: BackendKind::Service,
            object: ObjectName::new("default", name),
            port: 80,
            transport: Transport::Tcp,
        }
    }

    fn balancer(name: &str, ports: &[u16], before: Option<&Arc<Balancer>>) -> Arc<Balancer> {
        let endpoints = ports
            .iter()
            .map(|&port| Endpoint::Address([127, 0, 0, 1].into(), port))
            .collect();
        Arc::new(Balancer::of(&id(name), &Backend::new(endpoints), before))
    }

    #[test]
    fn connections_are_drawn_by_weight_and_invalid_backends_keep_their_share() {
        let backends = Backends {
            by_id: [("a", 1), ("b", 2)]
                .map(|(name, port)| (id(name), balancer(name, &[port], None)))
                .into(),
        };
        let weighted = |weight, backend: Option<&str>| WeightedBackend {
            weight,
            backend: backend.map(id),
        };
        let route = backends.route(&Forward {
            route: ObjectName::new("default", "route"),
            backends: vec![
                weighted(6, Some("a")),
                weighted(0, Some("b")),
                weighted(3, Some("b")),
                weighted(1, None),
            ],
            proxy_protocol: None,
        });
        let mut drawn = HashMap::new();
        for _ in 0..20_000 {
            *drawn
                .entry(route.draw().map_or("none", |balancer| &balancer.name))
                .or_insert(0) += 1;
        }
        for (name, expected) in [
            ("default/a:80", 12_000),
            ("default/b:80", 6_000),
            ("none", 2_000),
        ] {
            let count: i32 = drawn[name];
            assert!(
                (count - expected).abs() < 700,
                "{name}: {count}, not about {expected}"
            );
        }
    }

    #[test]
    fn a_route_without_weight_draws_nothing() {
        let route = Backends::default().route(&Forward {
            route: ObjectName::new("default", "route"),
            backends: vec![WeightedBackend {
                weight: 0,
                backend: Some(id("a")),
            }],
            proxy_protocol: None,
        });
        assert!(route.draw().is_none());
    }

    #[test]
    fn of_two_endpoints_the_one_with_fewer_connections_is_taken() {
        let balancer = balancer("a", &[1, 2], None);
        balancer.endpoints[0].open.store(5, Ordering::Relaxed);
        for _ in 0..100 {
            let picked = balancer.pick(None).unwrap();
            assert_eq!(picked.endpoint, balancer.endpoints[1].endpoint);
        }
    }

    #[test]
    fn an_endpoint_that_was_not_reached_is_passed_over_while_there_are_others() {
        let balancer = balancer("a", &[1, 2], None);
        balancer.endpoints[0]
            .failed
            .store(clock(), Ordering::Relaxed);
        balancer.endpoints[1].open.store(5, Ordering::Relaxed);
        for _ in 0..100 {
            let picked = balancer.pick(None).unwrap();
            assert_eq!(picked.endpoint, balancer.endpoints[1].endpoint);
        }
        let other = balancer.pick(Some(&balancer.endpoints[1])).unwrap();
        assert_eq!(other.endpoint, balancer.endpoints[0].endpoint);
    }

    #[test]
    fn endpoints_that_stay_keep_their_counts() {
        let before = balancer("a", &[1, 2], None);
        before.endpoints[1].open.store(7, Ordering::Relaxed);
        let after = balancer("a", &[2, 3], Some(&before));
        let open: Vec<_> = after
            .endpoints
            .iter()
            .map(|e| e.open.load(Ordering::Relaxed))
            .collect();
        assert_eq!(open, [7, 0]);
    }
}
