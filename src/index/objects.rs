use super::{
    authorities::Bundle,
    backend_tls::Policy,
    certificates::TlsSecret,
    endpoints::Reading,
    links::{Relation, unscoped},
    listener_sets::Set,
    routes::Route,
    services::{ServicePorts, SliceEndpoints},
};
use crate::{
    api::{
        Object,
        endpoints::TailscaleEndpoints,
        gateway_api::{
            backendtlspolicies::BackendTlsPolicy, gatewayclasses::GatewayClass, gateways::Gateway,
            grpcroutes::GrpcRoute, httproutes::HttpRoute, listenersets::ListenerSet,
            referencegrants::ReferenceGrantSpec, tcproutes::TcpRoute, tlsroutes::TlsRoute,
            udproutes::UdpRoute,
        },
        tailnets::TailscaleTailnet,
        upstream::{backend::TailscaleBackend, egress::TailscaleEgressSet},
    },
    model::{ObjectName, Table},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{borrow::Borrow, collections::BTreeMap, fmt};

/// The kinds that tailway reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    GatewayClass,
    Gateway,
    TcpRoute,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    UdpRoute,
    ListenerSet,
    BackendTlsPolicy,
    ReferenceGrant,
    Service,
    EndpointSlice,
    Secret,
    ConfigMap,
    Namespace,
    Tailnet,
    Endpoints,
    Backend,
    EgressSet,
}

/// Kind and name of an object; the namespace of cluster-scoped ones is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub name: ObjectName,
}

/// What is read of all objects, by kind and name.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) classes: Table<GatewayClass>,
    pub(super) gateways: Table<Gateway>,
    pub(super) tcp_routes: Table<TcpRoute>,
    pub(super) http_routes: Table<HttpRoute>,
    pub(super) grpc_routes: Table<GrpcRoute>,
    pub(super) tls_routes: Table<TlsRoute>,
    pub(super) udp_routes: Table<UdpRoute>,
    pub(super) tailnets: Table<TailscaleTailnet>,
    pub(super) endpoints: Table<TailscaleEndpoints>,
    /// What is read of those.
    pub(super) readings: Table<Reading>,
    pub(super) backends: Table<TailscaleBackend>,
    pub(super) egress_sets: Table<TailscaleEgressSet>,
    pub(super) listener_sets: Table<ListenerSet>,
    /// What is read of those.
    pub(super) sets: BTreeMap<ObjectName, Set>,
    pub(super) sets_of_gateway: Relation<ObjectName>,
    pub(super) backend_tls_policies: Table<BackendTlsPolicy>,
    /// What is read of those.
    pub(super) policies: BTreeMap<ObjectName, Policy>,
    pub(super) policies_of_service: Relation<ObjectName>,
    /// Those of all kinds.
    pub(super) routes: BTreeMap<Key, Route>,
    pub(super) grants: BTreeMap<ObjectName, ReferenceGrantSpec>,
    pub(super) services: BTreeMap<ObjectName, ServicePorts>,
    pub(super) slices: BTreeMap<ObjectName, SliceEndpoints>,
    pub(super) slices_of_service: Relation<ObjectName>,
    pub(super) secrets: BTreeMap<ObjectName, TlsSecret>,
    pub(super) config_maps: BTreeMap<ObjectName, Bundle>,
    /// Labels of the namespaces.
    pub(super) namespaces: BTreeMap<ObjectName, BTreeMap<String, String>>,
}

pub(super) type Precedence = (Option<i128>, ObjectName);

/// Age before name: the order in which objects that conflict take precedence (Gateway API,
/// "Conflicts"). An object without a time is as old as can be.
pub(super) fn precedence(metadata: &ObjectMeta, name: &ObjectName) -> Precedence {
    let created = metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_nanosecond());
    (created, name.clone())
}

pub(super) fn generation(metadata: &ObjectMeta) -> i64 {
    metadata.generation.unwrap_or(0)
}

// === impl Kind ===

