//! How the Gateways of a class are made: what its parametersRef says.

use super::world::{Values, World};
use crate::{
    api::{
        TAILWAY_GROUP,
        gateway_api::gatewayclasses::{GatewayClass, GatewayClassParametersRef},
        tailnets::{NameConflict, ProxySettings, TailscaleTailnetSpec},
    },
    model::ObjectName,
    tailnet::{
        Secret,
        api::{Credentials, IdentityToken},
        is_tag,
    },
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// What the parameters of a class say, with the credentials that they refer to.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub tailnet: String,
    pub credentials: CredentialSource,
    /// `None`: Tailscale's own.
    pub api_url: Option<String>,
    /// `None`: Tailscale's own.
    pub control_url: Option<String>,
    pub tags: Vec<String>,
    pub ephemeral: bool,
    /// How long an auth key can be used.
    pub key_lifetime: Duration,
    pub name_conflict: NameConflict,
    pub proxy: ProxySettings,
}

/// What parameters leave open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Where credentials are.
    pub namespace: String,
    /// `None`: Tailscale's own.
    pub api_url: Option<String>,
    /// `None`: Tailscale's own.
    pub control_url: Option<String>,
}

/// Where the credentials of a class come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// An OAuth client.
    Client { id: String, secret: Secret },
    /// A federated identity, and the file with the token that it trusts.
    Federated {
        client_id: String,
        token_path: PathBuf,
    },
}

/// Annotation of a GatewayClass: the tags of its Gateways' nodes, with commas.
const TAGS: &str = "tailway.michaelbeaumont.github.io/tags";

/// Reads the parameters of a class.
///
/// # Errors
/// What is wrong with them, and what to do.
pub(super) fn parameters(
    class: &GatewayClass,
    world: &World,
    defaults: &Defaults,
) -> Result<Parameters, String> {
    let system_namespace = &defaults.namespace;
    let reference = class.spec.parameters_ref.as_ref().ok_or_else(|| {
        format!(
            "parametersRef is missing: refer to a Secret in namespace {system_namespace} with an OAuth client's client_id and client_secret, or to a TailscaleTailnet"
        )
    })?;
    let mut parameters = match (reference.group.as_str(), reference.kind.as_str()) {
        ("", "Secret") => of_secret(reference, world, system_namespace)?,
        (TAILWAY_GROUP, "TailscaleTailnet") => of_tailnet(reference, world, system_namespace)?,
        (group, kind) => {
            return Err(format!(
                "parametersRef is a {kind} of group {group:?}: a Secret or a TailscaleTailnet.{TAILWAY_GROUP} can be one"
            ));
        }
    };
    let annotations = class.metadata.annotations.as_ref();
    if let Some(tags) = annotations.and_then(|annotations| annotations.get(TAGS)) {
        parameters.tags = tags.split(',').map(|tag| tag.trim().to_owned()).collect();
    }
    parameters.complete(defaults)
}

/// Reads what a TailscaleTailnet says, for what joins it without a class.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(super) fn tailnet_parameters(
    name: &str,
    world: &World,
    defaults: &Defaults,
) -> Result<Parameters, String> {
    let reference = GatewayClassParametersRef {
        group: TAILWAY_GROUP.into(),
        kind: "TailscaleTailnet".into(),
        name: name.into(),
        namespace: None,
    };
    of_tailnet(&reference, world, &defaults.namespace)?.complete(defaults)
}

// === impl Parameters ===

impl Parameters {
    fn complete(mut self, defaults: &Defaults) -> Result<Self, String> {
        let parameters = &mut self;
        check_tags(&parameters.tags)?;
        if parameters.api_url.is_none() {
            parameters.api_url.clone_from(&defaults.api_url);
        }
        if parameters.control_url.is_none() {
            parameters.control_url.clone_from(&defaults.control_url);
        }
        Ok(self)
    }
}

