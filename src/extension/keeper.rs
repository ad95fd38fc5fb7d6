//! The TailscaleEgressSets of a cluster: read, and told how they are served.

use super::{
    hooks::Hooks,
    plan::{Plan, Served},
    record::{FIELD_MANAGER, Record, Resyncs, SeenSet},
    set::EgressSet,
};
use crate::{
    api::{SERVED_ANNOTATION, upstream::egress::TailscaleEgressSet},
    metrics::Metrics,
    model::ObjectName,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::MissedTickBehavior};

/// Sets that were served and are still to be told so, the last time of each.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<ObjectName, Served>>>);

/// Reads the sets of all namespaces and writes on them.
pub struct Keeper {
    client: Client,
    resource: ApiResource,
    hooks: Hooks,
    known: watch::Sender<Option<Arc<Plan>>>,
    notes: Notes,
    metrics: Metrics,
    sets: BTreeMap<ObjectName, SeenSet>,
    resyncs: Resyncs,
    /// Whether all have been read once.
    listed: bool,
    /// Whether the plan is of sets that have changed.
    stale: bool,
    /// Not before this is anything written again, after something could not be.
    pause: Option<Instant>,
}

/// What changes in less time is one change.
const TICK: Duration = Duration::from_millis(250);

/// After a write that failed.
const PAUSE: Duration = Duration::from_secs(2);

impl Notes {
    pub fn add(&self, served: &BTreeMap<ObjectName, Served>) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.extend(served.iter().map(|(name, one)| (name.clone(), one.clone())));
    }

    fn take(&self) -> BTreeMap<ObjectName, Served> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For the next time, unless there is something newer.
    fn give_back(&self, name: ObjectName, served: Served) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.entry(name).or_insert(served);
    }
}

impl Keeper {
    pub fn new(
        client: Client,
        hooks: Hooks,
        known: watch::Sender<Option<Arc<Plan>>>,
        notes: Notes,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            resource: ApiResource::erase::<TailscaleEgressSet>(&()),
            hooks,
            known,
            notes,
            metrics,
            sets: BTreeMap::new(),
            resyncs: Resyncs::default(),
            listed: false,
            stale: false,
            pause: None,
        }
    }

    pub async fn run(mut self) -> Infallible {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &self.resource);
        let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listing = BTreeMap::new();
        let mut failing = false;
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(event) => {
                        failing = false;
                        self.take(event, &mut listing);
                    }
                    Err(error) if failing => {
                        tracing::debug!(%error, "TailscaleEgressSets cannot be watched");
                    }
                    Err(error) => {
                        failing = true;
                        tracing::warn!(%error, "TailscaleEgressSets cannot be watched");
                    }
                },
                _ = tick.tick() => self.settle().await,
            }
        }
    }

    fn take(
        &mut self,
        event: watcher::Event<DynamicObject>,
        listing: &mut BTreeMap<ObjectName, SeenSet>,
    ) {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(object) => {
                let name = name(&object);
                // What cannot be read keeps its last state.
                let seen = read(object).or_else(|| self.sets.remove(&name));
                listing.extend(seen.map(|seen| (name, seen)));
            }
            watcher::Event::InitDone => {
                self.sets = std::mem::take(listing);
                self.listed = true;
                self.stale = true;
            }
            watcher::Event::Apply(object) => {
                let Some(seen) = read(object) else {
                    return;
                };
                let name = seen.set.name.clone();
                // What we write on it ourselves changes nothing that is served.
                let before = self.sets.get(&name).map(|before| &before.set);
                self.stale |= before != Some(&seen.set);
                self.sets.insert(name, seen);
            }
            watcher::Event::Delete(object) => {
                self.stale |= self.sets.remove(&name(&object)).is_some();
            }
        }
    }

    async fn settle(&mut self) {
        if !self.listed {
            return;
        }
        if std::mem::take(&mut self.stale) {
            self.publish().await;
        }
        if self.pause.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.pause = None;
        for (name, served) in self.notes.take() {
            if let Err(error) = self.record(&name, &served).await {
                tracing::warn!(set = %name, %error, "how it is served cannot be written on it");
                self.notes.give_back(name, served);
                self.pause = Some(Instant::now() + PAUSE);
            }
        }
        for name in self.resyncs.due(Instant::now(), self.sets.values()) {
            self.resync(&name).await;
        }
    }

    /// Tells whoever wants to know what the sets are together.
    async fn publish(&self) {
        if self.known.is_closed() {
            return;
        }
        let sets: Vec<_> = self.sets.values().map(|seen| seen.set.clone()).collect();
        let hooks = self.hooks.clone();
        let plan = tokio::task::spawn_blocking(move || hooks.plan(&sets)).await;
        // A runtime that is ending makes none.
        if let Ok(plan) = plan {
            self.known.send_replace(Some(Arc::new(plan)));
        }
    }

    fn api(&self, name: &ObjectName) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &name.namespace, &self.resource)
    }

    /// Writes how a set was served, unless that is what stands there.
    async fn record(&mut self, name: &ObjectName, served: &Served) -> kube::Result<()> {
        // One that is gone is not told of any more.
        let Some(seen) = self.sets.get_mut(name) else {
            return Ok(());
        };
        let record = Record::new(served, Timestamp::now().to_string());
        if seen
            .record
            .as_ref()
            .is_some_and(|there| there.says(&record))
        {
            return Ok(());
        }
        let text = serde_json::to_string(&record).map_err(kube::Error::SerdeError)?;
        let patch = json!({ "metadata": { "annotations": { SERVED_ANNOTATION: text } } });
        // Before the watch says so.
        seen.record = Some(record);
        self.patch(name, patch).await
    }

    /// Counts a set up, so that Envoy Gateway translates it again. Of several replicas one does.
    async fn resync(&self, name: &ObjectName) {
        let Some(seen) = self.sets.get(name) else {
            return;
        };
        let patch = json!({
            "metadata": { "resourceVersion": seen.resource_version },
            "spec": { "resync": seen.set.resync + 1 },
        });
        match self.patch(name, patch).await {
            Ok(()) => {
                tracing::info!(set = %name, "asked for another translation");
                self.metrics.extension_resync();
            }
            Err(error) => tracing::debug!(set = %name, %error, "not asked for another translation"),
        }
    }

    async fn patch(&self, name: &ObjectName, patch: serde_json::Value) -> kube::Result<()> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let patched = self
            .api(name)
            .patch(&name.name, &params, &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("sets", &self.sets.len())
            .finish_non_exhaustive()
    }
}

fn name(object: &DynamicObject) -> ObjectName {
    let metadata = &object.metadata;
    ObjectName::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// `None`, with a log line, when it cannot be read.
fn read(mut object: DynamicObject) -> Option<SeenSet> {
    let name = name(&object);
    let record = object.metadata.annotations.take();
    let record = record.and_then(|mut annotations| annotations.remove(SERVED_ANNOTATION));
    match EgressSet::from_spec(name.clone(), object.data["spec"].take()) {
        Ok(set) => Some(SeenSet {
            set,
            // One that was written by hand is replaced.
            record: record.and_then(|text| serde_json::from_str(&text).ok()),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
        }),
        Err(error) => {
            tracing::warn!(set = %name, %error, "a TailscaleEgressSet cannot be read");
            None
        }
    }
}
