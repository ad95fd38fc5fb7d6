use super::certificates::TlsSecret;
use crate::{
    api::{
        Object,
        gateway_api::{
            gatewayclasses::GatewayClass, gateways::Gateway, referencegrants::ReferenceGrant,
            tcproutes::TcpRoute,
        },
        tailnets::TailscaleTailnet,
    },
    model::ObjectName,
};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    sync::Arc,
};

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kinds that tailway reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    GatewayClass,
    Gateway,
    TcpRoute,
    ReferenceGrant,
    Service,
    EndpointSlice,
    Secret,
    Namespace,
    Tailnet,
}

/// Kind and name of an object; the namespace of cluster-scoped ones is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub name: ObjectName,
}

/// All objects, by kind and name.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) classes: BTreeMap<ObjectName, Arc<GatewayClass>>,
    pub(super) gateways: BTreeMap<ObjectName, Arc<Gateway>>,
    pub(super) tcp_routes: BTreeMap<ObjectName, Arc<TcpRoute>>,
    pub(super) grants: BTreeMap<ObjectName, ReferenceGrant>,
    pub(super) services: BTreeMap<ObjectName, Service>,
    endpoint_slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Names of the EndpointSlices of each Service.
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    pub(super) secrets: BTreeMap<ObjectName, TlsSecret>,
    pub(super) namespaces: BTreeMap<ObjectName, Namespace>,
    pub(super) tailnets: BTreeMap<ObjectName, Arc<TailscaleTailnet>>,
}

/// Age before name: the order in which objects that conflict take precedence (Gateway API,
/// "Conflicts"). An object without a time is as old as can be.
pub(super) fn precedence(metadata: &ObjectMeta, name: &ObjectName) -> (Option<i128>, ObjectName) {
    let created = metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_nanosecond());
    (created, name.clone())
}

pub(super) fn generation(metadata: &ObjectMeta) -> i64 {
    metadata.generation.unwrap_or(0)
}

fn service_of(name: &ObjectName, slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectName::new(&name.namespace, service))
}

// === impl Kind ===

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::Namespace => "Namespace",
            Self::Tailnet => "TailscaleTailnet",
        })
    }
}

// === impl Key ===

impl Key {
    pub fn of(object: &Object) -> Self {
        let (kind, metadata, namespaced) = match object {
            Object::GatewayClass(o) => (Kind::GatewayClass, &o.metadata, false),
            Object::Gateway(o) => (Kind::Gateway, &o.metadata, true),
            Object::TcpRoute(o) => (Kind::TcpRoute, &o.metadata, true),
            Object::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.metadata, true),
            Object::Service(o) => (Kind::Service, &o.metadata, true),
            Object::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata, true),
            Object::Secret(o) => (Kind::Secret, &o.metadata, true),
            Object::Namespace(o) => (Kind::Namespace, &o.metadata, false),
            Object::Tailnet(o) => (Kind::Tailnet, &o.metadata, false),
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
    pub(super) fn apply(&mut self, object: Object) {
        let name = Key::of(&object).name;
        match object {
            Object::GatewayClass(o) => drop(self.classes.insert(name, Arc::from(o))),
            Object::Gateway(o) => drop(self.gateways.insert(name, Arc::from(o))),
            Object::TcpRoute(o) => drop(self.tcp_routes.insert(name, Arc::from(o))),
            Object::ReferenceGrant(o) => drop(self.grants.insert(name, *o)),
            Object::Service(o) => drop(self.services.insert(name, *o)),
            Object::EndpointSlice(o) => self.apply_slice(name, *o),
            Object::Secret(o) => drop(self.secrets.insert(name, TlsSecret::of(&o))),
            Object::Namespace(o) => drop(self.namespaces.insert(name, *o)),
            Object::Tailnet(o) => drop(self.tailnets.insert(name, Arc::from(o))),
        }
    }

    pub(super) fn delete(&mut self, key: &Key) {
        let name = &key.name;
        match key.kind {
            Kind::GatewayClass => drop(self.classes.remove(name)),
            Kind::Gateway => drop(self.gateways.remove(name)),
            Kind::TcpRoute => drop(self.tcp_routes.remove(name)),
            Kind::ReferenceGrant => drop(self.grants.remove(name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::EndpointSlice => self.delete_slice(name),
            Kind::Secret => drop(self.secrets.remove(name)),
            Kind::Namespace => drop(self.namespaces.remove(name)),
            Kind::Tailnet => drop(self.tailnets.remove(name)),
        }
    }

    /// The EndpointSlices of a Service, by name.
    pub(super) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.endpoint_slices.get(name))
    }

    fn apply_slice(&mut self, name: ObjectName, slice: EndpointSlice) {
        self.delete_slice(&name);
        if let Some(service) = service_of(&name, &slice) {
            self.slices_of
                .entry(service)
                .or_default()
                .insert(name.clone());
        }
        self.endpoint_slices.insert(name, slice);
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(slice) = self.endpoint_slices.remove(name) else {
            return;
        };
        if let Some(service) = service_of(name, &slice)
            && let Entry::Occupied(mut slices) = self.slices_of.entry(service)
        {
            slices.get_mut().remove(name);
            if slices.get().is_empty() {
                slices.remove();
            }
        }
    }

    /// Labels of a namespace. The one every API server sets is there without an object too.
    pub(super) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let object = self.namespaces.get(&ObjectName::new("", namespace));
        let mut labels = object
            .and_then(|o| o.metadata.labels.clone())
            .unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
        labels
    }
}
