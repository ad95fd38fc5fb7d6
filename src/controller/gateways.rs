//! Makes each Gateway's workload, and unmakes it: the lease holder's work.

use super::{
    classes::{Clients, jitter},
    events::Events,
    labels,
    owned::{Owned, Workload},
    parameters::{Defaults, Parameters, parameters},
    removal::{Removal, Removed},
    workload::{Site, WorkloadInput, kinds},
    world::World,
    writer::FIELD_MANAGER,
};
use crate::{
    api::{
        CONTROLLER,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
        tailnets::NameConflict,
    },
    metrics::Metrics,
    model::{ObjectName, TailnetState},
    tailnet::api::ApiError,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy},
};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

/// On Gateways that have, or will have, something to be removed when they go.
pub const FINALIZER: &str = "tailway.michaelbeaumont.github.io/gateway";

/// How removal treats what it cannot reach.
#[derive(Clone, Debug)]
pub struct GatewaysSettings {
    pub site: Site,
    pub defaults: Defaults,
    /// How long a Gateway that is being deleted waits for a Tailscale API that is away.
    pub removal_patience: Duration,
    /// Nothing is made any more, all is removed.
    pub cleanup: bool,
}

/// Gateways that are worked on at a time.
const CONCURRENCY: usize = 16;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What can go wrong with a Gateway's objects.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{kind} {name} cannot be written: {error}")]
    Write {
        kind: String,
        name: String,
        error: kube::Error,
    },
    #[error("the Tailscale API: {0}")]
    Api(#[from] ApiError),
    #[error("the pods are ending")]
    Ending,
}

/// Works on all Gateways of a [`World`].
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Gateways {
    shared: Arc<Shared>,
    known: HashMap<ObjectName, Known>,
    running: JoinSet<(ObjectName, Result<Done, Failure>)>,
    busy: BTreeSet<ObjectName>,
}

pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) settings: GatewaysSettings,
    pub(super) clients: Arc<Clients>,
    pub(super) events: Events,
    metrics: Metrics,
    permits: Semaphore,
}

/// What is remembered of a Gateway.
#[derive(Debug, Default)]
struct Known {
    /// Fingerprint of the objects that were applied, and the StatefulSet's generation then.
    applied: Option<(String, Option<i64>)>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Since when it is being removed although its object stays.
    released: Option<jiff::Timestamp>,
    /// Generation of the Gateway, and whether it is being deleted: what failed before it became
    /// another may work now.
    seen: Option<(Option<i64>, bool)>,
}

/// What is to be done for a Gateway now.
#[derive(Debug)]
enum Step {
    Apply {
        input: Box<WorkloadInput>,
        fingerprint: String,
    },
    /// It cannot be served any more: its pod ends, its node stays.
    Stop(String),
    Remove(Box<Removal>),
    /// StatefulSet and Secret are to remember the nodes.
    Record {
        set: String,
        secret: String,
        node_ids: String,
    },
    /// An earlier node of the Gateway may hold its name.
    TakeBack {
        devices: Vec<String>,
        current: String,
        wanted: String,
    },
}

enum Done {
    Applied(String, Option<i64>),
    Removed(Removed),
    Stopped,
    Recorded,
}

// === impl Gateways ===

