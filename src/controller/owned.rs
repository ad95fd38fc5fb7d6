//! What the controller made for each Gateway, and what came of it.

use super::{
    inquiry::{Inquiry, PodKey, Turn},
    labels::{self, GATEWAY_NAME, GATEWAY_NAMESPACE, MANAGED_BY, MANAGER},
    workload::ADMIN_PORT,
    world::Note,
};
use crate::{
    api::STATE_REPORT,
    model::{NodeReport, ObjectName, Programmed, Table, Unready},
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
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// What is there of the Gateways' workloads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owned {
    pub workloads: Table<Workload>,
    /// Whether all has been listed.
    pub listed: bool,
}

/// What is there of one Gateway's workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    pub stateful_set: Option<Set>,
    /// By name.
    pub pods: BTreeMap<String, PodState>,
    pub secret: Option<StateSecret>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    pub name: String,
    pub uid: String,
    /// `metadata.generation`: somebody changed it when it is not the one last written.
    pub generation: i64,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodState {
    pub ready: bool,
    pub ending: bool,
    /// Why it is not ready, as far as Kubernetes knows.
    pub problem: String,
    /// Why it is not ready, by its own word; empty when it was not asked.
    pub says: String,
    pub address: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateSecret {
    pub name: String,
    pub report: Option<NodeReport>,
    pub annotations: BTreeMap<String, String>,
}

enum Seen {
    Set(Event<StatefulSet>),
    Pod(Event<Pod>),
    Secret(Event<Secret>),
}

/// Events that are taken in at once.
const BATCH: usize = 256;

type Events = SelectAll<Pin<Box<dyn Stream<Item = Result<Seen, watcher::Error>> + Send>>>;

/// Follows the workloads, tells the index what their nodes say, and publishes all that is there.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Follower {
    client: Client,
    namespace: String,
    notes: mpsc::Sender<Note>,
    owned: Owned,
    /// The workloads when the index was told last, and what it was told.
    told_of: Table<Workload>,
    told: BTreeMap<ObjectName, NodeReport>,
    /// Names seen since a kind began to be listed anew, by kind.
    listing: [BTreeSet<(ObjectName, String)>; 3],
    listed: [bool; 3],
}

// === impl Follower ===

impl Follower {
    pub fn new(client: Client, namespace: String, notes: mpsc::Sender<Note>) -> Self {
        Self {
            client,
            namespace,
            notes,
            owned: Owned::default(),
            told_of: Table::default(),
            told: BTreeMap::new(),
            listing: Default::default(),
            listed: [false; 3],
        }
    }

    pub async fn run(mut self, published: watch::Sender<Arc<Owned>>) -> Infallible {
        let mut events = Events::new();
        events.push(self.events::<StatefulSet>(Seen::Set));
        events.push(self.events::<Pod>(Seen::Pod));
        events.push(self.events::<Secret>(Seen::Secret));
        let mut events = events.ready_chunks(BATCH);
        let mut inquiry = Inquiry::new();
        let (mut failing, mut told) = (false, false);
        loop {
            // The watches never end.
            let some_events = tokio::select! {
                Some(some_events) = events.next() => some_events,
                turn = inquiry.next() => {
                    match turn {
                        Turn::Answer((gateway, pod), reason) => self.hear(&gateway, &pod, reason),
                        Turn::Ask => inquiry.ask(self.owned.unready()),
                    }
                    Vec::new()
                }
            };
            for event in some_events {
                match event {
                    Ok(seen) => {
                        failing = false;
                        self.take(seen);
                    }
                    Err(error) if !failing => {
                        tracing::warn!(%error, "a watch of tailway's own objects failed, it goes on when the API server answers");
                        failing = true;
                    }
                    Err(_) => {}
                }
            }
            self.owned.listed = self.listed == [true; 3];
            if self.owned.listed {
                self.tell().await;
                if !told {
                    told = true;
                    // Without a receiver the process is on its way out.
                    let _ = self.notes.send(Note::Listed).await;
                }
                published.send_if_modified(|current| {
                    let changed =
                        !current.listed || !current.workloads.is_same(&self.owned.workloads);
                    if changed {
                        *current = Arc::new(self.owned.clone());
                    }
                    changed
                });
            }
        }
    }

