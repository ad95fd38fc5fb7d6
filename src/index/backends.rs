//! backendRefs to weighted backends.

use super::{grants::Reference, objects::Objects, status::Finding};
use crate::{
    api::{conditions as c, gateway_api::tcproutes::TcpRouteRulesBackendRefs},
    model::{Backend, BackendId, ObjectName, WeightedBackend},
};
use std::collections::BTreeMap;

/// The backends of a rule, and what is wrong with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Resolved {
    pub(super) weighted: Vec<WeightedBackend>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    pub(super) findings: Vec<Finding>,
}

impl Objects {
    /// Resolves the backendRefs of a TCPRoute. An invalid one keeps its weight.
    pub(super) fn resolve_backends(
        &self,
        route: &ObjectName,
        refs: &[TcpRouteRulesBackendRefs],
    ) -> Resolved {
        let mut resolved = Resolved::default();
        for reference in refs {
            let weight = reference
                .weight
                .and_then(|weight| u32::try_from(weight).ok())
                .unwrap_or(1);
            let backend = match self.resolve_backend(route, reference) {
                Ok((id, backend)) => {
                    resolved.backends.insert(id.clone(), backend);
                    Some(id)
                }
                Err(finding) => {
                    resolved.findings.push(finding);
                    None
                }
            };
            resolved.weighted.push(WeightedBackend { weight, backend });
        }
        resolved
    }

    fn resolve_backend(
        &self,
        route: &ObjectName,
        reference: &TcpRouteRulesBackendRefs,
    ) -> Result<(BackendId, Backend), Finding> {
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Service");
        if !group.is_empty() || kind != "Service" {
            let kind = super::qualified(kind, group);
            return Err(Finding::new(
                c::INVALID_KIND,
                format!(
                    "backend {} is a {kind}: only a Service can be one",
                    reference.name
                ),
            ));
        }
        let namespace = reference.namespace.as_ref().unwrap_or(&route.namespace);
        let service = ObjectName::new(namespace, &reference.name);
        let permitted = self.permits(&Reference {
            from_kind: "TCPRoute",
            from_namespace: &route.namespace,
            to_kind: "Service",
            to: &service,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Service {service} is in another namespace, where no ReferenceGrant allows TCPRoutes of namespace {} to use it",
                    route.namespace
                ),
            ));
        }
        let not_found = |message: String| Finding::new(c::BACKEND_NOT_FOUND, message);
        let Some(object) = self.services.get(&service) else {
            return Err(not_found(format!("there is no Service {service}")));
        };
        let Some(port) = reference
            .port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port > 0)
        else {
            return Err(not_found(format!("backend {service} has no port: set one")));
        };
        let endpoints = object
            .endpoints(&service, port, self.slices(&service))
            .map_err(not_found)?;
        Ok((BackendId { service, port }, Backend { endpoints }))
    }
}
