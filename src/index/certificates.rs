//! Secrets and certificateRefs to certificates.

use super::{Kind, grants::Reference, objects::Objects, status::Finding};
use crate::{
    api::{
        conditions as c,
        gateway_api::gateways::GatewayListenersTlsCertificateRefs as CertificateRef,
    },
    model::{Certificate, HostnamePattern, ObjectName},
};
use k8s_openapi::api::core::v1::Secret;

/// Type of a Secret with a certificate; others cannot be referred to.
const TLS_SECRET: &str = "kubernetes.io/tls";

/// What is known of a Secret: the certificate that it holds, or why it can be none. It is parsed
/// once, when the Secret comes, and nothing else of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsSecret(Result<Certificate, String>);

impl Objects {
    /// The certificate that a reference means. `from`: kind and namespace of the object that it is
    /// in.
    pub(super) fn certificate(
        &self,
        (from_kind, from_namespace): (Kind, &str),
        reference: &CertificateRef,
    ) -> Result<Certificate, Finding> {
        let invalid = |message: String| Finding::new(c::INVALID_CERTIFICATE_REF, message);
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if !group.is_empty() || kind != "Secret" {
            let kind = super::qualified(kind, group);
            return Err(invalid(format!(
                "certificateRef {} is a {kind}: only a Secret can be one",
                reference.name
            )));
        }
        let namespace = reference.namespace.as_deref().unwrap_or(from_namespace);
        let name = ObjectName::new(namespace, &reference.name);
        let permitted = self.permits(&Reference {
            from_kind: from_kind.as_str(),
            from_namespace,
            to_group: "",
            to_kind: "Secret",
            to: &name,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Secret {name} is in another namespace, where no ReferenceGrant allows {from_kind}s of namespace {from_namespace} to use it"
                ),
            ));
        }
        match self.secrets.get(&name) {
            None => Err(invalid(format!("there is no Secret {name}"))),
            Some(TlsSecret(Ok(certificate))) => Ok(certificate.clone()),
            Some(TlsSecret(Err(problem))) => Err(invalid(format!("Secret {name} {problem}"))),
        }
    }
}

/// Whether a client that asks for a name of the pattern could be given the certificate.
pub(super) fn covers(certificate: &Certificate, hostname: Option<&HostnamePattern>) -> bool {
    match hostname {
        None => true,
        Some(HostnamePattern::Exact(name)) => certificate.covers(name),
        Some(pattern @ HostnamePattern::Wildcard(suffix)) => {
            certificate
                .names()
                .iter()
                .any(|name| match name.strip_prefix("*.") {
                    None => pattern.matches(name),
                    Some(parent) => parent == suffix || pattern.matches(parent),
                })
        }
    }
}

// === impl TlsSecret ===

impl TlsSecret {
    pub(super) fn of(secret: &Secret) -> Self {
        let kind = secret.type_.as_deref().unwrap_or("Opaque");
        if kind != TLS_SECRET {
            return Self(Err(format!("is of type {kind}: set type {TLS_SECRET}")));
        }
        let value = |key| value(secret, key).ok_or_else(|| format!("has no {key}"));
        Self(value("tls.crt").and_then(|chain| {
            let key = value("tls.key")?;
            Certificate::from_pem(&chain, &key).map_err(|error| format!("cannot be used: {error}"))
        }))
    }
}

/// A value of a Secret; `stringData` goes before `data`, as when an API server merges them.
fn value(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    let text = secret.string_data.as_ref().and_then(|data| data.get(key));
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    text.map(|text| text.clone().into_bytes())
        .or_else(|| data.map(|data| data.0.clone()))
}