fn of_secret(
    reference: &GatewayClassParametersRef,
    world: &World,
    system_namespace: &str,
) -> Result<Parameters, String> {
    if reference.namespace.as_deref() != Some(system_namespace) {
        return Err(format!(
            "parametersRef to Secret {}: set namespace {system_namespace}, the only one where credentials are read",
            reference.name
        ));
    }
    let name = ObjectName::new(system_namespace, &reference.name);
    Ok(Parameters {
        tailnet: "-".into(),
        credentials: client_of(&name, world)?,
        api_url: None,
        control_url: None,
        tags: Vec::new(),
        ephemeral: false,
        key_lifetime: Duration::from_secs(300),
        name_conflict: NameConflict::default(),
        proxy: ProxySettings::default(),
    })
}

fn of_tailnet(
    reference: &GatewayClassParametersRef,
    world: &World,
    system_namespace: &str,
) -> Result<Parameters, String> {
    let name = &reference.name;
    let spec: &TailscaleTailnetSpec = match world.subjects.tailnets.get(&ObjectName::new("", name))
    {
        Some(tailnet) => &tailnet.spec,
        None => {
            return Err(format!(
                "parametersRef: there is no TailscaleTailnet {name}"
            ));
        }
    };
    let credentials = &spec.credentials;
    let credentials = match (&credentials.secret_ref, &credentials.workload_identity) {
        (Some(secret), None) => client_of(&ObjectName::new(system_namespace, &secret.name), world)?,
        (None, Some(identity)) => CredentialSource::Federated {
            client_id: identity.client_id.clone(),
            token_path: identity.token_path.clone().into(),
        },
        _ => {
            return Err(format!(
                "TailscaleTailnet {name}: set either credentials.secretRef or credentials.workloadIdentity"
            ));
        }
    };
    Ok(Parameters {
        tailnet: spec.tailnet.clone(),
        credentials,
        api_url: spec.api_url.clone(),
        control_url: spec.control_url.clone(),
        tags: spec.tags.clone(),
        ephemeral: spec.ephemeral,
        key_lifetime: Duration::from_secs(60 * u64::from(spec.key_lifetime_minutes.clamp(1, 10))),
        name_conflict: spec.name_conflict,
        proxy: spec.proxy.clone(),
    })
}

impl CredentialSource {
    /// As the client of the API takes them.
    pub fn credentials(&self) -> Credentials {
        match self.clone() {
            Self::Client { id, secret } => Credentials::Client { id, secret },
            Self::Federated {
                client_id,
                token_path,
            } => Credentials::Federated {
                client_id,
                token: IdentityToken::File(token_path),
            },
        }
    }
}

/// The OAuth client that a Secret holds.
fn client_of(name: &ObjectName, world: &World) -> Result<CredentialSource, String> {
    let values: &Arc<Values> = world
        .credentials
        .get(name)
        .ok_or_else(|| format!("there is no Secret {name}"))?;
    let value = |key: &str| -> Result<Secret, String> {
        let value = values.get(key).filter(|value| !value.as_bytes().is_empty());
        value
            .cloned()
            .ok_or_else(|| format!("Secret {name} has no {key}"))
    };
    let id = value("client_id")?;
    Ok(CredentialSource::Client {
        id: String::from_utf8_lossy(id.as_bytes()).into_owned(),
        secret: value("client_secret")?,
    })
}

/// A node that an OAuth client lets in has tags.
fn check_tags(tags: &[String]) -> Result<(), String> {
    if tags.iter().all(|tag| tag.is_empty()) {
        return Err(format!(
            "there are no tags for the nodes: set the annotation {TAGS} of the GatewayClass, or tags in its TailscaleTailnet, to tags that the OAuth client owns"
        ));
    }
    match tags.iter().find(|tag| !is_tag(tag)) {
        None => Ok(()),
        Some(tag) => Err(format!(
            "{tag:?} is no tag: write `tag:` and a letter, then letters, digits and dashes"
        )),
    }
}

#[cfg(test)]
mod tests;
