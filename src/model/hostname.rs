use serde::Serialize;
use std::fmt;

/// A listener hostname: exact, or `*.` and a suffix that stands for one or more labels
/// (Gateway API `Hostname`). Always lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostnamePattern {
    Exact(String),
    /// The suffix without `*.`.
    Wildcard(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hostname {0:?} is neither a DNS name nor \"*.\" and a DNS name")]
pub struct HostnameError(pub String);

// === impl HostnamePattern ===

impl HostnamePattern {
    /// # Errors
    /// When `text` is no DNS name of RFC 1123 (253 characters, labels of 63), or an IP address.
    pub fn parse(text: &str) -> Result<Self, HostnameError> {
        let lower = text.to_ascii_lowercase();
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (lower.as_str(), false),
        };
        let legal = name.len() <= 253
            && name.parse::<std::net::IpAddr>().is_err()
            && name
                .split('.')
                .all(|label| super::NodeName::parse(label).is_ok());
        if !legal {
            return Err(HostnameError(text.into()));
        }
        Ok(if wildcard {
            Self::Wildcard(name.into())
        } else {
            Self::Exact(name.into())
        })
    }

    /// Whether a host name of a client (SNI, Host) is meant by this pattern.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name.eq_ignore_ascii_case(host),
            Self::Wildcard(suffix) => host.len().checked_sub(suffix.len() + 1).is_some_and(|dot| {
                dot > 0
                    && host.as_bytes()[dot] == b'.'
                    && host.as_bytes()[dot + 1..].eq_ignore_ascii_case(suffix.as_bytes())
            }),
        }
    }

    /// The names that both mean: those of the one that means fewer, if the other means them too.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let (fewer, more) = match self.specificity() >= other.specificity() {
            true => (self, other),
            false => (other, self),
        };
        let meant = match (fewer, more) {
            (Self::Exact(name), more) => more.matches(name),
            (Self::Wildcard(suffix), Self::Wildcard(of)) => suffix == of || more.matches(suffix),
            (Self::Wildcard(_), Self::Exact(_)) => false,
        };
        meant.then(|| fewer.clone())
    }

    /// Sort key of precedence: exact names first, then the longer suffix.
    pub fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Exact(name) => (true, name.len()),
            Self::Wildcard(suffix) => (false, suffix.len()),
        }
    }
}

impl fmt::Display for HostnamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl Serialize for HostnamePattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_or_more_labels() {
        let pattern = HostnamePattern::parse("*.Example.com").unwrap();
        for host in ["a.example.com", "A.B.EXAMPLE.COM"] {
            assert!(pattern.matches(host), "{host}");
        }
        for host in [
            "example.com",
            ".example.com",
            "aexample.com",
            "a.example.org",
            "",
            "é.com",
        ] {
            assert!(!pattern.matches(host), "{host}");
        }
    }

    #[test]
    fn addresses_and_broken_labels_are_no_hostnames() {
        for text in ["", "*", "*.", "1.2.3.4", "a..b", "-a.b", "*.*.a", "a.*.b"] {
            assert!(HostnamePattern::parse(text).is_err(), "{text:?}");
        }
    }
}
