//! Statuses as the Gateway API has them, without times: whoever writes them stamps those.

use super::Key;
use crate::{
    api::conditions as c,
    model::{ObjectName, Table},
};
use serde::{Deserialize, Serialize};

/// The statuses of all objects. What did not change is shared with the ones before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statuses {
    pub classes: Table<ClassStatus>,
    pub gateways: Table<GatewayStatus>,
    pub listener_sets: Table<ListenerSetStatus>,
    /// Those of routes of all kinds.
    pub routes: Table<RouteStatus, Key>,
    /// Those of BackendTLSPolicies.
    pub policies: Table<PolicyStatus>,
    /// What is told to people but written to no object, sorted: an object, or a part of one, may be
    /// meant for tailway, but its class or its parent is not there. Says what is missing, and what
    /// to do.
    pub unclaimed: Table<Vec<String>, Key>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassStatus {
    pub name: String,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayStatus {
    pub name: ObjectName,
    pub addresses: Vec<Address>,
    pub conditions: Vec<Condition>,
    pub listeners: Vec<ListenerStatus>,
    /// How many ListenerSets are accepted.
    pub attached_listener_sets: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSetStatus {
    pub name: ObjectName,
    pub conditions: Vec<Condition>,
    pub listeners: Vec<ListenerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    pub name: String,
    pub supported_kinds: Vec<RouteKind>,
    pub attached_routes: i32,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    pub name: ObjectName,
    pub parents: Vec<ParentStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    pub parent_ref: ParentRef,
    pub controller_name: &'static str,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    pub name: ObjectName,
    pub ancestors: Vec<AncestorStatus>,
}

/// What became of a policy at a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    pub ancestor_ref: ParentRef,
    pub controller_name: &'static str,
    pub conditions: Vec<Condition>,
}

/// A parentRef as the route spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RouteKind {
    pub group: &'static str,
    pub kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    #[serde(serialize_with = "truth")]
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
    pub observed_generation: i64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn truth<S: serde::Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}

// === impl Condition ===

impl Condition {
    /// Whether it says that something is not served and will not be until an object is changed. A
    /// node that is on its way is none, and neither is a reference without which the rest is
    /// served.
    pub fn is_refusal(&self) -> bool {
        match self.kind {
            c::ACCEPTED => !self.status,
            c::PROGRAMMED => {
                !self.status && ![c::PENDING, c::ADDRESS_NOT_ASSIGNED].contains(&self.reason)
            }
            c::CONFLICTED | c::ROUTE_CONFLICTED => self.status,
            _ => false,
        }
    }

    /// `kind`, which is `True` when something is wrong.
    pub(super) fn negative(kind: &'static str, finding: Finding, generation: i64) -> Self {
        Self::new(kind, true, finding.reason, finding.message, generation)
    }

    /// A condition that is `True` with the reason of the same name, as most are when all is well.
    pub fn fine(kind: &'static str, generation: i64) -> Self {
        Self::new(kind, true, kind, String::new(), generation)
    }

    pub fn new(
        kind: &'static str,
        status: bool,
        reason: &'static str,
        message: impl Into<String>,
        generation: i64,
    ) -> Self {
        Self {
            kind,
            status,
            reason,
            message: message.into(),
            observed_generation: generation,
        }
    }

    /// `kind` as a finding has it: fine, or `False` with its reason and message.
    pub(super) fn of(kind: &'static str, finding: Option<Finding>, generation: i64) -> Self {
        match finding {
            None => Self::fine(kind, generation),
            Some(Finding { reason, message }) => {
                Self::new(kind, false, reason, message, generation)
            }
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of a condition.
    pub reason: &'static str,
    pub message: String,
}

impl Finding {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// The first reason with all messages: a condition has one reason.
    pub(super) fn join(findings: Vec<Self>) -> Option<Self> {
        let mut findings = findings.into_iter();
        let first = findings.next()?;
        Some(findings.fold(first, |mut all, finding| {
            if !all.message.contains(&finding.message) {
                all.message = format!("{}; {}", all.message, finding.message);
            }
            all
        }))
    }
}

impl GatewayStatus {
    /// Whether its newest generation is served.
    pub fn is_programmed(&self) -> bool {
        let mut conditions = self.conditions.iter();
        conditions.any(|condition| condition.kind == c::PROGRAMMED && condition.status)
    }
}

// === impl Statuses ===

impl Statuses {
    /// Whether every object is accepted, and none holds something that keeps it from being served.
    pub fn all_accepted(&self) -> bool {
        self.unclaimed.is_empty() && !self.conditions().any(Condition::is_refusal)
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        let classes = self.classes.values().flat_map(|class| &class.conditions);
        let gateways = self.gateways.values();
        let gateways = gateways.flat_map(|gateway| &gateway.conditions);
        let listeners = self.gateways.values();
        let listeners = listeners.flat_map(|gateway| &gateway.listeners);
        let parents = self.routes.values().flat_map(|route| &route.parents);
        let sets = self.listener_sets.values();
        let of_sets = sets.clone().flat_map(|set| &set.listeners);
        let sets = sets.flat_map(|set| &set.conditions);
        let ancestors = self.policies.values().flat_map(|policy| &policy.ancestors);
        classes
            .chain(gateways)
            .chain(sets)
            .chain(of_sets.flat_map(|listener| &listener.conditions))
            .chain(ancestors.flat_map(|ancestor| &ancestor.conditions))
            .chain(listeners.flat_map(|listener| &listener.conditions))
            .chain(parents.flat_map(|parent| &parent.conditions))
    }
}
