//! What there is of each egress, and what its nodes say.

use super::ordinal;
use crate::{
    controller::{
        labels::{
            COMPONENT, EGRESS, ENDPOINTS_NAME, ENDPOINTS_NAMESPACE, MANAGED_BY, MANAGER, NODE_IDS,
            TAILNET,
        },
        owned::{PodState, Set, StateSecret},
        world::{EgressState, Note},
    },
    index::egress::replica,
    model::{NodeReport, ObjectName, Programmed},
};
use futures_util::{Stream, StreamExt, stream::SelectAll};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// What is there of all egresses, by their TailscaleEndpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressOwned {
    pub workloads: BTreeMap<ObjectName, Workload>,
    /// Whether all has been listed.
    pub listed: bool,
}

/// What is there of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    pub set: Option<Set>,
    pub replicas: i32,
    /// By name.
    pub pods: BTreeMap<String, PodState>,
    pub secrets: BTreeMap<String, StateSecret>,
}

/// Watches what was made for egresses, publishes it and tells the index what their nodes say.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct EgressFollower {
    client: Client,
    namespace: String,
    notes: mpsc::Sender<Note>,
    told: BTreeMap<ObjectName, NodeReport>,
    states: BTreeMap<ObjectName, EgressState>,
}

type Ticks = SelectAll<Pin<Box<dyn Stream<Item = ()> + Send>>>;

/// Changes that are looked at together.
const BATCH: usize = 256;

// === impl EgressFollower ===

impl EgressFollower {
    pub fn new(client: Client, namespace: String, notes: mpsc::Sender<Note>) -> Self {
        Self {
            client,
            namespace,
            notes,
            told: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    pub async fn run(mut self, published: watch::Sender<Arc<EgressOwned>>) -> Infallible {
        let mut ticks = Ticks::new();
        let sets = self.follow::<StatefulSet>(&mut ticks);
        let pods = self.follow::<Pod>(&mut ticks);
        let secrets = self.follow::<Secret>(&mut ticks);
        let mut ticks = ticks.ready_chunks(BATCH);
        let mut listed = false;
        loop {
            // The watches never end.
            ticks.next().await;
            listed = listed || {
                let ready = async {
                    tokio::try_join!(
                        sets.wait_until_ready(),
                        pods.wait_until_ready(),
                        secrets.wait_until_ready()
                    )
                };
                // Polled once: it is looked at again with the next event.
                futures_util::FutureExt::now_or_never(ready).is_some_and(|ready| ready.is_ok())
            };
            if !listed {
                continue;
            }
            let workloads = workloads(&sets.state(), &pods.state(), &secrets.state());
            self.tell(&workloads).await;
            self.tell_states(&workloads).await;
            let owned = EgressOwned { workloads, listed };
            published.send_if_modified(|current| {
                let changed = **current != owned;
                if changed {
                    *current = Arc::new(owned);
                }
                changed
            });
        }
    }

    fn follow<K>(&self, ticks: &mut Ticks) -> Store<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let labels = format!("{MANAGED_BY}={MANAGER},{COMPONENT}={EGRESS}");
        let (store, writer) = reflector::store();
        let events = watcher::watcher(api, watcher::Config::default().labels(&labels));
        let events = events.default_backoff().reflect(writer);
        ticks.push(Box::pin(events.map(|event| {
            if let Err(error) = event {
                tracing::debug!(%error, "a watch of what was made for egresses failed, it goes on when the API server answers");
            }
        })));
        store
    }

    /// Tells the index of what changed.
    async fn tell(&mut self, workloads: &BTreeMap<ObjectName, Workload>) {
        let mut now = BTreeMap::new();
        for (endpoints, workload) in workloads {
            for (name, secret) in &workload.secrets {
                // What one says that is gone is not true any more.
                let report = secret.report.as_ref();
                let report = report.filter(|_| workload.is_ready(name));
                if let (Some(ordinal), Some(report)) = (ordinal(name), report) {
                    let replica = replica(endpoints, ordinal.into());
                    now.insert(replica, report.clone());
                }
            }
        }
        let before = std::mem::replace(&mut self.told, now);
        let names: BTreeSet<_> = before.keys().chain(self.told.keys()).collect();
        for name in names {
            let report = self.told.get(name);
            if report != before.get(name) {
                // Without a receiver the process is on its way out.
                let note = Note::Report(name.clone(), report.cloned());
                let _ = self.notes.send(note).await;
            }
        }
    }
}

impl EgressFollower {
    async fn tell_states(&mut self, workloads: &BTreeMap<ObjectName, Workload>) {
        let workloads = workloads.iter();
        let now = workloads
            .filter_map(|(name, workload)| Some((name.clone(), workload.state()?)))
            .collect();
        let before = std::mem::replace(&mut self.states, now);
        let names: BTreeSet<_> = before.keys().chain(self.states.keys()).collect();
        for name in names {
            let state = self.states.get(name);
            if state != before.get(name) {
                // Without a receiver the process is on its way out.
                let note = Note::Egress(name.clone(), state.cloned());
                let _ = self.notes.send(note).await;
            }
        }
    }
}

fn workloads(
    sets: &[Arc<StatefulSet>],
    pods: &[Arc<Pod>],
    secrets: &[Arc<Secret>],
) -> BTreeMap<ObjectName, Workload> {
    let mut workloads: BTreeMap<ObjectName, Workload> = BTreeMap::new();
    for set in sets {
        if let Some(name) = endpoints_of(&set.metadata) {
            let workload = workloads.entry(name).or_default();
            workload.set = Some(Set::of(set));
            let spec = set.spec.as_ref();
            workload.replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        }
    }
    for pod in pods {
        if let Some(name) = endpoints_of(&pod.metadata) {
            let workload = workloads.entry(name).or_default();
            workload.pods.insert(pod.name_any(), PodState::of(pod));
        }
    }
    for secret in secrets {
        if let Some(name) = endpoints_of(&secret.metadata) {
            let workload = workloads.entry(name).or_default();
            workload
                .secrets
                .insert(secret.name_any(), StateSecret::of(secret));
        }
    }
    workloads
}

/// The TailscaleEndpoints that an object was made for.
fn endpoints_of(metadata: &ObjectMeta) -> Option<ObjectName> {
    let annotations = metadata.annotations.as_ref()?;
    Some(ObjectName::new(
        annotations.get(ENDPOINTS_NAMESPACE)?,
        annotations.get(ENDPOINTS_NAME)?,
    ))
}

// === impl Workload ===

impl Workload {
    /// The TailscaleTailnet that it was made for.
    pub(super) fn tailnet(&self) -> Option<String> {
        let set = self.set.iter().map(|set| &set.annotations);
        let mut all = set.chain(self.secrets.values().map(|secret| &secret.annotations));
        all.find_map(|annotations| annotations.get(TAILNET))
            .cloned()
    }

