//! BackendTLSPolicies: which of them is for a port of a Service, and what it says.

use super::{
    Kind,
    authorities::AuthorityRef,
    objects::{Objects, Precedence, generation, precedence},
    status::{AncestorStatus, Condition, Finding, ParentRef, PolicyStatus},
};
use crate::{
    api::{
        CONTROLLER, GATEWAY_GROUP, OPTION_PREFIX, conditions as c,
        gateway_api::backendtlspolicies::{
            BackendTlsPolicy, BackendTlsPolicySpec,
            BackendTlsPolicyValidationSubjectAltNames as SubjectAltName,
            BackendTlsPolicyValidationSubjectAltNamesType as SubjectAltNameType,
        },
    },
    model::{Authorities, BackendTls, HostnamePattern, ObjectName, SubjectName, Trust},
};

/// What is read of a BackendTLSPolicy.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    precedence: Precedence,
    generation: i64,
    spec: BackendTlsPolicySpec,
}

/// A Service, and the name of the port that is meant; `None`: all ports.
pub(super) type Target<'a> = (ObjectName, Option<&'a str>);

/// What a policy says, as far as it can be followed.
struct Reading {
    tls: BackendTls,
    refused: Option<Finding>,
    unresolved: Option<Finding>,
}

/// Entries that `status.ancestors` can have (Gateway API `PolicyStatus`).
const ANCESTORS: usize = 16;

impl Objects {
    /// How a port of a Service is to be spoken to, when it is to be TLS. What is wrong with the
    /// policy does not let anything go in plain: then no certificate is believed.
    pub(super) fn backend_tls(&self, service: &ObjectName, port: &str) -> Option<BackendTls> {
        let of_port = self.policy_of(service, Some(port));
        let (name, policy) = of_port.or_else(|| self.policy_of(service, None))?;
        Some(policy.read(name, self).tls)
    }

    /// The policy that takes precedence of those with the same target: the oldest, then by name.
    fn policy_of(
        &self,
        service: &ObjectName,
        port: Option<&str>,
    ) -> Option<(&ObjectName, &Policy)> {
        let names = self.policies_of_service.of(service);
        let policies = names.filter_map(|name| self.policies.get_key_value(name));
        let of_target = policies.filter(|(name, policy)| {
            let mut targets = policy.targets(name);
            targets.any(|(target, section)| target == *service && section == port)
        });
        of_target.min_by_key(|(_, policy)| &policy.precedence)
    }
}

// === impl Policy ===

impl Policy {
    pub(super) fn of(name: &ObjectName, policy: &BackendTlsPolicy) -> Self {
        Self {
            precedence: precedence(&policy.metadata, name),
            generation: generation(&policy.metadata),
            spec: policy.spec.clone(),
        }
    }

    /// The Services that it is for. Other kinds are for other implementations.
    pub(super) fn targets<'a>(&'a self, name: &'a ObjectName) -> impl Iterator<Item = Target<'a>> {
        let targets = self.spec.target_refs.iter();
        let services = targets.filter(|target| target.group.is_empty() && target.kind == "Service");
        services.map(|target| {
            let section = target.section_name.as_deref();
            (
                ObjectName::new(&name.namespace, &target.name),
                section.filter(|section| !section.is_empty()),
            )
        })
    }

    /// The ConfigMaps that it refers to.
    pub(super) fn config_maps(&self, name: &ObjectName) -> Vec<ObjectName> {
        let references = self.spec.validation.ca_certificate_refs.iter().flatten();
        references
            .map(|reference| ObjectName::new(&name.namespace, &reference.name))
            .collect()
    }

    fn read(&self, name: &ObjectName, objects: &Objects) -> Reading {
        let (trust, unresolved, no_authority) = self.trust(name, objects);
        let refused = self.subject().and_then(|subject| Ok((subject, trust?)));
        let (tls, refused) = match refused {
            Ok(((hostname, names), trust)) => (tls(hostname, names, trust), no_authority),
            Err(finding) => {
                let nobody = Trust::Authorities(Authorities::default());
                let hostname = self.spec.validation.hostname.to_ascii_lowercase();
                (tls(hostname, Vec::new(), nobody), Some(finding))
            }
        };
        Reading {
            tls,
            refused,
            unresolved,
        }
    }

