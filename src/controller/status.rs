//! Statuses as the API server is to have them: ours put into what is there.

use super::{envoy, world::World};
use crate::{
    api::{CONTROLLER, conditions as c},
    index::{
        Key, Kind,
        status::{Condition, GatewayStatus, ListenerStatus, PolicyStatus, RouteStatus},
    },
    model::{ObjectName, Table},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A status that is not as it should be, and how it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    pub key: Key,
    /// Of the object this was made from: whoever changed it since goes first.
    pub resource_version: String,
    /// Merge patch (RFC 7396) of `status`.
    pub status: Value,
    pub news: Vec<News>,
    /// The object, as events refer to it.
    pub reference: ObjectReference,
}

/// A condition of a whole object that became another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    pub condition: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Features that `GatewayClass.status.supportedFeatures` tells, sorted (GEP-2162).
pub const FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "GRPCRouteRequestHeaderModifier",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayPort8080",
    "GatewayRouteHostnameIntersectionPrecedence",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteBackendURLRewrite",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetryCodes",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

const CLASS_CONDITIONS: &[&str] = &[c::ACCEPTED];
const GATEWAY_CONDITIONS: &[&str] = &[
    c::ACCEPTED,
    c::PROGRAMMED,
    c::TAILNET_READY,
    c::CERTIFICATE_READY,
    c::INVALID_ANNOTATIONS,
    c::RESOLVED_REFS,
    c::INSECURE_FRONTEND_VALIDATION_MODE,
];
const LISTENER_CONDITIONS: &[&str] = &[
    c::ACCEPTED,
    c::PROGRAMMED,
    c::RESOLVED_REFS,
    c::CONFLICTED,
    c::OVERLAPPING_TLS_CONFIG,
];
const PARENT_CONDITIONS: &[&str] = &[
    c::ACCEPTED,
    c::RESOLVED_REFS,
    c::ROUTE_CONFLICTED,
    c::PARTIALLY_INVALID,
    c::INVALID_ANNOTATIONS,
];

const SET_CONDITIONS: &[&str] = &[c::ACCEPTED, c::PROGRAMMED];
const ENDPOINTS_CONDITIONS: &[&str] = &[
    c::ACCEPTED,
    c::RESOLVED_REFS,
    c::PROGRAMMED,
    c::CONFLICTED,
    c::DISCOVERED,
];
const POLICY_CONDITIONS: &[&str] = &[c::ACCEPTED, c::RESOLVED_REFS];

/// Entries that `status.ancestors` can have, those of others too (Gateway API `PolicyStatus`).
const ANCESTORS: usize = 16;

/// The objects whose statuses may have to be written, as they or what follows for them changed.
pub fn changed(world: &World, before: &World) -> BTreeSet<Key> {
    let (now, then) = (&world.outcome.statuses, &before.outcome.statuses);
    let (subjects, old) = (&world.subjects, &before.subjects);
    let of_kinds = [
        (Kind::GatewayClass, now.classes.differences(&then.classes)),
        (
            Kind::GatewayClass,
            subjects.classes.differences(&old.classes),
        ),
        (Kind::Gateway, now.gateways.differences(&then.gateways)),
        (Kind::Gateway, subjects.gateways.differences(&old.gateways)),
        (
            Kind::TcpRoute,
            subjects.tcp_routes.differences(&old.tcp_routes),
        ),
        (
            Kind::ListenerSet,
            now.listener_sets.differences(&then.listener_sets),
        ),
        (
            Kind::ListenerSet,
            subjects.listener_sets.differences(&old.listener_sets),
        ),
        (
            Kind::BackendTlsPolicy,
            now.policies.differences(&then.policies),
        ),
        (
            Kind::BackendTlsPolicy,
            subjects
                .backend_tls_policies
                .differences(&old.backend_tls_policies),
        ),
        (
            Kind::HttpRoute,
            subjects.http_routes.differences(&old.http_routes),
        ),
        (
            Kind::GrpcRoute,
            subjects.grpc_routes.differences(&old.grpc_routes),
        ),
        (
            Kind::TlsRoute,
            subjects.tls_routes.differences(&old.tls_routes),
        ),
        (
            Kind::UdpRoute,
            subjects.udp_routes.differences(&old.udp_routes),
        ),
    ];
    let keys = of_kinds.into_iter().flat_map(|(kind, names)| {
        let key = move |name: &ObjectName| Key {
            kind,
            name: name.clone(),
        };
        names.into_iter().map(key)
    });
    let routes = now.routes.differences(&then.routes);
    let mut changed: BTreeSet<Key> = routes.into_iter().cloned().chain(keys).collect();
    changed.extend(envoy::changed(world, before));
    changed
}

