//! Services as clusters of Envoy.

use super::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster, OutlierDetection, UpstreamConnectionOptions,
                cluster::{ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType},
            },
            core::v3::{
                Address, DataSource, HealthCheck, Http1ProtocolOptions, Http2ProtocolOptions,
                Metadata, SocketAddress, TcpKeepalive, TransportSocket, address, data_source,
                health_check::{HealthChecker, HttpHealthCheck, TcpHealthCheck},
                socket_address, transport_socket,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
            },
        },
        extensions::{
            clusters::{common::dns::v3::DnsLookupFamily, dns::v3::DnsCluster},
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher,
                TlsParameters, UpstreamTlsContext, common_tls_context,
                subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config,
                },
            },
        },
        r#type::{
            matcher::v3::{StringMatcher, string_matcher},
            v3::{Int64Range, Percent},
        },
    },
    refusal::{Refusal, check_upstream},
};
use crate::{
    api::upstream::{self, Protocol, Upstream, UpstreamTls},
    index::duration,
    model::Authorities,
};
use prost::Message;
use prost_types::{Any, Struct, Value, value};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// What is the same for all services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where Envoy has the certificates of the authorities that its system trusts.
    pub system_authorities: String,
    /// Whether targets may be on Envoy's own host.
    pub local_targets: bool,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// HTTP/1.1; with TLS also HTTP/2 where the target offers it.
    Any,
    /// HTTP/2, as gRPC needs it.
    Http2,
}

/// What is told apart by it in the metadata of all that is ours.
pub(super) const METADATA: &str = "tailscale";

/// Key of the protocol options of HTTP.
pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Protobuf has no durations of more than some thousand years.
const LONGEST_CHECK: Duration = Duration::from_secs(24 * 60 * 60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BUFFER: u32 = 32 << 10;
/// How often a name is looked up again; a shorter lifetime of the answer goes before.
const DNS_REFRESH: Duration = Duration::from_secs(30);

/// Whether there can be a cluster of an upstream.
///
/// # Errors
/// When Envoy would not take it, or should not.
pub fn check(upstream: &Upstream, local_targets: bool) -> Result<(), Refusal> {
    let settings = Settings {
        system_authorities: String::new(),
        local_targets,
    };
    cluster("", upstream, Sending::Any, &[], &settings).map(drop)
}

/// The cluster of an upstream. `labels` are for whoever reads Envoy's configuration.
///
/// # Errors
/// When Envoy would not take it, or should not.
pub(super) fn cluster(
    name: &str,
    upstream: &Upstream,
    sending: Sending,
    labels: &[(&str, &str)],
    settings: &Settings,
) -> Result<Cluster, Refusal> {
    check_upstream(upstream, settings.local_targets)?;
    let health_checks: Vec<_> = health_check(upstream, sending)?.into_iter().collect();
    let no_panic = CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: 0.0 }),
    };
    let stat_name = name.replace(['.', ':', '/'], "_");
    Ok(Cluster {
        name: name.into(),
        alt_stat_name: match stat_name == name {
            true => String::new(),
            false => stat_name,
        },
        connect_timeout: Some(seconds(CONNECT_TIMEOUT)),
        per_connection_buffer_limit_bytes: Some(BUFFER),
        // Endpoints that were found unhealthy stay out; without checks nobody knows better than
        // to try.
        common_lb_config: (!health_checks.is_empty()).then_some(no_panic),
        health_checks,
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: Some(5),
            interval: Some(seconds(Duration::from_secs(10))),
            base_ejection_time: Some(seconds(Duration::from_secs(30))),
            max_ejection_percent: Some(50),
        }),
        transport_socket: transport_socket(upstream, sending, settings)?,
        metadata: Some(metadata(labels)),
        ignore_health_on_host_removal: true,
        load_assignment: Some(load_assignment(name, upstream)),
        typed_extension_protocol_options: http_options(upstream, sending)
            .map(|options| (HTTP_OPTIONS.into(), any(HTTP_OPTIONS, &options)))
            .into_iter()
            .collect(),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_probes: Some(3),
                keepalive_time: Some(60),
                keepalive_interval: Some(10),
            }),
        }),
        cluster_discovery_type: Some(discovery(upstream)),
    })
}

