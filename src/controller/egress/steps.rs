//! What is to be done for an egress: worked out of what is known and what is there.

use super::{EgressSettings, ordinal, owned::Workload};
use crate::{
    api::{
        endpoints::{EgressPods, TailscaleEndpoints},
        tailnets::ProxySettings,
    },
    controller::{
        owned::StateSecret,
        parameters::{Parameters, tailnet_parameters},
        workload::{Egress, EgressPort, WorkloadInput},
        world::World,
    },
    index::egress,
    model::{ObjectName, Snapshot, Transport},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// What is remembered of an egress.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) applied: Option<Applied>,
    pub(super) failures: u32,
    /// Nothing is done before.
    pub(super) retry_at: Option<Instant>,
    /// It is to be looked at again then, whatever happens.
    pub(super) look_at: Option<Instant>,
    /// Since when it is being removed.
    released: Option<jiff::Timestamp>,
}

/// Objects that were applied.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) input: WorkloadInput,
    /// Of the StatefulSet.
    pub(super) generation: Option<i64>,
    pub(super) at: Instant,
}

/// What is to be done for an egress now.
#[derive(Debug)]
pub(super) enum Step {
    Apply(Box<WorkloadInput>),
    /// The Secret of a pod is to remember its nodes.
    Record {
        secret: String,
        node_ids: String,
    },
    /// Pods that are gone for good leave nodes and Secrets behind.
    Shrink {
        states: BTreeMap<String, StateSecret>,
        tailnet: String,
    },
    /// Since then.
    Remove(Box<Workload>, jiff::Timestamp),
}

/// One TailscaleEndpoints in its world.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) settings: &'a EgressSettings,
    pub(super) world: &'a World,
    pub(super) name: &'a ObjectName,
    pub(super) workload: Option<&'a Workload>,
}

/// Until the watch has surely told of what was applied.
const SETTLED: Duration = Duration::from_secs(5);

/// The TailscaleTailnet that an object goes through: the one it names, or the only one there is.
///
/// # Errors
/// When there is none, it cannot be told which, or it is not for the object's namespace.
pub(in crate::controller) fn tailnet_of(
    endpoints: &TailscaleEndpoints,
    world: &World,
) -> Result<String, String> {
    let tailnets = &world.subjects.tailnets;
    let mut all = tailnets.keys();
    let name = match (&endpoints.spec.tailnet, all.next(), all.next()) {
        (Some(name), ..) => name.clone(),
        (None, Some(only), None) => only.name.clone(),
        (None, None, _) => return Err("there is no TailscaleTailnet: make one".into()),
        (None, Some(_), Some(_)) => {
            return Err("there are several TailscaleTailnets: name one in spec.tailnet".into());
        }
    };
    let Some(tailnet) = tailnets.get(&ObjectName::new("", &name)) else {
        return Err(format!("there is no TailscaleTailnet {name}"));
    };
    let allowed = &tailnet.spec.egress_namespaces;
    let namespace = endpoints.metadata.namespace.as_deref().unwrap_or_default();
    match allowed.is_empty() || allowed.iter().any(|allowed| allowed == namespace) {
        true => Ok(name),
        false => Err(format!(
            "TailscaleTailnet {name} is not for namespace {namespace}: its spec.egressNamespaces has to name it"
        )),
    }
}

// === impl Step ===

impl Step {
    /// As metrics call it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Apply(_) => "apply_egress",
            Self::Record { .. } => "record_egress",
            Self::Shrink { .. } => "shrink_egress",
            Self::Remove(..) => "remove_egress",
        }
    }
}

// === impl Case ===

