use serde::Deserialize;
use std::net::IpAddr;

/// What a node knows of itself (`tailscale_status` in tailscale.h).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `NoState`, `NeedsLogin`, `NeedsMachineAuth`, `Stopped`, `Starting` or `Running`.
    pub state: String,
    /// Where to log in; empty when that is not needed.
    pub auth_url: String,
    /// The host name asked for.
    pub hostname: String,
    /// The full name that the tailnet gave, without a final dot; empty while unknown.
    pub dns_name: String,
    /// Tailnet addresses, v4 first.
    pub ips: Vec<IpAddr>,
    /// MagicDNS suffix of the tailnet.
    pub domain: String,
    /// Whether the tailnet has MagicDNS off, so that peers cannot ask for the name.
    pub magic_dns_off: bool,
    /// Names the tailnet issues certificates for to this node.
    pub cert_domains: Vec<String>,
    pub node_id: String,
    /// Login name of the user that owns the node.
    pub user: String,
    pub tags: Vec<String>,
    /// RFC 3339; empty when the node key never expires.
    pub key_expiry: String,
    pub key_expired: bool,
    /// The last error of the connection to the control server; empty when it is fine.
    pub control_error: String,
    /// Whether that error is the control server's answer to the key or the login.
    pub login_refused: bool,
    pub health: Vec<String>,
    pub peers: Peers,
}

/// Peers with recent traffic, by how they are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Peers {
    pub total: u64,
    pub direct: u64,
    pub relayed: u64,
}

// === impl Status ===

impl Status {
    /// Whether the node can send and receive.
    pub fn is_running(&self) -> bool {
        self.state == "Running" && !self.key_expired && !self.ips.is_empty()
    }

    /// Whether the tailnet gave another name than the one asked for (`nginx-1` for `nginx`).
    pub fn is_renamed(&self) -> bool {
        match self.dns_name.split_once('.') {
            Some((label, _)) => !label.eq_ignore_ascii_case(&self.hostname),
            None => false,
        }
    }
}
