//! `metadata.generation` of objects that come from files.

use crate::{api::Object, index::Key};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::collections::BTreeMap;

/// Counts how often the spec of each object changed, as an API server does: what a status was
/// observed of can be told then.
#[derive(Debug, Default)]
pub(super) struct Generations(BTreeMap<Key, (i64, Value)>);

impl Generations {
    /// Gives every object of a kind with generations its own, unless the file gave one. The first
    /// is 1.
    pub(super) fn stamp(&mut self, objects: &mut [Object]) {
        let mut known = std::mem::take(&mut self.0);
        for object in objects {
            let key = Key::of(object);
            let Some((spec, metadata)) = spec_and_metadata(object) else {
                continue;
            };
            let generation = match known.remove(&key) {
                Some((generation, before)) if before == spec => generation,
                Some((generation, _)) => generation + 1,
                None => 1,
            };
            metadata.generation.get_or_insert(generation);
            self.0.insert(key, (generation, spec));
        }
    }
}

fn spec_and_metadata(object: &mut Object) -> Option<(Value, &mut ObjectMeta)> {
    let (spec, metadata) = match object {
        Object::GatewayClass(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::Gateway(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::HttpRoute(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::GrpcRoute(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::TlsRoute(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::UdpRoute(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::TcpRoute(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::ListenerSet(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::BackendTlsPolicy(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::ReferenceGrant(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::Tailnet(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::Endpoints(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::Backend(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::EgressSet(o) => (serde_json::to_value(&o.spec), &mut o.metadata),
        Object::Service(_)
        | Object::EndpointSlice(_)
        | Object::Secret(_)
        | Object::ConfigMap(_)
        | Object::Namespace(_) => return None,
    };
    Some((spec.ok()?, metadata))
}
