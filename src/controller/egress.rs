//! Makes the pods through which the cluster reaches a tailnet, and unmakes them: the lease holder's
//! work. One StatefulSet for each TailscaleEndpoints that has a Snapshot of an egress.

mod owned;
mod steps;

pub use owned::{EgressFollower, EgressOwned};

use super::{
    classes::Clients,
    events::{Events, Weight},
    failure::{FIRST_RETRY, Failure},
    names::workload_name,
    objects::Objects,
    owned::StateSecret,
    parameters::{Defaults, Parameters, tailnet_parameters},
    removal::{remove_device, revoke_keys},
    schedule::{Schedule, until},
    workload::{Site, kinds, object_name},
    world::World,
};
use crate::{
    api::endpoints::TailscaleEndpoints,
    index::egress::{replica, subject},
    metrics::Metrics,
    model::ObjectName,
    tailnet::api::{ApiClient, ApiError},
};
use kube::Client;
use owned::Workload;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
pub(super) use steps::tailnet_of;
use steps::{Applied, Case, Known, Step};
use tokio::{sync::watch, time::Instant};

/// How egresses are made and removed.
#[derive(Clone, Debug)]
pub struct EgressSettings {
    pub site: Site,
    pub defaults: Defaults,
    /// How long an egress that is to go waits for a Tailscale API that is away.
    pub removal_patience: Duration,
    /// Nothing is made any more, all is removed.
    pub cleanup: bool,
}

/// Works on the egresses of a [`World`], one after the other: they are few.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Egresses {
    objects: Objects,
    settings: EgressSettings,
    clients: Arc<Clients>,
    events: Events,
    metrics: Metrics,
    known: HashMap<ObjectName, Known>,
    /// When to look again at what failed, or what is on its way.
    due: Schedule,
}

/// What the client of a tailnet is known by among those of classes, whose names have no colon.
fn client_name(tailnet: &str) -> String {
    format!("tailnet:{tailnet}")
}

/// A client for the tailnet that an object goes through, and what its nodes are to be.
///
/// # Errors
/// What is wrong with the object, the tailnet or its credentials.
pub(super) fn client_of(
    object: &TailscaleEndpoints,
    world: &World,
    defaults: &Defaults,
    clients: &Clients,
) -> Result<(ApiClient, Parameters), String> {
    let tailnet = tailnet_of(object, world)?;
    let parameters = tailnet_parameters(&tailnet, world, defaults)?;
    let client = clients.client(&client_name(&tailnet), &parameters);
    let client = client.map_err(|error| format!("TailscaleTailnet {tailnet}: {error}"))?;
    Ok((client, parameters))
}

// === impl Egresses ===

impl Egresses {
    pub fn new(
        client: Client,
        settings: EgressSettings,
        clients: Arc<Clients>,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        Self {
            objects: Objects::new(client, &settings.site.namespace),
            settings,
            clients,
            events,
            metrics,
            known: HashMap::new(),
            due: Schedule::default(),
        }
    }

    pub async fn run(
        mut self,
        mut worlds: watch::Receiver<Arc<World>>,
        mut owned: watch::Receiver<Arc<EgressOwned>>,
    ) -> Infallible {
        loop {
            let (world, there) = (
                worlds.borrow_and_update().clone(),
                owned.borrow_and_update().clone(),
            );
            if world.listed && there.listed {
                self.look(&world, &there).await;
            }
            self.wait(&mut worlds, &mut owned).await;
        }
    }

    /// Removes all that was made, and ends when nothing is left.
    pub async fn clean_up(
        mut self,
        mut worlds: watch::Receiver<Arc<World>>,
        mut owned: watch::Receiver<Arc<EgressOwned>>,
    ) {
        loop {
            let (world, there) = (
                worlds.borrow_and_update().clone(),
                owned.borrow_and_update().clone(),
            );
            if world.listed && there.listed {
                if there.workloads.is_empty() {
                    return;
                }
                self.look(&world, &there).await;
            }
            self.wait(&mut worlds, &mut owned).await;
        }
    }

