//! Secrets and certificateRefs to certificates.

use super::{grants::Reference, objects::Objects, status::Finding};
use crate::{
    api::{
        conditions as c,
        gateway_api::gateways::GatewayListenersTlsCertificateRefs as CertificateRef,
    },
    model::{Certificate, HostnamePattern, NodeName, ObjectName},
};
use k8s_openapi::api::core::v1::Secret;

/// Type of a Secret with a certificate; others cannot be referred to.
const TLS_SECRET: &str = "kubernetes.io/tls";

/// What is known of a Secret: the certificate that it holds, or why it can be none. It is parsed
/// once, when the Secret comes, and nothing else of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsSecret(Result<Certificate, String>);

/// The node that a Gateway asks to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedNode {
    pub(super) name: NodeName,
    /// The name with the tailnet's domain, when the Gateway gives it.
    pub(super) full: Option<String>,
}

impl Objects {
    /// The certificate that a reference of a Gateway means.
    pub(super) fn certificate(
        &self,
        gateway: &ObjectName,
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
        let namespace = reference.namespace.as_ref().unwrap_or(&gateway.namespace);
        let name = ObjectName::new(namespace, &reference.name);
        let permitted = self.permits(&Reference {
            from_kind: "Gateway",
            from_namespace: &gateway.namespace,
            to_kind: "Secret",
            to: &name,
        });
        if !permitted {
            return Err(Finding::new(
                c::REF_NOT_PERMITTED,
                format!(
                    "Secret {name} is in another namespace, where no ReferenceGrant allows Gateways of namespace {} to use it",
                    gateway.namespace
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

// === impl WantedNode ===

impl WantedNode {
    /// Whether a client could mean this node with a name of the pattern. Its full name may be
    /// known only when it has joined; until then its first label decides.
    pub(super) fn may_be(&self, hostname: Option<&HostnamePattern>) -> bool {
        match (hostname, &self.full) {
            (None, _) | (Some(HostnamePattern::Wildcard(_)), None) => true,
            (Some(pattern), Some(full)) => pattern.matches(full),
            (Some(HostnamePattern::Exact(name)), None) => name
                .split_once('.')
                .is_some_and(|(label, _)| label == self.name.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(full: Option<&str>) -> WantedNode {
        WantedNode {
            name: NodeName::parse("web").unwrap(),
            full: full.map(str::to_owned),
        }
    }

    fn pattern(text: &str) -> HostnamePattern {
        HostnamePattern::parse(text).unwrap()
    }

    #[test]
    fn a_hostname_is_the_nodes_by_its_full_name_or_else_by_its_first_label() {
        let named = node(Some("web.tail.ts.net"));
        for (text, short, full) in [
            ("web.tail.ts.net", true, true),
            ("web.other.ts.net", true, false),
            ("*.tail.ts.net", true, true),
            ("*.example.com", true, false),
            ("app.example.com", false, false),
            ("web", false, false),
        ] {
            assert_eq!(node(None).may_be(Some(&pattern(text))), short, "{text}");
            assert_eq!(named.may_be(Some(&pattern(text))), full, "{text}");
        }
        assert!(named.may_be(None));
    }
}
