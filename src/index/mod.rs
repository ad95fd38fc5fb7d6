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
    api::Object,
    model::{NodeReport, ObjectName, Snapshot},
};
use objects::Objects;
use status::Statuses;
use std::collections::BTreeMap;

/// The objects known, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    objects: Objects,
    reports: BTreeMap<ObjectName, NodeReport>,
}

/// What follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Of each Gateway that can be served.
    pub snapshots: BTreeMap<ObjectName, Snapshot>,
    pub statuses: Statuses,
}

impl Index {
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
        gateways::evaluate(&self.objects, &self.reports)
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
