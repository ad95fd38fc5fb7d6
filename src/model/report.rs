use super::Health;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

/// What the data plane says of a Gateway's node: the part of its status that no object tells.
///
/// It travels as JSON from a proxy pod to the controller; fields that a reader does not know are
/// passed over, and ones that are missing take their default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeReport {
    /// Full name that the tailnet gave the node, without a final dot; empty while unknown.
    pub dns_name: String,
    /// Its tailnet addresses, v4 first.
    pub addresses: Vec<IpAddr>,
    /// Stable ID of the node; empty while unknown.
    pub node_id: String,
    pub programmed: Programmed,
    pub tailnet: TailnetReport,
    pub certificate: CertificateReport,
    /// Of the endpoints that are checked, by name; of those that are not here, nothing is known yet.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<String, Health>,
}

/// Whether the node serves its snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Programmed {
    /// It serves the snapshot of this generation of the Gateway.
    Generation(i64),
    /// Not yet, or not any more.
    No { reason: Unready, message: String },
}

/// Why a node does not serve; the `Programmed` reasons of the Gateway API that a node can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unready {
    /// It is on its way.
    Pending,
    /// The tailnet has not given it an address.
    AddressNotAssigned,
    /// The tailnet gave it another name than the one asked for.
    AddressNotUsable,
    /// It cannot serve what the Gateway asks for.
    Invalid,
}

/// How the node stands with its tailnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TailnetReport {
    pub state: TailnetState,
    /// What is the matter, and what to do; empty when all is well.
    pub message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TailnetState {
    /// It is on its way.
    #[default]
    Joining,
    Ready,
    /// It has no identity, or not any more.
    LoginNeeded,
    /// It waits to be approved by an admin of the tailnet.
    ApprovalNeeded,
    KeyExpired,
    /// It is up under another name than the one asked for.
    NameTaken,
    /// It is up without a name, as the tailnet has MagicDNS off.
    MagicDnsDisabled,
    /// The control server refuses it, or cannot be reached.
    ControlUnavailable,
}

/// How the node stands with the certificate of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CertificateReport {
    pub issuance: Issuance,
    /// What is the matter, and what to do; empty when all is well.
    pub message: String,
    /// When the one that is served expires; `None` while there is none.
    pub expires: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Issuance {
    /// No listener serves the tailnet's certificate.
    #[default]
    NotNeeded,
    /// It is on its way.
    Pending,
    Ready,
    /// The issuer asks to be left alone for a while.
    RateLimited,
    /// The tailnet issues no certificates.
    HttpsDisabled,
    /// The last try failed; the message says why.
    Failed,
}

// === impl Programmed ===

impl Default for Programmed {
    fn default() -> Self {
        Self::No {
            reason: Unready::Pending,
            message: "the tailnet node has not been started".into(),
        }
    }
}
