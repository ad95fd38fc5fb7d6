//! ConfigMaps and caCertificateRefs to certificates of authorities.

use super::{Kind, grants::Reference, objects::Objects, status::Finding};
use crate::{
    api::conditions as c,
    model::{Authorities, ObjectName},
};
use k8s_openapi::api::core::v1::ConfigMap;

/// The one key of a ConfigMap that is read (Gateway API `caCertificateRefs`).
const KEY: &str = "ca.crt";

/// What is known of a ConfigMap: the authorities that it holds, or why there are none. It is parsed
/// once, when the ConfigMap comes, and nothing else of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bundle(Option<Result<Authorities, String>>);

/// A reference to certificates of authorities, wherever it stands.
pub(super) struct AuthorityRef<'a> {
    pub(super) group: &'a str,
    pub(super) kind: &'a str,
    pub(super) name: ObjectName,
}

/// What became of the references to authorities.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolution {
    /// Those of all references that could be resolved.
    pub(super) authorities: Authorities,
    pub(super) unresolved: Vec<Finding>,
}

impl Objects {
    /// The authorities that references mean. `from`: kind and namespace of the object that they
    /// are in. `unknown_kind`: the reason of one that is no ConfigMap.
    pub(super) fn authorities<'a>(
        &self,
        from: (Kind, &str),
        references: impl IntoIterator<Item = AuthorityRef<'a>>,
        unknown_kind: &'static str,
    ) -> Resolution {
        let mut resolution = Resolution::default();
        for reference in references {
            match self.authority(from, &reference, unknown_kind) {
                Ok(authorities) => {
                    let known = std::mem::take(&mut resolution.authorities);
                    resolution.authorities = known.and(authorities);
                }
                Err(finding) => resolution.unresolved.push(finding),
            }
        }
        resolution
    }

    fn authority(
        &self,
        (from_kind, from_namespace): (Kind, &str),
        reference: &AuthorityRef<'_>,
        unknown_kind: &'static str,
    ) -> Result<Authorities, Finding> {
        let AuthorityRef { group, kind, name } = reference;
        if !group.is_empty() || *kind != "ConfigMap" {
            let kind = super::qualified(kind, group);
            let message = format!(
                "caCertificateRef {} is a {kind}: only a ConfigMap can be one",
                name.name
            );
            return Err(Finding::new(unknown_kind, message));
        }
        let permitted = self.permits(&Reference {
            from_kind: from_kind.as_str(),
            from_namespace,
            to_group: "",
            to_kind: "ConfigMap",
            to: name,
        });
        if !permitted {
            let message = format!(
                "ConfigMap {name} is in another namespace, where no ReferenceGrant allows {from_kind}s of namespace {from_namespace} to use it"
            );
            return Err(Finding::new(c::REF_NOT_PERMITTED, message));
        }
        let invalid = |message| Err(Finding::new(c::INVALID_CA_CERTIFICATE_REF, message));
        match self.config_maps.get(name) {
            None => invalid(format!("there is no ConfigMap {name}")),
            Some(Bundle(None)) => invalid(format!("ConfigMap {name} has no {KEY}")),
            Some(Bundle(Some(Err(problem)))) => invalid(format!(
                "{KEY} of ConfigMap {name} cannot be used: {problem}"
            )),
            Some(Bundle(Some(Ok(authorities)))) => Ok(authorities.clone()),
        }
    }
}

// === impl Bundle ===

impl Bundle {
    pub(super) fn of(map: &ConfigMap) -> Self {
        let text = map.data.as_ref().and_then(|data| data.get(KEY));
        let bytes = map.binary_data.as_ref().and_then(|data| data.get(KEY));
        let text = text.map(String::as_bytes);
        let text = text.or_else(|| bytes.map(|bytes| bytes.0.as_slice()));
        let read = |text| Authorities::from_pem(text).map_err(|error| error.to_string());
        Self(text.map(read))
    }
}
