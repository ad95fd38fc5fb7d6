//! Makes each Gateway's workload, and unmakes it: the lease holder's work.

use super::{
    classes::{Clients, jitter},
    events::Events,
    failure::{FIRST_RETRY, Failure},
    objects::Objects,
    owned::Owned,
    parameters::Defaults,
    removal::Removed,
    requests::set_finalizer,
    schedule::{Schedule, until},
    steps::{Applied, Case, Known, Step, has_finalizer},
    workload::{Site, kinds},
    world::World,
};
use crate::{api::gateway_api::gateways::Gateway, metrics::Metrics, model::ObjectName};
use kube::{Api, Client};
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

/// Works on all Gateways of a [`World`].
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Gateways {
    shared: Arc<Shared>,
    known: HashMap<ObjectName, Known>,
    running: JoinSet<(ObjectName, Result<Done, Failure>)>,
    busy: BTreeSet<ObjectName>,
    /// What was looked at last.
    seen: (Arc<World>, Arc<Owned>),
    /// Gateways to be looked at.
    due: BTreeSet<ObjectName>,
    /// When Gateways that failed are tried again, and when others are to be looked at.
    retries: Schedule,
    looks: Schedule,
}

pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) objects: Objects,
    pub(super) settings: GatewaysSettings,
    pub(super) clients: Arc<Clients>,
    pub(super) events: Events,
    metrics: Metrics,
    permits: Semaphore,
}

enum Done {
    Applied(Box<Applied>),
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
                objects: Objects::new(client.clone(), &settings.site.namespace),
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
            seen: <(Arc<World>, Arc<Owned>)>::default(),
            due: BTreeSet::new(),
            retries: Schedule::default(),
            looks: Schedule::default(),
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
                self.look(world, there);
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
        let retry = self.retries.next().into_iter().chain(self.looks.next());
        let retry = retry.min();
        let pending = self.busy.len() + self.retries.len();
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
            () = until(retry) => false,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Looks at the Gateways for which anything changed, and at those that are due.
    fn look(&mut self, world: Arc<World>, owned: Arc<Owned>) {
        let now = Instant::now();
        self.due.extend(changed(&self.seen, &world, &owned));
        self.due.extend(self.retries.take_due(now));
        self.due.extend(self.looks.take_due(now));
        let due = std::mem::take(&mut self.due);
        let (later, due): (BTreeSet<_>, _) =
            due.into_iter().partition(|name| self.busy.contains(name));
        self.due = later;
        for name in due {
            self.look_at(&name, &world, &owned, now);
            let known = self.known.get(&name);
            let (retry, look) = known.map_or((None, None), |k| (k.retry_at, k.look_at));
            self.retries.set(&name, retry);
            self.looks.set(&name, look);
        }
        self.seen = (world, owned);
    }

    fn look_at(&mut self, name: &ObjectName, world: &World, owned: &Owned, now: Instant) {
        let gateway = world.subjects.gateways.get(name);
        let workload = owned.workloads.get(name);
        if gateway.is_none() && workload.is_none() {
            self.known.remove(name);
            return;
        }
        let known = self.known.entry(name.clone()).or_default();
        known.see(gateway);
        if known.retry_at.is_some_and(|at| at > now) {
            return;
        }
        known.retry_at = None;
        let case = Case {
            settings: &self.shared.settings,
            world,
            name,
            gateway: gateway.map(Arc::as_ref),
            workload: workload.map(Arc::as_ref),
        };
        if let Some(step) = case.step(known) {
            let (shared, gateway, name) =
                (Arc::clone(&self.shared), gateway.cloned(), name.clone());
            self.busy.insert(name.clone());
            self.running.spawn(async move {
                // The semaphore is never closed.
                let _permit = shared.permits.acquire().await;
                let label = step.label();
                let result = shared.take(step, &name, gateway.as_deref()).await;
                let is_error = matches!(&result, Err(f) if !matches!(f, Failure::Outdated));
                shared.metrics.reconciled(label, !is_error);
                (name, result)
            });
        }
    }

