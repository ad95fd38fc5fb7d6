//! ReferenceGrant: who may refer to what in another namespace.

use super::{links::in_namespace, objects::Objects};
use crate::{api::GATEWAY_GROUP, model::ObjectName};

/// A reference from an object of the Gateway API to another object.
pub(super) struct Reference<'a> {
    pub(super) from_kind: &'a str,
    pub(super) from_namespace: &'a str,
    pub(super) to_group: &'a str,
    pub(super) to_kind: &'a str,
    pub(super) to: &'a ObjectName,
}

impl Objects {
    /// Whether the reference stays in its namespace, or a ReferenceGrant beside its target allows
    /// it (Gateway API, ReferenceGrant).
    pub(super) fn permits(&self, reference: &Reference<'_>) -> bool {
        let Reference {
            from_kind,
            from_namespace,
            to_group,
            to_kind,
            to,
        } = reference;
        if *from_namespace == to.namespace {
            return true;
        }
        in_namespace(&self.grants, &to.namespace).any(|(_, grant)| {
            let from = grant.from.iter().any(|from| {
                from.group == GATEWAY_GROUP
                    && from.kind == *from_kind
                    && from.namespace == *from_namespace
            });
            let to = grant.to.iter().any(|allowed| {
                allowed.group == *to_group
                    && allowed.kind == *to_kind
                    && allowed.name.as_ref().is_none_or(|name| *name == to.name)
            });
            from && to
        })
    }
}
