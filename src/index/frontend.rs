//! What a Gateway asks of its clients: `spec.tls.frontend`.

use super::{Kind, authorities::AuthorityRef, objects::Objects, status::Finding};
use crate::{
    api::{
        conditions as c,
        gateway_api::gateways::{
            Gateway, GatewayTlsFrontendDefaultValidation as Validation,
            GatewayTlsFrontendDefaultValidationMode as Mode,
        },
    },
    model::{ClientValidation, ObjectName},
};

/// What becomes of a listener that is to validate its clients.
pub(super) struct Clients {
    /// Why nobody could be validated; then nobody is let in.
    pub(super) validation: Result<ClientValidation, Finding>,
    pub(super) unresolved: Vec<Finding>,
}

impl Objects {
    /// How the clients of a port are validated, if they are. A port of its own goes before the
    /// default, also when it asks for nothing (Gateway API `FrontendTLSConfig.perPort`).
    pub(super) fn clients(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
        port: i32,
    ) -> Option<Clients> {
        let validation = validation_of(gateway, port)?;
        let from = (Kind::Gateway, name.namespace.as_str());
        let references = references(name, &validation);
        let references = references
            .iter()
            .map(|(reference, group, kind)| AuthorityRef {
                group,
                kind,
                name: reference.clone(),
            });
        let resolution = self.authorities(from, references, c::INVALID_CA_CERTIFICATE_KIND);
        let validation = if resolution.authorities.is_empty() {
            let why = Finding::join(resolution.unresolved.clone());
            let why = why.map_or_else(|| "caCertificateRefs is empty".into(), |why| why.message);
            Err(Finding::new(c::NO_VALID_CA_CERTIFICATE, why))
        } else {
            Ok(ClientValidation {
                authorities: resolution.authorities,
                optional: matches!(validation.mode, Some(Mode::AllowInsecureFallback)),
            })
        };
        Some(Clients {
            validation,
            unresolved: resolution.unresolved,
        })
    }
}

/// The ConfigMaps that a Gateway refers to.
pub(super) fn config_maps(name: &ObjectName, gateway: &Gateway) -> Vec<ObjectName> {
    let validations = validations(gateway);
    let references = validations
        .iter()
        .flat_map(|(_, validation)| references(name, validation));
    references.map(|(reference, ..)| reference).collect()
}

/// Where clients are let in whose certificates are not valid.
pub(super) fn insecure(gateway: &Gateway) -> Option<Finding> {
    let validations = validations(gateway).into_iter();
    let places: Vec<_> = validations
        .filter(|(_, validation)| matches!(validation.mode, Some(Mode::AllowInsecureFallback)))
        .map(|(port, _)| match port {
            None => "by default".to_owned(),
            Some(port) => format!("on port {port}"),
        })
        .collect();
    (!places.is_empty()).then(|| {
        let message = format!(
            "AllowInsecureFallback lets clients in without a valid certificate {}",
            places.join(", ")
        );
        Finding::new(c::CONFIGURATION_CHANGED, message)
    })
}

fn validation_of(gateway: &Gateway, port: i32) -> Option<Validation> {
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().flatten();
    match own.clone().find(|own| own.port == port) {
        Some(own) => super::same(own.tls.validation.as_ref()),
        None => frontend.default.validation.clone(),
    }
}

/// Those of all ports; `None` is the default.
fn validations(gateway: &Gateway) -> Vec<(Option<i32>, Validation)> {
    let tls = gateway.spec.tls.as_ref();
    let Some(frontend) = tls.and_then(|tls| tls.frontend.as_ref()) else {
        return Vec::new();
    };
    let default = frontend.default.validation.clone();
    let default = default.map(|validation| (None, validation));
    let own = frontend.per_port.iter().flatten();
    let own =
        own.filter_map(|own| Some((Some(own.port), super::same(own.tls.validation.as_ref())?)));
    default.into_iter().chain(own).collect()
}

/// Names, groups and kinds.
fn references<'a>(
    gateway: &ObjectName,
    validation: &'a Validation,
) -> Vec<(ObjectName, &'a str, &'a str)> {
    let references = validation.ca_certificate_refs.iter();
    references
        .map(|reference| {
            let namespace = reference.namespace.as_ref().unwrap_or(&gateway.namespace);
            (
                ObjectName::new(namespace, &reference.name),
                reference.group.as_str(),
                reference.kind.as_str(),
            )
        })
        .collect()
}
