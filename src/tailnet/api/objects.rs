//! Keys and devices in the form of the API (<https://tailscale.com/api>).

use super::Secret;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use std::{net::IpAddr, time::Duration};

/// An auth key that is wanted. It lets one node in, which needs no approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// At least one; the credential must be allowed to give them.
    pub tags: Vec<String>,
    /// Whether the tailnet forgets the node once it is gone.
    pub ephemeral: bool,
    /// How long the key may be used; from 1 second to 90 days.
    pub expiry: Duration,
    /// For people who look at the list of keys; what the API does not allow is replaced.
    pub description: String,
}

/// An auth key, which is a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKey {
    /// Under which it is listed and revoked.
    pub id: String,
    pub key: Secret,
}

/// An auth key as the API lists it: without the secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub id: String,
    #[serde(default)]
    pub description: String,
    #[serde(default, deserialize_with = "time")]
    pub created: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    pub expires: Option<Timestamp>,
    #[serde(default)]
    capabilities: Capabilities,
    #[serde(default)]
    invalid: bool,
    #[serde(default)]
    key_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Capabilities {
    devices: DeviceCapabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DeviceCapabilities {
    create: CreateCapabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct CreateCapabilities {
    reusable: bool,
    ephemeral: bool,
    tags: Vec<String>,
}

/// A device of the tailnet: a node that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The id that the node itself knows as its node id.
    #[serde(rename = "nodeId")]
    pub id: String,
    /// Its full name in the tailnet.
    #[serde(default)]
    pub name: String,
    /// The name that its host has or asked for.
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Whether an admin has approved it, where the tailnet asks for that.
    #[serde(default)]
    pub authorized: bool,
    #[serde(default)]
    pub is_ephemeral: bool,
    /// Whether it is in touch with the control server.
    #[serde(default)]
    pub connected_to_control: bool,
    #[serde(default, deserialize_with = "time")]
    pub created: Option<Timestamp>,
    /// When it was last in touch; `None` while it is, or when it never was.
    #[serde(default, deserialize_with = "time")]
    pub last_seen: Option<Timestamp>,
    /// When its key expires, unless `key_expiry_disabled`.
    #[serde(default, deserialize_with = "time")]
    pub expires: Option<Timestamp>,
    #[serde(default)]
    pub key_expiry_disabled: bool,
}

/// A service of the tailnet, which devices of it provide under an address of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// With `svc:` before its label.
    pub name: String,
    #[serde(default, rename = "addrs")]
    pub addresses: Vec<IpAddr>,
    /// Such as `tcp:443`; what is none leaves the ports to the devices.
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// The answer to a minted key. Never shown, as it holds the secret.
#[derive(Deserialize)]
pub(super) struct Minted {
    pub(super) id: String,
    pub(super) key: String,
}

/// The longest description that the API takes, in characters.
const MAX_DESCRIPTION: usize = 50;

// === impl KeyRequest ===

impl KeyRequest {
    /// The description in what the API allows: letters, digits, hyphens and spaces.
    pub(super) fn legal_description(&self) -> String {
        self.description
            .chars()
            .map(|c| match c {
                ' ' => c,
                c if c.is_ascii_alphanumeric() => c,
                _ => '-',
            })
            .take(MAX_DESCRIPTION)
            .collect()
    }
}

// === impl Service ===

impl Service {
    /// The first label of its DNS name.
    pub fn label(&self) -> &str {
        self.name.strip_prefix("svc:").unwrap_or(&self.name)
    }

    /// Its ports, and whether each is one of UDP.
    pub fn ports(&self) -> Vec<(u16, bool)> {
        let ports = self.ports.iter().filter_map(|port| {
            let (transport, number) = port.split_once(':')?;
            let is_udp = match transport {
                "tcp" => false,
                "udp" => true,
                _ => return None,
            };
            Some((number.parse().ok()?, is_udp))
        });
        ports.collect()
    }
}

// === impl Key ===

impl Key {
    /// Tags of the nodes that it lets in.
    pub fn tags(&self) -> &[String] {
        &self.capabilities.devices.create.tags
    }

    pub fn is_ephemeral(&self) -> bool {
        self.capabilities.devices.create.ephemeral
    }

    pub fn is_reusable(&self) -> bool {
        self.capabilities.devices.create.reusable
    }

    /// The list also has API tokens and OAuth clients; of old, keys had no type.
    pub(super) fn admits_nodes(&self) -> bool {
        !self.invalid && matches!(&*self.key_type, "" | "auth")
    }
}

/// Times that are not there come as empty texts, too.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn descriptions_are_made_to_fit() {
        for (description, legal) in [
            (
                "tailway Gateway default/nginx",
                "tailway Gateway default-nginx",
            ),
            ("münchen_1", "m-nchen-1"),
            (&"a".repeat(60), &"a".repeat(50)),
        ] {
            let request = KeyRequest {
                tags: Vec::new(),
                ephemeral: false,
                expiry: Duration::ZERO,
                description: description.into(),
            };
            assert_eq!(request.legal_description(), legal);
        }
    }

    #[test]
    fn a_device_with_little_known_of_it_is_read() {
        let device: Device = serde_json::from_value(json!({
            "id": "1", "nodeId": "nAbc", "name": "shared.other.ts.net", "created": "", "lastSeen": null,
        }))
        .unwrap();
        assert_eq!(
            (&*device.id, device.created, device.last_seen),
            ("nAbc", None, None)
        );
    }

    #[test]
    fn only_auth_keys_that_are_valid_admit_nodes() {
        for (key, admits) in [
            (json!({"id": "k"}), true),
            (json!({"id": "k", "keyType": "auth"}), true),
            (
                json!({"id": "k", "keyType": "auth", "invalid": true}),
                false,
            ),
            (json!({"id": "k", "keyType": "client"}), false),
            (json!({"id": "k", "keyType": "api"}), false),
        ] {
            let parsed: Key = serde_json::from_value(key.clone()).unwrap();
            assert_eq!(parsed.admits_nodes(), admits, "{key}");
        }
    }
}