    fn events<K>(
        &self,
        seen: fn(Event<K>) -> Seen,
    ) -> Pin<Box<dyn Stream<Item = Result<Seen, watcher::Error>> + Send>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let config = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
        let events = watcher::watcher(api, config).default_backoff();
        Box::pin(events.map(move |event| event.map(seen)))
    }

    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Set(event) => self.event(0, event, Set::put, |workload, _| {
                workload.stateful_set = None;
            }),
            Seen::Pod(event) => self.event(1, event, PodState::put, |workload, name| {
                workload.pods.remove(name);
            }),
            Seen::Secret(event) => self.event(2, event, StateSecret::put, |workload, _| {
                workload.secret = None;
            }),
        }
    }

    fn event<K: Resource>(
        &mut self,
        kind: usize,
        event: Event<K>,
        put: fn(&K, &mut Workload),
        remove: fn(&mut Workload, &str),
    ) {
        match event {
            Event::Init => self.listing[kind].clear(),
            Event::InitApply(object) => {
                if let Some(key) = self.apply(&object, put) {
                    self.listing[kind].insert(key);
                }
            }
            Event::InitDone => {
                self.listed[kind] = true;
                let listing = std::mem::take(&mut self.listing[kind]);
                for (gateway, workload) in &self.owned.workloads.clone() {
                    for name in workload.names(kind) {
                        if !listing.contains(&(ObjectName::clone(gateway), name.clone())) {
                            self.change(gateway, |workload| remove(workload, &name));
                        }
                    }
                }
            }
            Event::Apply(object) => drop(self.apply(&object, put)),
            Event::Delete(object) => {
                if let Some(gateway) = gateway_of(object.meta()) {
                    self.change(&gateway, |workload| remove(workload, &object.name_any()));
                }
            }
        }
    }

    fn apply<K: Resource>(
        &mut self,
        object: &K,
        put: fn(&K, &mut Workload),
    ) -> Option<(ObjectName, String)> {
        let gateway = gateway_of(object.meta())?;
        self.change(&gateway, |workload| put(object, workload));
        Some((gateway, object.name_any()))
    }

    fn hear(&mut self, gateway: &ObjectName, pod: &str, reason: String) {
        self.change(gateway, |workload| {
            let pod = workload.pods.get_mut(pod);
            if let Some(pod) = pod.filter(|pod| pod.problem == NOT_READY) {
                pod.says = reason;
            }
        });
    }

    fn change(&mut self, gateway: &ObjectName, change: impl FnOnce(&mut Workload)) {
        let there = self.owned.workloads.get(gateway);
        let mut workload = there.map_or_else(Workload::default, |there| Workload::clone(there));
        change(&mut workload);
        let workload = Some(workload).filter(|workload| !workload.is_empty());
        self.owned.workloads.settle(gateway, workload);
    }

    /// Tells the index of what changed.
    async fn tell(&mut self) {
        let workloads = &self.owned.workloads;
        let mut notes = Vec::new();
        for gateway in workloads.differences(&self.told_of) {
            let report = workloads.get(gateway).and_then(|w| w.report());
            if self.told.get(gateway) == report.as_ref() {
                continue;
            }
            match &report {
                Some(report) => drop(self.told.insert(gateway.clone(), report.clone())),
                None => drop(self.told.remove(gateway)),
            }
            notes.push(Note::Report(gateway.clone(), report));
        }
        self.told_of = workloads.clone();
        for note in notes {
            // Without a receiver the process is on its way out.
            let _ = self.notes.send(note).await;
        }
    }
}