/// The statuses of these objects that are not as they should be. `now` is when conditions that
/// change did so.
pub fn plan(world: &World, objects: &BTreeSet<Key>, now: Timestamp) -> Vec<StatusWrite> {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let plan = |key: &Key| match key.kind {
        Kind::GatewayClass => of_class(world, key, &now),
        Kind::Gateway => of_gateway(world, key, &now),
        Kind::TcpRoute => of_route(world, key, &world.subjects.tcp_routes, |r| &r.status, &now),
        Kind::HttpRoute => of_route(world, key, &world.subjects.http_routes, |r| &r.status, &now),
        Kind::GrpcRoute => of_route(world, key, &world.subjects.grpc_routes, |r| &r.status, &now),
        Kind::TlsRoute => of_route(world, key, &world.subjects.tls_routes, |r| &r.status, &now),
        Kind::UdpRoute => of_route(world, key, &world.subjects.udp_routes, |r| &r.status, &now),
        Kind::ListenerSet => of_listener_set(world, key, &now),
        Kind::BackendTlsPolicy => of_policy(world, key, &now),
        Kind::Endpoints => of_endpoints(world, key, &now),
        Kind::Backend => of_backend(world, key, &now),
        _ => None,
    };
    objects.iter().filter_map(plan).collect()
}

fn of_class(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let status = world.outcome.statuses.classes.get(&key.name)?;
    let class = world.subjects.classes.get(&key.name)?;
    let live = value(&class.status);
    let desired = class_status(&status.conditions, &live, now);
    write(key, &**class, &live, desired, &status.conditions)
}

fn of_gateway(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let status = world.outcome.statuses.gateways.get(&key.name)?;
    let gateway = world.subjects.gateways.get(&key.name)?;
    let live = value(&gateway.status);
    let desired = gateway_status(status, &live, now);
    write(key, &**gateway, &live, desired, &status.conditions)
}

/// A route without a status may still carry one of ours.
fn of_route<K, S>(
    world: &World,
    key: &Key,
    routes: &Table<K>,
    live: impl Fn(&K) -> &Option<S>,
    now: &str,
) -> Option<StatusWrite>
where
    K: Resource<DynamicType = ()>,
    S: Serialize,
{
    let status = world.outcome.statuses.routes.get(key);
    let route = routes.get(&key.name)?;
    let live = value(live(route));
    let desired = route_status(status.map(|status| &**status), &live, now);
    write(key, &**route, &live, desired, &[])
}

fn of_listener_set(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let status = world.outcome.statuses.listener_sets.get(&key.name)?;
    let set = world.subjects.listener_sets.get(&key.name)?;
    let live = value(&set.status);
    let listeners = listeners_status(&status.listeners, &live, now);
    let conditions = merged(&live["conditions"], &status.conditions, SET_CONDITIONS, now);
    let desired = Map::from_iter([
        ("conditions".into(), conditions),
        ("listeners".into(), listeners),
    ]);
    write(key, &**set, &live, desired, &status.conditions)
}

/// A policy without a status may still carry one of ours.
fn of_policy(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let status = world.outcome.statuses.policies.get(&key.name);
    let policy = world.subjects.backend_tls_policies.get(&key.name)?;
    let live = value(&policy.status);
    let desired = policy_status(status.map(|status| &**status), &live, now);
    write(key, &**policy, &live, desired, &[])
}

