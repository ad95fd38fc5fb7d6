//! Which endpoint a connection or request goes to.

use super::{
    backend_tls::Link,
    health::{Checks, Standing},
    http::Pool,
    reach::{Unreachable, reach},
};
use crate::{
    model::{
        Backend, BackendId, BackendProtocol, BackendTls, Endpoint, Forward, ProxyProtocol, Snapshot,
    },
    net::Outbound,
    tailnet::Node,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

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
    /// Of its endpoints, unless they have links of their own.
    pub(super) link: Link,
    choices: Vec<Choice>,
    /// Whether some endpoints have a greater share than others.
    is_weighted: bool,
}

/// An endpoint that can be drawn.
#[derive(Debug)]
struct Choice {
    tracked: Arc<Tracked>,
    weight: u32,
    /// `None`: it is not checked.
    standing: Option<Arc<Standing>>,
}

/// An endpoint and how many connections or requests it has. Survives snapshots that still name
/// it and reach it in the same way.
#[derive(Debug)]
pub(super) struct Tracked {
    endpoint: Endpoint,
    link: Link,
    /// By which it is reached when it is in a tailnet.
    node: Option<Node>,
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

// === impl Backends ===

impl Backends {
    /// Those of a snapshot; endpoints that stay keep their counts. `node`: by which those in a
    /// tailnet are reached.
    pub(super) fn of(
        snapshot: &Snapshot,
        before: &Self,
        checks: &Checks,
        node: Option<&Node>,
    ) -> Self {
        let by_id = snapshot
            .backends
            .iter()
            .map(|(id, backend)| {
                let balancer = Balancer::of(id, backend, before.by_id.get(id), checks, node);
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
                    let mut choices = balancer.choices.iter();
                    choices.any(|known| Arc::ptr_eq(&known.tracked, endpoint))
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
    fn of(
        id: &BackendId,
        backend: &Backend,
        before: Option<&Arc<Self>>,
        checks: &Checks,
        node: Option<&Node>,
    ) -> Self {
        let name = id.to_string();
        let known = Known::of(&name, before, node);
        let old = before.map(|before| &before.link);
        let link = Link::new(&name, backend.tls.as_ref(), old);
        let alike = backend.endpoints.iter().map(|endpoint| Choice {
            tracked: known.tracked(endpoint, link.clone()),
            weight: 1,
            standing: None,
        });
        let members = backend.members.iter().map(|member| Choice {
            tracked: known.tracked(
                &member.endpoint,
                known.link(&member.endpoint, member.tls.as_ref()),
            ),
            weight: member.weight,
            standing: checks.standing(&member.name),
        });
        let choices: Vec<_> = alike.chain(members).collect();
        Self {
            protocol: backend.protocol,
            link,
            is_weighted: choices.iter().any(|c| c.weight != choices[0].weight),
            choices,
            name,
        }
    }

    /// Whether all of it is spoken to in plain.
    pub(super) fn is_plain(&self) -> bool {
        let mut choices = self.choices.iter();
        choices.all(|choice| matches!(choice.tracked.link, Link::Plain))
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
    ) -> Option<(Outbound, Connected)> {
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

    /// One that is well and was reached lately, if there is any; the rest are better than none.
    fn pick(&self, not: Option<&Arc<Tracked>>) -> Option<Arc<Tracked>> {
        let mut left: Vec<_> = self.choices.iter().collect();
        left.retain(|choice| not.is_none_or(|not| !Arc::ptr_eq(&choice.tracked, not)));
        for is_good in [Choice::is_well, Choice::is_reached] {
            if left.iter().any(|choice| is_good(choice)) {
                left.retain(|choice| is_good(choice));
            }
        }
        let picked = match left.as_slice() {
            [] => return None,
            [only] => only,
            several if self.is_weighted => by_weight(several),
            several => {
                let count = several.len() as u64;
                let one = below(count);
                // A second one that is another.
                let two = (one + 1 + below(count - 1)) % count;
                several[one as usize].or_with_fewer(several[two as usize])
            }
        };
        Some(Arc::clone(&picked.tracked))
    }
}

/// Of two that are drawn by their shares, that with fewer for its share.
fn by_weight<'a>(several: &[&'a Choice]) -> &'a Choice {
    let draw = |left: &[&'a Choice]| {
        let weights = Weights::new(left.iter().map(|choice| choice.weight));
        weights.draw().unwrap_or(0)
    };
    let one = draw(several);
    let mut rest = several.to_vec();
    let one = rest.swap_remove(one);
    match rest.is_empty() {
        true => one,
        false => one.or_with_fewer(rest[draw(&rest)]),
    }
}

/// What is known of the endpoints of a backend before it is made anew.
struct Known<'a> {
    backend: &'a str,
    tracked: HashMap<&'a Endpoint, Vec<&'a Arc<Tracked>>>,
    node: Option<&'a Node>,
}

impl<'a> Known<'a> {
    fn of(backend: &'a str, before: Option<&'a Arc<Balancer>>, node: Option<&'a Node>) -> Self {
        let mut tracked: HashMap<_, Vec<_>> = HashMap::new();
        for choice in before.iter().flat_map(|balancer| &balancer.choices) {
            let of_endpoint = tracked.entry(&choice.tracked.endpoint).or_default();
            of_endpoint.push(&choice.tracked);
        }
        Self {
            backend,
            tracked,
            node,
        }
    }