/// The Gateway that an object was made for.
fn gateway_of(metadata: &ObjectMeta) -> Option<ObjectName> {
    let annotations = metadata.annotations.as_ref()?;
    Some(ObjectName::new(
        annotations.get(GATEWAY_NAMESPACE)?,
        annotations.get(GATEWAY_NAME)?,
    ))
}

// === impl Owned ===

impl Owned {
    /// Pods that run and are not ready, with the addresses of their admin pages.
    fn unready(&self) -> BTreeMap<PodKey, SocketAddr> {
        let workloads = self.workloads.iter();
        let pods = workloads.flat_map(|(gateway, workload)| {
            let unready = workload.pods.iter();
            let unready = unready.filter(|(_, pod)| pod.problem == NOT_READY && !pod.ending);
            unready.filter_map(|(name, pod)| {
                let address = SocketAddr::new(pod.address?, ADMIN_PORT);
                Some(((ObjectName::clone(gateway), name.clone()), address))
            })
        });
        pods.collect()
    }
}

// === impl Workload ===

impl Workload {
    /// What there is to say of the node; `None` when none was made.
    pub fn report(&self) -> Option<NodeReport> {
        self.stateful_set.as_ref()?;
        let report = self.secret.as_ref().and_then(|s| s.report.clone());
        let mut report = report.unwrap_or_default();
        // The pod itself knows better than Kubernetes why it is not ready.
        if let Some(message) = self.problem().filter(|_| !self.reports_why()) {
            let reason = Unready::Pending;
            report.programmed = Programmed::No { reason, message };
        }
        Some(report)
    }

    /// Node IDs that the Gateway's nodes had.
    pub fn node_ids(&self) -> BTreeSet<String> {
        let report = self.secret.as_ref().and_then(|s| s.report.as_ref());
        let current = report.map(|report| report.node_id.clone());
        let current = current.filter(|id| !id.is_empty());
        let [first, second] = self.recorded();
        first.into_iter().chain(second).chain(current).collect()
    }

    /// The node IDs that the StatefulSet and the Secret have on record.
    pub fn recorded(&self) -> [BTreeSet<String>; 2] {
        self.annotations().map(|annotations| {
            let ids = annotations.and_then(|annotations| annotations.get(labels::NODE_IDS));
            let ids = ids.into_iter().flat_map(|ids| ids.split(','));
            ids.filter(|id| !id.is_empty()).map(str::to_owned).collect()
        })
    }

    /// Name of the GatewayClass that it was made for.
    pub fn class(&self) -> Option<&String> {
        let mut annotations = self.annotations().into_iter().flatten();
        annotations.find_map(|annotations| annotations.get(labels::GATEWAY_CLASS))
    }

    fn annotations(&self) -> [Option<&BTreeMap<String, String>>; 2] {
        [
            self.stateful_set.as_ref().map(|set| &set.annotations),
            self.secret.as_ref().map(|secret| &secret.annotations),
        ]
    }

    /// Whether a pod that is not ready says why in its report, and still says so when asked.
    fn reports_why(&self) -> bool {
        let report = self.secret.as_ref().and_then(|s| s.report.as_ref());
        let Some(Programmed::No { message, .. }) = report.map(|report| &report.programmed) else {
            return false;
        };
        let agrees = |pod: &PodState| pod.says.is_empty() || pod.says == message.trim();
        let mut pods = self.pods.values();
        pods.any(|pod| pod.problem == NOT_READY && agrees(pod))
    }

    /// Why no pod of it serves.
    fn problem(&self) -> Option<String> {
        if self.pods.values().any(|pod| pod.ready && !pod.ending) {
            return None;
        }
        match self.pods.iter().next() {
            None => Some("its pod has not been created".into()),
            Some((name, pod)) if pod.ending => Some(format!("pod {name} is ending")),
            Some((name, pod)) if pod.says.is_empty() => {
                Some(format!("pod {name}: {}", pod.problem))
            }
            Some((name, pod)) => Some(format!("pod {name}: {}", pod.says)),
        }
    }

