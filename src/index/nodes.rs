//! Nodes that Gateways ask to be, and which Gateway has which name.

use super::{objects::Precedence, status::Finding};
use crate::{
    api::{conditions as c, gateway_api::gateways::Gateway},
    model::{HostnamePattern, NodeName, NodeNameError, ObjectName},
};
use std::collections::{BTreeMap, BTreeSet};

/// The node that a Gateway asks to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedNode {
    pub(super) name: NodeName,
    /// The name with the tailnet's domain, when the Gateway gives it.
    pub(super) full: Option<String>,
}

/// The Gateways that ask for each name, the oldest first: it has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<NodeName, BTreeSet<Precedence>>);

/// The node that a Gateway asks for: the first label of its Hostname, else `<name>-<namespace>`.
/// An address without a value leaves the choice to the tailnet.
pub(super) fn wanted_node(name: &ObjectName, gateway: &Gateway) -> Result<WantedNode, Finding> {
    let mut hostnames = Vec::new();
    for address in gateway.spec.addresses.iter().flatten() {
        let kind = address.r#type.as_deref().unwrap_or("IPAddress");
        let value = address.value.as_deref().unwrap_or_default();
        match (kind, value) {
            ("Hostname" | "IPAddress", "") => {}
            ("Hostname", value) => hostnames.push(value),
            (kind, value) => {
                return Err(Finding::new(
                    c::UNSUPPORTED_ADDRESS,
                    format!(
                        "address {value:?} is of type {kind}: the tailnet chooses IP addresses, a Hostname names the node"
                    ),
                ));
            }
        }
    }
    let invalid = |error: NodeNameError| Finding::new(c::INVALID, error.to_string());
    let (wanted, full) = match hostnames.as_slice() {
        [] => (format!("{}-{}", name.name, name.namespace), None),
        [hostname] => {
            let full = hostname.trim_end_matches('.').to_ascii_lowercase();
            match full.split_once('.') {
                Some((label, _)) => (label.to_owned(), Some(full)),
                None => (full, None),
            }
        }
        several => {
            return Err(Finding::new(
                c::ADDRESS_NOT_USABLE,
                format!(
                    "a node has one name, but the Gateway asks for {}: leave one Hostname in spec.addresses",
                    several.join(", ")
                ),
            ));
        }
    };
    let name = NodeName::parse(&wanted).map_err(invalid)?;
    Ok(WantedNode { name, full })
}

// === impl Names ===

impl Names {
    /// The Gateway that has a name.
    pub(super) fn owner(&self, name: &NodeName) -> Option<&ObjectName> {
        let (_, owner) = self.0.get(name)?.first()?;
        Some(owner)
    }

    /// Replaces what a Gateway asks for. Gives the Gateways that ask for a name which another has
    /// now.
    pub(super) fn replace(
        &mut self,
        old: Option<(NodeName, Precedence)>,
        new: Option<(NodeName, Precedence)>,
    ) -> Vec<ObjectName> {
        if old == new {
            return Vec::new();
        }
        let mut affected = Vec::new();
        if let Some((name, precedence)) = old {
            affected.extend(self.change(name, |claims| claims.remove(&precedence)));
        }
        if let Some((name, precedence)) = new {
            affected.extend(self.change(name, |claims| claims.insert(precedence)));
        }
        affected
    }

    fn change(
        &mut self,
        name: NodeName,
        change: impl FnOnce(&mut BTreeSet<Precedence>) -> bool,
    ) -> Vec<ObjectName> {
        let claims = self.0.entry(name.clone()).or_default();
        let before = claims.first().cloned();
        change(claims);
        if claims.first() == before.as_ref() {
            return Vec::new();
        }
        let affected = claims.iter().map(|(_, gateway)| gateway.clone()).collect();
        if claims.is_empty() {
            self.0.remove(&name);
        }
        affected
    }
}

// === impl WantedNode ===

impl WantedNode {
    /// Whether a client could mean this node with a name of the pattern. Its full name may be
    /// known only when it has joined; until then its first label decides.
    pub(super) fn may_be(&self, hostname: Option<&HostnamePattern>) -> bool {
        match (hostname, &self.full) {
            (None, _) | (Some(HostnamePattern::Wildcard(_)), None) => true,
            (Some(pattern), Some(full)) => pattern.matches(full),
            (Some(HostnamePattern::Exact(name)), None) => name
                .split_once('.')
                .is_some_and(|(label, _)| label == self.name.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(full: Option<&str>) -> WantedNode {
        WantedNode {
            name: NodeName::parse("web").unwrap(),
            full: full.map(str::to_owned),
        }
    }

    fn pattern(text: &str) -> HostnamePattern {
        HostnamePattern::parse(text).unwrap()
    }

    #[test]
    fn a_hostname_is_the_nodes_by_its_full_name_or_else_by_its_first_label() {
        let named = node(Some("web.tail.ts.net"));
        for (text, short, full) in [
            ("web.tail.ts.net", true, true),
            ("web.other.ts.net", true, false),
            ("*.tail.ts.net", true, true),
            ("*.example.com", true, false),
            ("app.example.com", false, false),
            ("web", false, false),
        ] {
            assert_eq!(node(None).may_be(Some(&pattern(text))), short, "{text}");
            assert_eq!(named.may_be(Some(&pattern(text))), full, "{text}");
        }
        assert!(named.may_be(None));
    }
}
