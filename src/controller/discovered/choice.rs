//! Which devices and services of a tailnet become endpoints.

use crate::{
    api::{
        endpoints::{
            AutoDiscovery, DiscoverySource, EndpointStatus, ServiceDiscovery, TagOperator,
            TagSelector,
        },
        upstream::Protocol,
    },
    index::duration,
    tailnet::api::{Device, Service},
};
use std::{collections::BTreeSet, time::Duration};

/// Tag of a device that speaks HTTPS.
const HTTPS_TAG: &str = "tag:https";

/// `None` when it cannot be read.
pub(super) fn interval(discovery: &AutoDiscovery) -> Option<Duration> {
    duration(&discovery.sync_interval).ok()
}

/// Whether an endpoint was found rather than written.
pub(super) fn is_found(status: &EndpointStatus) -> bool {
    status.discovery_source != DiscoverySource::Manual
}

/// A device speaks HTTP at port 80, or HTTPS at 443 when it has the tag for it. `ours`: names of
/// tailway's own egresses, which lead here.
pub(super) fn of_devices(
    devices: &[Device],
    discovery: &AutoDiscovery,
    ours: &BTreeSet<String>,
) -> Vec<EndpointStatus> {
    let chosen = devices.iter().filter(|device| {
        let (label, full) = names(device);
        let names = |pattern: &String| fits(pattern, &label) || fits(pattern, &full);
        let include = &discovery.include_patterns;
        let selectors = &discovery.tag_selectors;
        device.authorized
            && !is_ours(&label, ours)
            && (include.is_empty() || include.iter().any(names))
            && !discovery.exclude_patterns.iter().any(names)
            && discovery
                .required_tags
                .iter()
                .all(|tag| device.tags.contains(tag))
            && (selectors.is_empty() || selectors.iter().any(|s| selects(s, &device.tags)))
    });
    let endpoint = |device: &Device| {
        let (name, full) = names(device);
        let is_https = device.tags.iter().any(|tag| tag == HTTPS_TAG);
        let address = device.addresses.iter().find(|ip| ip.is_ipv4());
        let address = address.or(device.addresses.first());
        EndpointStatus {
            name,
            port: if is_https { 443 } else { 80 },
            protocol: if is_https {
                Protocol::Https
            } else {
                Protocol::Http
            },
            tailscale_fqdn: full,
            tailscale_ip: address.map_or_else(String::new, ToString::to_string),
            discovery_source: DiscoverySource::AutoDiscovery,
            tags: device.tags.clone(),
            ..EndpointStatus::default()
        }
    };
    chosen
        .map(endpoint)
        .filter(|found| is_label(&found.name))
        .collect()
}

/// A service has an endpoint for each of its ports: the first is called as the service, the others
/// have the port added.
pub(super) fn of_services(services: &[Service], wanted: &ServiceDiscovery) -> Vec<EndpointStatus> {
    let chosen = services.iter().filter(|service| {
        let label = service.label();
        let names = |pattern: &String| fits(pattern.trim_start_matches("svc:"), label);
        (wanted.service_names.is_empty() || wanted.service_names.iter().any(names))
            && wanted
                .service_tags
                .iter()
                .all(|tag| service.tags.contains(tag))
    });
    let endpoints = chosen.flat_map(|service| {
        let ports = service.ports();
        // One that leaves its ports to its hosts.
        let ports = match ports.is_empty() {
            true => vec![(443, false)],
            false => ports,
        };
        ports.into_iter().enumerate().map(|(at, (port, is_udp))| {
            let label = service.label();
            let address = service.addresses.first();
            EndpointStatus {
                name: match at {
                    0 => label.to_owned(),
                    _ => format!("{label}-{port}"),
                },
                port: port.into(),
                protocol: match (port, is_udp) {
                    (_, true) => Protocol::Udp,
                    (80, _) => Protocol::Http,
                    (443, _) => Protocol::Https,
                    _ => Protocol::Tcp,
                },
                tailscale_fqdn: format!("svc:{label}"),
                tailscale_ip: address.map_or_else(String::new, ToString::to_string),
                discovery_source: DiscoverySource::VipService,
                tags: service.tags.clone(),
                ..EndpointStatus::default()
            }
        })
    });
    endpoints.filter(|found| is_label(&found.name)).collect()
}

/// The first label of a device's name, and all of it.
fn names(device: &Device) -> (String, String) {
    let full = device.name.trim_end_matches('.').to_ascii_lowercase();
    let label = full.split('.').next().unwrap_or_default().to_owned();
    (label, full)
}

fn is_ours(label: &str, ours: &BTreeSet<String>) -> bool {
    let egress = label.rsplit_once('-').filter(|(_, ordinal)| {
        !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit())
    });
    egress.is_some_and(|(egress, _)| ours.contains(egress))
}

/// What a name of an endpoint can be (RFC 1123 §2.1).
fn is_label(name: &str) -> bool {
    crate::model::NodeName::parse(name).is_ok_and(|label| label.as_str() == name)
}

