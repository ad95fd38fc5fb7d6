//! GatewayClasses: which are ours, and what is wrong with their parameters.

use super::{
    Verdict,
    links::unscoped,
    objects::{Objects, generation},
    status::{ClassStatus, Condition, Finding},
};
use crate::{
    api::{CONTROLLER, TAILWAY_GROUP, conditions as c, gateway_api::gatewayclasses::GatewayClass},
    model::ObjectName,
};
use std::collections::BTreeMap;

/// A class of ours.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Class {
    generation: i64,
    pub(super) parameters: Result<(), Finding>,
}

/// The classes that are ours.
pub(super) fn classes(
    objects: &Objects,
    verdicts: Option<&BTreeMap<String, Verdict>>,
) -> BTreeMap<ObjectName, Class> {
    let classes = objects.classes.iter();
    let ours = classes.filter(|(_, class)| class.spec.controller_name == CONTROLLER);
    let judge = |class: &GatewayClass, name: &str| match verdicts {
        None => parameters(objects, class),
        Some(verdicts) => judged(verdicts.get(name)),
    };
    ours.map(|(name, class)| {
        let class = Class {
            generation: generation(&class.metadata),
            parameters: judge(class, &name.name),
        };
        (ObjectName::clone(name), class)
    })
    .collect()
}

/// What a verdict means for a class.
fn judged(verdict: Option<&Verdict>) -> Result<(), Finding> {
    match verdict {
        Some(Verdict::Accepted) => Ok(()),
        Some(Verdict::Refused { reason, message }) => Err(Finding::new(reason, message.clone())),
        None => Err(Finding::new(c::PENDING, "its parameters are being tried")),
    }
}

/// Checks what a class refers to. The credentials in it are for the controller; `tailway run` has
/// its own.
fn parameters(objects: &Objects, class: &GatewayClass) -> Result<(), Finding> {
    let Some(reference) = &class.spec.parameters_ref else {
        return Ok(());
    };
    let invalid = |message: String| Err(Finding::new(c::INVALID_PARAMETERS, message));
    if (reference.group.as_str(), reference.kind.as_str()) == (TAILWAY_GROUP, "TailscaleTailnet") {
        let name = &reference.name;
        return match objects.tailnets.get(&unscoped(name)) {
            Some(_) => Ok(()),
            None => invalid(format!(
                "parametersRef: there is no TailscaleTailnet {name}"
            )),
        };
    }
    if !reference.group.is_empty() || reference.kind != "Secret" {
        return invalid(format!(
            "parametersRef is a {}: a Secret or a TailscaleTailnet can be one",
            super::qualified(&reference.kind, &reference.group)
        ));
    }
    let Some(namespace) = &reference.namespace else {
        return invalid(format!(
            "parametersRef to Secret {} needs a namespace",
            reference.name
        ));
    };
    let secret = ObjectName::new(namespace, &reference.name);
    if objects.secrets.contains_key(&secret) {
        Ok(())
    } else {
        invalid(format!("parametersRef: there is no Secret {secret}"))
    }
}

// === impl Class ===

impl Class {
    pub(super) fn status(&self, name: &ObjectName) -> ClassStatus {
        let unaccepted = self.parameters.clone().err();
        ClassStatus {
            name: name.name.clone(),
            conditions: vec![Condition::of(c::ACCEPTED, unaccepted, self.generation)],
        }
    }
}