impl Gateways {
    pub fn new(
        client: Client,
        settings: GatewaysSettings,
        clients: Arc<Clients>,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                settings,
                clients,
                events,
                metrics,
                permits: Semaphore::new(CONCURRENCY),
            }),
            known: HashMap::new(),
            running: JoinSet::new(),
            busy: BTreeSet::new(),
        }
    }

    pub async fn run(
        mut self,
        mut worlds: watch::Receiver<Arc<World>>,
        mut owned: watch::Receiver<Arc<Owned>>,
    ) -> Infallible {
        loop {
            let (world, there) = (
                worlds.borrow_and_update().clone(),
                owned.borrow_and_update().clone(),
            );
            if world.listed && there.listed {
                self.look(&world, &there);
            }
            self.wait(&mut worlds, &mut owned).await;
        }
    }

    /// Until there is something to look at; for ever once nothing can change any more.
    async fn wait(
        &mut self,
        worlds: &mut watch::Receiver<Arc<World>>,
        owned: &mut watch::Receiver<Arc<Owned>>,
    ) {
        let retry = self.next_retry();
        let waiting = self.known.values().filter(|known| known.retry_at.is_some());
        let pending = self.busy.len() + waiting.count();
        self.shared.metrics.reconciles_pending(pending);
        let gone = tokio::select! {
            changed = worlds.changed() => changed.is_err(),
            changed = owned.changed() => changed.is_err(),
            Some(done) = self.running.join_next() => {
                if let Ok((gateway, result)) = done {
                    self.finish(gateway, result);
                }
                false
            }
            () = sleep_until(retry) => false,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    fn look(&mut self, world: &World, owned: &Owned) {
        let names: BTreeSet<_> = world
            .subjects
            .gateways
            .keys()
            .chain(owned.workloads.keys())
            .cloned()
            .collect();
        self.known.retain(|name, _| names.contains(name));
        let now = Instant::now();
        for name in names {
            if self.busy.contains(&name) {
                continue;
            }
            let known = self.known.entry(name.clone()).or_default();
            let gateway = world.subjects.gateways.get(&name);
            known.see(gateway);
            if known.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            let workload = owned.workloads.get(&name);
            if let Some(step) = step(&self.shared, world, &name, gateway, workload, known) {
                let (shared, gateway) = (Arc::clone(&self.shared), gateway.cloned());
                self.busy.insert(name.clone());
                self.running.spawn(async move {
                    // The semaphore is never closed.
                    let _permit = shared.permits.acquire().await;
                    let label = step.label();
                    let result = shared.take(step, &name, gateway.as_deref()).await;
                    shared.metrics.reconciled(label, result.is_ok());
                    (name, result)
                });
            }
        }
    }

    fn finish(&mut self, gateway: ObjectName, result: Result<Done, Failure>) {
        self.busy.remove(&gateway);
        let known = self.known.entry(gateway.clone()).or_default();
        match result {
            Ok(done) => {
                known.failures = 0;
                known.retry_at = None;
                match done {
                    Done::Applied(fingerprint, generation) => {
                        known.applied = Some((fingerprint, generation));
                    }
                    Done::Stopped => known.applied = None,
                    Done::Removed(removed) => {
                        known.applied = None;
                        if removed == Removed::All {
                            known.released = None;
                        }
                        // Until the watch has told of it.
                        known.retry_at = Some(Instant::now() + FIRST_RETRY);
                    }
                    // Until the watch has told of it.
                    Done::Recorded => known.retry_at = Some(Instant::now() + FIRST_RETRY),
                }
            }
            Err(Failure::Ending) => known.retry_at = Some(Instant::now() + FIRST_RETRY),
            Err(failure) => {
                let wait = (FIRST_RETRY * 2u32.saturating_pow(known.failures)).min(LAST_RETRY);
                let wait = match &failure {
                    Failure::Api(error) => error.retry_after().unwrap_or(wait),
                    _ => wait,
                };
                tracing::warn!(%gateway, error = %failure, retry_in = ?wait, "not done");
                known.failures = known.failures.saturating_add(1);
                known.retry_at = Some(Instant::now() + jitter(wait));
            }
        }
    }

    /// Removes all that was made, and ends when nothing is left.
    pub async fn clean_up(
        mut self,
        mut worlds: watch::Receiver<Arc<World>>,
        mut owned: watch::Receiver<Arc<Owned>>,
    ) {
        loop {
            let (world, there) = (
                worlds.borrow_and_update().clone(),
                owned.borrow_and_update().clone(),
            );
            if world.listed && there.listed {
                let has_finalizer =
                    |gateway: &Arc<Gateway>| gateway.finalizers().iter().any(|f| f == FINALIZER);
                let gateways = world.subjects.gateways.values();
                if there.workloads.is_empty() && !gateways.into_iter().any(has_finalizer) {
                    return;
                }
                self.look(&world, &there);
            }
            self.wait(&mut worlds, &mut owned).await;
        }
    }

    fn next_retry(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.retry_at).min()
    }
}

