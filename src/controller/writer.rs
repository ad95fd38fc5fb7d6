//! Writes statuses: only what changed, and no faster than an API server likes.

use super::{
    events::{Events, Weight},
    status::{StatusWrite, changed, plan},
    world::World,
};
use crate::{
    index::{Key, Kind},
    metrics::Metrics,
    source::served,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Writes at a time.
const CONCURRENCY: usize = 8;

/// How long a write waits for the one before it.
const SPACING: Duration = Duration::from_millis(10);

/// How soon a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Field manager of what the controller writes.
pub const FIELD_MANAGER: &str = "tailway-controller";

/// Writes the statuses of a [`World`] whenever it changes.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Writer {
    client: Client,
    events: Events,
    metrics: Metrics,
    resources: BTreeMap<Kind, ApiResource>,
    /// The version of each object that a write was made from: until its watch has told of the
    /// result, there is nothing to add.
    written: HashMap<Key, String>,
    /// Objects whose statuses may not be as they should be.
    unsettled: BTreeSet<Key>,
}

// === impl Writer ===

impl Writer {
    pub fn new(client: Client, events: Events, metrics: Metrics) -> Self {
        Self {
            client,
            events,
            metrics,
            resources: BTreeMap::new(),
            written: HashMap::new(),
            unsettled: BTreeSet::new(),
        }
    }

    pub async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) -> Infallible {
        let mut before = Arc::<World>::default();
        loop {
            let world = worlds.borrow_and_update().clone();
            if world.listed {
                self.unsettled.extend(changed(&world, &before));
                before = Arc::clone(&world);
                self.settle(&world).await;
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(RETRY), if !self.unsettled.is_empty() => {}
            }
        }
    }

    /// Writes what is not as it should be. What could not be written stays unsettled.
    async fn settle(&mut self, world: &World) {
        let writes = plan(world, &self.unsettled, Timestamp::now());
        for write in &writes {
            let kind = write.key.kind;
            if !self.resources.contains_key(&kind) {
                match served(&self.client, kind).await {
                    Ok(Some(resource)) => drop(self.resources.insert(kind, resource)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot ask the API server for its kinds");
                        return;
                    }
                }
            }
        }
        let unsettled = std::mem::take(&mut self.unsettled);
        let written: HashMap<_, _> = unsettled
            .iter()
            .filter_map(|key| self.written.remove_entry(key))
            .collect();
        let (waiting, writes): (Vec<_>, Vec<_>) = writes
            .into_iter()
            .partition(|write| written.get(&write.key) == Some(&write.resource_version));
        let waiting = waiting.into_iter();
        self.written
            .extend(waiting.map(|write| (write.key, write.resource_version)));
        let done = self.write_all(writes).await;
        for (key, version, done) in done {
            match done {
                true => drop(self.written.insert(key, version)),
                false => drop(self.unsettled.insert(key)),
            }
        }
    }

    /// For each write its object and version, and whether it need not be tried again.
    async fn write_all(&self, writes: Vec<StatusWrite>) -> Vec<(Key, String, bool)> {
        let mut pace = tokio::time::interval(SPACING);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let paced = futures_util::stream::unfold(
            (writes.into_iter(), pace),
            |(mut writes, mut pace)| async move {
                let write = writes.next()?;
                pace.tick().await;
                Some((write, (writes, pace)))
            },
        );
        paced
            .map(|write| async move {
                let done = self.write(&write).await;
                (write.key, write.resource_version, done)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await
    }

    async fn tell(&self, write: &StatusWrite) {
        for news in &write.news {
            let weight = if news.status {
                Weight::Normal
            } else {
                Weight::Warning
            };
            // The reason of a condition that is true is often only its name.
            let reason = match news.status {
                true => news.condition,
                false => news.reason,
            };
            let note = match news.message.as_str() {
                "" => format!("{} is true", news.condition),
                message => message.to_owned(),
            };
            self.events
                .tell_of(write.reference.clone(), weight, reason, note)
                .await;
        }
    }

    /// Whether it need not be tried again.
    async fn write(&self, write: &StatusWrite) -> bool {
        let Key { kind, name } = &write.key;
        let Some(resource) = self.resources.get(kind) else {
            return true; // the cluster does not serve the kind any more
        };
        let client = self.client.clone();
        let api: Api<DynamicObject> = if name.namespace.is_empty() {
            Api::all_with(client, resource)
        } else {
            Api::namespaced_with(client, &name.namespace, resource)
        };
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "resourceVersion": write.resource_version },
            "status": write.status,
        });
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let result = api
            .patch_status(&name.name, &parameters, &Patch::Merge(patch))
            .await;
        self.metrics
            .status_written(kind.to_string(), result.is_ok());
        match result {
            Ok(_) => {
                self.tell(write).await;
                true
            }
            // Somebody was faster, or it is gone: the watch tells, and it is worked out anew.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => true,
            Err(error) => {
                tracing::warn!(%kind, %name, %error, "the status could not be written");
                false
            }
        }
    }
}
