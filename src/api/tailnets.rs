//! `TailscaleTailnet`: a tailnet, the credentials for it, and how its Gateways' pods are made.

use k8s_openapi::api::core::v1::{Affinity, EnvVar, ResourceRequirements, Toleration};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;
use std::collections::BTreeMap;

/// A tailnet that Gateways can join: refer to it from `GatewayClass.spec.parametersRef`.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "gateway.tailscale.com",
    version = "v1alpha1",
    kind = "TailscaleTailnet",
    plural = "tailscaletailnets",
    singular = "tailscaletailnet",
    shortname = "tailnet",
    category = "tailway",
    derive = "Default",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Tailnet","type":"string","jsonPath":".spec.tailnet"}"#,
    printcolumn = r#"{"name":"Tags","type":"string","jsonPath":".spec.tags"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct TailscaleTailnetSpec {
    /// Name of the tailnet as the Tailscale API knows it; `-` is the one that the credentials
    /// belong to.
    #[serde(default = "own_tailnet")]
    #[schemars(length(min = 1, max = 253))]
    pub tailnet: String,
    pub credentials: TailnetCredentials,
    /// Control server, when it is not Tailscale's own.
    #[serde(
        default,
        rename = "controlURL",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(regex(pattern = r"^https?://"), length(max = 2048))]
    pub control_url: Option<String>,
    /// Tailscale API, when it is not at `https://api.tailscale.com`.
    #[serde(default, rename = "apiURL", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"), length(max = 2048))]
    pub api_url: Option<String>,
    /// Tags of the Gateways' nodes; the credentials must own them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        extend("x-kubernetes-list-type" = "set"),
        length(max = 32),
        inner(length(max = 100), regex(pattern = r"^tag:[a-zA-Z][a-zA-Z0-9-]*$"))
    )]
    pub tags: Vec<String>,
    /// Whether the tailnet forgets a node when its pod has been gone for a while. Certificates
    /// are then issued anew, within the limits of the issuer.
    #[serde(default)]
    pub ephemeral: bool,
    /// How long a minted auth key can be used, in minutes.
    #[serde(default = "key_lifetime")]
    #[schemars(with = "i32", range(min = 1, max = 10))]
    pub key_lifetime_minutes: u32,
    /// What to do when a node's name is held by a device that an earlier pod of the same Gateway
    /// left behind.
    #[serde(default)]
    pub name_conflict: NameConflict,
    /// Namespaces whose TailscaleEndpoints may lead into this tailnet, by pods with the tags above;
    /// empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"), length(max = 1000), inner(length(min = 1, max = 63)))]
    pub egress_namespaces: Vec<String>,
    /// How the pods are made.
    #[serde(default)]
    pub proxy: ProxySettings,
}

/// Where the credentials are: exactly one is set.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.secretRef) != has(self.workloadIdentity)",
    "message": "set either secretRef or workloadIdentity"
}]))]
pub struct TailnetCredentials {
    /// A Secret with an OAuth client's `client_id` and `client_secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<CredentialsSecret>,
    /// Workload identity federation: the controller's ServiceAccount is trusted by the tailnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentity>,
}

/// A Secret in the namespace of the controller.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct CredentialsSecret {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadIdentity {
    /// ID of the federated identity, as the admin console shows it.
    #[serde(rename = "clientID")]
    #[schemars(length(min = 1, max = 253))]
    pub client_id: String,
    /// Where the controller's pod has the token that the tailnet trusts; a projected volume.
    #[serde(default = "identity_token")]
    #[schemars(regex(pattern = "^/"), length(max = 1024))]
    pub token_path: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum NameConflict {
    /// Serve under the name that the tailnet gave, and say so in the Gateway's status.
    #[default]
    Keep,
    /// Delete the device that holds the name, if it is offline and was made for this Gateway.
    TakeBack,
}

/// How the pods of Gateways are made.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxySettings {
    /// Image of the pods; by default the controller's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^(Always|IfNotPresent|Never)$"))]
    pub image_pull_policy: Option<String>,
    /// Names of Secrets with which the image is pulled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"), length(max = 16), inner(length(max = 253)))]
    pub image_pull_secrets: Vec<String>,
    /// A Gateway is one node and therefore one pod; 0 takes it out of service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub replicas: Option<i32>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "resources"
    )]
    pub resources: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub priority_class_name: Option<String>,
    /// Such as `debug`, or `tailway=debug,tailscale=info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub log_level: Option<String>,
    /// Environment of the pods, for settings that `tailway proxy --help` lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]),
        length(max = 64)
    )]
    pub env: Vec<EnvVar>,
    /// How long open connections may go on when a pod ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 3600))]
    pub drain_seconds: Option<u32>,
    /// Whether evictions are to wait for a person (a PodDisruptionBudget that allows none).
    #[serde(default)]
    pub disruption_budget: bool,
}

/// Where the chart mounts the token of workload identity federation.
const IDENTITY_TOKEN: &str = "/var/run/secrets/tailscale/token";

fn own_tailnet() -> String {
    "-".into()
}

fn key_lifetime() -> u32 {
    5
}

fn identity_token() -> String {
    IDENTITY_TOKEN.into()
}

/// Quantities can be numbers (`cpu: 2`), which the type for them does not take.
pub(super) fn resources<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ResourceRequirements>, D::Error> {
    let Some(mut given) = Option::<Value>::deserialize(deserializer)? else {
        return Ok(None);
    };
    for list in ["limits", "requests"] {
        let quantities = given.get_mut(list).and_then(Value::as_object_mut);
        for quantity in quantities.into_iter().flat_map(|q| q.values_mut()) {
            if quantity.is_number() {
                *quantity = Value::String(quantity.to_string());
            }
        }
    }
    serde_json::from_value(given).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_quantity_can_be_a_number() {
        let with = |cpu: Value| json!({ "resources": { "limits": { "cpu": cpu } } });
        let parse = |value| serde_json::from_value::<ProxySettings>(value).unwrap();
        assert_eq!(parse(with(json!(2))), parse(with(json!("2"))));
        assert_eq!(parse(with(json!(0.5))), parse(with(json!("0.5"))));
        assert_eq!(parse(json!({})), parse(json!({ "resources": null })));
    }
}