impl Step {
    fn label(&self) -> &'static str {
        match self {
            Self::Apply { .. } => "apply",
            Self::Stop(_) => "stop",
            Self::Remove(_) => "remove",
            Self::Record { .. } => "record",
            Self::TakeBack { .. } => "take_back",
        }
    }
}

impl Known {
    fn see(&mut self, gateway: Option<&Arc<Gateway>>) {
        let seen = gateway.map(|gateway| {
            let metadata = &gateway.metadata;
            (metadata.generation, metadata.deletion_timestamp.is_some())
        });
        if self.seen != seen {
            self.seen = seen;
            self.failures = 0;
            self.retry_at = None;
        }
    }
}

/// What is to be done for one Gateway; `None` when all is as it should be.
fn step(
    shared: &Shared,
    world: &World,
    name: &ObjectName,
    gateway: Option<&Arc<Gateway>>,
    workload: Option<&Workload>,
    known: &mut Known,
) -> Option<Step> {
    known.retry_at = None;
    let Some(gateway) = gateway else {
        let since = *known.released.get_or_insert_with(jiff::Timestamp::now);
        return workload.map(|workload| shared.removal(world, name, None, Some(workload), since));
    };
    let has_finalizer = gateway.finalizers().iter().any(|f| f == FINALIZER);
    let class = world
        .subjects
        .classes
        .get(&ObjectName::new("", &gateway.spec.gateway_class_name))
        .filter(|class| class.spec.controller_name == CONTROLLER && !shared.settings.cleanup);
    let deleted = gateway.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let (Some(class), None) = (class, deleted) else {
        if !has_finalizer && workload.is_none() {
            return None;
        }
        let since =
            deleted.unwrap_or_else(|| *known.released.get_or_insert_with(jiff::Timestamp::now));
        return Some(shared.removal(world, name, Some(gateway), workload, since));
    };
    known.released = None;
    let set = workload.and_then(|workload| workload.stateful_set.as_ref());
    let Some(snapshot) = world.outcome.snapshots.get(name) else {
        return set.map(|set| Step::Stop(set.name.clone()));
    };
    // Without usable parameters nothing is made, and what is there stays as it is.
    let parameters = parameters(class, world, &shared.settings.defaults).ok();
    if let Some(parameters) = &parameters {
        let input = shared.input(
            gateway,
            name,
            class,
            parameters,
            snapshot.node.name.as_str(),
        );
        let fingerprint = input.fingerprint();
        let generation = set.map(|set| set.generation);
        let is_there = set.is_some()
            && workload.is_some_and(|workload| workload.secret.is_some())
            && has_finalizer
            && known.applied.as_ref().is_some_and(|(applied, at)| {
                *applied == fingerprint && (at.is_none() || *at == generation)
            });
        if !is_there {
            return Some(Step::Apply {
                input: Box::new(input),
                fingerprint,
            });
        }
    }
    node_step(
        gateway,
        snapshot.node.name.as_str(),
        workload?,
        parameters.as_ref(),
    )
}

/// What the node of a workload that is as it should be asks for.
fn node_step(
    gateway: &Gateway,
    wanted: &str,
    workload: &Workload,
    parameters: Option<&Parameters>,
) -> Option<Step> {
    let set = workload.stateful_set.as_ref()?;
    let secret = workload.secret.as_ref()?;
    let report = secret.report.as_ref()?;
    if report.node_id.is_empty() {
        return None;
    }
    let node_ids = workload.node_ids();
    if workload
        .recorded()
        .iter()
        .any(|recorded| *recorded != node_ids)
    {
        let node_ids: Vec<_> = node_ids.into_iter().collect();
        return Some(Step::Record {
            set: set.name.clone(),
            secret: secret.name.clone(),
            node_ids: node_ids.join(","),
        });
    }
    let takes_back = match gateway.annotations().get(NAME_CONFLICT).map(String::as_str) {
        Some(policy) => policy == "TakeBack",
        None => parameters.is_some_and(|p| p.name_conflict == NameConflict::TakeBack),
    };
    if !takes_back || report.tailnet.state != TailnetState::NameTaken {
        return None;
    }
    let others = node_ids.into_iter().filter(|id| *id != report.node_id);
    let devices: Vec<_> = others.collect();
    (!devices.is_empty()).then(|| Step::TakeBack {
        devices,
        current: report.node_id.clone(),
        wanted: wanted.into(),
    })
}

