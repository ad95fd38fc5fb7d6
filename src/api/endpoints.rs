//! `TailscaleEndpoints`: services of the tailnet, and of elsewhere, by name.

use super::upstream::{HealthCheck, Protocol};
use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Services that routes can send requests to: those that are listed, and those that are found in
/// the tailnet.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "gateway.tailscale.com",
    version = "v1alpha1",
    kind = "TailscaleEndpoints",
    plural = "tailscaleendpoints",
    singular = "tailscaleendpoints",
    shortname = "tsep",
    category = "tailway",
    namespaced,
    status = "TailscaleEndpointsStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Tailnet","type":"string","jsonPath":".spec.tailnet"}"#,
    printcolumn = r#"{"name":"Total","type":"integer","jsonPath":".status.totalEndpoints"}"#,
    printcolumn = r#"{"name":"Healthy","type":"integer","jsonPath":".status.healthyEndpoints"}"#,
    printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name":"Last Sync","type":"date","jsonPath":".status.lastSync"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct TailscaleEndpointsSpec {
    /// Name of the TailscaleTailnet to go through; may be left out while there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tailnet: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]),
        length(max = 1000)
    )]
    pub endpoints: Vec<EndpointSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_discovery: Option<AutoDiscovery>,
    #[serde(default)]
    pub egress: Egress,
    /// The pods through which clients of the cluster reach the tailnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<EgressPods>,
}

/// One service. Where it is, is said by one of `externalTarget`, `tailscaleFQDN` and `tailscaleIP`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.externalTarget) || has(self.tailscaleFQDN) || has(self.tailscaleIP)",
        "message": "say where it is: set externalTarget, tailscaleFQDN or tailscaleIP"
    },
    {
        "rule": "!has(self.tls) || self.protocol == 'HTTPS' || self.protocol == 'TCP'",
        "message": "tls is for protocol HTTPS or TCP"
    }
]))]
pub struct EndpointSpec {
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// What routes and clients call it by; also the port of a target on the tailnet.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    #[serde(default)]
    pub protocol: Protocol,
    /// `host:port` of a service outside the tailnet; goes before the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 260),
        regex(
            pattern = r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?):[0-9]{1,5}$"
        )
    )]
    pub external_target: Option<String>,
    /// Name of a device (full, or its first label) or of a service of the tailnet (`svc:name`).
    #[serde(
        default,
        rename = "tailscaleFQDN",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^(svc:)?[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?\.?$")
    )]
    pub tailscale_fqdn: Option<String>,
    #[serde(
        default,
        rename = "tailscaleIP",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(min = 2, max = 45), regex(pattern = r"^[0-9a-fA-F:.]+$"))]
    pub tailscale_ip: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"), length(max = 32), inner(length(max = 100)))]
    pub tags: Vec<String>,
    /// Share of what goes to the endpoints of one port.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How its certificate is checked. Without it HTTPS is checked against the authorities that
    /// the system trusts and the host of the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EndpointTls>,
}

/// How the certificate of an endpoint is checked.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!(has(self.insecureSkipVerify) && self.insecureSkipVerify && has(self.caCertificateRef))",
    "message": "insecureSkipVerify believes anybody: leave caCertificateRef out"
}]))]
pub struct EndpointTls {
    /// Asked for by SNI, and in the certificate; by default the host of the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$")
    )]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificate_ref: Option<CaCertificateRef>,
    /// Whether any certificate is believed.
    pub insecure_skip_verify: bool,
}

/// A ConfigMap of the same namespace with certificates of authorities under `ca.crt`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaCertificateRef {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How endpoints are found in the tailnet.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoDiscovery {
    pub enabled: bool,
    /// Names of devices, with `*` for any text; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub include_patterns: Vec<String>,
    /// Devices that are left out all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub exclude_patterns: Vec<String>,
    /// A device must have all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 100)))]
    pub required_tags: Vec<String>,
    /// A device must fit one of them, if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tag_selectors: Vec<TagSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_discovery: Option<ServiceDiscovery>,
    /// Time between two looks, at least ten seconds.
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub sync_interval: String,
}