    /// Whose certificates are believed, what could not be resolved, and whether that leaves nobody.
    fn trust(
        &self,
        name: &ObjectName,
        objects: &Objects,
    ) -> (Result<Trust, Finding>, Option<Finding>, Option<Finding>) {
        let validation = &self.spec.validation;
        let references = validation.ca_certificate_refs.iter().flatten();
        let references: Vec<_> = references
            .map(|reference| AuthorityRef {
                group: &reference.group,
                kind: &reference.kind,
                name: ObjectName::new(&name.namespace, &reference.name),
            })
            .collect();
        let well_known = validation.well_known_ca_certificates.as_deref();
        match (
            well_known.filter(|name| !name.is_empty()),
            references.is_empty(),
        ) {
            (Some("System"), true) => return (Ok(Trust::System), None, None),
            (Some(other), true) => {
                let message = format!(
                    "wellKnownCACertificates is {other:?}: the one value that is supported is \"System\""
                );
                return (Err(invalid(message)), None, None);
            }
            (Some(_), false) => {
                let message = "has both caCertificateRefs and wellKnownCACertificates: leave one";
                return (Err(invalid(message)), None, None);
            }
            (None, true) => {
                let message = "needs caCertificateRefs or wellKnownCACertificates";
                return (Err(invalid(message)), None, None);
            }
            (None, false) => {}
        }
        let from = (Kind::BackendTlsPolicy, name.namespace.as_str());
        let resolution = objects.authorities(from, references, c::INVALID_KIND);
        let unresolved = Finding::join(resolution.unresolved);
        let nobody = unresolved
            .as_ref()
            .filter(|_| resolution.authorities.is_empty())
            .map(|finding| Finding::new(c::NO_VALID_CA_CERTIFICATE, finding.message.clone()));
        let trust = Trust::Authorities(resolution.authorities);
        (Ok(trust), unresolved, nobody)
    }

    /// The hostname that is asked for, and the names that are believed.
    fn subject(&self) -> Result<(String, Vec<SubjectName>), Finding> {
        let own = self.spec.options.iter().flatten();
        let mut own = own.filter(|(key, _)| key.starts_with(OPTION_PREFIX));
        if let Some((key, _)) = own.next() {
            return Err(invalid(format!("options has no {key}")));
        }
        let validation = &self.spec.validation;
        let hostname = match HostnamePattern::parse(&validation.hostname) {
            Ok(HostnamePattern::Exact(hostname)) => hostname,
            _ => {
                let message = format!("hostname {:?} is no DNS name", validation.hostname);
                return Err(invalid(message));
            }
        };
        let names = validation.subject_alt_names.iter().flatten();
        let names = names.map(subject_name).collect::<Result<_, _>>()?;
        Ok((hostname, names))
    }

    /// Its status, with these Gateways as ancestors.
    pub(super) fn status<'a>(
        &self,
        name: &ObjectName,
        objects: &Objects,
        gateways: impl IntoIterator<Item = &'a ObjectName>,
    ) -> PolicyStatus {
        let reading = self.read(name, objects);
        let refused = self.conflict(name, objects).or(reading.refused);
        let conditions = [
            Condition::of(c::ACCEPTED, refused, self.generation),
            Condition::of(c::RESOLVED_REFS, reading.unresolved, self.generation),
        ];
        let ancestor = |gateway: &ObjectName| AncestorStatus {
            ancestor_ref: ParentRef {
                group: Some(GATEWAY_GROUP.into()),
                kind: Some(Kind::Gateway.as_str().into()),
                namespace: Some(gateway.namespace.clone()),
                name: gateway.name.clone(),
                section_name: None,
                port: None,
            },
            controller_name: CONTROLLER,
            conditions: conditions.to_vec(),
        };
        let gateways = gateways.into_iter().take(ANCESTORS);
        PolicyStatus {
            name: name.clone(),
            ancestors: gateways.map(ancestor).collect(),
        }
    }

    /// The policies that are followed instead of this one, when that is so for all its targets.
    fn conflict(&self, name: &ObjectName, objects: &Objects) -> Option<Finding> {
        let targets = self.targets(name).map(|(service, section)| {
            let (first, _) = objects.policy_of(&service, section)?;
            (first != name).then(|| {
                format!(
                    "Service {service} is also the target of BackendTLSPolicy {first}, which comes first by age, then name"
                )
            })
        });
        let lost: Option<Vec<_>> = targets.collect();
        let lost = lost.filter(|lost| !lost.is_empty())?;
        Some(Finding::new(c::CONFLICTED, lost.join("; ")))
    }

    /// The Services that it is for and that are not there.
    pub(super) fn missing(&self, name: &ObjectName, objects: &Objects) -> Vec<String> {
        let services = self.targets(name).map(|(service, _)| service);
        let missing = services.filter(|service| !objects.services.contains_key(service));
        let mut missing: Vec<_> = missing
            .map(|service| format!("targetRef: there is no Service {service}"))
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

fn tls(hostname: String, names: Vec<SubjectName>, trust: Trust) -> BackendTls {
    BackendTls {
        hostname,
        trust,
        names,
        certificate: None,
    }
}

fn invalid(message: impl Into<String>) -> Finding {
    Finding::new(c::INVALID, message)
}

fn subject_name(name: &SubjectAltName) -> Result<SubjectName, Finding> {
    match (&name.r#type, &name.hostname, &name.uri) {
        (SubjectAltNameType::Hostname, Some(hostname), _) => {
            match HostnamePattern::parse(hostname) {
                Ok(hostname) => Ok(SubjectName::Dns(hostname.to_string())),
                Err(error) => Err(invalid(format!("subjectAltNames: {error}"))),
            }
        }
        (SubjectAltNameType::Uri, _, Some(uri)) if !uri.is_empty() => {
            Ok(SubjectName::Uri(uri.clone()))
        }
        (SubjectAltNameType::Hostname, None, _) => {
            Err(invalid("subjectAltNames has a Hostname without hostname"))
        }
        (SubjectAltNameType::Uri, ..) => Err(invalid("subjectAltNames has a URI without uri")),
    }
}
