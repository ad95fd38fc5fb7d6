//! What a service must be to be rendered: all that Envoy would refuse, or that would do harm.

use crate::{
    api::upstream::{Protocol, Target, Upstream, UpstreamTls, egress::RoutedService},
    model::AuthoritiesError,
};
use std::net::IpAddr;

/// Why a service is left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("{name:?} cannot be the name of a {what}: it has 1 to 512 characters that can be seen")]
    Name { what: &'static str, name: String },
    #[error("{what} {name} is another service's, too")]
    Twice { what: &'static str, name: String },
    #[error("cluster {0} is there already, and not ours")]
    Taken(String),
    #[error(
        "{0:?} cannot be a path prefix: write segments of letters, digits and . _ ~ - after a slash each"
    )]
    Path(String),
    #[error("UDP cannot be routed by HTTP")]
    Udp,
    #[error("it has neither a target nor a server name")]
    NoTarget,
    #[error("target {0:?} is neither an IP address nor a DNS name")]
    Target(String),
    #[error(
        "target {0} is of Envoy's own host or network segment; --allow-local-targets lets it be used"
    )]
    Local(String),
    #[error("target {0} has no port from 1 to 65535 or no weight from 1 to 100")]
    Number(String),
    #[error("{0:?} cannot be sent as Host")]
    Host(String),
    #[error("{0:?} cannot be a server name")]
    ServerName(String),
    #[error("the authorities' certificates cannot be used: {0}")]
    Authorities(#[from] AuthoritiesError),
    #[error("{field} of the health check cannot be {value:?}")]
    HealthCheck { field: &'static str, value: String },
}

impl Refusal {
    /// The same in one word, for metrics and reports.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "Unreadable",
            Self::Name { .. } => "InvalidName",
            Self::Twice { .. } => "Duplicate",
            Self::Taken(_) => "ClusterTaken",
            Self::Path(_) => "InvalidPath",
            Self::Udp => "UnsupportedProtocol",
            Self::NoTarget => "NoTarget",
            Self::Target(_) | Self::Number(_) => "InvalidTarget",
            Self::Local(_) => "LocalTarget",
            Self::Host(_) => "InvalidHost",
            Self::ServerName(_) => "InvalidServerName",
            Self::Authorities(_) => "InvalidCertificate",
            Self::HealthCheck { .. } => "InvalidHealthCheck",
        }
    }
}

/// Longest name of a route or cluster.
const LONGEST_NAME: usize = 512;

const LONGEST_PATH: usize = 1024;

/// # Errors
/// The first thing that is wrong with the names and the path. The upstream is looked at by itself.
pub(super) fn check_service(service: &RoutedService) -> Result<(), Refusal> {
    check_name("route", &service.route)?;
    check_name("cluster", &service.cluster)?;
    match is_path_prefix(&service.path_prefix) {
        true => Ok(()),
        false => Err(Refusal::Path(service.path_prefix.clone())),
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), Refusal> {
    let seen = name.bytes().all(|byte| byte.is_ascii_graphic());
    match seen && (1..=LONGEST_NAME).contains(&name.len()) {
        true => Ok(()),
        false => Err(Refusal::Name {
            what,
            name: name.into(),
        }),
    }
}

fn is_path_prefix(path: &str) -> bool {
    let is_segment = |segment: &str| {
        let mut bytes = segment.bytes();
        // Envoy has resolved those of dots before it matches.
        !matches!(segment, "" | "." | "..")
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte))
    };
    let segments = path.strip_prefix('/').map(|path| path.split('/'));
    path.len() <= LONGEST_PATH && segments.is_some_and(|mut segments| segments.all(is_segment))
}

/// # Errors
/// The first thing that is wrong with it.
pub(super) fn check_upstream(upstream: &Upstream, local_targets: bool) -> Result<(), Refusal> {
    if upstream.protocol == Protocol::Udp {
        return Err(Refusal::Udp);
    }
    // Without any, Envoy answers at once that nobody is there.
    for target in &upstream.targets {
        check_target(target, local_targets)?;
    }
    if !upstream.host.is_empty() && !is_authority(&upstream.host) {
        return Err(Refusal::Host(upstream.host.clone()));
    }
    match &upstream.tls {
        Some(tls) if !tls.server_name.is_empty() => check_server_name(tls),
        _ => Ok(()),
    }
}

