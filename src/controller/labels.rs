//! Labels and annotations of what the controller makes.

/// What the keys start with that are ours alone.
pub(super) const OURS: &str = "tailway.michaelbeaumont.github.io/";

pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "tailway-controller";

/// The host name that the node asks for, cut where it is no label value.
pub(super) const NODE_FQDN: &str = "tailway.michaelbeaumont.github.io/node-fqdn";
pub(super) const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
pub(super) const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";

/// Annotations: the Gateway that an object was made for.
pub(super) const GATEWAY_NAME: &str = "tailway.michaelbeaumont.github.io/gateway-name";
pub(super) const GATEWAY_NAMESPACE: &str = "tailway.michaelbeaumont.github.io/gateway-namespace";

/// Annotations: the TailscaleEndpoints that an object was made for, and the TailscaleTailnet.
pub(super) const ENDPOINTS_NAME: &str = "tailway.michaelbeaumont.github.io/endpoints-name";
pub(super) const ENDPOINTS_NAMESPACE: &str =
    "tailway.michaelbeaumont.github.io/endpoints-namespace";
pub(super) const TAILNET: &str = "tailway.michaelbeaumont.github.io/tailnet";
pub(super) const ENDPOINTS_LABEL: &str = "gateway.tailscale.com/endpoints";

pub(super) const COMPONENT: &str = "app.kubernetes.io/component";
pub(super) const EGRESS: &str = "egress";

pub(super) const GATEWAY_CLASS: &str = "tailway.michaelbeaumont.github.io/gateway-class";

/// Annotation of a StatefulSet and of a state Secret: IDs of all nodes that the Gateway has had, with commas.
pub(super) const NODE_IDS: &str = "tailway.michaelbeaumont.github.io/node-ids";