/// Whether a name is as a pattern says, in which `*` is any text.
fn fits(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    // `split` gives at least one.
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(last)
}

fn selects(selector: &TagSelector, tags: &[String]) -> bool {
    let TagSelector {
        tag,
        operator,
        values,
    } = selector;
    let has_value = || {
        let mut values = values.iter().map(|value| format!("{tag}-{value}"));
        values.any(|wanted| tags.contains(&wanted))
    };
    let exists = || {
        let of_tag = |known: &String| {
            let rest = known.strip_prefix(tag.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        tags.iter().any(of_tag)
    };
    match operator {
        TagOperator::In => has_value(),
        TagOperator::NotIn => !has_value(),
        TagOperator::Exists => exists(),
        TagOperator::DoesNotExist => !exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn device(name: &str, tags: &[&str]) -> Device {
        serde_json::from_value(json!({
            "nodeId": name, "name": format!("{name}.tail1234.ts.net"), "authorized": true,
            "addresses": ["100.64.0.7", "fd7a:115c:a1e0::7"], "tags": tags,
        }))
        .unwrap()
    }

    fn found(devices: &[Device], discovery: serde_json::Value) -> Vec<String> {
        let discovery = serde_json::from_value(discovery).unwrap();
        let ours = ["web-egress".to_owned()].into();
        let found = of_devices(devices, &discovery, &ours);
        found.into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn a_pattern_fits_what_it_says_with_any_text_for_a_star() {
        for (pattern, name, expected) in [
            ("web", "web", true),
            ("web", "web-1", false),
            ("Web*", "web-1", true),
            ("*-1", "web-1", true),
            ("w*b*1", "web-1", true),
            ("w*b*2", "web-1", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("", "web", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn devices_are_chosen_by_name_and_tags() {
        let mut waiting = device("waiting", &["tag:web"]);
        waiting.authorized = false;
        let devices = [
            device("web-1", &["tag:web", "tag:env-prod"]),
            device("web-2", &["tag:web", "tag:env-test"]),
            device("db", &["tag:db"]),
            device("web-egress-0", &["tag:web"]),
            waiting,
        ];
        assert_eq!(found(&devices, json!({})), ["web-1", "web-2", "db"]);
        let by_name = json!({"includePatterns": ["web-*"], "excludePatterns": ["*-2"]});
        assert_eq!(found(&devices, by_name), ["web-1"]);
        assert_eq!(
            found(
                &devices,
                json!({"requiredTags": ["tag:web", "tag:env-test"]})
            ),
            ["web-2"]
        );
        let select = |operator: &str, values: &[&str]| {
            let selector = json!({"tag": "tag:env", "operator": operator, "values": values});
            found(&devices, json!({ "tagSelectors": [selector] }))
        };
        assert_eq!(select("In", &["prod", "stage"]), ["web-1"]);
        assert_eq!(select("NotIn", &["prod"]), ["web-2", "db"]);
        assert_eq!(select("Exists", &[]), ["web-1", "web-2"]);
        assert_eq!(select("DoesNotExist", &[]), ["db"]);
    }

    #[test]
    fn a_device_with_the_tag_for_it_speaks_https() {
        let discovery = AutoDiscovery::default();
        let devices = [device("plain", &[]), device("secure", &["tag:https"])];
        let found = of_devices(&devices, &discovery, &BTreeSet::new());
        let spoken: Vec<_> = found.iter().map(|f| (f.port, f.protocol)).collect();
        assert_eq!(spoken, [(80, Protocol::Http), (443, Protocol::Https)]);
        assert_eq!(found[0].tailscale_fqdn, "plain.tail1234.ts.net");
        assert_eq!(found[0].tailscale_ip, "100.64.0.7");
    }

    #[test]
    fn each_port_of_a_service_is_an_endpoint() {
        let service = |name: &str, ports: &[&str], tags: &[&str]| -> Service {
            serde_json::from_value(json!({
                "name": name, "addrs": ["100.100.0.1"], "ports": ports, "tags": tags,
            }))
            .unwrap()
        };
        let services = [
            service(
                "svc:shop",
                &["tcp:443", "tcp:5432", "udp:53"],
                &["tag:shop"],
            ),
            service("svc:any", &["do-not-validate"], &[]),
        ];
        let wanted = |value| serde_json::from_value(value).unwrap();
        let all = of_services(&services, &wanted(json!({"enabled": true})));
        let all: Vec<_> = all
            .iter()
            .map(|f| (f.name.as_str(), f.port, f.protocol))
            .collect();
        assert_eq!(
            all,
            [
                ("shop", 443, Protocol::Https),
                ("shop-5432", 5432, Protocol::Tcp),
                ("shop-53", 53, Protocol::Udp),
                ("any", 443, Protocol::Https),
            ]
        );
        let some =
            json!({"enabled": true, "serviceNames": ["svc:s*"], "serviceTags": ["tag:shop"]});
        let some = of_services(&services, &wanted(some));
        assert_eq!(some.len(), 3);
        assert_eq!(some[0].tailscale_fqdn, "svc:shop");
    }
}
