//! Writes statuses: only what changed, and no faster than an API server likes.

use super::{
    events::{Events, Weight},
    status::{StatusWrite, plan},
    world::World,
};
use crate::{index::Kind, metrics::Metrics, model::ObjectName, source::served};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
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
    written: Mutex<HashMap<(Kind, ObjectName), String>>,
}

// === impl Writer ===

impl Writer {
    pub fn new(client: Client, events: Events, metrics: Metrics) -> Self {
        Self {
            client,
            events,
            metrics,
            resources: BTreeMap::new(),
            written: Mutex::default(),
        }
    }

    pub async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) -> Infallible {
        loop {
            let world = worlds.borrow_and_update().clone();
            let complete = !world.listed || self.write_all(&world).await;
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Whether all could be written.
    async fn write_all(&mut self, world: &World) -> bool {
        let mut writes = plan(world, Timestamp::now());
        writes.retain(|write| !self.is_written(write));
        for write in &writes {
            if !self.resources.contains_key(&write.kind) {
                match served(&self.client, write.kind).await {
                    Ok(Some(resource)) => drop(self.resources.insert(write.kind, resource)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot ask the API server for its kinds");
                        return false;
                    }
                }
            }
        }
        let this = &*self;
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
            .map(|write| this.write(write))
            .buffer_unordered(CONCURRENCY)
            .fold(true, |complete, done| async move { complete && done })
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

    fn is_written(&self, write: &StatusWrite) -> bool {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(&(write.kind, write.name.clone())) == Some(&write.resource_version)
    }

    async fn write(&self, write: StatusWrite) -> bool {
        let Some(resource) = self.resources.get(&write.kind) else {
            return true; // the cluster does not serve the kind any more
        };
        let name = &write.name;
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
            .status_written(write.kind.to_string(), result.is_ok());
        match result {
            Ok(_) => {
                self.tell(&write).await;
                let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                written.insert((write.kind, write.name), write.resource_version);
                true
            }
            // Somebody was faster, or it is gone: the watch tells, and it is worked out anew.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => true,
            Err(error) => {
                tracing::warn!(kind = %write.kind, %name, %error, "the status could not be written");
                false
            }
        }
    }
}
