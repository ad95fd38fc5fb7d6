//! What Envoy Gateway is told of endpoints: writes TailscaleEgressSets and TailscaleBackends, and
//! removes those that nobody wants any more. The lease holder's work.

mod desired;
mod status;

pub use desired::desired;

use desired::is_made_here;
pub(super) use status::{changed, of_backend, of_endpoints};

use super::{requests::unless_gone, world::World, writer::FIELD_MANAGER};
use crate::{
    api::{EGRESS_REFRESH_ANNOTATION, REFRESHED_ANNOTATION, gateway_api::gateways::Gateway},
    index::{Key, Kind},
    model::ObjectName,
    source::served,
};
use futures_util::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Writes at a time.
const CONCURRENCY: usize = 8;

/// How soon what failed is tried again, and until a watch has surely told of what was written.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the objects as a [`World`] has them.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Envoy {
    client: Client,
    resources: BTreeMap<Kind, ApiResource>,
    /// What was written last, and when.
    written: HashMap<Key, (Option<Arc<Value>>, Instant)>,
}

/// An object that is not as it should be; `None`: it should not be.
type Write = (Key, Option<Arc<Value>>);

// === impl Envoy ===

impl Envoy {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            resources: BTreeMap::new(),
            written: HashMap::new(),
        }
    }

    pub async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) -> Infallible {
        let (mut before, mut settled) = (Arc::<World>::default(), true);
        loop {
            let world = worlds.borrow_and_update().clone();
            if world.listed && !(settled && is_same(&world, &before)) {
                let desired = desired(&world);
                let stale = stale_gateways(&world, &desired);
                settled = self.settle(writes(&world, desired)).await & self.refresh(stale).await;
                before = world;
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(RETRY), if !settled => {}
            }
        }
    }

    /// Removes all that was written.
    pub async fn clean_up(mut self, mut worlds: watch::Receiver<Arc<World>>) {
        loop {
            let world = worlds.borrow_and_update().clone();
            if world.listed {
                let writes = writes(&world, BTreeMap::new());
                if writes.is_empty() {
                    return;
                }
                self.settle(writes).await;
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Whether all is written, and the watches have told so.
    async fn settle(&mut self, writes: Vec<Write>) -> bool {
        let now = Instant::now();
        let wanted: HashMap<_, _> = writes.iter().cloned().collect();
        self.written.retain(|key, (object, at)| {
            wanted.get(key) == Some(object) && now.duration_since(*at) < RETRY
        });
        let settled = writes.is_empty();
        let due: Vec<_> = writes
            .into_iter()
            .filter(|(key, _)| !self.written.contains_key(key))
            .collect();
        for kind in [Kind::EgressSet, Kind::Backend] {
            let is_due = due.iter().any(|(key, _)| key.kind == kind);
            if is_due && !self.resources.contains_key(&kind) {
                match served(&self.client, kind).await {
                    Ok(Some(resource)) => drop(self.resources.insert(kind, resource)),
                    Ok(None) => {
                        tracing::warn!(%kind, "the cluster does not serve the kind: install the CRDs")
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot ask the API server for its kinds");
                        return false;
                    }
                }
            }
        }
        let this = &*self;
        let done: Vec<_> = futures_util::stream::iter(due)
            .map(|write| async move { this.write(&write).await.then_some(write) })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let done = done.into_iter().flatten();
        self.written
            .extend(done.map(|(key, object)| (key, (object, Instant::now()))));
        settled
    }

    /// Has Gateways translated anew. Whether nothing is left to do.
    async fn refresh(&self, gateways: Vec<(ObjectName, String)>) -> bool {
        let is_done = gateways.is_empty();
        for (name, revision) in gateways {
            let api: Api<Gateway> = Api::namespaced(self.client.clone(), &name.namespace);
            let patch =
                json!({ "metadata": { "annotations": { REFRESHED_ANNOTATION: revision } } });
            let parameters = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            let patched = api
                .patch_metadata(&name.name, &parameters, &Patch::Merge(patch))
                .await;
            if let Err(error) = unless_gone(patched) {
                tracing::warn!(gateway = %name, %error, "it could not be told that its routes changed");
            }
        }
        is_done
    }

    async fn write(&self, (key, object): &Write) -> bool {
        let Key { kind, name } = key;
        let Some(resource) = self.resources.get(kind) else {
            return false;
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &name.namespace, resource);
        let result = match object {
            Some(object) => {
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(&**object);
                api.patch(&name.name, &parameters, &patch).await.map(drop)
            }
            None => {
                let deleted = api.delete(&name.name, &DeleteParams::default()).await;
                unless_gone(deleted).map(drop)
            }
        };
        if let Err(error) = &result {
            tracing::warn!(%kind, %name, %error, "it could not be written");
        }
        result.is_ok()
    }
}

/// Whether nothing changed that the objects, or what is to be written of them, depend on. The ports of
/// an egress follow from its TailscaleEndpoints.
fn is_same(world: &World, before: &World) -> bool {
    let (now, then) = (&world.outcome, &before.outcome);
    let (subjects, old) = (&world.subjects, &before.subjects);
    world.listed == before.listed
        && now.health.is_same(&then.health)
        && now.egress_routes.is_same(&then.egress_routes)
        && subjects.endpoints.is_same(&old.endpoints)
        && subjects.readings.is_same(&old.readings)
        && subjects.gateways.is_same(&old.gateways)
        && subjects.egress_sets.is_same(&old.egress_sets)
        && subjects.backends.is_same(&old.backends)
}

/// The Gateways that ask to be told of new routes and have not been, with the revision of those.
fn stale_gateways(world: &World, desired: &BTreeMap<Key, Value>) -> Vec<(ObjectName, String)> {
    let sets = desired
        .iter()
        .filter(|(key, _)| key.kind == Kind::EgressSet);
    let gateways = sets.filter_map(|(key, set)| {
        let gateway = world.subjects.gateways.get(&key.name)?;
        let annotations = gateway.annotations();
        let asks = annotations.get(EGRESS_REFRESH_ANNOTATION);
        let revision = set["spec"]["revision"].as_str()?;
        let knows = annotations
            .get(REFRESHED_ANNOTATION)
            .is_some_and(|r| r == revision);
        (asks.is_some_and(|asks| asks == "true") && !knows)
            .then(|| (key.name.clone(), revision.to_owned()))
    });
    gateways.collect()
}

/// What is to be written so that all is as desired.
fn writes(world: &World, desired: BTreeMap<Key, Value>) -> Vec<Write> {
    let subjects = &world.subjects;
    let sets = subjects.egress_sets.iter();
    let sets = sets
        .filter(|(_, set)| is_made_here(set.labels()))
        .map(|(name, set)| live(Kind::EgressSet, name, &**set));
    let backends = subjects.backends.iter();
    let backends = backends
        .filter(|(_, backend)| is_made_here(backend.labels()))
        .map(|(name, backend)| live(Kind::Backend, name, &**backend));
    let live: BTreeMap<Key, Value> = sets.chain(backends).collect();
    let gone = live.keys().filter(|key| !desired.contains_key(key));
    let gone: Vec<Write> = gone.map(|key| (key.clone(), None)).collect();
    let differs = |key: &Key, object: &Value| live.get(key).is_none_or(|live| !holds(live, object));
    let changed = desired
        .into_iter()
        .filter(|(key, object)| differs(key, object));
    gone.into_iter()
        .chain(changed.map(|(key, object)| (key, Some(Arc::new(object)))))
        .collect()
}

fn live(kind: Kind, name: &ObjectName, object: &impl Serialize) -> (Key, Value) {
    let key = Key {
        kind,
        name: name.clone(),
    };
    // What was read as JSON can be written as JSON.
    (key, serde_json::to_value(object).unwrap_or_default())
}

/// Whether an object has all fields of another, with the same values.
fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, wanted)| live.get(name).is_some_and(|live| holds(live, wanted))),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len()
                && live
                    .iter()
                    .zip(wanted)
                    .all(|(live, wanted)| holds(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::world::tests::world, *};
    use crate::api::Object;

    #[test]
    fn a_gateway_that_asks_for_it_is_told_of_each_revision_once() {
        let stale = |annotations: Value| {
            let gateway = json!({
                "metadata": {
                    "name": "eg", "namespace": "default",
                    "labels": {"gateway.tailscale.com/egress": "true"}, "annotations": annotations,
                },
                "spec": {"gatewayClassName": "eg", "listeners": []},
            });
            let endpoints = json!({
                "metadata": {"name": "example", "namespace": "default"},
                "spec": {"endpoints": [{"name": "web", "port": 80, "externalTarget": "example.com:80"}]},
            });
            let objects = [
                Object::Gateway(serde_json::from_value(gateway).unwrap()),
                Object::Endpoints(serde_json::from_value(endpoints).unwrap()),
            ];
            let world = world(objects, []);
            stale_gateways(&world, &desired(&world))
        };
        assert_eq!(stale(json!({})), []);
        let [(name, revision)] = stale(json!({EGRESS_REFRESH_ANNOTATION: "true"}))
            .try_into()
            .unwrap();
        assert_eq!(name, ObjectName::new("default", "eg"));
        let told = json!({EGRESS_REFRESH_ANNOTATION: "true", REFRESHED_ANNOTATION: revision});
        assert_eq!(stale(told), []);
        let before = json!({EGRESS_REFRESH_ANNOTATION: "true", REFRESHED_ANNOTATION: "other"});
        assert_eq!(stale(before), [(name, revision)]);
    }
}
