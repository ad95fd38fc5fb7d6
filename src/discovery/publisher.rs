//! The Snapshots that pods follow, and how each pod stands with its own.

use super::wire::{self, Resources};
use crate::{
    metrics::{Metrics, PodMeter},
    model::{ObjectName, Snapshot, Table},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::{sync::watch, time::Instant};

/// Where the controller puts Snapshots and the [`Server`](super::Server) finds them. Clones share
/// one state.
#[derive(Clone, Default)]
pub struct Publisher {
    gateways: Arc<Mutex<BTreeMap<ObjectName, Entry>>>,
    /// As they were published last.
    snapshots: Arc<Mutex<Table<Snapshot>>>,
}

/// How a connected pod stands with its Snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    pub pod: String,
    /// Version of the program in the pod.
    pub program_version: String,
    /// Version of the Snapshot that it acknowledged last; empty before the first.
    pub served: String,
    /// Why it serves an older one than it was sent.
    pub refused: Option<Refusal>,
}

/// A Snapshot that a pod cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub version: String,
    pub reason: String,
}

#[derive(Default)]
struct Entry {
    state: watch::Sender<Option<Arc<Published>>>,
    pods: BTreeMap<u64, PodState>,
    next_pod: u64,
}

/// A Snapshot that was published.
pub(super) struct Published {
    snapshot: Arc<Snapshot>,
    pub(super) since: Instant,
    // Worked out when the first pod needs it: most are followed at another replica.
    encoded: OnceLock<Encoded>,
}

pub(super) struct Encoded {
    pub(super) version: String,
    pub(super) resources: Resources,
}

/// A pod's place among the followers of its Gateway, given up when dropped.
pub(super) struct Follower {
    publisher: Publisher,
    gateway: ObjectName,
    id: u64,
    pub(super) state: watch::Receiver<Option<Arc<Published>>>,
    _meter: PodMeter,
}

/// A Gateway has that many followers already.
#[derive(Debug)]
pub(super) struct TooMany;

// === impl Publisher ===

impl Publisher {
    /// Replaces all Snapshots. Pods are told of what changed for them. `since` is when the first
    /// object changed that they follow from.
    pub fn publish(&self, snapshots: &Table<Snapshot>, since: Instant) {
        let mut current = self
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, snapshots.clone());
        let mut gateways = self.gateways();
        for name in snapshots.differences(&before) {
            let snapshot = snapshots.get(name);
            let entry = gateways.entry(name.clone()).or_default();
            entry.state.send_if_modified(|state| {
                let same = state.as_ref().map(|published| &published.snapshot) == snapshot;
                if !same {
                    *state = snapshot.map(|snapshot| {
                        Arc::new(Published {
                            snapshot: Arc::clone(snapshot),
                            since,
                            encoded: OnceLock::new(),
                        })
                    });
                }
                !same
            });
            if snapshot.is_none() && entry.pods.is_empty() {
                gateways.remove(name);
            }
        }
    }

    /// The pods of a Gateway that are connected to this server.
    pub fn pods(&self, gateway: &ObjectName) -> Vec<PodState> {
        let gateways = self.gateways();
        let entry = gateways.get(gateway);
        entry.map_or_else(Vec::new, |entry| entry.pods.values().cloned().collect())
    }

    /// Counts a pod among the followers of its Gateway, of which there are at most `limit`.
    pub(super) fn follow(
        &self,
        gateway: &ObjectName,
        pod: PodState,
        limit: usize,
        metrics: &Metrics,
    ) -> Result<Follower, TooMany> {
        let mut gateways = self.gateways();
        let entry = gateways.entry(gateway.clone()).or_default();
        if entry.pods.len() >= limit {
            return Err(TooMany);
        }
        entry.next_pod += 1;
        let id = entry.next_pod;
        entry.pods.insert(id, pod);
        Ok(Follower {
            publisher: self.clone(),
            gateway: gateway.clone(),
            id,
            state: entry.state.subscribe(),
            _meter: metrics.discovery_pod(),
        })
    }

    fn gateways(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Entry>> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.gateways().keys()).finish()
    }
}

// === impl Published ===

impl Published {
    pub(super) fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            let resources = wire::encode(&self.snapshot);
            Encoded {
                version: wire::version(&resources),
                resources,
            }
        })
    }
}

// === impl Follower ===

impl Follower {
    pub(super) fn served(&self, version: &str) {
        self.note(|pod| {
            version.clone_into(&mut pod.served);
            pod.refused = None;
        });
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.note(|pod| pod.refused = Some(refusal));
    }

    fn note(&self, change: impl FnOnce(&mut PodState)) {
        let mut gateways = self.publisher.gateways();
        let entry = gateways.get_mut(&self.gateway);
        if let Some(pod) = entry.and_then(|entry| entry.pods.get_mut(&self.id)) {
            change(pod);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut gateways = self.publisher.gateways();
        if let Some(entry) = gateways.get_mut(&self.gateway) {
            entry.pods.remove(&self.id);
            if entry.pods.is_empty() && entry.state.borrow().is_none() {
                gateways.remove(&self.gateway);
            }
        }
    }
}
