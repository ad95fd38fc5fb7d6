//! A service as Envoy Gateway is told of it: everything is resolved, nothing refers to anything.
//!
//! - [`TailscaleEgressSet`](egress::TailscaleEgressSet): all services that one Gateway of Envoy
//!   Gateway gets routes for; written by the controller alone.
//! - [`TailscaleBackend`](backend::TailscaleBackend): one service, for `backendRefs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is spoken to a service.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Http,
    Https,
    Tcp,
    Udp,
}

/// How it is found out whether an endpoint can be used.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthCheck {
    pub enabled: bool,
    /// Asked for by GET where HTTP is spoken; any status from 200 to 299 is good.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[!-~]*$"))]
    pub path: String,
    /// Between two checks.
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub interval: String,
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub timeout: String,
    /// Good checks in a row until it is used again.
    #[schemars(range(min = 1, max = 10))]
    pub healthy_threshold: i32,
    /// Failed checks in a row until it is left out.
    #[schemars(range(min = 1, max = 10))]
    pub unhealthy_threshold: i32,
}

/// Where a service is, and how it is spoken to.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    #[serde(default)]
    pub protocol: Protocol,
    /// What requests have as their `Host`; empty: what the client sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 260))]
    pub host: String,
    /// None: it is known that none can be used now.
    #[schemars(length(max = 64))]
    pub targets: Vec<Target>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// A place to connect to: an IP address, or a name that Envoy looks up.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Target {
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    #[serde(default = "one")]
    #[schemars(with = "i32", range(min = 1, max = 100))]
    pub weight: u32,
}

/// TLS to a service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTls {
    /// Asked for by SNI, and in the certificate.
    #[schemars(length(min = 1, max = 253))]
    pub server_name: String,
    /// Certificates of the authorities that are believed, in PEM; empty: those of the system.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 65536))]
    pub ca_certificates: String,
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

pub(super) fn one() -> u32 {
    1
}

// === impl HealthCheck ===

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/health".into(),
            interval: "10s".into(),
            timeout: "3s".into(),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }
}

pub mod backend {
    use super::Upstream;
    use kube::CustomResource;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    /// One service as a `backendRef` of the HTTPRoutes and GRPCRoutes of Envoy Gateway. One is made
    /// for each endpoint of a TailscaleEndpoints, `<object>-<endpoint>`; others can be made by hand.
    #[derive(
        Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize,
    )]
    #[kube(
        group = "gateway.tailscale.com",
        version = "v1alpha1",
        kind = "TailscaleBackend",
        plural = "tailscalebackends",
        singular = "tailscalebackend",
        category = "tailway",
        namespaced,
        status = "TailscaleBackendStatus",
        derive = "Default",
        derive = "PartialEq",
        printcolumn = r#"{"name":"Protocol","type":"string","jsonPath":".spec.upstream.protocol"}"#,
        printcolumn = r#"{"name":"Target","type":"string","jsonPath":".spec.upstream.targets[0].host"}"#,
        printcolumn = r#"{"name":"Port","type":"integer","jsonPath":".spec.upstream.targets[0].port"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )]
    #[serde(rename_all = "camelCase")]
    pub struct TailscaleBackendSpec {
        pub upstream: Upstream,
    }

    /// Whether Envoy Gateway can use it where it is named.
    #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
    pub struct TailscaleBackendStatus {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
        pub conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    }
}

pub mod egress {
    use super::Upstream;
    use kube::CustomResource;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    /// The services that a Gateway of Envoy Gateway gets routes for. The controller writes one for
    /// each Gateway that asks for it, and nobody else does.
    #[derive(
        Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize,
    )]
    #[kube(
        group = "gateway.tailscale.com",
        version = "v1alpha1",
        kind = "TailscaleEgressSet",
        plural = "tailscaleegresssets",
        singular = "tailscaleegressset",
        category = "tailway",
        namespaced,
        status = "TailscaleEgressSetStatus",
        derive = "Default",
        derive = "PartialEq",
        printcolumn = r#"{"name":"Gateway","type":"string","jsonPath":".spec.targetRefs[0].name"}"#,
        printcolumn = r#"{"name":"Revision","type":"string","jsonPath":".spec.revision"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )]
    #[serde(rename_all = "camelCase")]
    pub struct TailscaleEgressSetSpec {
        /// The Gateway. Envoy Gateway stops all translation over a policy without any.
        #[schemars(length(min = 1, max = 1))]
        pub target_refs: Vec<GatewayRef>,
        /// Hash of what follows.
        #[schemars(length(max = 64))]
        pub revision: String,
        /// Counted up to have it translated anew.
        #[serde(default)]
        pub resync: i64,
        /// By name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 5000))]
        pub services: Vec<RoutedService>,
    }

    /// A Gateway in the same namespace.
    #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
    pub struct GatewayRef {
        #[schemars(regex(pattern = r"^gateway\.networking\.k8s\.io$"))]
        pub group: String,
        #[schemars(regex(pattern = "^Gateway$"))]
        pub kind: String,
        #[schemars(length(min = 1, max = 253))]
        pub name: String,
    }

    /// A service, the route to it and its cluster.
    #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
    #[serde(rename_all = "camelCase")]
    pub struct RoutedService {
        /// Of the endpoint.
        #[schemars(length(min = 1, max = 63))]
        pub name: String,
        /// `namespace/name` of its TailscaleEndpoints.
        #[schemars(length(max = 320))]
        pub source: String,
        /// Name of the route.
        #[schemars(length(min = 1, max = 512))]
        pub route: String,
        /// Requests whose path is this, or begins with it and a slash, go there without it.
        #[schemars(
            length(min = 2, max = 1024),
            regex(pattern = r"^(/[A-Za-z0-9._~-]+)+$")
        )]
        pub path_prefix: String,
        /// Name of the cluster.
        #[schemars(length(min = 1, max = 512))]
        pub cluster: String,
        pub upstream: Upstream,
    }

    /// Written by Envoy Gateway.
    #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
    pub struct TailscaleEgressSetStatus {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 16))]
        pub ancestors: Vec<PolicyAncestor>,
    }

    /// What a Gateway made of it (Gateway API `PolicyAncestorStatus`).
    #[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
    #[serde(rename_all = "camelCase")]
    pub struct PolicyAncestor {
        #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
        pub ancestor_ref: serde_json::Map<String, serde_json::Value>,
        pub controller_name: String,
        #[serde(default)]
        pub conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
    }
}