    /// `None`: none was made.
    fn state(&self) -> Option<EgressState> {
        self.set.as_ref()?;
        let ready = self.pods.values().filter(|pod| pod.ready && !pod.ending);
        let ready = i32::try_from(ready.count()).unwrap_or(i32::MAX);
        let problem = match self.pods.iter().next() {
            _ if ready > 0 => String::new(),
            None => "its pods have not been created".into(),
            Some((name, pod)) if pod.ending => format!("pod {name} is ending"),
            Some((name, pod)) => format!("pod {name}: {}", self.says(name, pod)),
        };
        Some(EgressState {
            desired: self.replicas,
            ready,
            problem,
        })
    }

    /// Why a pod is not ready: itself it knows best.
    fn says(&self, name: &str, pod: &PodState) -> String {
        let secret = self.secrets.get(&format!("{name}-state"));
        let report = secret.and_then(|secret| secret.report.as_ref());
        match report.map(|report| &report.programmed) {
            Some(Programmed::No { message, .. }) => message.clone(),
            _ => pod.problem.clone(),
        }
    }

    /// Whether a pod serves, by the name of its Secret.
    fn is_ready(&self, secret: &str) -> bool {
        let pod = secret.strip_suffix("-state").unwrap_or(secret);
        let pod = self.pods.get(pod);
        pod.is_some_and(|pod| pod.ready && !pod.ending)
    }
}

// === impl StateSecret ===

impl StateSecret {
    /// IDs of the nodes that the pod had.
    pub(super) fn node_ids(&self) -> BTreeSet<String> {
        let current = self.report.as_ref().map(|report| report.node_id.clone());
        let current = current.filter(|id| !id.is_empty());
        self.recorded().into_iter().chain(current).collect()
    }

    /// Those on record.
    pub(super) fn recorded(&self) -> BTreeSet<String> {
        let ids = self.annotations.get(NODE_IDS).into_iter();
        let ids = ids.flat_map(|ids| ids.split(','));
        ids.filter(|id| !id.is_empty()).map(str::to_owned).collect()
    }
}
