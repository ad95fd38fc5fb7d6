//! Objects in, Snapshots and statuses out. All rules of the Gateway API live here.
//!
//! ```text
//!   apply / delete / reset ─→ Objects ─┐            ┌─→ Snapshots, Statuses
//!   report (what a node says) ─────────┼─→ evaluate ┤
//!   judge (of a class's parameters) ───┘            └── those that did not change are shared
//!
//!   evaluate:  classes ─→ Gateways: listeners, node names ─→ routes ─→ backends
//! ```
//!
//! A change marks what depends on it ([`changes`], by way of [`links`]), and only that is worked
//! out anew ([`evaluation`]). What results is the same as if all were worked out from nothing.
//!
//! Synchronous and pure: no I/O and no clock. The same objects give the same result whatever the
//! order in which they came.

mod annotations;
mod app_protocols;
mod authorities;
mod backend_tls;
mod backends;
mod certificates;
mod changes;
mod claims;
mod classes;
mod conflicts;
mod durations;
pub mod egress;
pub mod endpoints;
mod envoy;
mod evaluation;
mod frontend;
mod gateways;
mod grants;
mod grpc;
mod http;
mod kinds;
mod links;
mod listener_sets;
mod listeners;
mod nodes;
mod objects;
mod policies;
mod routes;
mod services;
mod snapshots;
pub mod status;

pub use durations::duration;
pub use envoy::{Displaced, EgressRoutes, EndpointName, RoutedEndpoint};
pub use objects::{Key, Kind};

use crate::{
    api::{
        endpoints::TailscaleEndpoints,
        gateway_api::{
            backendtlspolicies::BackendTlsPolicy, gatewayclasses::GatewayClass, gateways::Gateway,
            grpcroutes::GrpcRoute, httproutes::HttpRoute, listenersets::ListenerSet,
            tcproutes::TcpRoute, tlsroutes::TlsRoute, udproutes::UdpRoute,
        },
        tailnets::TailscaleTailnet,
        upstream::{backend::TailscaleBackend, egress::TailscaleEgressSet},
    },
    model::{Health, NodeReport, ObjectName, Snapshot, Table},
};
use endpoints::Reading;
use evaluation::Evaluated;
use links::{Links, Pending};
use objects::Objects;
use status::Statuses;
use std::collections::BTreeMap;

/// The objects known, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    objects: Objects,
    reports: BTreeMap<ObjectName, NodeReport>,
    verdicts: Option<BTreeMap<String, Verdict>>,
    links: Links,
    pending: Pending,
    evaluated: Evaluated,
    outcome: Outcome,
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
    pub classes: Table<GatewayClass>,
    pub gateways: Table<Gateway>,
    pub tcp_routes: Table<TcpRoute>,
    pub http_routes: Table<HttpRoute>,
    pub grpc_routes: Table<GrpcRoute>,
    pub tls_routes: Table<TlsRoute>,
    pub udp_routes: Table<UdpRoute>,
    pub listener_sets: Table<ListenerSet>,
    pub backend_tls_policies: Table<BackendTlsPolicy>,
    /// They have none; what a GatewayClass refers to.
    pub tailnets: Table<TailscaleTailnet>,
    pub endpoints: Table<TailscaleEndpoints>,
    /// What is read of those.
    pub readings: Table<Reading>,
    pub backends: Table<TailscaleBackend>,
    pub egress_sets: Table<TailscaleEgressSet>,
}

/// What follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Of each Gateway that can be served, and of each egress ([`egress::subject`]).
    pub snapshots: Table<Snapshot>,
    /// Of the endpoints that the pods of an egress check, by their TailscaleEndpoints and name.
    pub health: Table<BTreeMap<String, Health>>,
    /// Of the Gateways of Envoy Gateway that ask for them.
    pub egress_routes: Table<EgressRoutes>,
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

    /// The objects that carry statuses of ours.
    pub fn subjects(&self) -> Subjects {
        Subjects {
            classes: self.objects.classes.clone(),
            gateways: self.objects.gateways.clone(),
            tcp_routes: self.objects.tcp_routes.clone(),
            http_routes: self.objects.http_routes.clone(),
            grpc_routes: self.objects.grpc_routes.clone(),
            tls_routes: self.objects.tls_routes.clone(),
            udp_routes: self.objects.udp_routes.clone(),
            listener_sets: self.objects.listener_sets.clone(),
            backend_tls_policies: self.objects.backend_tls_policies.clone(),
            tailnets: self.objects.tailnets.clone(),
            endpoints: self.objects.endpoints.clone(),
            readings: self.objects.readings.clone(),
            backends: self.objects.backends.clone(),
            egress_sets: self.objects.egress_sets.clone(),
        }
    }
}

/// A value as another type of the same shape: the CRDs spell some types out at each place where
/// they stand.
fn same<T, U>(value: Option<&T>) -> Option<U>
where
    T: serde::Serialize,
    U: serde::de::DeserializeOwned,
{
    serde_json::from_value(serde_json::to_value(value?).ok()?).ok()
}

/// A kind as `kubectl` spells it: with its group, unless that is the core one.
fn qualified(kind: &str, group: &str) -> String {
    if group.is_empty() {
        kind.into()
    } else {
        format!("{kind}.{group}")
    }
}
