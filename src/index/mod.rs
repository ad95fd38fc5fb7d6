//! Objects in, Snapshots and statuses out. All rules of the Gateway API live here.
//!
//! ```text
//!   apply / delete / reset ─→ Objects ─┐
//!   report (what a node says) ─────────┴─→ evaluate ─→ Snapshots, Statuses
//!
//!   evaluate:  GatewayClass ours? ─→ node names ─→ listeners ─→ routes ─→ backends
//! ```
//!
//! Synchronous and pure: no I/O and no clock. The same objects give the same result whatever the
//! order in which they came.

mod backends;
mod certificates;
mod conflicts;
mod gateways;
mod grants;
mod listeners;
mod objects;
mod routes;
pub mod status;

pub use objects::{Key, Kind};

use crate::{
    api::{
        Object,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway, tcproutes::TcpRoute},
        tailnets::TailscaleTailnet,
    },
    model::{NodeReport, ObjectName, Snapshot},
};
use objects::Objects;
use status::Statuses;
use std::{collections::BTreeMap, sync::Arc};

/// The objects known, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    objects: Objects,
    reports: BTreeMap<ObjectName, NodeReport>,
    verdicts: Option<BTreeMap<String, Verdict>>,
}

/// What became of the parameters of a GatewayClass when they were tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused {
        /// Of the condition `Accepted`.
        reason: &'static str,
        message: String,
    },
}

/// The objects that carry statuses of ours, as they were last applied.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    pub classes: BTreeMap<ObjectName, Arc<GatewayClass>>,
    pub gateways: BTreeMap<ObjectName, Arc<Gateway>>,
    pub tcp_routes: BTreeMap<ObjectName, Arc<TcpRoute>>,
    /// They have none; what a GatewayClass refers to.
    pub tailnets: BTreeMap<ObjectName, Arc<TailscaleTailnet>>,
}

/// What follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Of each Gateway that can be served.
    pub snapshots: BTreeMap<ObjectName, Snapshot>,
    pub statuses: Statuses,
}

impl Index {
    /// An index that accepts a GatewayClass only by a [`Verdict`].
    pub fn with_verdicts() -> Self {
        Self {
            verdicts: Some(BTreeMap::new()),
            ..Self::default()
        }
    }

    /// Takes what became of the parameters of a class.
    pub fn judge(&mut self, class: String, verdict: Verdict) {
        self.verdicts.get_or_insert_default().insert(class, verdict);
    }

    /// The objects that carry statuses of ours.
    pub fn subjects(&self) -> Subjects {
        Subjects {
            classes: self.objects.classes.clone(),
            gateways: self.objects.gateways.clone(),
            tcp_routes: self.objects.tcp_routes.clone(),
            tailnets: self.objects.tailnets.clone(),
        }
    }

    /// Adds an object, or replaces the one of its kind and name.
    pub fn apply(&mut self, object: Object) {
        self.objects.apply(object);
    }

    pub fn delete(&mut self, key: &Key) {
        self.objects.delete(key);
    }

    /// Replaces all objects.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = Object>) {
        self.objects = Objects::default();
        objects.into_iter().for_each(|object| self.apply(object));
    }

    /// Takes what the node of a Gateway says of itself.
    pub fn report(&mut self, gateway: ObjectName, report: NodeReport) {
        self.reports.insert(gateway, report);
    }

    /// Forgets what a node said: it is gone.
    pub fn forget_report(&mut self, gateway: &ObjectName) {
        self.reports.remove(gateway);
    }

    /// Works out what follows from the objects and reports.
    pub fn evaluate(&self) -> Outcome {
        gateways::evaluate(&self.objects, &self.reports, self.verdicts.as_ref())
    }
}

/// A kind as `kubectl` spells it: with its group, unless that is the core one.
fn qualified(kind: &str, group: &str) -> String {
    if group.is_empty() {
        kind.into()
    } else {
        format!("{kind}.{group}")
    }
}
