//! Services of the tailnet.

use super::Violations;
use crate::api::{
    endpoints::{EndpointSpec, EndpointTls, TailscaleEndpoints},
    upstream::{HealthCheck, Protocol},
};
use std::collections::BTreeSet;

pub(super) fn endpoints(found: &mut Violations, object: &TailscaleEndpoints) {
    let endpoints = &object.spec.endpoints;
    found.count(endpoints.len(), 0..=1000, "spec.endpoints");
    let mut names = BTreeSet::new();
    for (index, spec) in endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{index}]");
        found.check(
            names.insert(&spec.name),
            format!("{path}.name"),
            format!("{:?} is there twice", spec.name),
        );
        endpoint(found, spec, &path);
    }
    let replicas = object.spec.proxy.as_ref().map_or(1, |pods| pods.replicas);
    found.check(
        (1..=16).contains(&replicas),
        "spec.proxy.replicas",
        format!("{replicas} is not from 1 to 16"),
    );
}

fn endpoint(found: &mut Violations, spec: &EndpointSpec, path: &str) {
    found.label(&spec.name, format!("{path}.name"));
    found.port(spec.port, format!("{path}.port"));
    found.check(
        (1..=100).contains(&spec.weight),
        format!("{path}.weight"),
        format!("{} is not from 1 to 100", spec.weight),
    );
    let targets = [
        &spec.external_target,
        &spec.tailscale_fqdn,
        &spec.tailscale_ip,
    ];
    found.check(
        targets.iter().any(|target| target.is_some()),
        path,
        "does not say where it is: set externalTarget, tailscaleFQDN or tailscaleIP",
    );
    if let Some(target) = &spec.external_target {
        found.check(
            is_host_and_port(target),
            format!("{path}.externalTarget"),
            format!("{target:?} is no host:port"),
        );
    }
    if let Some(name) = &spec.tailscale_fqdn {
        let name_only = name.strip_prefix("svc:").unwrap_or(name);
        let name_only = name_only.strip_suffix('.').unwrap_or(name_only);
        found.check(
            name.len() <= 253 && is_name(name_only, "-."),
            format!("{path}.tailscaleFQDN"),
            format!("{name:?} is neither a name nor svc: and a name"),
        );
    }
    if let Some(ip) = &spec.tailscale_ip {
        let is_like_one = |byte: u8| byte.is_ascii_hexdigit() || b".:".contains(&byte);
        found.check(
            (2..=45).contains(&ip.len()) && ip.bytes().all(is_like_one),
            format!("{path}.tailscaleIP"),
            format!("{ip:?} is no IP address"),
        );
    }
    if let Some(given) = &spec.tls {
        tls(found, spec.protocol, given, &format!("{path}.tls"));
    }
    if let Some(check) = &spec.health_check {
        health_check(found, check, &format!("{path}.healthCheck"));
    }
}

fn tls(found: &mut Violations, protocol: Protocol, tls: &EndpointTls, path: &str) {
    found.check(
        matches!(protocol, Protocol::Https | Protocol::Tcp),
        path,
        "is for protocol HTTPS or TCP",
    );
    found.check(
        !(tls.insecure_skip_verify && tls.ca_certificate_ref.is_some()),
        path,
        "insecureSkipVerify believes anybody: leave caCertificateRef out",
    );
    if let Some(name) = &tls.server_name {
        found.check(
            name.len() <= 253 && is_name(name, "-."),
            format!("{path}.serverName"),
            format!("{name:?} is no DNS name"),
        );
    }
    if let Some(reference) = &tls.ca_certificate_ref {
        found.not_empty(&reference.name, format!("{path}.caCertificateRef.name"));
    }
}

fn health_check(found: &mut Violations, check: &HealthCheck, path: &str) {
    found.check(
        check.path.starts_with('/') && check.path.bytes().all(|byte| byte.is_ascii_graphic()),
        format!("{path}.path"),
        format!("{:?} is no path", check.path),
    );
    for (field, number) in [
        ("healthyThreshold", check.healthy_threshold),
        ("unhealthyThreshold", check.unhealthy_threshold),
    ] {
        found.check(
            (1..=10).contains(&number),
            format!("{path}.{field}"),
            format!("{number} is not from 1 to 10"),
        );
    }
}

/// Letters and digits, and inside some others.
fn is_name(text: &str, inner: &str) -> bool {
    let is_outer = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(is_outer)
        && text.ends_with(is_outer)
        && text.chars().all(|c| is_outer(c) || inner.contains(c))
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':').filter(|_| text.len() <= 260) else {
        return false;
    };
    let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let ip = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match ip {
        Some(ip) => {
            !ip.is_empty()
                && ip
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b".:".contains(&b))
        }
        None => is_name(host, "-._"),
    };
    is_port && is_host
}
