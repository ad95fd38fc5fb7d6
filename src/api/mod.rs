//! The objects that tailway reads: types of the Gateway API, and what is ours in them.

pub mod conditions;
pub mod tailnets;
#[rustfmt::skip]
#[allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
pub mod gateway_api;

use gateway_api::{
    backendtlspolicies::BackendTlsPolicy, gatewayclasses::GatewayClass, gateways::Gateway,
    httproutes::HttpRoute, listenersets::ListenerSet, referencegrants::ReferenceGrant,
    tcproutes::TcpRoute,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret, Service},
    discovery::v1::EndpointSlice,
};
use tailnets::TailscaleTailnet;

/// `spec.controllerName` of the GatewayClasses that are ours.
pub const CONTROLLER: &str = "tailway.michaelbeaumont.github.io/controller";

/// API group of Gateway, GatewayClass and the routes.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What the keys of `tls.options` that are ours start with.
pub const OPTION_PREFIX: &str = "gateway.tailscale.com/";

/// API group of tailway's own kinds.
pub const TAILWAY_GROUP: &str = "gateway.tailscale.com";

/// Key of `tls.options` that asks for the tailnet's certificate.
pub const CERTIFICATE_OPTION: &str = "gateway.tailscale.com/certificate";

/// Key of `tls.options` that lists the protocols offered by ALPN.
pub const ALPN_OPTION: &str = "gateway.tailscale.com/alpn";

/// Key of a state Secret under which a pod tells how its node stands: JSON of
/// [`NodeReport`](crate::model::NodeReport).
pub const STATE_REPORT: &str = "report";

/// An object of a kind that tailway reads.
#[derive(Clone, Debug)]
pub enum Object {
    GatewayClass(Box<GatewayClass>),
    Gateway(Box<Gateway>),
    TcpRoute(Box<TcpRoute>),
    HttpRoute(Box<HttpRoute>),
    ListenerSet(Box<ListenerSet>),
    BackendTlsPolicy(Box<BackendTlsPolicy>),
    ReferenceGrant(Box<ReferenceGrant>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Secret(Box<Secret>),
    ConfigMap(Box<ConfigMap>),
    Namespace(Box<Namespace>),
    Tailnet(Box<TailscaleTailnet>),
}
