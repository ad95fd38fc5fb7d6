//! What is to be done for a Gateway: worked out of what is known and what is there.

use super::{
    gateways::{FINALIZER, GatewaysSettings},
    owned::Workload,
    parameters::{Parameters, parameters},
    removal::Removal,
    workload::WorkloadInput,
    world::World,
};
use crate::{
    api::{
        CONTROLLER,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
        tailnets::NameConflict,
    },
    model::{ObjectName, TailnetState},
};
use kube::ResourceExt;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// What is remembered of a Gateway.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) applied: Option<Applied>,
    pub(super) failures: u32,
    /// Nothing is done before.
    pub(super) retry_at: Option<Instant>,
    /// It is to be looked at again then, whatever happens.
    pub(super) look_at: Option<Instant>,
    /// Since when it is being removed although its object stays.
    pub(super) released: Option<jiff::Timestamp>,
    /// Generation of the Gateway, and whether it is being deleted: what failed before it became
    /// another may work now.
    seen: Option<(Option<i64>, bool)>,
}

/// Objects that were applied.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) input: WorkloadInput,
    /// Of the StatefulSet.
    pub(super) generation: Option<i64>,
    pub(super) at: Instant,
}

/// What is to be done for a Gateway now.
#[derive(Debug)]
pub(super) enum Step {
    Apply(Box<WorkloadInput>),
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

/// One Gateway in its world.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) settings: &'a GatewaysSettings,
    pub(super) world: &'a World,
    pub(super) name: &'a ObjectName,
    /// `None`: it is gone, but something of it may be left.
    pub(super) gateway: Option<&'a Gateway>,
    pub(super) workload: Option<&'a Workload>,
}

/// Until the watch has surely told of what was applied.
const SETTLED: Duration = Duration::from_secs(5);

/// Annotation of a Gateway that overrides its class: `Keep` or `TakeBack`.
const NAME_CONFLICT: &str = "tailway.michaelbeaumont.github.io/name-conflict";

// === impl Step ===

impl Step {
    /// As metrics call it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Apply(_) => "apply",
            Self::Stop(_) => "stop",
            Self::Remove(_) => "remove",
            Self::Record { .. } => "record",
            Self::TakeBack { .. } => "take_back",
        }
    }
}

// === impl Known ===

impl Known {
    pub(super) fn see(&mut self, gateway: Option<&Arc<Gateway>>) {
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

    fn released(&mut self) -> jiff::Timestamp {
        *self.released.get_or_insert_with(jiff::Timestamp::now)
    }
}

// === impl Case ===

impl<'a> Case<'a> {
    /// `None` when all is as it should be.
    pub(super) fn step(&self, known: &mut Known) -> Option<Step> {
        known.look_at = None;
        let Some(gateway) = self.gateway else {
            let since = known.released();
            return self.workload.map(|_| self.removal(since));
        };
        let deleted = gateway.metadata.deletion_timestamp.as_ref().map(|t| t.0);
        let (Some(class), None) = (self.class(gateway), deleted) else {
            if !has_finalizer(gateway) && self.workload.is_none() {
                return None;
            }
            let since = deleted.unwrap_or_else(|| known.released());
            return Some(self.removal(since));
        };
        known.released = None;
        let Some(snapshot) = self.world.outcome.snapshots.get(self.name) else {
            let set = self.workload?.stateful_set.as_ref()?;
            return Some(Step::Stop(set.name.clone()));
        };
        let hostname = snapshot.node.name.as_str();
        // Without usable parameters nothing is made, and what is there stays as it is.
        let parameters = parameters(class, self.world, &self.settings.defaults).ok();
        if let Some(parameters) = &parameters {
            let input = self.input(gateway, class, parameters, hostname);
            if !self.is_there(gateway, &input, known) {
                return Some(Step::Apply(Box::new(input)));
            }
        }
        self.node_step(gateway, hostname, parameters.as_ref())
    }

    /// The class, when it is ours.
    fn class(&self, gateway: &Gateway) -> Option<&'a Arc<GatewayClass>> {
        let name = ObjectName::new("", &gateway.spec.gateway_class_name);
        let class = self.world.subjects.classes.get(&name)?;
        let is_ours = class.spec.controller_name == CONTROLLER && !self.settings.cleanup;
        is_ours.then_some(class)
    }

    fn input(
        &self,
        gateway: &Gateway,
        class: &GatewayClass,
        parameters: &Parameters,
        hostname: &str,
    ) -> WorkloadInput {
        let infrastructure = gateway.spec.infrastructure.as_ref();
        let labels = infrastructure.and_then(|i| i.labels.clone());
        let annotations = infrastructure.and_then(|i| i.annotations.clone());
        WorkloadInput {
            subject: self.name.clone(),
            class: class.name_any(),
            hostname: hostname.into(),
            egress: None,
            labels: labels.unwrap_or_default(),
            annotations: annotations.unwrap_or_default(),
            proxy: parameters.proxy.clone(),
            control_url: parameters.control_url.clone(),
            ephemeral: parameters.ephemeral,
            site: self.settings.site.clone(),
        }
    }

    /// Whether the objects of this input are there, or on their way.
    fn is_there(&self, gateway: &Gateway, input: &WorkloadInput, known: &mut Known) -> bool {
        let Some(applied) = known.applied.as_ref().filter(|a| a.input == *input) else {
            return false;
        };
        let set = self.workload.and_then(|w| w.stateful_set.as_ref());
        let is_there = set
            .is_some_and(|set| applied.generation.is_none_or(|g| g == set.generation))
            && self.workload.is_some_and(|w| w.secret.is_some())
            && has_finalizer(gateway);
        let settled = applied.at + SETTLED;
        if !is_there && Instant::now() < settled {
            known.look_at = Some(settled);
            return true;
        }
        is_there
    }

    /// What the node of a workload that is as it should be asks for.
    fn node_step(
        &self,
        gateway: &Gateway,
        wanted: &str,
        parameters: Option<&Parameters>,
    ) -> Option<Step> {
        let workload = self.workload?;
        let set = workload.stateful_set.as_ref()?;
        let secret = workload.secret.as_ref()?;
        let report = secret.report.as_ref()?;
        if report.node_id.is_empty() {
            return None;
        }
        let node_ids = workload.node_ids();
        let recorded = workload.recorded();
        if recorded.iter().any(|recorded| *recorded != node_ids) {
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

    fn removal(&self, since: jiff::Timestamp) -> Step {
        let workload = self.workload.cloned().unwrap_or_default();
        // The class that it was made for: the Gateway may have another by now.
        let class = workload.class().cloned();
        let class = class.or_else(|| self.gateway.map(|g| g.spec.gateway_class_name.clone()));
        let classes = &self.world.subjects.classes;
        let object = class
            .as_ref()
            .and_then(|class| classes.get(&ObjectName::new("", class)));
        let parameters =
            object.and_then(|class| parameters(class, self.world, &self.settings.defaults).ok());
        Step::Remove(Box::new(Removal {
            gateway: self.name.clone(),
            class,
            class_object: object.cloned(),
            parameters,
            workload,
            since,
        }))
    }
}

pub(super) fn has_finalizer(gateway: &Gateway) -> bool {
    gateway.finalizers().iter().any(|f| f == FINALIZER)
}

#[cfg(test)]
mod tests;