/// Annotation of a Gateway that overrides its class: `Keep` or `TakeBack`.
const NAME_CONFLICT: &str = "tailway.michaelbeaumont.github.io/name-conflict";

// === impl Shared ===

impl Shared {
    fn input(
        &self,
        gateway: &Gateway,
        name: &ObjectName,
        class: &GatewayClass,
        parameters: &Parameters,
        hostname: &str,
    ) -> WorkloadInput {
        let infrastructure = gateway.spec.infrastructure.as_ref();
        let labels = infrastructure.and_then(|i| i.labels.clone());
        let annotations = infrastructure.and_then(|i| i.annotations.clone());
        WorkloadInput {
            gateway: name.clone(),
            class: class.name_any(),
            hostname: hostname.into(),
            labels: labels.unwrap_or_default(),
            annotations: annotations.unwrap_or_default(),
            proxy: parameters.proxy.clone(),
            control_url: parameters.control_url.clone(),
            ephemeral: parameters.ephemeral,
            site: self.settings.site.clone(),
        }
    }

    fn removal(
        &self,
        world: &World,
        name: &ObjectName,
        gateway: Option<&Arc<Gateway>>,
        workload: Option<&Workload>,
        since: jiff::Timestamp,
    ) -> Step {
        let workload = workload.cloned().unwrap_or_default();
        // The class that it was made for: the Gateway may have another by now.
        let class = workload.class().cloned();
        let class =
            class.or_else(|| gateway.map(|gateway| gateway.spec.gateway_class_name.clone()));
        let object = class.as_ref().and_then(|class| {
            let object = world.subjects.classes.get(&ObjectName::new("", class));
            object.cloned()
        });
        let parameters = object
            .as_ref()
            .and_then(|class| parameters(class, world, &self.settings.defaults).ok());
        Step::Remove(Box::new(Removal {
            gateway: name.clone(),
            class,
            class_object: object,
            parameters,
            workload,
            since,
        }))
    }

    async fn take(
        &self,
        step: Step,
        name: &ObjectName,
        gateway: Option<&Gateway>,
    ) -> Result<Done, Failure> {
        match step {
            Step::Apply { input, fingerprint } => {
                if let Some(gateway) = gateway {
                    self.add_finalizer(name, gateway).await?;
                }
                let generation = self.apply(&input).await?;
                Ok(Done::Applied(fingerprint, generation))
            }
            Step::Stop(set) => {
                self.delete_set(&set).await?;
                tracing::info!(gateway = %name, "it cannot be served: its pod ends");
                Ok(Done::Stopped)
            }
            Step::Remove(removal) => {
                let removed = self.remove(&removal, gateway).await?;
                if removed == Removed::All
                    && let Some(gateway) = gateway
                {
                    self.remove_finalizer(name, gateway).await?;
                }
                Ok(Done::Removed(removed))
            }
            Step::Record {
                set,
                secret,
                node_ids,
            } => {
                let [sets, .., secrets] = kinds();
                self.record(&sets, &set, &node_ids).await?;
                self.record(&secrets, &secret, &node_ids).await?;
                tracing::info!(gateway = %name, node_ids, "it has a node");
                self.revoke_used_keys(name, gateway).await;
                Ok(Done::Recorded)
            }
            Step::TakeBack {
                devices,
                current,
                wanted,
            } => {
                let class = gateway.map(|gateway| gateway.spec.gateway_class_name.as_str());
                self.take_back(name, class.unwrap_or_default(), &devices, &current, &wanted)
                    .await?;
                Ok(Done::Recorded)
            }
        }
    }