/// Devices by a tag.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TagSelector {
    /// `tag:web`, or the part before the last dash with `In` and `NotIn`: `tag:env` and `prod` are
    /// `tag:env-prod`.
    #[schemars(length(max = 100), regex(pattern = r"^tag:[a-zA-Z][a-zA-Z0-9-]*$"))]
    pub tag: String,
    #[serde(default)]
    pub operator: TagOperator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 100)))]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum TagOperator {
    In,
    NotIn,
    #[default]
    Exists,
    DoesNotExist,
}

/// Services of the tailnet (`svc:`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceDiscovery {
    pub enabled: bool,
    /// With or without `svc:`, with `*` for any text; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub service_names: Vec<String>,
    /// A service must have all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 100)))]
    pub service_tags: Vec<String>,
}

/// Whether clients of the cluster reach targets by pods of tailway.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Egress {
    /// Those on the tailnet do; others are connected to directly.
    #[default]
    Auto,
    /// All do.
    Proxy,
}

/// The pods of an egress.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressPods {
    /// Each is a node of the tailnet.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: i32,
    /// What the pods are for. Those of `ingress` would be a Gateway's: make one.
    pub connection_type: ConnectionType,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::tailnets::resources"
    )]
    pub resources: Option<ResourceRequirements>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionType {
    Ingress,
    Egress,
    #[default]
    Bidirectional,
}

/// What is known of the endpoints.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TailscaleEndpointsStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Endpoints that were found in the tailnet.
    pub discovered_endpoints: i32,
    pub total_endpoints: i32,
    pub healthy_endpoints: i32,
    pub unhealthy_endpoints: i32,
    /// When the tailnet was last asked and said something new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Time>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub endpoint_status: Vec<EndpointStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stateful_set_refs: Vec<StatefulSetRef>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointStatus {
    pub name: String,
    pub port: i32,
    pub protocol: Protocol,
    /// Where it is connected to.
    pub address: String,
    /// Where clients of the cluster reach it, when that is by way of the egress.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub egress_address: String,
    #[serde(rename = "tailscaleFQDN", skip_serializing_if = "String::is_empty")]
    pub tailscale_fqdn: String,
    #[serde(rename = "tailscaleIP", skip_serializing_if = "String::is_empty")]
    pub tailscale_ip: String,
    pub discovery_source: DiscoverySource,
    pub health_status: HealthStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What is the matter with it; empty when nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum DiscoverySource {
    /// It is in the spec.
    #[default]
    Manual,
    /// A device of the tailnet.
    AutoDiscovery,
    /// A service of the tailnet.
    #[serde(rename = "VIPService")]
    VipService,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum HealthStatus {
    Healthy,
    Unhealthy,
    /// It is checked, but not by us, or not yet.
    #[default]
    Unknown,
    /// It is not checked.
    Disabled,
}

/// A workload of the egress.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetRef {
    pub name: String,
    pub namespace: String,
    pub connection_type: ConnectionType,
    /// The Service before it.
    pub service: String,
    pub desired_replicas: i32,
    pub ready_replicas: i32,
}

fn one() -> i32 {
    1
}

// === impl AutoDiscovery ===

impl Default for AutoDiscovery {
    fn default() -> Self {
        Self {
            enabled: true,
            include_patterns: Vec::new(),
            exclude_patterns: Vec::new(),
            required_tags: Vec::new(),
            tag_selectors: Vec::new(),
            service_discovery: None,
            sync_interval: "30s".into(),
        }
    }
}

// === impl EgressPods ===

impl Default for EgressPods {
    fn default() -> Self {
        Self {
            replicas: 2,
            connection_type: ConnectionType::default(),
            image: None,
            resources: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: None,
        }
    }
}
