use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who a tailnet peer is, as the control plane says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Full name of the node, without a final dot.
    pub node: String,
    /// Stable ID of the node.
    pub node_id: String,
    /// Login name of its user; empty for a tagged node.
    pub login: String,
    pub display_name: String,
    pub profile_pic_url: String,
    pub tags: Vec<String>,
    /// Application capabilities granted to the peer toward this node.
    pub capabilities: BTreeMap<String, Vec<serde_json::Value>>,
}

impl Identity {
    /// The user, or the tags of a node that has no user.
    pub fn principal(&self) -> String {
        if self.tags.is_empty() {
            self.login.clone()
        } else {
            self.tags.join(",")
        }
    }
}