    fn of_endpoint(&self, endpoint: &Endpoint) -> impl Iterator<Item = &'a Arc<Tracked>> {
        self.tracked.get(endpoint).into_iter().flatten().copied()
    }

    /// How an endpoint with a link of its own is spoken to.
    fn link(&self, endpoint: &Endpoint, wanted: Option<&BackendTls>) -> Link {
        let mut known = self.of_endpoint(endpoint);
        let same = known.find(|tracked| tracked.link.is_for(wanted));
        Link::new(self.backend, wanted, same.map(|tracked| &tracked.link))
    }

    /// The same as before, unless it is reached in another way: a connection made under another
    /// policy is never used again.
    fn tracked(&self, endpoint: &Endpoint, link: Link) -> Arc<Tracked> {
        let mut known = self.of_endpoint(endpoint);
        match known.find(|tracked| tracked.link.is_same(&link)) {
            Some(tracked) => Arc::clone(tracked),
            None => Arc::new(Tracked {
                endpoint: endpoint.clone(),
                link,
                node: self.node.filter(|_| endpoint.is_in_tailnet()).cloned(),
                pool: Pool::default(),
                open: AtomicUsize::new(0),
                failed: AtomicU64::new(0),
            }),
        }
    }
}

impl Choice {
    fn is_well(&self) -> bool {
        let standing = self.standing.as_ref();
        standing.is_none_or(|standing| !standing.is_unhealthy())
    }

    fn is_reached(&self) -> bool {
        !self.tracked.is_set_aside()
    }

    fn or_with_fewer<'a>(&'a self, other: &'a Self) -> &'a Self {
        let load = |of: &Self, share: u32| {
            of.tracked.open.load(Ordering::Relaxed) as u64 * u64::from(share)
        };
        // Each has as many as its share allows where the products are the same.
        match load(other, self.weight) < load(self, other.weight) {
            true => other,
            false => self,
        }
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
    ) -> Result<(Outbound, Connected), Unreachable> {
        // Counted from here on, so that many connecting at once spread out.
        let connected = Self::count(this);
        let stream = connected.open_stream(timeout).await?;
        Ok((stream, connected))
    }

    async fn open_stream(&self, timeout: Duration) -> Result<Outbound, Unreachable> {
        reach(&self.endpoint, self.node.as_ref(), timeout).await
    }

    /// By which it is reached when it is in a tailnet.
    pub(super) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
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
    pub(super) async fn open_stream(&self, timeout: Duration) -> Result<Outbound, Unreachable> {
        let tracked = &self.tracked;
        let stream = tracked
            .open_stream(timeout)
            .await
            .inspect_err(|_| tracked.failed.store(clock(), Ordering::Relaxed))?;
        tracked.failed.store(0, Ordering::Relaxed);
        // A proxy passes on what it gets when it gets it.
        stream.set_nodelay();
        Ok(stream)
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
mod tests;
