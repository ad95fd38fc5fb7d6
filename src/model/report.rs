use std::net::IpAddr;

/// What the data plane says of a Gateway's node: the part of its status that no object tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Full name that the tailnet gave the node, without a final dot; empty while unknown.
    pub dns_name: String,
    /// Its tailnet addresses, v4 first.
    pub addresses: Vec<IpAddr>,
    pub programmed: Programmed,
}

/// Whether the node serves its snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// It serves the snapshot of this generation of the Gateway.
    Generation(i64),
    /// Not yet, or not any more.
    No { reason: Unready, message: String },
}

/// Why a node does not serve; the `Programmed` reasons of the Gateway API that a node can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

// === impl Programmed ===

impl Default for Programmed {
    fn default() -> Self {
        Self::No {
            reason: Unready::Pending,
            message: "the tailnet node has not been started".into(),
        }
    }
}
