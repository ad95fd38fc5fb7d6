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
    model::{Backend, BackendId, BackendKind, HttpRoute, Transport, WeightedBackend},
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
        let (group, kind) = reference.group_and_kind();
        let Some(of) = reference.kind() else {
            let kind = super::qualified(kind, group);
            let message = format!(
                "backend {} is a {kind}: a Service or a TailscaleEndpoints can be one",
                reference.name
            );
            return Err(Finding::new(c::INVALID_KIND, message));
        };
        let object = reference.target(&route.name.namespace);
        let permitted = self.permits(&Reference {
            from_kind: route.kind.as_str(),
            from_namespace: &route.name.namespace,
            to_group: group,
            to_kind: kind,
            to: &object,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "{kind} {object} is in another namespace, where no ReferenceGrant allows {}s of namespace {} to use it",
                    route.kind, route.name.namespace
                ),
            ));
        }
        let is_there = match of {
            BackendKind::Service => self.services.contains_key(&object),
            BackendKind::Endpoints => self.readings.contains_key(&object),
        };
        if !is_there {
            return Err(not_found(format!("there is no {kind} {object}")));
        }
        let port = reference.port.and_then(|port| u16::try_from(port).ok());
        let Some(port) = port.filter(|&port| port > 0) else {
            return Err(not_found(format!("backend {object} has no port: set one")));
        };
        let id = BackendId {
            kind: of,
            object,
            port,
            transport: match route.kind {
                Kind::UdpRoute => Transport::Udp,
                _ => Transport::Tcp,
            },
        };
        let backend = match of {
            BackendKind::Service => self.service_backend(route.kind, &id),
            BackendKind::Endpoints => self.endpoints_backend(&id),
        };
        Ok((id, backend?))
    }

    /// A port of a Service.
    fn service_backend(&self, route: Kind, id: &BackendId) -> Result<Backend, Finding> {
        let (name, port) = (&id.object, id.port);
        let Some(object) = self.services.get(name) else {
            return Err(not_found(format!("there is no Service {name}")));
        };
        let endpoints = object
            .endpoints(name, port, id.transport, self.slices(name))
            .map_err(not_found)?;
        if id.transport == Transport::Udp {
            return Ok(Backend::new(endpoints));
        }
        let spoken = Spoken::of(object.app_protocol(port));
        let backend = Backend {
            protocol: spoken.protocol(),
            tls: self.backend_tls(name, object.port_name(port)),
            ..Backend::new(endpoints)
        };
        if let Some(problem) = spoken.problem(route, backend.tls.is_some()) {
            let message = format!("port {port} of Service {name} {problem}");
            return Err(Finding::new(c::UNSUPPORTED_PROTOCOL, message));
        }
        Ok(backend)
    }

    /// The endpoints of a TailscaleEndpoints that have a port.
    fn endpoints_backend(&self, id: &BackendId) -> Result<Backend, Finding> {
        let (name, port) = (&id.object, id.port);
        let Some(reading) = self.readings.get(name) else {
            return Err(not_found(format!("there is no TailscaleEndpoints {name}")));
        };
        let (transport, other) = match id.transport {
            Transport::Tcp => ("TCP", Transport::Udp),
            Transport::Udp => ("UDP", Transport::Tcp),
        };
        // Gateways may have several of these objects as backends.
        let members = reading.at(port, id.transport);
        let members = members.map(|place| place.member(format!("{name}/{}", place.name)));
        let backend = Backend {
            members: members.collect(),
            ..Backend::default()
        };
        if !backend.members.is_empty() {
            return Ok(backend);
        }
        if let Some(place) = reading.at(port, other).next() {
            let message = format!(
                "port {port} of TailscaleEndpoints {name} is that of {}, which is not for {transport}",
                place.name
            );
            return Err(Finding::new(c::UNSUPPORTED_PROTOCOL, message));
        }
        let wrong = reading.wrong.iter();
        let wrong = wrong.filter(|wrong| wrong.is_fatal && wrong.port == i32::from(port));
        let wrong: Vec<_> = wrong
            .map(|wrong| format!("{}: {}", wrong.endpoint, wrong.finding.message))
            .collect();
        Err(not_found(match wrong.is_empty() {
            true => format!("TailscaleEndpoints {name} has no endpoint with port {port}"),
            false => format!(
                "no endpoint with port {port} of TailscaleEndpoints {name} can be used: {}",
                wrong.join("; ")
            ),
        }))
    }
}

fn not_found(message: String) -> Finding {
    Finding::new(c::BACKEND_NOT_FOUND, message)
}
