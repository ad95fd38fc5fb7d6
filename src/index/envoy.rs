//! What Gateways of Envoy Gateway get routes for.
//!
//! A Gateway of another implementation asks for it by a label. It sees the endpoints of its own
//! namespace, of namespaces with the same label, and of those that a ReferenceGrant beside it lets
//! in. All of this is worked out together whenever any of it changes: there is little of it.

use super::{
    Index,
    endpoints::Place,
    links::in_namespace,
    objects::{Objects, Precedence, precedence},
};
use crate::{
    api::{
        CONTROLLER, EGRESS_LABEL, EGRESS_PATH_ANNOTATION, GATEWAY_GROUP, TAILWAY_GROUP,
        gateway_api::gateways::Gateway, upstream::Protocol,
    },
    model::{ObjectName, Table},
};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};

/// What a Gateway of Envoy Gateway gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressRoutes {
    /// By name, then by source.
    pub services: Vec<RoutedEndpoint>,
    /// Endpoints that get no route, as another has taken it.
    pub displaced: Vec<Displaced>,
    /// Why there are none, although the Gateway asks for them.
    pub problem: Option<String>,
}

/// The route to an endpoint, and its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedEndpoint {
    pub endpoint: EndpointName,
    pub route: String,
    pub cluster: String,
    pub path_prefix: String,
}

/// An endpoint of a TailscaleEndpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointName {
    pub source: ObjectName,
    pub name: String,
}

/// One that came too late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    pub endpoint: EndpointName,
    pub path_prefix: String,
    pub by: EndpointName,
}

/// Where requests for a service go by default.
const PATH: &str = "/api/{service}";

/// An endpoint that can be routed to, in the order in which they come first.
type Candidate<'a> = (&'a Precedence, &'a ObjectName, &'a Place);

impl Index {
    /// Works out the routes of all Gateways of Envoy Gateway.
    pub(super) fn evaluate_egress_routes(&mut self) {
        let mut now = BTreeMap::new();
        let ages = self.objects.ages_of_endpoints();
        for (name, gateway) in &self.objects.gateways {
            if self.objects.asks_for_egress(gateway) {
                let routes = self.objects.egress_routes(name, gateway, &ages);
                now.insert(ObjectName::clone(name), routes);
            }
        }
        settle_all(&mut self.outcome.egress_routes, now);
    }
}

pub(super) fn has_egress_label(gateway: &Gateway) -> bool {
    let label = gateway.labels().get(EGRESS_LABEL);
    label.is_some_and(|value| value == "true")
}

/// All that a Gateway says of its routes to endpoints.
pub(super) fn egress_wishes(gateway: &Gateway) -> (bool, Option<&String>, bool) {
    let path = gateway.annotations().get(EGRESS_PATH_ANNOTATION);
    let goes = gateway.metadata.deletion_timestamp.is_some();
    (has_egress_label(gateway), path, goes)
}

/// Makes a table hold these values; what is equal stays the very same.
fn settle_all<T: PartialEq>(table: &mut Table<T>, now: BTreeMap<ObjectName, T>) {
    let gone: Vec<ObjectName> = table
        .keys()
        .filter(|name| !now.contains_key(&***name))
        .map(|name| ObjectName::clone(name))
        .collect();
    for name in gone {
        table.settle(&name, None);
    }
    for (name, value) in now {
        table.settle(&name, Some(value));
    }
}

impl Objects {
    fn ages_of_endpoints(&self) -> BTreeMap<ObjectName, Precedence> {
        let endpoints = self.endpoints.iter();
        endpoints
            .map(|(name, object)| {
                let name = ObjectName::clone(name);
                (name.clone(), precedence(&object.metadata, &name))
            })
            .collect()
    }

    /// Whether a Gateway of another implementation asks for routes.
    fn asks_for_egress(&self, gateway: &Gateway) -> bool {
        let class = ObjectName::new("", &gateway.spec.gateway_class_name);
        let class = self.classes.get(&class);
        let is_ours = class.is_some_and(|class| class.spec.controller_name == CONTROLLER);
        has_egress_label(gateway) && !is_ours && gateway.metadata.deletion_timestamp.is_none()
    }