/// Whether Envoy speaks TLS to it.
pub(super) fn is_tls(upstream: &Upstream) -> bool {
    upstream.protocol == Protocol::Https || upstream.tls.is_some()
}

pub(super) fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

pub(super) fn metadata(labels: &[(&str, &str)]) -> Metadata {
    let value = |text: &str| Value {
        kind: Some(value::Kind::StringValue(text.into())),
    };
    let fields = labels
        .iter()
        .map(|(key, text)| ((*key).into(), value(text)))
        .collect();
    Metadata {
        filter_metadata: BTreeMap::from([(METADATA.into(), Struct { fields })]),
    }
}

/// Addresses need no DNS; a DNS cluster takes both.
fn discovery(upstream: &Upstream) -> ClusterDiscoveryType {
    let targets = &upstream.targets;
    if targets.iter().all(|target| address(&target.host).is_some()) {
        return ClusterDiscoveryType::Type(DiscoveryType::Static.into());
    }
    let dns = DnsCluster {
        dns_refresh_rate: Some(seconds(DNS_REFRESH)),
        respect_dns_ttl: true,
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
    };
    ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dns".into(),
        typed_config: Some(any("envoy.extensions.clusters.dns.v3.DnsCluster", &dns)),
    })
}

fn address(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

fn load_assignment(name: &str, upstream: &Upstream) -> ClusterLoadAssignment {
    let endpoint = |target: &upstream::Target| {
        let socket = SocketAddress {
            address: address(&target.host)
                .map_or_else(|| target.host.clone(), |address| address.to_string()),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(target.port.into())),
        };
        LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
                address: Some(Address {
                    address: Some(address::Address::SocketAddress(socket)),
                }),
            })),
            load_balancing_weight: Some(target.weight),
        }
    };
    ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: upstream.targets.iter().map(endpoint).collect(),
            // Where localities are weighed, one without a weight gets nothing.
            load_balancing_weight: Some(1),
        }],
    }
}

fn health_check(upstream: &Upstream, sending: Sending) -> Result<Option<HealthCheck>, Refusal> {
    let Some(check) = upstream.health_check.as_ref().filter(|check| check.enabled) else {
        return Ok(None);
    };
    let refuse = |field, value: &str| Refusal::HealthCheck {
        field,
        value: value.into(),
    };
    let time = |field, text: &str| match duration(text) {
        Ok(time) if !time.is_zero() && time <= LONGEST_CHECK => Ok(seconds(time)),
        _ => Err(refuse(field, text)),
    };
    let threshold = |field, count: i32| match u32::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(refuse(field, &count.to_string())),
    };
    let by_http = matches!(upstream.protocol, Protocol::Http | Protocol::Https);
    let checker = if by_http && sending == Sending::Any {
        let path = &check.path;
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse("path", path));
        }
        HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: check_host(upstream),
            path: path.clone(),
            expected_statuses: vec![Int64Range {
                start: 200,
                end: 300,
            }],
            // Others would count at once, whatever the threshold.
            retriable_statuses: vec![
                Int64Range {
                    start: 100,
                    end: 200,
                },
                Int64Range {
                    start: 300,
                    end: 600,
                },
            ],
        })
    } else {
        HealthChecker::TcpHealthCheck(TcpHealthCheck {})
    };
    let interval = time("interval", &check.interval)?;
    Ok(Some(HealthCheck {
        timeout: Some(time("timeout", &check.timeout)?),
        // Envoy would ask once a minute only while nobody else does.
        no_traffic_interval: Some(interval),
        interval: Some(interval),
        interval_jitter_percent: 10,
        unhealthy_threshold: Some(threshold("unhealthyThreshold", check.unhealthy_threshold)?),
        healthy_threshold: Some(threshold("healthyThreshold", check.healthy_threshold)?),
        health_checker: Some(checker),
    }))
}

