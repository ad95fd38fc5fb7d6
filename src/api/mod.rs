//! The objects that tailway reads: types of the Gateway API, and what is ours in them.

pub mod conditions;
pub mod endpoints;
pub mod quantity;
pub mod tailnets;
pub mod upstream;
#[rustfmt::skip]
#[allow(clippy::all, missing_docs, unreachable_pub, reason = "generated")]
pub mod gateway_api;

use endpoints::TailscaleEndpoints;
use gateway_api::{
    backendtlspolicies::BackendTlsPolicy, gatewayclasses::GatewayClass, gateways::Gateway,
    grpcroutes::GrpcRoute, httproutes::HttpRoute, listenersets::ListenerSet,
    referencegrants::ReferenceGrant, tcproutes::TcpRoute, tlsroutes::TlsRoute, udproutes::UdpRoute,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret, Service},
    discovery::v1::EndpointSlice,
};
use tailnets::TailscaleTailnet;
use upstream::{backend::TailscaleBackend, egress::TailscaleEgressSet};

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

/// Annotation of a Gateway: which headers tell backends more of the caller.
pub const REQUEST_HEADERS_ANNOTATION: &str = "tailway.michaelbeaumont.github.io/request-headers";

/// Annotation of a Gateway: the app capabilities of the caller that backends are told.
pub const APP_CAPABILITIES_ANNOTATION: &str = "tailway.michaelbeaumont.github.io/app-capabilities";

/// Annotation of a Gateway: which requests are logged.
pub const ACCESS_LOG_ANNOTATION: &str = "tailway.michaelbeaumont.github.io/access-log";

/// Annotation of a TCPRoute or TLSRoute: the version of the PROXY protocol that backends speak.
pub const PROXY_PROTOCOL_ANNOTATION: &str = "tailway.michaelbeaumont.github.io/proxy-protocol";

/// Label of a Gateway of Envoy Gateway, and of a namespace: `"true"` has it get routes to endpoints,
/// and lets all such Gateways have routes to the endpoints of the namespace.
pub const EGRESS_LABEL: &str = "gateway.tailscale.com/egress";

/// Annotation of a Gateway of Envoy Gateway: the path of a service, with `{service}` in it.
pub const EGRESS_PATH_ANNOTATION: &str = "gateway.tailscale.com/egress-path";

/// Annotation of a Gateway of Envoy Gateway: `"true"` has its translation made anew by
/// [`REFRESHED_ANNOTATION`] when its routes change, for an Envoy Gateway that is not given
/// TailscaleEgressSets.
pub const EGRESS_REFRESH_ANNOTATION: &str = "gateway.tailscale.com/egress-refresh";

/// Annotation of a Gateway, by the controller: the revision of its routes. Envoy Gateway reads those
/// with this prefix.
pub const REFRESHED_ANNOTATION: &str = "gateway.envoyproxy.io/tailscale-egress";

/// Annotation of a TailscaleEgressSet: what the extension of Envoy Gateway served last, as JSON.
pub const SERVED_ANNOTATION: &str = "gateway.tailscale.com/served";

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
    GrpcRoute(Box<GrpcRoute>),
    TlsRoute(Box<TlsRoute>),
    UdpRoute(Box<UdpRoute>),
    ListenerSet(Box<ListenerSet>),
    BackendTlsPolicy(Box<BackendTlsPolicy>),
    ReferenceGrant(Box<ReferenceGrant>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Secret(Box<Secret>),
    ConfigMap(Box<ConfigMap>),
    Namespace(Box<Namespace>),
    Tailnet(Box<TailscaleTailnet>),
    Endpoints(Box<TailscaleEndpoints>),
    Backend(Box<TailscaleBackend>),
    EgressSet(Box<TailscaleEgressSet>),
}