    fn is_empty(&self) -> bool {
        self.stateful_set.is_none() && self.secret.is_none() && self.pods.is_empty()
    }

    fn names(&self, kind: usize) -> Vec<String> {
        match kind {
            0 => self.stateful_set.iter().map(|s| s.name.clone()).collect(),
            1 => self.pods.keys().cloned().collect(),
            _ => self.secret.iter().map(|s| s.name.clone()).collect(),
        }
    }
}

impl Set {
    fn put(set: &StatefulSet, workload: &mut Workload) {
        workload.stateful_set = Some(Self::of(set));
    }

    pub(super) fn of(set: &StatefulSet) -> Self {
        Self {
            name: set.name_any(),
            uid: set.uid().unwrap_or_default(),
            generation: set.metadata.generation.unwrap_or(0),
            annotations: set.annotations().clone(),
        }
    }
}

impl StateSecret {
    fn put(secret: &Secret, workload: &mut Workload) {
        let state = Self::of(secret);
        if workload.secret.as_ref().map(|before| &before.report) != Some(&state.report) {
            // This is newer than what its pods said.
            workload.pods.values_mut().for_each(|pod| pod.says.clear());
        }
        workload.secret = Some(state);
    }

    pub(super) fn of(secret: &Secret) -> Self {
        let report = secret.data.as_ref().and_then(|data| data.get(STATE_REPORT));
        let report = report.and_then(|bytes| match serde_json::from_slice(&bytes.0) {
            Ok(report) => Some(report),
            Err(error) => {
                tracing::warn!(secret = secret.name_any(), %error, "the report of a pod cannot be read");
                None
            }
        });
        Self {
            name: secret.name_any(),
            report,
            annotations: secret.annotations().clone(),
        }
    }
}

/// Of a pod that runs and whose own probe says no.
const NOT_READY: &str = "it runs, and is not ready yet";

impl PodState {
    fn put(pod: &Pod, workload: &mut Workload) {
        let mut state = Self::of(pod);
        let name = pod.name_any();
        let before = workload.pods.remove(&name);
        if let Some(before) = before.filter(|_| state.problem == NOT_READY) {
            state.says = before.says;
        }
        workload.pods.insert(name, state);
    }

    pub(super) fn of(pod: &Pod) -> Self {
        let ready = conditions(pod).any(|(kind, status, _)| kind == "Ready" && status == "True");
        let status = pod.status.as_ref();
        Self {
            ready,
            ending: pod.metadata.deletion_timestamp.is_some(),
            problem: if ready { String::new() } else { problem(pod) },
            says: String::new(),
            address: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
        }
    }
}

fn conditions(pod: &Pod) -> impl Iterator<Item = (&str, &str, &str)> {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().map(|condition| {
        (
            condition.type_.as_str(),
            condition.status.as_str(),
            condition.message.as_deref().unwrap_or_default(),
        )
    })
}

/// Why a pod is not ready: not scheduled, image not there, crashing, or by its own word.
fn problem(pod: &Pod) -> String {
    let unscheduled =
        conditions(pod).find(|(kind, status, _)| (*kind, *status) == ("PodScheduled", "False"));
    if let Some((_, _, message)) = unscheduled {
        return format!("it is not scheduled: {message}");
    }
    let containers = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref());
    for container in containers.into_iter().flatten() {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("Waiting");
            let message = waiting.message.as_deref().unwrap_or_default();
            return format!("{reason} {message}").trim().to_owned();
        }
        if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
            let message = ended.message.as_deref().unwrap_or_default().trim();
            return format!("it ended with code {} {message}", ended.exit_code)
                .trim()
                .to_owned();
        }
        if state.is_some_and(|s| s.running.is_some()) {
            return NOT_READY.into();
        }
    }
    "it has not started".into()
}

#[cfg(test)]
mod tests;