    fn egress_routes(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        ages: &BTreeMap<ObjectName, Precedence>,
    ) -> EgressRoutes {
        let annotation = gateway.annotations().get(EGRESS_PATH_ANNOTATION);
        let pattern = annotation.map_or(PATH, |pattern| pattern.trim());
        if let Err(problem) = check_pattern(pattern) {
            return EgressRoutes {
                problem: Some(problem),
                ..EgressRoutes::default()
            };
        }
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for (source, age) in ages {
            if !self.sees(name, &source.namespace) {
                continue;
            }
            let places = self
                .readings
                .get(source)
                .into_iter()
                .flat_map(|r| &r.places);
            // Requests are what is routed.
            let places = places.filter(|p| matches!(p.protocol, Protocol::Http | Protocol::Https));
            candidates.extend(places.map(|place| (age, source, place)));
        }
        candidates.sort_by_key(|(age, _, place)| (*age, &place.name));
        choose(pattern, &candidates)
    }

    /// Whether a Gateway sees the endpoints of a namespace.
    fn sees(&self, gateway: &ObjectName, namespace: &str) -> bool {
        if gateway.namespace == namespace {
            return true;
        }
        let labels = self.namespace_labels(namespace);
        if labels.get(EGRESS_LABEL).is_some_and(|v| v == "true") {
            return true;
        }
        in_namespace(&self.grants, &gateway.namespace).any(|(_, grant)| {
            let from = grant.from.iter().any(|from| {
                from.group == TAILWAY_GROUP
                    && from.kind == "TailscaleEndpoints"
                    && from.namespace == namespace
            });
            let to = grant.to.iter().any(|to| {
                to.group == GATEWAY_GROUP
                    && to.kind == "Gateway"
                    && to.name.as_ref().is_none_or(|name| *name == gateway.name)
            });
            from && to
        })
    }
}

/// Gives each path to who comes first, and the plain names of a service to who comes first of those
/// called alike.
fn choose(pattern: &str, candidates: &[Candidate<'_>]) -> EgressRoutes {
    let mut routes = EgressRoutes::default();
    let mut paths: BTreeMap<String, EndpointName> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (_, source, place) in candidates {
        let endpoint = EndpointName {
            source: ObjectName::clone(source),
            name: place.name.clone(),
        };
        let path_prefix = pattern
            .replace("{service}", &place.name)
            .replace("{namespace}", &source.namespace)
            .replace("{object}", &source.name);
        if let Some(by) = paths.get(&path_prefix) {
            routes.displaced.push(Displaced {
                endpoint,
                path_prefix,
                by: by.clone(),
            });
            continue;
        }
        paths.insert(path_prefix.clone(), endpoint.clone());
        // No name of a service has a dot.
        let name = match names.insert(&place.name) {
            true => place.name.clone(),
            false => format!("{}.{}.{}", place.name, source.namespace, source.name),
        };
        routes.services.push(RoutedEndpoint {
            endpoint,
            route: format!("tailscale-egress-{name}"),
            cluster: format!("external-backend-{name}"),
            path_prefix,
        });
    }
    routes.services.sort_by(|a, b| {
        let key = |routed: &RoutedEndpoint| {
            (routed.endpoint.name.clone(), routed.endpoint.source.clone())
        };
        key(a).cmp(&key(b))
    });
    routes
}

/// A path of whole segments, which names the service.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let wrong = |why: &str| {
        Err(format!(
            "annotation {EGRESS_PATH_ANNOTATION} has {pattern:?}: {why}; write a path such as {PATH}, with {{service}} and, if you like, {{namespace}} and {{object}}"
        ))
    };
    if !pattern.contains("{service}") {
        return wrong("{service} is not in it");
    }
    let plain = pattern
        .replace("{service}", "s")
        .replace("{namespace}", "n")
        .replace("{object}", "o");
    let Some(segments) = plain.strip_prefix('/') else {
        return wrong("it does not begin with a slash");
    };
    let is_segment = |segment: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
        !segment.is_empty() && segment.chars().all(legal) && !matches!(segment, "." | "..")
    };
    match segments.split('/').all(is_segment) {
        true => Ok(()),
        false => wrong("a segment has nothing, or what a path cannot have"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_path_with_the_service_in_it() {
        for right in [
            "/api/{service}",
            "/{namespace}/{object}/{service}",
            "/x-{service}/v1",
        ] {
            assert_eq!(check_pattern(right), Ok(()));
        }
        for wrong in [
            "",
            "/",
            "/api",
            "api/{service}",
            "/{service}/",
            "//{service}",
            "/{service}?x",
            "/../{service}",
            "/a b/{service}",
        ] {
            assert!(check_pattern(wrong).is_err(), "{wrong:?}");
        }
    }
}
