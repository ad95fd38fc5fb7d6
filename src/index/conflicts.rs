//! Listeners of one Gateway that cannot be told apart.

use super::status::Finding;
use crate::{
    api::{
        conditions as c,
        gateway_api::gateways::{GatewayListeners, GatewayListenersTlsMode as Mode},
    },
    model::HostnamePattern,
};

/// How the connections of a listener are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recognition {
    /// By nothing but the port.
    Port,
    /// By the server name of TLS.
    ServerName,
    /// By the Host of plain HTTP.
    Host,
    /// By nothing but the port of UDP, which has ports of its own.
    Datagram,
}

/// For each listener, the conflict that it has. None of those in a conflict wins (Gateway API,
/// `spec.listeners`, "Handling indistinct Listeners").
pub(super) fn conflicts(specs: &[GatewayListeners]) -> Vec<Option<Finding>> {
    let of = |(index, spec)| conflict(spec, &sharing(specs, index));
    specs.iter().enumerate().map(of).collect()
}

/// For each listener, the conflict that it has, when several objects have listeners of one
/// Gateway: those of the first come first, and what conflicts with them is left out (Gateway API
/// `ListenerSetSpec.listeners`). Whose they are is not for everybody to know.
pub(super) fn conflicts_of_groups(groups: &[Vec<GatewayListeners>]) -> Vec<Option<Finding>> {
    let mut standing: Vec<GatewayListeners> = Vec::new();
    let mut all = Vec::new();
    for group in groups {
        let lost: Vec<_> = group.iter().map(|spec| lost(spec, &standing)).collect();
        let left = group.iter().zip(&lost).filter(|(_, lost)| lost.is_none());
        let left: Vec<_> = left.map(|(spec, _)| spec.clone()).collect();
        let mut mutual = conflicts(&left).into_iter();
        let of = |lost: Option<Finding>| lost.or_else(|| mutual.next().flatten());
        all.extend(lost.into_iter().map(of));
        standing.extend(left);
    }
    all
}

/// The conflict with listeners that come first.
fn lost(spec: &GatewayListeners, standing: &[GatewayListeners]) -> Option<Finding> {
    let specs = [std::slice::from_ref(spec), standing].concat();
    let conflict = conflict(spec, &sharing(&specs, 0))?;
    let taken = match conflict.reason {
        c::HOSTNAME_CONFLICT => format!("port {} and hostname {:?} are", spec.port, hostname(spec)),
        _ => format!("port {} is", spec.port),
    };
    let message = format!(
        "{taken} taken by a listener that comes first: the Gateway's own do, then those of older ListenerSets"
    );
    Some(Finding::new(conflict.reason, message))
}

/// For each listener, the TLS listeners of its port whose hostnames overlap with its own (Gateway
/// API, `OverlappingTLSConfig`).
pub(super) fn overlaps(specs: &[GatewayListeners]) -> Vec<Option<Finding>> {
    let by_name = |spec: &GatewayListeners| recognition(spec) == Some(Recognition::ServerName);
    let of = |(index, spec): (usize, &GatewayListeners)| {
        let names: Vec<_> = sharing(specs, index)
            .into_iter()
            .filter(|other| by_name(spec) && by_name(other))
            .filter(|other| overlap(&hostname(spec), &hostname(other)))
            .map(|other| other.name.as_str())
            .collect();
        let message = format!(
            "hostname {:?} overlaps with that of listener {}",
            hostname(spec),
            names.join(", ")
        );
        (!names.is_empty()).then(|| Finding::new(c::OVERLAPPING_HOSTNAMES, message))
    };
    specs.iter().enumerate().map(of).collect()
}

/// The other listeners of the same port, either of TCP or of UDP.
fn sharing(specs: &[GatewayListeners], index: usize) -> Vec<&GatewayListeners> {
    let is_udp = |spec: &GatewayListeners| recognition(spec) == Some(Recognition::Datagram);
    let own = &specs[index];
    let others = specs.iter().enumerate().filter(|&(at, _)| at != index);
    others
        .map(|(_, other)| other)
        .filter(|other| other.port == own.port && is_udp(other) == is_udp(own))
        .collect()
}

/// `None` for what cannot be in the way on a port: an unknown protocol is never served.
fn recognition(spec: &GatewayListeners) -> Option<Recognition> {
    match spec.protocol.as_str() {
        "TCP" => Some(Recognition::Port),
        "TLS" | "HTTPS" => Some(Recognition::ServerName),
        "HTTP" => Some(Recognition::Host),
        "UDP" => Some(Recognition::Datagram),
        _ => None,
    }
}

/// The conflict of a listener with those that share its port.
fn conflict(spec: &GatewayListeners, sharing: &[&GatewayListeners]) -> Option<Finding> {
    let own = recognition(spec)?;
    let port = spec.port;
    let names = |conflicts: &dyn Fn(&GatewayListeners, Recognition) -> bool| {
        let names: Vec<_> = sharing
            .iter()
            .filter(|other| recognition(other).is_some_and(|kind| conflicts(other, kind)))
            .map(|other| other.name.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = names(&|_, kind| kind != own) {
        let message = format!("port {port} has another protocol in listener {names}");
        return Some(Finding::new(c::PROTOCOL_CONFLICT, message));
    }
    if matches!(own, Recognition::Port | Recognition::Datagram) {
        let names = names(&|_, _| true)?;
        let message = format!("port {port} is also that of listener {names}");
        return Some(Finding::new(c::PROTOCOL_CONFLICT, message));
    }
    if let Some(names) = names(&|other, _| hostname(other) == hostname(spec)) {
        let message = format!(
            "port {port} and hostname {:?} are also those of listener {names}",
            hostname(spec)
        );
        return Some(Finding::new(c::HOSTNAME_CONFLICT, message));
    }
    None
}

pub(super) fn is_passthrough(spec: &GatewayListeners) -> bool {
    spec.tls
        .as_ref()
        .is_some_and(|tls| matches!(tls.mode, Some(Mode::Passthrough)))
}

fn hostname(spec: &GatewayListeners) -> String {
    spec.hostname
        .clone()
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Whether a server name can be meant by both; an empty hostname means every name.
fn overlap(one: &str, other: &str) -> bool {
    let (Ok(one), Ok(other)) = (HostnamePattern::parse(one), HostnamePattern::parse(other)) else {
        return one.is_empty() || other.is_empty();
    };
    match (&one, &other) {
        (pattern, HostnamePattern::Exact(name)) | (HostnamePattern::Exact(name), pattern) => {
            pattern.matches(name)
        }
        (HostnamePattern::Wildcard(a), HostnamePattern::Wildcard(b)) => {
            a == b || one.matches(b) || other.matches(a)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostnames_overlap_when_a_name_can_be_meant_by_both() {
        for (one, other, expected) in [
            ("", "a.example.com", true),
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "*.a.example.com", true),
            ("*.example.com", "*.example.org", false),
            ("*.example.com", "*.myexample.com", false),
        ] {
            assert_eq!(overlap(one, other), expected, "{one:?} {other:?}");
            assert_eq!(overlap(other, one), expected, "{other:?} {one:?}");
        }
    }
}