impl Case<'_> {
    /// `None` when all is as it should be.
    pub(super) fn step(&self, known: &mut Known) -> Option<Step> {
        known.look_at = None;
        let Some((endpoints, snapshot)) = self.wanted() else {
            let workload = self.workload?;
            known.applied = None;
            let since = *known.released.get_or_insert_with(jiff::Timestamp::now);
            return Some(Step::Remove(Box::new(workload.clone()), since));
        };
        known.released = None;
        // Without usable parameters nothing is made, and what is there stays as it is.
        if let Ok((tailnet, parameters)) = self.parameters(endpoints) {
            let input = self.input(endpoints, snapshot, tailnet, &parameters);
            if !self.is_there(&input, known) {
                return Some(Step::Apply(Box::new(input)));
            }
        }
        self.node_step(endpoints)
    }

    /// What is to be served, when there is to be an egress.
    fn wanted(&self) -> Option<(&TailscaleEndpoints, &Snapshot)> {
        let endpoints = self.world.subjects.endpoints.get(self.name)?;
        let snapshots = &self.world.outcome.snapshots;
        let snapshot = snapshots.get(&egress::subject(self.name))?;
        let stays = endpoints.metadata.deletion_timestamp.is_none() && !self.settings.cleanup;
        stays.then_some((endpoints, snapshot))
    }

    fn parameters(&self, endpoints: &TailscaleEndpoints) -> Result<(String, Parameters), String> {
        let tailnet = tailnet_of(endpoints, self.world)?;
        let parameters = tailnet_parameters(&tailnet, self.world, &self.settings.defaults)?;
        Ok((tailnet, parameters))
    }

    fn input(
        &self,
        endpoints: &TailscaleEndpoints,
        snapshot: &Snapshot,
        tailnet: String,
        parameters: &Parameters,
    ) -> WorkloadInput {
        let pods = endpoints.spec.proxy.clone().unwrap_or_default();
        WorkloadInput {
            subject: egress::subject(self.name),
            class: tailnet,
            hostname: snapshot.node.name.to_string(),
            egress: Some(Egress {
                replicas: replicas(&pods),
                ports: ports(snapshot),
            }),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            proxy: settings(&parameters.proxy, pods),
            control_url: parameters.control_url.clone(),
            ephemeral: parameters.ephemeral,
            site: self.settings.site.clone(),
        }
    }

    /// Whether the objects of this input are there, or on their way.
    fn is_there(&self, input: &WorkloadInput, known: &mut Known) -> bool {
        let Some(applied) = known.applied.as_ref().filter(|a| a.input == *input) else {
            return false;
        };
        let set = self.workload.and_then(|w| w.set.as_ref());
        let is_there = set
            .is_some_and(|set| applied.generation.is_none_or(|g| g == set.generation))
            && self.workload.is_some_and(|workload| {
                let mut secrets = input.state_secrets().into_iter();
                secrets.all(|secret| workload.secrets.contains_key(&secret))
            });
        let settled = applied.at + SETTLED;
        if !is_there && Instant::now() < settled {
            known.look_at = Some(settled);
            return true;
        }
        is_there
    }

    /// What the nodes of a workload that is as it should be ask for.
    fn node_step(&self, endpoints: &TailscaleEndpoints) -> Option<Step> {
        let workload = self.workload?;
        for (name, secret) in &workload.secrets {
            let node_ids = secret.node_ids();
            if !node_ids.is_empty() && secret.recorded() != node_ids {
                let node_ids: Vec<_> = node_ids.into_iter().collect();
                return Some(Step::Record {
                    secret: name.clone(),
                    node_ids: node_ids.join(","),
                });
            }
        }
        let pods = endpoints.spec.proxy.clone().unwrap_or_default();
        let left = workload.secrets.iter().filter(|(name, _)| {
            let pod = name.strip_suffix("-state").unwrap_or(name);
            ordinal(name).is_some_and(|ordinal| ordinal >= replicas(&pods))
                && !workload.pods.contains_key(pod)
        });
        let left: BTreeMap<_, _> = left
            .map(|(name, secret)| (name.clone(), secret.clone()))
            .collect();
        (!left.is_empty()).then(|| Step::Shrink {
            states: left,
            tailnet: workload.tailnet().unwrap_or_default(),
        })
    }
}

fn replicas(pods: &EgressPods) -> u16 {
    u16::try_from(pods.replicas).unwrap_or(1).clamp(1, 16)
}

/// Where the endpoints are reached, by name.
fn ports(snapshot: &Snapshot) -> Vec<EgressPort> {
    let tcp = snapshot.ports.iter().flat_map(|(number, port)| {
        let names = port.listener_names().into_iter();
        names.map(|name| (name.to_owned(), *number, Transport::Tcp))
    });
    let udp = snapshot.udp_ports.iter();
    let udp = udp.map(|(number, listener)| (listener.name.clone(), *number, Transport::Udp));
    let mut ports: Vec<_> = tcp
        .chain(udp)
        .map(|(name, number, transport)| EgressPort {
            name,
            number,
            transport,
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

/// The tailnet's settings, but for what the object says itself.
fn settings(tailnet: &ProxySettings, pods: EgressPods) -> ProxySettings {
    let mut settings = tailnet.clone();
    settings.image = pods.image.or(settings.image);
    settings.resources = pods.resources.or(settings.resources);
    if !pods.node_selector.is_empty() {
        settings.node_selector = pods.node_selector;
    }
    if !pods.tolerations.is_empty() {
        settings.tolerations = pods.tolerations;
    }
    settings.affinity = pods.affinity.or(settings.affinity);
    // A budget that allows no disruption is for what there is one of.
    settings.disruption_budget = false;
    settings
}

#[cfg(test)]
mod tests;