    fn finish(&mut self, gateway: ObjectName, result: Result<Done, Failure>) {
        self.busy.remove(&gateway);
        self.due.insert(gateway.clone());
        let known = self.known.entry(gateway.clone()).or_default();
        match result {
            Ok(done) => {
                known.failures = 0;
                known.retry_at = None;
                match done {
                    Done::Applied(applied) => known.applied = Some(*applied),
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
            Err(Failure::Outdated) => known.retry_at = Some(Instant::now() + FIRST_RETRY),
            Err(failure) => {
                let wait = failure.wait(known.failures);
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
                let mut gateways = world.subjects.gateways.values();
                if there.workloads.is_empty() && !gateways.any(|gateway| has_finalizer(gateway)) {
                    return;
                }
                self.look(world, there);
            }
            self.wait(&mut worlds, &mut owned).await;
        }
    }
}

/// The Gateways whose next step may be another than it was; all, when it may be that of any.
fn changed(seen: &(Arc<World>, Arc<Owned>), world: &World, owned: &Owned) -> BTreeSet<ObjectName> {
    let (before, owned_before) = seen;
    let (subjects, old) = (&world.subjects, &before.subjects);
    let same_classes = subjects.classes.is_same(&old.classes)
        && subjects.tailnets.is_same(&old.tailnets)
        && Arc::ptr_eq(&world.credentials, &before.credentials);
    if !same_classes {
        let gateways = subjects.gateways.keys().chain(old.gateways.keys());
        let workloads = owned.workloads.keys();
        let workloads = workloads.chain(owned_before.workloads.keys());
        let names = gateways.chain(workloads);
        return names.map(|name| ObjectName::clone(name)).collect();
    }
    let (snapshots, snapshots_before) = (&world.outcome.snapshots, &before.outcome.snapshots);
    let names = [
        subjects.gateways.differences(&old.gateways),
        snapshots.differences(snapshots_before),
        owned.workloads.differences(&owned_before.workloads),
    ];
    names.into_iter().flatten().cloned().collect()
}

// === impl Shared ===

impl Shared {
    async fn take(
        &self,
        step: Step,
        name: &ObjectName,
        gateway: Option<&Gateway>,
    ) -> Result<Done, Failure> {
        match step {
            Step::Apply(input) => {
                if let Some(gateway) = gateway {
                    self.keep_finalizer(name, gateway, true).await?;
                }
                let generation = self.objects.apply(&input).await?;
                Ok(Done::Applied(Box::new(Applied {
                    input: *input,
                    generation,
                    at: Instant::now(),
                })))
            }
            Step::Stop(set) => {
                let [sets, ..] = kinds();
                self.objects.delete(&sets, &set).await?;
                tracing::info!(gateway = %name, "it cannot be served: its pod ends");
                Ok(Done::Stopped)
            }
            Step::Remove(removal) => {
                let removed = self.remove(&removal, gateway).await?;
                if removed == Removed::All
                    && let Some(gateway) = gateway
                {
                    self.keep_finalizer(name, gateway, false).await?;
                }
                Ok(Done::Removed(removed))
            }
            Step::Record {
                set,
                secret,
                node_ids,
            } => {
                let [sets, .., secrets] = kinds();
                self.objects.record(&sets, &set, &node_ids).await?;
                self.objects.record(&secrets, &secret, &node_ids).await?;
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

    async fn keep_finalizer(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        wanted: bool,
    ) -> Result<(), Failure> {
        let api = Api::namespaced(self.client.clone(), &name.namespace);
        match set_finalizer(&api, gateway, FINALIZER, wanted).await {
            Ok(()) => Ok(()),
            // Its new version is on the way.
            Err(kube::Error::Api(status)) if status.code == 409 => Err(Failure::Outdated),
            Err(error) => Err(Failure::write("Gateway", &name.to_string(), error)),
        }
    }
}
