//! TLS to backends, and what clients are asked for.

use super::{PORT, Violations, is_subdomain};
use crate::{
    api::gateway_api::{
        backendtlspolicies::{
            BackendTlsPolicy, BackendTlsPolicyTargetRefs,
            BackendTlsPolicyValidationSubjectAltNames as SubjectAltName,
            BackendTlsPolicyValidationSubjectAltNamesType as SubjectAltNameType,
        },
        gateways::{Gateway, GatewayTlsFrontend},
    },
    model::HostnamePattern,
};
use std::collections::BTreeSet;

pub(super) fn backend_tls_policy(found: &mut Violations, policy: &BackendTlsPolicy) {
    let targets = &policy.spec.target_refs;
    found.count(targets.len(), 1..=16, "spec.targetRefs");
    for (index, target) in targets.iter().enumerate() {
        let path = format!("spec.targetRefs[{index}]");
        found.not_empty(&target.kind, format!("{path}.kind"));
        found.not_empty(&target.name, format!("{path}.name"));
        found.check(
            targets[..index].iter().all(|other| distinct(other, target)),
            path,
            "means the same as another: tell them apart by sectionName in both",
        );
    }
    let validation = &policy.spec.validation;
    let hostname = &validation.hostname;
    found.check(
        is_subdomain(hostname),
        "spec.validation.hostname",
        format!("{hostname:?} is no DNS name in lower case"),
    );
    let references = validation.ca_certificate_refs.as_ref().map_or(0, Vec::len);
    found.count(references, 0..=8, "spec.validation.caCertificateRefs");
    let well_known = validation.well_known_ca_certificates.as_deref();
    let well_known = well_known.unwrap_or_default();
    found.check(
        (references > 0) == well_known.is_empty(),
        "spec.validation",
        "needs either caCertificateRefs or wellKnownCACertificates",
    );
    found.check(
        well_known.is_empty() || well_known == "System" || well_known.contains('/'),
        "spec.validation.wellKnownCACertificates",
        format!("{well_known:?} is neither \"System\" nor a name with a domain before a \"/\""),
    );
    let names = validation.subject_alt_names.as_deref().unwrap_or_default();
    found.count(names.len(), 0..=5, "spec.validation.subjectAltNames");
    for (index, name) in names.iter().enumerate() {
        let path = format!("spec.validation.subjectAltNames[{index}]");
        subject_alt_name(found, name, &path);
    }
    let options = policy
        .spec
        .options
        .as_ref()
        .map_or(0, |options| options.len());
    found.count(options, 0..=16, "spec.options");
}

/// Whether two targets can both stand (Gateway API, `targetRefs`).
fn distinct(one: &BackendTlsPolicyTargetRefs, other: &BackendTlsPolicyTargetRefs) -> bool {
    let section = |target: &BackendTlsPolicyTargetRefs| {
        let section = target.section_name.clone();
        section.filter(|section| !section.is_empty())
    };
    let (one_section, other_section) = (section(one), section(other));
    (&one.group, &one.kind, &one.name) != (&other.group, &other.kind, &other.name)
        || (one_section.is_some() && other_section.is_some() && one_section != other_section)
}

fn subject_alt_name(found: &mut Violations, name: &SubjectAltName, path: &str) {
    let hostname = name.hostname.as_deref().unwrap_or_default();
    let uri = name.uri.as_deref().unwrap_or_default();
    let (own, other, field) = match name.r#type {
        SubjectAltNameType::Hostname => (hostname, uri, "hostname"),
        SubjectAltNameType::Uri => (uri, hostname, "uri"),
    };
    found.check(
        !own.is_empty() && other.is_empty(),
        path,
        format!("needs {field}, and nothing else beside its type"),
    );
    found.check(
        hostname.is_empty()
            || HostnamePattern::parse(hostname).is_ok_and(|name| name.to_string() == hostname),
        format!("{path}.hostname"),
        format!("{hostname:?} is no DNS name in lower case, with or without a leading \"*.\""),
    );
    let has_scheme = uri.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && !rest.is_empty()
    });
    found.check(
        uri.is_empty() || has_scheme,
        format!("{path}.uri"),
        format!("{uri:?} is no URI with a scheme"),
    );
}

/// `spec.tls` of a Gateway.
pub(super) fn gateway(found: &mut Violations, gateway: &Gateway) {
    let tls = gateway.spec.tls.as_ref();
    if let Some(frontend) = tls.and_then(|tls| tls.frontend.as_ref()) {
        clients(found, frontend);
    }
}

fn clients(found: &mut Violations, frontend: &GatewayTlsFrontend) {
    if let Some(validation) = &frontend.default.validation {
        let path = "spec.tls.frontend.default.validation.caCertificateRefs";
        found.count(validation.ca_certificate_refs.len(), 1..=16, path);
    }
    let own = frontend.per_port.as_deref().unwrap_or_default();
    found.count(own.len(), 0..=64, "spec.tls.frontend.perPort");
    let mut ports = BTreeSet::new();
    for (index, own) in own.iter().enumerate() {
        let path = format!("spec.tls.frontend.perPort[{index}]");
        found.port(own.port, format!("{path}.port"));
        found.check(
            ports.insert(own.port) || !PORT.contains(&own.port),
            format!("{path}.port"),
            format!("port {} is there twice", own.port),
        );
        if let Some(validation) = &own.tls.validation {
            let path = format!("{path}.tls.validation.caCertificateRefs");
            found.count(validation.ca_certificate_refs.len(), 1..=16, &path);
        }
    }
}
