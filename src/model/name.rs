use serde::Serialize;
use std::fmt;

/// Namespace and name of a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

/// The first DNS label of a tailnet node: 1 to 63 lower-case letters, digits and inner dashes
/// (RFC 1123 §2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no DNS label of at most 63 letters, digits and inner dashes: set a Hostname in spec.addresses that is one"
)]
pub struct NodeNameError {
    pub name: String,
}

// === impl ObjectName ===

impl ObjectName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl NodeName ===

impl NodeName {
    /// Parses a label; upper case is folded, as DNS compares without case.
    ///
    /// # Errors
    /// When `name` is no DNS label of at most 63 characters.
    pub fn parse(name: &str) -> Result<Self, NodeNameError> {
        let label = name.to_ascii_lowercase();
        let legal = !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if legal {
            Ok(Self(label))
        } else {
            Err(NodeNameError { name: name.into() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_one_dns_label() {
        assert_eq!(
            NodeName::parse("Nginx-1").map(|n| n.to_string()),
            Ok("nginx-1".into())
        );
        assert!(NodeName::parse(&"a".repeat(63)).is_ok());
        for illegal in ["", "-a", "a-", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(NodeName::parse(illegal).is_err(), "{illegal:?}");
        }
    }
}