impl Kind {
    /// As manifests spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::TcpRoute => "TCPRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::UdpRoute => "UDPRoute",
            Self::ListenerSet => "ListenerSet",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Namespace => "Namespace",
            Self::Tailnet => "TailscaleTailnet",
            Self::Endpoints => "TailscaleEndpoints",
            Self::Backend => "TailscaleBackend",
            Self::EgressSet => "TailscaleEgressSet",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Key ===

impl Key {
    pub fn of(object: &Object) -> Self {
        let (kind, metadata, namespaced) = match object {
            Object::GatewayClass(o) => (Kind::GatewayClass, &o.metadata, false),
            Object::Gateway(o) => (Kind::Gateway, &o.metadata, true),
            Object::TcpRoute(o) => (Kind::TcpRoute, &o.metadata, true),
            Object::HttpRoute(o) => (Kind::HttpRoute, &o.metadata, true),
            Object::GrpcRoute(o) => (Kind::GrpcRoute, &o.metadata, true),
            Object::TlsRoute(o) => (Kind::TlsRoute, &o.metadata, true),
            Object::UdpRoute(o) => (Kind::UdpRoute, &o.metadata, true),
            Object::ListenerSet(o) => (Kind::ListenerSet, &o.metadata, true),
            Object::BackendTlsPolicy(o) => (Kind::BackendTlsPolicy, &o.metadata, true),
            Object::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.metadata, true),
            Object::Service(o) => (Kind::Service, &o.metadata, true),
            Object::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata, true),
            Object::ConfigMap(o) => (Kind::ConfigMap, &o.metadata, true),
            Object::Secret(o) => (Kind::Secret, &o.metadata, true),
            Object::Namespace(o) => (Kind::Namespace, &o.metadata, false),
            Object::Tailnet(o) => (Kind::Tailnet, &o.metadata, false),
            Object::Endpoints(o) => (Kind::Endpoints, &o.metadata, true),
            Object::Backend(o) => (Kind::Backend, &o.metadata, true),
            Object::EgressSet(o) => (Kind::EgressSet, &o.metadata, true),
        };
        let namespace = match (&metadata.namespace, namespaced) {
            (_, false) => String::new(),
            (Some(namespace), true) => namespace.clone(),
            (None, true) => "default".into(),
        };
        Self {
            kind,
            name: ObjectName::new(namespace, metadata.name.clone().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name.name)
        } else {
            write!(f, "{} {}", self.kind, self.name)
        }
    }
}

// === impl Objects ===

impl Objects {
    /// The EndpointSlices of a Service, by name.
    pub(super) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &SliceEndpoints> {
        let names = self.slices_of_service.of(service);
        names.filter_map(|name| self.slices.get(name))
    }

    /// Labels of a namespace. The one every API server sets is there without an object too.
    pub(super) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let object = self.namespaces.get(&unscoped(namespace));
        let mut labels = object.cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
        labels
    }

    /// The keys of all objects.
    pub(super) fn keys(&self) -> Vec<Key> {
        let tables = [
            (Kind::GatewayClass, names(self.classes.keys())),
            (Kind::Gateway, names(self.gateways.keys())),
            (Kind::TcpRoute, names(self.tcp_routes.keys())),
            (Kind::HttpRoute, names(self.http_routes.keys())),
            (Kind::GrpcRoute, names(self.grpc_routes.keys())),
            (Kind::TlsRoute, names(self.tls_routes.keys())),
            (Kind::UdpRoute, names(self.udp_routes.keys())),
            (Kind::Tailnet, names(self.tailnets.keys())),
            (Kind::Endpoints, names(self.endpoints.keys())),
            (Kind::Backend, names(self.backends.keys())),
            (Kind::EgressSet, names(self.egress_sets.keys())),
            (Kind::ListenerSet, names(self.listener_sets.keys())),
            (
                Kind::BackendTlsPolicy,
                names(self.backend_tls_policies.keys()),
            ),
            (Kind::ReferenceGrant, names(self.grants.keys())),
            (Kind::Service, names(self.services.keys())),
            (Kind::EndpointSlice, names(self.slices.keys())),
            (Kind::ConfigMap, names(self.config_maps.keys())),
            (Kind::Secret, names(self.secrets.keys())),
            (Kind::Namespace, names(self.namespaces.keys())),
        ];
        let keys = |(kind, names): (Kind, Vec<ObjectName>)| {
            names.into_iter().map(move |name| Key { kind, name })
        };
        tables.into_iter().flat_map(keys).collect()
    }
}

fn names<'a, N: Borrow<ObjectName> + 'a>(names: impl Iterator<Item = &'a N>) -> Vec<ObjectName> {
    names.map(|name| name.borrow().clone()).collect()
}
