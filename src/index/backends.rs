//! backendRefs to weighted backends.

use super::{
    Key, Kind,
    app_protocols::Spoken,
    grants::Reference,
    http,
    objects::Objects,
    routes::{BackendRef, Route, Rules},
    status::Finding,
};
use crate::{
    api::{conditions as c, gateway_api::httproutes::HttpRouteRules},
    model::{Backend, BackendId, HttpRoute, Transport, WeightedBackend},
};
use std::collections::BTreeMap;

/// The backends of a rule, and what is wrong with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Resolved {
    pub(super) weighted: Vec<WeightedBackend>,
    pub(super) backends: BTreeMap<BackendId, Backend>,
    pub(super) findings: Vec<Finding>,
    /// The rules of a route of HTTP.
    pub(super) http: Option<HttpRoute>,
}

impl Objects {
    pub(super) fn resolve_backends(&self, key: &Key, route: &Route) -> Resolved {
        match &route.rules {
            Rules::Bytes { rules, .. } => self.resolve_bytes(key, rules.first()),
            Rules::Http { rules, .. } => self.resolve_http(key, rules),
        }
    }

    /// Reads the rules of a route of HTTP. A backend that is not found keeps its weight.
    fn resolve_http(&self, key: &Key, rules: &[HttpRouteRules]) -> Resolved {
        let mut resolved = Resolved::default();
        let (backends, findings) = (&mut resolved.backends, &mut resolved.findings);
        let mut resolve = |reference: http::Reference<'_>| match self
            .resolve_backend(key, &reference.to_backend_ref())
        {
            Ok((id, backend)) => {
                backends.insert(id.clone(), backend);
                Some(id)
            }
            Err(finding) => {
                findings.push(finding);
                None
            }
        };
        let mut reader = http::Reader::new(&mut resolve);
        let rules = reader.rules(rules);
        let unresolved = reader.unresolved;
        resolved.findings.extend(unresolved);
        resolved.http = Some(HttpRoute { rules });
        resolved
    }

    /// Resolves the backendRefs of a rule. An invalid one keeps its weight.
    fn resolve_bytes(&self, key: &Key, rule: Option<&Vec<BackendRef>>) -> Resolved {
        let mut resolved = Resolved::default();
        for reference in rule.into_iter().flatten() {
            let weight = reference
                .weight
                .and_then(|weight| u32::try_from(weight).ok())
                .unwrap_or(1);
            let backend = match self.resolve_backend(key, reference) {
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
        route: &Key,
        reference: &BackendRef,
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
        let service = reference.target(route);
        let permitted = self.permits(&Reference {
            from_kind: route.kind.as_str(),
            from_namespace: &route.name.namespace,
            to_kind: "Service",
            to: &service,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Service {service} is in another namespace, where no ReferenceGrant allows {}s of namespace {} to use it",
                    route.kind, route.name.namespace
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
        let transport = match route.kind {
            Kind::UdpRoute => Transport::Udp,
            _ => Transport::Tcp,
        };
        let endpoints = object
            .endpoints(&service, port, transport, self.slices(&service))
            .map_err(not_found)?;
        let id = BackendId {
            service,
            port,
            transport,
        };
        if transport == Transport::Udp {
            return Ok((id, Backend::new(endpoints)));
        }
        let (service, port) = (&id.service, id.port);
        let spoken = Spoken::of(object.app_protocol(port));
        let backend = Backend {
            protocol: spoken.protocol(),
            tls: self.backend_tls(service, object.port_name(port)),
            endpoints,
        };
        if let Some(problem) = spoken.problem(route.kind, backend.tls.is_some()) {
            let message = format!("port {port} of Service {service} {problem}");
            return Err(Finding::new(c::UNSUPPORTED_PROTOCOL, message));
        }
        Ok((id, backend))
    }
}
