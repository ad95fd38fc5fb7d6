//! The objects that services come from, as Envoy Gateway or a source gives them.

use super::refusal::Refusal;
use crate::{
    api::{
        GATEWAY_GROUP, TAILWAY_GROUP,
        upstream::{
            Upstream,
            egress::{GatewayRef, RoutedService, TailscaleEgressSetSpec},
        },
    },
    model::ObjectName,
};
use serde::Deserialize;
use serde_json::Value;

/// A TailscaleEgressSet.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressSet {
    pub name: ObjectName,
    /// Whom it is for.
    pub gateway: ObjectName,
    pub revision: String,
    pub resync: i64,
    pub services: Vec<RoutedService>,
    /// Services that cannot be read.
    pub skipped: Vec<Skipped>,
}

/// A service that is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub service: String,
    /// `namespace/name` of its TailscaleEndpoints.
    pub source: String,
    pub refusal: Refusal,
}

/// An object that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("an object of Envoy Gateway is no JSON of Kubernetes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("TailscaleEgressSet {0} names no Gateway in spec.targetRefs")]
    NoGateway(ObjectName),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
}

/// The spec of a set whose services are read one by one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    target_refs: Vec<GatewayRef>,
    #[serde(default)]
    revision: String,
    #[serde(default)]
    resync: i64,
    #[serde(default)]
    services: Vec<Value>,
}

impl EgressSet {
    /// The set that a policy is; `None` when it is of another kind.
    ///
    /// # Errors
    /// When it is one and cannot be read.
    pub fn from_json(json: &[u8]) -> Result<Option<Self>, SetError> {
        let Some((name, spec)) = ours(json, "TailscaleEgressSet")? else {
            return Ok(None);
        };
        Self::from_spec(name, spec).map(Some)
    }

    /// Reads the services one by one: what cannot be read keeps out nothing else.
    ///
    /// # Errors
    /// When it is no spec of a set, or names no Gateway.
    pub fn from_spec(name: ObjectName, spec: Value) -> Result<Self, SetError> {
        let spec: Spec = serde_json::from_value(spec)?;
        let (mut services, mut skipped) = (Vec::new(), Vec::new());
        for service in spec.services {
            let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
            let (name, source) = (text("name"), text("source"));
            match serde_json::from_value(service) {
                Ok(service) => services.push(service),
                Err(error) => skipped.push(Skipped {
                    service: name,
                    source,
                    refusal: Refusal::Unreadable(error.to_string()),
                }),
            }
        }
        let spec = TailscaleEgressSetSpec {
            target_refs: spec.target_refs,
            revision: spec.revision,
            resync: spec.resync,
            services,
        };
        let set = Self::new(name, spec)?;
        Ok(Self { skipped, ..set })
    }

    /// # Errors
    /// When it names no Gateway.
    pub fn new(name: ObjectName, spec: TailscaleEgressSetSpec) -> Result<Self, SetError> {
        let target = spec
            .target_refs
            .into_iter()
            .find(|target| target.group == GATEWAY_GROUP && target.kind == "Gateway");
        let Some(target) = target else {
            return Err(SetError::NoGateway(name));
        };
        Ok(Self {
            gateway: ObjectName::new(&name.namespace, target.name),
            name,
            revision: spec.revision,
            resync: spec.resync,
            services: spec.services,
            skipped: Vec::new(),
        })
    }
}

/// The upstream of a TailscaleBackend; `None` when it is something else.
///
/// # Errors
/// When it is one and cannot be read.
pub(super) fn backend(json: &[u8]) -> Result<Option<(ObjectName, Upstream)>, SetError> {
    let Some((name, mut spec)) = ours(json, "TailscaleBackend")? else {
        return Ok(None);
    };
    let upstream = serde_json::from_value(spec["upstream"].take())?;
    Ok(Some((name, upstream)))
}

fn ours(json: &[u8], kind: &str) -> Result<Option<(ObjectName, Value)>, SetError> {
    let manifest: Manifest = serde_json::from_slice(json)?;
    let group = manifest.api_version.split('/').next().unwrap_or_default();
    if group != TAILWAY_GROUP || manifest.kind != kind {
        return Ok(None);
    }
    let Metadata { namespace, name } = manifest.metadata;
    Ok(Some((ObjectName { namespace, name }, manifest.spec)))
}