fn of_endpoints(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let object = world.subjects.endpoints.get(&key.name)?;
    let (conditions, mut desired) = envoy::of_endpoints(world, &key.name)?;
    let live = value(&object.status);
    let ours = merged(&live["conditions"], &conditions, ENDPOINTS_CONDITIONS, now);
    desired.insert("conditions".into(), ours);
    write(key, &**object, &live, desired, &conditions)
}

fn of_backend(world: &World, key: &Key, now: &str) -> Option<StatusWrite> {
    let object = world.subjects.backends.get(&key.name)?;
    let conditions = [envoy::of_backend(world, &key.name)?];
    let live = value(&object.status);
    let ours = merged(&live["conditions"], &conditions, &[c::ACCEPTED], now);
    let desired = Map::from_iter([("conditions".into(), ours)]);
    write(key, &**object, &live, desired, &conditions)
}

fn write<K>(
    key: &Key,
    object: &K,
    live: &Value,
    desired: Map<String, Value>,
    conditions: &[Condition],
) -> Option<StatusWrite>
where
    K: Resource<DynamicType = ()>,
{
    let is_there = |(key, desired): (&String, &Value)| match live.get(key) {
        Some(live) => live == desired,
        None => desired.as_array().is_some_and(Vec::is_empty),
    };
    if desired.iter().all(is_there) {
        return None;
    }
    Some(StatusWrite {
        key: key.clone(),
        resource_version: object.resource_version().unwrap_or_default(),
        status: Value::Object(desired),
        news: news(&live["conditions"], conditions),
        reference: object.object_ref(&()),
    })
}

/// What a person would want to know: that something works now, or why it does not. That it is on
/// its way is none.
fn news(live: &Value, conditions: &[Condition]) -> Vec<News> {
    let is_news = |condition: &&Condition| {
        let before = entry(live, |live| live["type"] == condition.kind);
        let status = if condition.status { "True" } else { "False" };
        condition.reason != c::PENDING
            && condition.reason != c::TAILNET_JOINING
            && (before["status"] != status || before["reason"] != condition.reason)
    };
    let news = |condition: &Condition| News {
        condition: condition.kind,
        status: condition.status,
        reason: condition.reason,
        message: condition.message.clone(),
    };
    conditions.iter().filter(is_news).map(news).collect()
}

fn class_status(conditions: &[Condition], live: &Value, now: &str) -> Map<String, Value> {
    let accepted = conditions.iter().any(|condition| condition.status);
    let features: Vec<_> = FEATURES
        .iter()
        .filter(|_| accepted)
        .map(|name| json!({ "name": name }))
        .collect();
    Map::from_iter([
        (
            "conditions".into(),
            merged(&live["conditions"], conditions, CLASS_CONDITIONS, now),
        ),
        ("supportedFeatures".into(), features.into()),
    ])
}

fn gateway_status(status: &GatewayStatus, live: &Value, now: &str) -> Map<String, Value> {
    let listeners = listeners_status(&status.listeners, live, now);
    let mut desired = Map::from_iter([
        ("addresses".into(), value(&status.addresses)),
        (
            "conditions".into(),
            merged(
                &live["conditions"],
                &status.conditions,
                GATEWAY_CONDITIONS,
                now,
            ),
        ),
        ("listeners".into(), listeners),
    ]);
    let attached = status.attached_listener_sets;
    if attached > 0 || live["attachedListenerSets"].is_number() {
        desired.insert("attachedListenerSets".into(), attached.into());
    }
    desired
}

fn listeners_status(listeners: &[ListenerStatus], live: &Value, now: &str) -> Value {
    let listeners = listeners.iter().map(|listener| {
        let live = entry(&live["listeners"], |live| live["name"] == listener.name);
        let mut desired = value(listener);
        desired["conditions"] = merged(
            &live["conditions"],
            &listener.conditions,
            LISTENER_CONDITIONS,
            now,
        );
        desired
    });
    listeners.collect()
}