fn check_target(target: &Target, local_targets: bool) -> Result<(), Refusal> {
    let local = match target.host.parse::<IpAddr>() {
        Ok(address) => is_local(address),
        Err(_) if !is_dns_name(&target.host) => return Err(Refusal::Target(target.host.clone())),
        Err(_) => is_local_name(&target.host),
    };
    if local && !local_targets {
        return Err(Refusal::Local(target.host.clone()));
    }
    match target.port > 0 && (1..=100).contains(&target.weight) {
        true => Ok(()),
        false => Err(Refusal::Number(target.host.clone())),
    }
}

/// What may not stand in an EndpointSlice either: Envoy's admin page is on its loopback, and what
/// clouds tell their machines is link-local.
fn is_local(address: IpAddr) -> bool {
    let (link_local, broadcast) = match address.to_canonical() {
        IpAddr::V4(address) => (address.is_link_local(), address.is_broadcast()),
        IpAddr::V6(address) => (address.is_unicast_link_local(), false),
    };
    let address = address.to_canonical();
    let special = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    special || link_local || broadcast
}

/// RFC 6761 §6.3.
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// A name that can be looked up; underscores are in use. The last label holds a letter, so that no
/// misspelled address is taken for a name (RFC 1123 §2.1).
pub(super) fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(is_label)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// A host, with a port or without.
fn is_authority(text: &str) -> bool {
    let authority = text.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| !text.contains('@') && !authority.host().is_empty())
}

fn check_server_name(tls: &UpstreamTls) -> Result<(), Refusal> {
    let name = &tls.server_name;
    match is_dns_name(name) || name.parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(Refusal::ServerName(name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prefix_is_segments_that_mean_themselves() {
        for good in ["/api/web", "/a", "/a/b/c.d_e~f-1", "/..a"] {
            assert!(is_path_prefix(good), "{good:?}");
        }
        let long = format!("/{}", "a".repeat(LONGEST_PATH));
        for bad in [
            "", "/", "api", "/api/", "//a", "/a//b", "/a/..", "/./a", "/a?b", "/a#", "/a b",
            "/a%20", "/ä", "/a*", &long,
        ] {
            assert!(!is_path_prefix(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_target_is_an_address_or_a_name_of_another_host() {
        let check = |host: &str| {
            let target = Target {
                host: host.into(),
                port: 80,
                weight: 1,
            };
            check_target(&target, false)
        };
        for good in [
            "example.com",
            "example.com.",
            "my_service.default.svc",
            "a",
            "10.0.0.1",
            "100.64.0.7",
            "fd7a:115c:a1e0::1",
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "1.2.3",
            "256.1.1.1",
            "fe80::1%eth0",
            "a b",
            "[::1]",
        ] {
            assert_eq!(check(bad), Err(Refusal::Target(bad.into())), "{bad:?}");
        }
        for local in [
            "127.0.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "255.255.255.255",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
        ] {
            assert_eq!(check(local), Err(Refusal::Local(local.into())), "{local:?}");
        }
        let target = Target {
            host: "127.0.0.1".into(),
            port: 80,
            weight: 1,
        };
        assert_eq!(check_target(&target, true), Ok(()));
        for (port, weight) in [(0, 1), (1, 0), (1, 101)] {
            let target = Target {
                host: "a".into(),
                port,
                weight,
            };
            assert_eq!(
                check_target(&target, false),
                Err(Refusal::Number("a".into()))
            );
        }
    }

    #[test]
    fn what_is_sent_as_host_is_a_host_and_perhaps_a_port() {
        for good in ["example.com", "example.com:8080", "10.0.0.1:80", "[::1]:80"] {
            assert!(is_authority(good), "{good:?}");
        }
        for bad in ["", "a b", "user@a", "a/b", "a\r\nx: y", ":80"] {
            assert!(!is_authority(bad), "{bad:?}");
        }
    }
}
