//! Each kind of route, read into a [`Route`].

use super::{
    annotations::proxy_protocol,
    grpc, http,
    objects::{Kind, generation, precedence},
    routes::{BackendRef, Route, Rules},
    status::{Finding, ParentRef},
};
use crate::{
    api::{
        conditions as c,
        gateway_api::{
            grpcroutes::GrpcRoute, httproutes::HttpRoute, tcproutes::TcpRoute, tlsroutes::TlsRoute,
            udproutes::UdpRoute,
        },
    },
    model::ObjectName,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// A rule of a route of bytes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BytesRule {
    backend_refs: Vec<BackendRef>,
}

impl Route {
    pub(super) fn of_tcp(name: &ObjectName, route: &TcpRoute) -> Self {
        let parents = route.spec.parent_refs.as_ref();
        let rules = bytes(&route.spec.rules, Vec::new());
        Self::new(Kind::TcpRoute, name, &route.metadata, parents, rules)
    }

    pub(super) fn of_udp(name: &ObjectName, route: &UdpRoute) -> Self {
        let parents = route.spec.parent_refs.as_ref();
        let rules = bytes(&route.spec.rules, Vec::new());
        Self::new(Kind::UdpRoute, name, &route.metadata, parents, rules)
    }

    pub(super) fn of_tls(name: &ObjectName, route: &TlsRoute) -> Self {
        let parents = route.spec.parent_refs.as_ref();
        let rules = bytes(&route.spec.rules, route.spec.hostnames.clone());
        Self::new(Kind::TlsRoute, name, &route.metadata, parents, rules)
    }

    pub(super) fn of_http(name: &ObjectName, route: &HttpRoute) -> Self {
        let parents = route.spec.parent_refs.as_ref();
        // An API server puts this rule where none is (`HTTPRouteSpec.rules`).
        let default = || vec![http::EMPTY_RULE];
        let rules = Rules::Http {
            hostnames: route.spec.hostnames.clone().unwrap_or_default(),
            rules: route.spec.rules.clone().unwrap_or_else(default),
        };
        Self::new(Kind::HttpRoute, name, &route.metadata, parents, rules)
    }

    pub(super) fn of_grpc(name: &ObjectName, route: &GrpcRoute) -> Self {
        let parents = route.spec.parent_refs.as_ref();
        let rules = Rules::Http {
            hostnames: route.spec.hostnames.clone().unwrap_or_default(),
            rules: grpc::rules(route.spec.rules.as_deref().unwrap_or_default()),
        };
        Self::new(Kind::GrpcRoute, name, &route.metadata, parents, rules)
    }

    fn new<P: Serialize>(
        kind: Kind,
        name: &ObjectName,
        metadata: &ObjectMeta,
        parents: Option<&P>,
        rules: Rules,
    ) -> Self {
        let (refused, left_out) = match &rules {
            Rules::Bytes { rules, .. } => (several(rules.len()), None),
            Rules::Http { rules, .. } => http::faults(rules),
        };
        let backends = rules.backends(&name.namespace);
        let (proxy_protocol, ignored) = proxy_protocol(kind, metadata);
        let parents: Option<Vec<ParentRef>> = super::same(parents);
        Self {
            precedence: precedence(metadata, name),
            generation: generation(metadata),
            parents: parents.unwrap_or_default(),
            rules,
            backends,
            proxy_protocol,
            refused,
            left_out,
            ignored,
        }
    }
}

fn bytes<R: Serialize>(rules: &Vec<R>, hostnames: Vec<String>) -> Rules {
    let rules: Option<Vec<BytesRule>> = super::same(Some(rules));
    let rules = rules.unwrap_or_default().into_iter();
    Rules::Bytes {
        hostnames,
        rules: rules.map(|rule| rule.backend_refs).collect(),
    }
}

/// Older versions of the kinds have up to 16 rules.
fn several(rules: usize) -> Option<Finding> {
    (rules > 1).then(|| {
        Finding::new(
            c::UNSUPPORTED_VALUE,
            format!("the route has {rules} rules, of which bytes tell none apart: leave one"),
        )
    })
}
