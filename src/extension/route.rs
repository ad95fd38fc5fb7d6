//! Services as routes of Envoy, each with its clusters.

use super::{
    cluster::{Sending, Settings, any, cluster, is_tls, metadata, seconds},
    envoy::{
        config::route::v3::{
            RetryPolicy, Route, RouteAction, RouteMatch, VirtualHost,
            retry_policy::{RetryHostPredicate, retry_host_predicate},
            route,
            route_action::{ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig},
            route_match::{GrpcRouteMatchOptions, PathSpecifier},
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
        r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
    },
    refusal::Refusal,
};
use crate::{api::upstream::egress::RoutedService, model::ObjectName};
use bytes::Bytes;
use prost::Message;
use std::time::Duration;

/// What one service is for Envoy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    /// The one that requests go to, unless they are of gRPC and need another.
    pub(super) cluster: String,
    pub(super) clusters: Vec<(String, Bytes)>,
    /// In the order in which they are tried.
    pub(super) routes: Vec<RenderedRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RenderedRoute {
    pub(super) name: String,
    pub(super) prefix: String,
    pub(super) bytes: Bytes,
}

/// How long nothing may move. Streams have no other end.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// When nobody can have seen the request, so that sending it again does no harm.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

/// Headers by which tailway tells who a peer of the tailnet is. Whoever came to Envoy is not known
/// to be that.
const CLAIMS: [&str; 7] = [
    "tailscale-app-capabilities",
    "tailscale-headers-info",
    "tailscale-node",
    "tailscale-tags",
    "tailscale-user-login",
    "tailscale-user-name",
    "tailscale-user-profile-pic",
];

/// What follows the name of a cluster or route in that for gRPC: no service's name holds it.
const GRPC: &str = "/grpc";

/// Renders a service with a cluster of another name than its own, perhaps. The same is always the
/// same bytes.
///
/// # Errors
/// When Envoy would not take it, or should not.
pub(super) fn render(
    service: &RoutedService,
    cluster: &str,
    settings: &Settings,
) -> Result<Rendered, Refusal> {
    let mut rendered = Rendered {
        cluster: cluster.into(),
        ..Rendered::default()
    };
    let mut add = |sending, suffix| -> Result<(), Refusal> {
        let one = render_one(
            service,
            &format!("{cluster}{suffix}"),
            sending,
            suffix,
            settings,
        )?;
        rendered.clusters.extend(one.clusters);
        rendered.routes.extend(one.routes);
        Ok(())
    };
    // What is spoken by TLS is agreed in its handshake. Without, only gRPC is known to need HTTP/2.
    if !is_tls(&service.upstream) {
        add(Sending::Http2, GRPC)?;
    }
    add(Sending::Any, "")?;
    Ok(rendered)
}

fn render_one(
    service: &RoutedService,
    cluster_name: &str,
    sending: Sending,
    suffix: &str,
    settings: &Settings,
) -> Result<Rendered, Refusal> {
    let labels = [("service", &*service.name), ("source", &*service.source)];
    let cluster = cluster(cluster_name, &service.upstream, sending, &labels, settings)?;
    let route = Route {
        name: format!("{}{suffix}", service.route),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::PathSeparatedPrefix(
                service.path_prefix.clone(),
            )),
            grpc: (sending == Sending::Http2).then_some(GrpcRouteMatchOptions {}),
        }),
        action: Some(route::Action::Route(action(service, cluster_name))),
        metadata: Some(metadata(&labels)),
        request_headers_to_remove: CLAIMS.map(str::to_owned).to_vec(),
        stat_prefix: service.route.replace(['.', ':', '/'], "_"),
    };
    Ok(Rendered {
        cluster: cluster_name.into(),
        clusters: vec![(cluster_name.into(), cluster.encode_to_vec().into())],
        routes: vec![RenderedRoute {
            name: route.name.clone(),
            prefix: service.path_prefix.clone(),
            bytes: route.encode_to_vec().into(),
        }],
    })
}

fn action(service: &RoutedService, cluster: &str) -> RouteAction {
    let host = &service.upstream.host;
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        // A rewrite of the prefix would leave two slashes, or none.
        regex_rewrite: Some(RegexMatchAndSubstitute {
            pattern: Some(RegexMatcher {
                regex: format!("^{}/*", service.path_prefix.replace('.', "\\.")),
            }),
            substitution: "/".into(),
        }),
        host_rewrite_specifier: (!host.is_empty())
            .then(|| HostRewriteSpecifier::HostRewriteLiteral(host.clone())),
        append_x_forwarded_host: !host.is_empty(),
        timeout: Some(seconds(Duration::ZERO)),
        idle_timeout: Some(seconds(IDLE_TIMEOUT)),
        retry_policy: Some(RetryPolicy {
            retry_on: RETRY_ON.into(),
            num_retries: Some(2),
            retry_host_predicate: vec![RetryHostPredicate {
                name: "envoy.retry_host_predicates.previous_hosts".into(),
                config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
                    PREVIOUS_HOSTS,
                    &PreviousHostsPredicate {},
                ))),
            }],
            host_selection_retry_max_attempts: 3,
        }),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".into(),
        }],
    }
}

/// The name of the virtual host that is added for a Gateway.
pub(super) fn virtual_host_name(gateway: &ObjectName) -> String {
    format!("tailscale-egress/{gateway}")
}

/// A virtual host for all domains, without routes.
pub(super) fn virtual_host(gateway: &ObjectName) -> Vec<u8> {
    let host = VirtualHost {
        name: virtual_host_name(gateway),
        domains: vec!["*".into()],
        routes: Vec::new(),
        metadata: Some(metadata(&[("gateway", &gateway.to_string())])),
    };
    host.encode_to_vec()
}