/// What a check has as its Host: what requests have, as far as it is known.
fn check_host(upstream: &Upstream) -> String {
    let first = upstream.targets.first();
    let target = first.map_or_else(String::new, |target| match address(&target.host) {
        Some(IpAddr::V6(address)) => format!("[{address}]:{}", target.port),
        _ => format!("{}:{}", target.host, target.port),
    });
    match upstream.host.is_empty() {
        true => target,
        false => upstream.host.clone(),
    }
}

fn http_options(upstream: &Upstream, sending: Sending) -> Option<HttpProtocolOptions> {
    let options = match (sending, is_tls(upstream)) {
        (Sending::Any, false) => return None,
        (Sending::Any, true) => UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions {}),
            http2_protocol_options: Some(Http2ProtocolOptions {}),
        }),
        (Sending::Http2, _) => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                Http2ProtocolOptions {},
            )),
        }),
    };
    Some(HttpProtocolOptions {
        upstream_protocol_options: Some(options),
    })
}

fn transport_socket(
    upstream: &Upstream,
    sending: Sending,
    settings: &Settings,
) -> Result<Option<TransportSocket>, Refusal> {
    if !is_tls(upstream) {
        return Ok(None);
    }
    let default = UpstreamTls::default();
    let tls = upstream.tls.as_ref().unwrap_or(&default);
    let name = server_name(upstream, tls)?;
    // An address is not asked for by SNI (RFC 6066 §3).
    let sni = match address(&name) {
        Some(_) => String::new(),
        None => name.clone(),
    };
    let validation = match tls.insecure_skip_verify {
        true => None,
        false => Some(validation(&name, tls, settings)?),
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            // Clients of Envoy end at 1.2 otherwise.
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            }),
            validation_context_type: validation
                .map(common_tls_context::ValidationContextType::ValidationContext),
            alpn_protocols: match sending {
                // Envoy offers what its options of HTTP are.
                Sending::Any => Vec::new(),
                Sending::Http2 => vec!["h2".into()],
            },
        }),
        sni,
    };
    let context = any(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        &context,
    );
    Ok(Some(TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(context)),
    }))
}

/// Without the dot at the end, which no certificate has.
fn server_name(upstream: &Upstream, tls: &UpstreamTls) -> Result<String, Refusal> {
    let first = upstream.targets.first();
    let name = match (tls.server_name.is_empty(), first) {
        (false, _) => &tls.server_name,
        (true, Some(target)) => &target.host,
        (true, None) => return Err(Refusal::NoTarget),
    };
    Ok(name.trim_end_matches('.').to_ascii_lowercase())
}

fn validation(
    name: &str,
    tls: &UpstreamTls,
    settings: &Settings,
) -> Result<CertificateValidationContext, Refusal> {
    let authorities = if tls.ca_certificates.is_empty() {
        data_source::Specifier::Filename(settings.system_authorities.clone())
    } else {
        Authorities::from_pem(tls.ca_certificates.as_bytes())?;
        data_source::Specifier::InlineString(tls.ca_certificates.clone())
    };
    let (kind, exact) = match address(name) {
        Some(address) => (SanType::IpAddress, address.to_string()),
        None => (SanType::Dns, name.to_owned()),
    };
    Ok(CertificateValidationContext {
        trusted_ca: Some(DataSource {
            specifier: Some(authorities),
        }),
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: kind.into(),
            matcher: Some(StringMatcher {
                match_pattern: Some(string_matcher::MatchPattern::Exact(exact)),
            }),
        }],
    })
}

pub(super) fn seconds(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        // Those that are written here and those of five digits of hours fit.
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Of Envoy's images, and of Debian.
            system_authorities: "/etc/ssl/certs/ca-certificates.crt".into(),
            local_targets: false,
        }
    }
}
