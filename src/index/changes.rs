//! Changes of objects: what depends on each is marked to be worked out anew.

use super::{
    Index, Key, Kind, Verdict,
    annotations::http_options,
    authorities::Bundle,
    certificates::TlsSecret,
    egress,
    endpoints::config_maps,
    envoy::{egress_wishes, has_egress_label},
    links::{Stage, unscoped},
    routes::Route,
    services::{ServicePorts, SliceEndpoints},
};
use crate::{
    api::{
        Object,
        endpoints::TailscaleEndpoints,
        gateway_api::{
            gatewayclasses::GatewayClass, gateways::Gateway, referencegrants::ReferenceGrantSpec,
        },
        tailnets::TailscaleTailnet,
    },
    model::{NodeReport, ObjectName},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

impl Index {
    /// Adds an object, or replaces the one of its kind and name.
    pub fn apply(&mut self, object: Object) {
        let name = &Key::of(&object).name;
        match object {
            Object::GatewayClass(o) => self.set_class(name, Some(Arc::from(o))),
            Object::Gateway(o) => self.set_gateway(name, Some(Arc::from(o))),
            Object::TcpRoute(o) => {
                self.set_route(Kind::TcpRoute, name, Some(Route::of_tcp(name, &o)));
                self.objects.tcp_routes.set(name, Some(Arc::from(o)));
            }
            Object::HttpRoute(o) => {
                self.set_route(Kind::HttpRoute, name, Some(Route::of_http(name, &o)));
                self.objects.http_routes.set(name, Some(Arc::from(o)));
            }
            Object::GrpcRoute(o) => {
                self.set_route(Kind::GrpcRoute, name, Some(Route::of_grpc(name, &o)));
                self.objects.grpc_routes.set(name, Some(Arc::from(o)));
            }
            Object::TlsRoute(o) => {
                self.set_route(Kind::TlsRoute, name, Some(Route::of_tls(name, &o)));
                self.objects.tls_routes.set(name, Some(Arc::from(o)));
            }
            Object::UdpRoute(o) => {
                self.set_route(Kind::UdpRoute, name, Some(Route::of_udp(name, &o)));
                self.objects.udp_routes.set(name, Some(Arc::from(o)));
            }
            Object::ListenerSet(o) => self.set_listener_set(name, Some(Arc::from(o))),
            Object::BackendTlsPolicy(o) => self.set_policy(name, Some(Arc::from(o))),
            Object::ConfigMap(o) => self.set_config_map(name, Some(Bundle::of(&o))),
            Object::Tailnet(o) => self.set_tailnet(name, Some(Arc::from(o))),
            Object::Endpoints(o) => self.set_endpoints(name, Some(Arc::from(o))),
            Object::Backend(o) => drop(self.objects.backends.set(name, Some(Arc::from(o)))),
            Object::EgressSet(o) => drop(self.objects.egress_sets.set(name, Some(Arc::from(o)))),
            Object::ReferenceGrant(o) => self.set_grant(name, Some(o.spec)),
            Object::Service(o) => self.set_service(name, Some(ServicePorts::of(&o))),
            Object::EndpointSlice(o) => self.set_slice(name, SliceEndpoints::of(name, &o)),
            Object::Secret(o) => self.set_secret(name, Some(TlsSecret::of(&o))),
            Object::Namespace(o) => {
                self.set_namespace(name, Some(o.metadata.labels.unwrap_or_default()));
            }
        }
    }

    pub fn delete(&mut self, key: &Key) {
        let name = &key.name;
        match key.kind {
            Kind::GatewayClass => self.set_class(name, None),
            Kind::Gateway => self.set_gateway(name, None),
            Kind::TcpRoute
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::UdpRoute => self.delete_route(key),
            Kind::ListenerSet => self.set_listener_set(name, None),
            Kind::BackendTlsPolicy => self.set_policy(name, None),
            Kind::ConfigMap => self.set_config_map(name, None),
            Kind::Tailnet => self.set_tailnet(name, None),
            Kind::Endpoints => self.set_endpoints(name, None),
            Kind::Backend => drop(self.objects.backends.set(name, None)),
            Kind::EgressSet => drop(self.objects.egress_sets.set(name, None)),
            Kind::ReferenceGrant => self.set_grant(name, None),
            Kind::Service => self.set_service(name, None),
            Kind::EndpointSlice => self.set_slice(name, None),
            Kind::Secret => self.set_secret(name, None),
            Kind::Namespace => self.set_namespace(name, None),
        }
    }

    /// Replaces all objects.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = Object>) {
        let mut gone: BTreeSet<_> = self.objects.keys().into_iter().collect();
        for object in objects {
            gone.remove(&Key::of(&object));
            self.apply(object);
        }
        gone.iter().for_each(|key| self.delete(key));
    }

    /// Takes what the node of a Gateway says of itself, or that of a pod of an egress
    /// ([`egress::replica`]).
    pub fn report(&mut self, gateway: ObjectName, report: NodeReport) {
        if let Some((object, _)) = egress::object_of(&gateway) {
            if replace(&mut self.reports, &gateway, Some(report)).is_some() {
                self.pending.endpoints.insert(object);
            }
            return;
        }
        let stage = match self.reports.get(&gateway) {
            Some(before) if *before == report => return,
            Some(_) => Stage::Result,
            // That there is a node decides on who may have its name.
            None => Stage::Listeners,
        };
        self.pending.gateway(&gateway, stage);
        self.reports.insert(gateway, report);
    }

    /// Forgets what a node said: it is gone.
    pub fn forget_report(&mut self, gateway: &ObjectName) {
        if self.reports.remove(gateway).is_none() {
            return;
        }
        match egress::object_of(gateway) {
            Some((object, _)) => drop(self.pending.endpoints.insert(object)),
            None => self.pending.gateway(gateway, Stage::Listeners),
        }
    }

    /// Takes what became of the parameters of a class.
    pub fn judge(&mut self, class: String, verdict: Verdict) {
        self.verdicts.get_or_insert_default().insert(class, verdict);
        self.pending.classes = true;
    }

    fn set_class(&mut self, name: &ObjectName, class: Option<Arc<GatewayClass>>) {
        let is_there = class.is_some();
        let old = self.objects.classes.set(name, class);
        self.pending.classes = true;
        if old.is_some() != is_there {
            self.pending.egress_routes = true;
            let gateways = self.links.gateways_of_class.of(name);
            self.pending.gateways(gateways, Stage::Listeners);
        }
    }

    fn set_gateway(&mut self, name: &ObjectName, gateway: Option<Arc<Gateway>>) {
        let old = self.objects.gateways.set(name, gateway.clone());
        let (old, new) = (old.as_deref(), gateway.as_deref());
        if is_same(old, new) {
            return;
        }
        self.links.replace_gateway(name, old, new);
        self.pending.egress_routes |= [old, new].into_iter().flatten().any(has_egress_label);
        self.pending.gateway(name, Stage::Listeners);
        if old.is_some() != new.is_some() {
            let routes = self.links.routes_of_gateway.of(name).cloned();
            self.pending.route_statuses.extend(routes);
        }
    }

    fn delete_route(&mut self, key: &Key) {
        self.set_route(key.kind, &key.name, None);
        let (objects, name) = (&mut self.objects, &key.name);
        match key.kind {
            Kind::TcpRoute => drop(objects.tcp_routes.set(name, None)),
            Kind::HttpRoute => drop(objects.http_routes.set(name, None)),
            Kind::GrpcRoute => drop(objects.grpc_routes.set(name, None)),
            Kind::TlsRoute => drop(objects.tls_routes.set(name, None)),
            Kind::UdpRoute => drop(objects.udp_routes.set(name, None)),
            _ => {}
        }
    }

    /// The one way in for routes of every kind.
    fn set_route(&mut self, kind: Kind, name: &ObjectName, route: Option<Route>) {
        let key = &Key {
            kind,
            name: name.clone(),
        };
        let new = route.clone();
        let Some(old) = replace(&mut self.objects.routes, key, route) else {
            return;
        };
        self.links.replace_route(key, old.as_ref(), new.as_ref());
        self.pending.backends.insert(key.clone());
        self.pending.route_statuses.insert(key.clone());
        for route in [old, new].iter().flatten() {
            for (_, gateway) in self.objects.gateways_of(key, route) {
                self.pending.gateway(&gateway, Stage::Routes);
            }
        }
    }

    fn set_tailnet(&mut self, name: &ObjectName, tailnet: Option<Arc<TailscaleTailnet>>) {
        self.objects.tailnets.set(name, tailnet);
        self.pending.classes = true;
    }

    fn set_endpoints(&mut self, name: &ObjectName, endpoints: Option<Arc<TailscaleEndpoints>>) {
        let references = |object: Option<&TailscaleEndpoints>| {
            let references = object.map(|object| config_maps(name, object));
            references.unwrap_or_default()
        };
        let now = references(endpoints.as_deref());
        let old = self.objects.endpoints.set(name, endpoints);
        let of_config_map = &mut self.links.endpoints_of_config_map;
        of_config_map.replace(name, references(old.as_deref()), now);
        self.read_endpoints(name);
    }

    /// Reads a TailscaleEndpoints anew: it, or what it refers to, has changed.
    pub(super) fn read_endpoints(&mut self, name: &ObjectName) {
        let reading = self.objects.read_endpoints(name);
        self.pending.egress_routes = true;
        if self.objects.readings.settle(name, reading) {
            let routes = self.links.routes_of_endpoints.of(name).cloned();
            self.pending.backends.extend(routes);
        }
        self.pending.endpoints.insert(name.clone());
    }

    fn set_grant(&mut self, name: &ObjectName, grant: Option<ReferenceGrantSpec>) {
        if replace(&mut self.objects.grants, name, grant).is_none() {
            return;
        }
        self.pending.egress_routes = true;
        let namespace = &name.namespace;
        let gateways = self.links.gateways_of_secret.of_namespace(namespace);
        self.pending.gateways(gateways, Stage::Listeners);
        let sets = self.links.sets_of_secret.of_namespace(namespace);
        self.certificates_changed(&sets.cloned().collect());
        let gateways = self.links.gateways_of_config_map.of_namespace(namespace);
        self.pending.gateways(gateways, Stage::Listeners);
        let routes = self.links.routes_of_service.of_namespace(namespace);
        self.pending.backends.extend(routes.cloned());
        let routes = self.links.routes_of_endpoints.of_namespace(namespace);
        self.pending.backends.extend(routes.cloned());
    }

    fn set_service(&mut self, name: &ObjectName, service: Option<ServicePorts>) {
        if replace(&mut self.objects.services, name, service).is_some() {
            self.endpoints_changed(name);
            self.mark_policies(name);
        }
    }

    fn set_slice(&mut self, name: &ObjectName, slice: Option<SliceEndpoints>) {
        let new = slice.as_ref().map(|slice| slice.service.clone());
        let Some(old) = replace(&mut self.objects.slices, name, slice) else {
            return;
        };
        let old = old.map(|slice| slice.service);
        let services: BTreeSet<_> = old.iter().chain(&new).cloned().collect();
        self.objects.slices_of_service.replace(name, old, new);
        for service in &services {
            self.endpoints_changed(service);
        }
    }

    pub(super) fn endpoints_changed(&mut self, service: &ObjectName) {
        let routes = self.links.routes_of_service.of(service).cloned();
        self.pending.backends.extend(routes);
    }

    fn set_secret(&mut self, name: &ObjectName, secret: Option<TlsSecret>) {
        if replace(&mut self.objects.secrets, name, secret).is_some() {
            let gateways = self.links.gateways_of_secret.of(name);
            self.pending.gateways(gateways, Stage::Listeners);
            let sets = self.links.sets_of_secret.of(name).cloned().collect();
            self.certificates_changed(&sets);
            self.pending.classes = true;
        }
    }

    fn set_namespace(&mut self, name: &ObjectName, labels: Option<BTreeMap<String, String>>) {
        if replace(&mut self.objects.namespaces, name, labels).is_none() {
            return;
        }
        self.pending.egress_routes = true;
        for key in self.links.routes_of_namespace.of(&unscoped(&name.name)) {
            let route = self.objects.routes.get(key);
            let gateways = route.map(|route| self.objects.gateways_of(key, route));
            for (_, gateway) in gateways.into_iter().flatten() {
                self.pending.gateway(&gateway, Stage::Routes);
            }
        }
        self.labels_changed(&name.name);
    }
}

/// Whether nothing changed that is read: a status says nothing new, as it is our own.
fn is_same(old: Option<&Gateway>, new: Option<&Gateway>) -> bool {
    let (Some(old), Some(new)) = (old, new) else {
        return old.is_none() && new.is_none();
    };
    let age = |metadata: &ObjectMeta| (metadata.generation, metadata.creation_timestamp.clone());
    age(&old.metadata) == age(&new.metadata)
        && old.spec == new.spec
        && egress_wishes(old) == egress_wishes(new)
        && http_options(&old.metadata) == http_options(&new.metadata)
}

/// Puts a value in the place of the one there, or removes it. Gives the one that was there when
/// that changed anything.
#[expect(clippy::option_option, reason = "nothing may have been there before")]
pub(super) fn replace<K: Ord + Clone, V: PartialEq>(
    values: &mut BTreeMap<K, V>,
    key: &K,
    value: Option<V>,
) -> Option<Option<V>> {
    if values.get(key) == value.as_ref() {
        return None;
    }
    Some(match value {
        Some(value) => values.insert(key.clone(), value),
        None => values.remove(key),
    })
}