    /// Until there is something to look at; for ever once nothing can change any more.
    async fn wait(
        &mut self,
        worlds: &mut watch::Receiver<Arc<World>>,
        owned: &mut watch::Receiver<Arc<EgressOwned>>,
    ) {
        let gone = tokio::select! {
            changed = worlds.changed() => changed.is_err(),
            changed = owned.changed() => changed.is_err(),
            () = until(self.due.next()) => false,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    async fn look(&mut self, world: &World, owned: &EgressOwned) {
        let now = Instant::now();
        self.due.take_due(now);
        let names: BTreeSet<ObjectName> = world
            .subjects
            .endpoints
            .keys()
            .map(|name| ObjectName::clone(name))
            .chain(owned.workloads.keys().cloned())
            .collect();
        self.known.retain(|name, _| names.contains(name));
        for name in names {
            let known = self.known.entry(name.clone()).or_default();
            if known.retry_at.is_some_and(|at| at > now) {
                self.due.set(&name, known.retry_at);
                continue;
            }
            let case = Case {
                settings: &self.settings,
                world,
                name: &name,
                workload: owned.workloads.get(&name),
            };
            let step = case.step(known);
            let look_at = known.look_at;
            let retry_at = match step {
                None => None,
                Some(step) => self.take(&name, world, step).await,
            };
            let at = retry_at.into_iter().chain(look_at).min();
            self.due.set(&name, at);
        }
    }

    /// Takes a step; gives the time when to look again.
    async fn take(&mut self, name: &ObjectName, world: &World, step: Step) -> Option<Instant> {
        let label = step.label();
        let result = self.perform(name, world, step).await;
        self.metrics.reconciled(label, result.is_ok());
        let known = self.known.entry(name.clone()).or_default();
        match result {
            Ok(applied) => {
                known.failures = 0;
                if let Some(applied) = applied {
                    known.applied = Some(applied);
                }
                // Until the watch has told of it.
                known.retry_at = Some(Instant::now() + FIRST_RETRY);
            }
            Err(failure) => {
                let wait = failure.wait(known.failures);
                tracing::warn!(endpoints = %name, error = %failure, retry_in = ?wait, "the egress is not as it should be");
                known.failures = known.failures.saturating_add(1);
                known.retry_at = Some(Instant::now() + wait);
            }
        }
        known.retry_at
    }

    async fn perform(
        &self,
        name: &ObjectName,
        world: &World,
        step: Step,
    ) -> Result<Option<Applied>, Failure> {
        match step {
            Step::Apply(input) => {
                let generation = self.objects.apply(&input).await?;
                Ok(Some(Applied {
                    input: *input,
                    generation,
                    at: Instant::now(),
                }))
            }
            Step::Record { secret, node_ids } => {
                let [.., secrets] = kinds();
                self.objects.record(&secrets, &secret, &node_ids).await?;
                tracing::info!(endpoints = %name, node_ids, "the egress has a node");
                Ok(None)
            }
            Step::Shrink { states, tailnet } => {
                let [.., secrets] = kinds();
                self.remove_nodes(name, world, &tailnet, &states).await?;
                for secret in states.keys() {
                    self.objects.delete(&secrets, secret).await?;
                }
                Ok(None)
            }
            Step::Remove(workload, since) => {
                self.remove(name, world, *workload, since).await?;
                Ok(None)
            }
        }
    }

    /// Removes the pods, then their nodes, then the rest. It can be called again at any point.
    async fn remove(
        &self,
        name: &ObjectName,
        world: &World,
        mut workload: Workload,
        since: jiff::Timestamp,
    ) -> Result<(), Failure> {
        // The watch may lag behind what was made a moment ago, and nothing may be overlooked here.
        let set_name = workload_name(&subject(name));
        let [sets, .., secrets] = kinds();
        if self.objects.delete(&sets, &set_name).await? || self.objects.end_pods(&set_name).await? {
            return Ok(());
        }
        workload
            .secrets
            .append(&mut self.objects.states(&set_name).await?);
        let tailnet = workload.tailnet().unwrap_or_default();
        let removed = self.remove_nodes(name, world, &tailnet, &workload.secrets);
        if let Err(error) = removed.await {
            let waited = jiff::Timestamp::now().duration_since(since);
            if waited.unsigned_abs() < self.settings.removal_patience {
                return Err(error.into());
            }
            let nodes = workload.secrets.values().flat_map(StateSecret::node_ids);
            self.tell_left_behind(name, world, &tailnet, nodes, &error)
                .await;
        }
        // Secrets last, as they say which nodes there were.
        let others = kinds().into_iter().filter(|kind| kind.kind != secrets.kind);
        for resource in others {
            let object = object_name(&resource.kind, &set_name);
            self.objects.delete(&resource, &object).await?;
        }
        for secret in workload.secrets.keys() {
            self.objects.delete(&secrets, secret).await?;
        }
        tracing::info!(endpoints = %name, "the egress is removed");
        Ok(())
    }

    /// Removes the nodes of pods that are gone, and keys that these did not use.
    async fn remove_nodes(
        &self,
        name: &ObjectName,
        world: &World,
        tailnet: &str,
        states: &BTreeMap<String, StateSecret>,
    ) -> Result<(), ApiError> {
        let ids: BTreeSet<_> = states.values().flat_map(StateSecret::node_ids).collect();
        let (client, tags) = match self.last_client_of(world, tailnet) {
            Ok(client) => client,
            // Nothing has been made with credentials that never were.
            Err(_) if ids.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        for id in &ids {
            remove_device(&client, id, &tags, name).await?;
        }
        let ordinals = states.keys().filter_map(|secret| ordinal(secret));
        let nodes: Vec<_> = ordinals
            .map(|number| replica(name, number.into()))
            .collect();
        if let Err(error) = revoke_keys(&client, &nodes).await {
            // They expire within minutes.
            tracing::warn!(endpoints = %name, %error, "its auth keys could not be revoked");
        }
        Ok(())
    }

    /// A client for a tailnet, also when its credentials are gone but remembered, and the tags that
    /// its nodes have.
    fn last_client_of(
        &self,
        world: &World,
        tailnet: &str,
    ) -> Result<(ApiClient, Vec<String>), ApiError> {
        let name = client_name(tailnet);
        let parameters = tailnet_parameters(tailnet, world, &self.settings.defaults);
        match parameters {
            Ok(parameters) => {
                let client = self.clients.client(&name, &parameters)?;
                Ok((client, parameters.tags))
            }
            Err(reason) => match self.clients.last(&name) {
                Some((parameters, client)) => Ok((client, parameters.tags)),
                None => Err(ApiError::Settings(reason)),
            },
        }
    }

    async fn tell_left_behind(
        &self,
        name: &ObjectName,
        world: &World,
        tailnet: &str,
        nodes: impl Iterator<Item = String>,
        error: &ApiError,
    ) {
        let nodes: Vec<_> = nodes.collect();
        let note = format!(
            "nodes of the egress of {name} (IDs {}) stay in the tailnet, as they could not be removed in time: {error}; remove them in the admin console",
            nodes.join(", ")
        );
        tracing::warn!(endpoints = %name, "{note}");
        let reason = "DeviceLeftBehind";
        if let Some(object) = world.subjects.endpoints.get(name) {
            self.events
                .tell(&**object, Weight::Warning, reason, note)
                .await;
        } else if let Some(object) = world.subjects.tailnets.get(&ObjectName::new("", tailnet)) {
            self.events
                .tell(&**object, Weight::Warning, reason, note)
                .await;
        }
    }
}

/// The number of the pod whose state a Secret holds.
fn ordinal(secret: &str) -> Option<u16> {
    let pod = secret.strip_suffix("-state")?;
    pod.rsplit_once('-')?.1.parse().ok()
}