/// Entries of other controllers stay as they are, before ours.
fn route_status(status: Option<&RouteStatus>, live: &Value, now: &str) -> Map<String, Value> {
    let parents = status.into_iter().flat_map(|status| &status.parents);
    let ours = parents.map(|parent| (value(parent), parent.conditions.as_slice()));
    let (others, ours) = entries(&live["parents"], ours, "parentRef", PARENT_CONDITIONS, now);
    let parents = others.into_iter().chain(ours).collect();
    Map::from_iter([("parents".into(), parents)])
}

/// Entries of other controllers stay as they are, before ours.
fn policy_status(status: Option<&PolicyStatus>, live: &Value, now: &str) -> Map<String, Value> {
    let ancestors = status.into_iter().flat_map(|status| &status.ancestors);
    let ours = ancestors.map(|ancestor| (value(ancestor), ancestor.conditions.as_slice()));
    let live = &live["ancestors"];
    let (others, ours) = entries(live, ours, "ancestorRef", POLICY_CONDITIONS, now);
    let room = ANCESTORS.saturating_sub(others.len());
    let ancestors = others
        .into_iter()
        .chain(ours.into_iter().take(room))
        .collect();
    Map::from_iter([("ancestors".into(), ancestors)])
}

/// The entries of other controllers, and ours as they should be; `reference` is the field that
/// tells ours apart.
fn entries<'a>(
    live: &Value,
    ours: impl Iterator<Item = (Value, &'a [Condition])>,
    reference: &str,
    types: &[&str],
    now: &str,
) -> (Vec<Value>, Vec<Value>) {
    let (known, others) = ours_and_others(live);
    let desired = ours.map(|(mut desired, conditions)| {
        let live = entry(&known, |live| live[reference] == desired[reference]);
        desired["conditions"] = merged(&live["conditions"], conditions, types, now);
        desired
    });
    (others, desired.collect())
}

/// The entries of a status that are ours, and those of other controllers.
fn ours_and_others(entries: &Value) -> (Value, Vec<Value>) {
    let entries = entries.as_array().cloned().unwrap_or_default();
    let (ours, others) = entries
        .into_iter()
        .partition::<Vec<_>, _>(|entry| entry["controllerName"] == CONTROLLER);
    (ours.into(), others)
}

/// The conditions there, with ours in the place of those of the types that are ours. A condition
/// keeps the time of its last transition while its status stays.
fn merged(live: &Value, ours: &[Condition], types: &[&str], now: &str) -> Value {
    let live = live.as_array().map(Vec::as_slice).unwrap_or_default();
    let desired = |condition: &Condition, before: Option<&Value>| {
        let mut desired = value(condition);
        let since = before
            .filter(|before| before["status"] == desired["status"])
            .and_then(|before| before["lastTransitionTime"].as_str())
            .unwrap_or(now);
        desired["lastTransitionTime"] = since.into();
        desired
    };
    let kept = live.iter().filter_map(|before| {
        let kind = before["type"].as_str().unwrap_or_default();
        match ours.iter().find(|condition| condition.kind == kind) {
            Some(condition) => Some(desired(condition, Some(before))),
            None if types.contains(&kind) => None,
            None => Some(before.clone()),
        }
    });
    let is_new = |condition: &&Condition| !live.iter().any(|l| l["type"] == condition.kind);
    let new = ours
        .iter()
        .filter(is_new)
        .map(|condition| desired(condition, None));
    kept.chain(new).collect()
}

fn entry(list: &Value, is_it: impl Fn(&Value) -> bool) -> Value {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .find(|entry| is_it(entry))
        .cloned()
        .unwrap_or_default()
}

fn value(part: &impl Serialize) -> Value {
    // Text, numbers and lists of them always serialize.
    serde_json::to_value(part).unwrap_or_default()
}