    /// Applies all objects; the generation of the StatefulSet.
    async fn apply(&self, input: &WorkloadInput) -> Result<Option<i64>, Failure> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let mut generation = None;
        for made in input.objects() {
            let api: Api<DynamicObject> = Api::namespaced_with(
                self.client.clone(),
                &self.settings.site.namespace,
                &made.resource,
            );
            let patch = Patch::Apply(&made.object);
            let mut applied = api.patch(&made.name, &parameters, &patch).await;
            if made.resource.kind == "StatefulSet" && is_immutable(&applied) {
                // Its pod goes on, and the new one takes it over.
                let orphan = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Orphan),
                    ..DeleteParams::default()
                };
                let deleted = api.delete(&made.name, &orphan).await;
                deleted.map_err(|error| failed(&made.resource.kind, &made.name, error))?;
                applied = api.patch(&made.name, &parameters, &patch).await;
            }
            let applied =
                applied.map_err(|error| failed(&made.resource.kind, &made.name, error))?;
            generation = applied.metadata.generation;
        }
        Ok(generation)
    }

    pub(super) async fn delete_set(&self, name: &str) -> Result<(), Failure> {
        let [sets, ..] = kinds();
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.settings.site.namespace, &sets);
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(failed("StatefulSet", name, error)),
        }
    }

    /// Under a manager of its own, so that applying the StatefulSet leaves it alone.
    async fn record(&self, resource: &ApiResource, name: &str, ids: &str) -> Result<(), Failure> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.settings.site.namespace, resource);
        let patch = json!({ "metadata": { "annotations": { labels::NODE_IDS: ids } } });
        let parameters = PatchParams {
            field_manager: Some("tailway-controller-nodes".into()),
            ..PatchParams::default()
        };
        api.patch_metadata(name, &parameters, &Patch::Merge(patch))
            .await
            .map(drop)
            .map_err(|error| failed(&resource.kind, name, error))
    }

    async fn add_finalizer(&self, name: &ObjectName, gateway: &Gateway) -> Result<(), Failure> {
        if gateway.finalizers().iter().any(|f| f == FINALIZER) {
            return Ok(());
        }
        let mut finalizers = gateway.finalizers().to_vec();
        finalizers.push(FINALIZER.into());
        self.set_finalizers(name, gateway, finalizers).await
    }

    async fn remove_finalizer(&self, name: &ObjectName, gateway: &Gateway) -> Result<(), Failure> {
        let mut finalizers = gateway.finalizers().to_vec();
        let before = finalizers.len();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if finalizers.len() == before {
            return Ok(());
        }
        self.set_finalizers(name, gateway, finalizers).await
    }

    async fn set_finalizers(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        finalizers: Vec<String>,
    ) -> Result<(), Failure> {
        let api: Api<Gateway> = Api::namespaced(self.client.clone(), &name.namespace);
        // With the version: another controller's finalizer must not get lost.
        let patch = json!({ "metadata": {
            "finalizers": finalizers,
            "resourceVersion": gateway.metadata.resource_version,
        }});
        match api
            .patch_metadata(&name.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            // Its new version is on the way.
            Err(kube::Error::Api(status)) if status.code == 409 => Err(Failure::Ending),
            Err(error) => Err(failed("Gateway", &name.to_string(), error)),
        }
    }
}

/// Whether a field was to change that cannot: another version of tailway made it. Other refusals
/// have causes of their own, such as a value in the class that Kubernetes does not take.
fn is_immutable<K>(applied: &kube::Result<K>) -> bool {
    let Err(kube::Error::Api(status)) = applied else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes: Vec<_> = causes
        .map(|cause| (cause.field.as_str(), cause.reason.as_str()))
        .collect();
    status.code == 422 && causes == [("spec", "FieldValueForbidden")]
}

pub(super) fn failed(kind: &str, name: &str, error: kube::Error) -> Failure {
    Failure::Write {
        kind: kind.into(),
        name: name.into(),
        error,
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
