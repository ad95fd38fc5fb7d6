//! The parts of a Snapshot that concern HTTP.

use super::{
    Malformed,
    backends::{backend_id_in, backend_id_out},
    name_in, name_out, number_in,
};
use crate::{
    discovery::proto::{self, http_filter::Filter, http_match::Path, path_change::Change},
    model::{
        AttachedRoute, Cors, HeaderChange, HostnamePattern, HttpBackend, HttpFilter, HttpListener,
        HttpMatch, HttpOptions, HttpRoute, HttpRouteKind, HttpRule, Mirror, PathChange, PathMatch,
        Redirect, Retry, Rewrite, RouteId, Timeouts, Value, ValueMatch,
    },
};
use std::{num::NonZeroU32, time::Duration};

// === to the wire ===

pub(super) fn listeners_out(listeners: &[HttpListener]) -> proto::HttpListeners {
    let listener = |listener: &HttpListener| proto::HttpListener {
        name: listener.name.clone(),
        hostname: listener.hostname.as_ref().map(ToString::to_string),
        routes: Some(attached_out(&listener.routes)),
    };
    proto::HttpListeners {
        listeners: listeners.iter().map(listener).collect(),
    }
}

pub(super) fn options_out(options: &HttpOptions) -> proto::HttpOptions {
    proto::HttpOptions {
        forwarded: options.forwarded,
        node: options.node,
        tags: options.tags,
        capabilities: options.capabilities.clone(),
        access_log: options.access_log.map_or(0, NonZeroU32::get),
    }
}

pub(super) fn attached_out(routes: &[AttachedRoute]) -> proto::AttachedRoutes {
    let attached = |attached: &AttachedRoute| proto::AttachedRoute {
        route: Some(id_out(&attached.route)),
        hostnames: attached.hostnames.iter().map(ToString::to_string).collect(),
    };
    proto::AttachedRoutes {
        routes: routes.iter().map(attached).collect(),
    }
}

fn id_out(id: &RouteId) -> proto::RouteId {
    let kind = match id.kind {
        HttpRouteKind::Http => proto::RouteKind::Http,
        HttpRouteKind::Grpc => proto::RouteKind::Grpc,
    };
    proto::RouteId {
        kind: kind.into(),
        name: Some(name_out(&id.name)),
    }
}

pub(super) fn route_out(id: &RouteId, route: &HttpRoute) -> proto::HttpRoute {
    proto::HttpRoute {
        id: Some(id_out(id)),
        rules: route.rules.iter().map(rule_out).collect(),
    }
}

fn rule_out(rule: &HttpRule) -> proto::HttpRule {
    proto::HttpRule {
        name: rule.name.clone(),
        matches: rule.matches.iter().map(match_out).collect(),
        filters: rule.filters.iter().map(filter_out).collect(),
        backends: rule.backends.iter().map(backend_out).collect(),
        request_timeout_milliseconds: rule.timeouts.request.map(milliseconds),
        backend_timeout_milliseconds: rule.timeouts.backend_request.map(milliseconds),
        retry: rule.retry.as_ref().map(|retry| proto::Retry {
            codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
            attempts: retry.attempts,
            backoff_milliseconds: milliseconds(retry.backoff),
        }),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn match_out(wanted: &HttpMatch) -> proto::HttpMatch {
    let path = match &wanted.path {
        PathMatch::Exact(path) => Path::ExactPath(path.clone()),
        PathMatch::Prefix(prefix) => Path::PathPrefix(prefix.clone()),
        PathMatch::Regex(regex) => Path::PathRegex(regex.clone()),
    };
    let value = |wanted: &ValueMatch| {
        use proto::value_match::Value as Out;
        proto::ValueMatch {
            name: wanted.name.clone(),
            value: Some(match &wanted.value {
                Value::Exact(text) => Out::Exact(text.clone()),
                Value::Regex(text) => Out::Regex(text.clone()),
            }),
        }
    };
    proto::HttpMatch {
        path: Some(path),
        method: wanted.method.clone(),
        headers: wanted.headers.iter().map(value).collect(),
        query: wanted.query.iter().map(value).collect(),
    }
}

fn filter_out(filter: &HttpFilter) -> proto::HttpFilter {
    let filter = match filter {
        HttpFilter::RequestHeaders(change) => Filter::RequestHeaders(change_out(change)),
        HttpFilter::ResponseHeaders(change) => Filter::ResponseHeaders(change_out(change)),
        HttpFilter::Redirect(redirect) => Filter::Redirect(proto::Redirect {
            scheme: redirect.scheme.clone(),
            hostname: redirect.hostname.clone(),
            path: redirect.path.as_ref().map(path_out),
            port: redirect.port.map(u32::from),
            status: redirect.status.into(),
        }),
        HttpFilter::Rewrite(rewrite) => Filter::Rewrite(proto::Rewrite {
            hostname: rewrite.hostname.clone(),
            path: rewrite.path.as_ref().map(path_out),
        }),
        HttpFilter::Mirror(mirror) => Filter::Mirror(proto::Mirror {
            backend: mirror.backend.as_ref().map(backend_id_out),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
        HttpFilter::Cors(cors) => Filter::Cors(proto::Cors {
            allow_origins: cors.allow_origins.clone(),
            allow_credentials: cors.allow_credentials,
            allow_methods: cors.allow_methods.clone(),
            allow_headers: cors.allow_headers.clone(),
            expose_headers: cors.expose_headers.clone(),
            max_age_seconds: cors.max_age,
        }),
        HttpFilter::Broken => Filter::Broken(proto::Broken {}),
    };
    proto::HttpFilter {
        filter: Some(filter),
    }
}

fn change_out(change: &HeaderChange) -> proto::HeaderChange {
    let header = |(name, value): &(String, String)| proto::Header {
        name: name.clone(),
        value: value.clone(),
    };
    proto::HeaderChange {
        set: change.set.iter().map(header).collect(),
        add: change.add.iter().map(header).collect(),
        remove: change.remove.clone(),
    }
}

fn path_out(change: &PathChange) -> proto::PathChange {
    proto::PathChange {
        change: Some(match change {
            PathChange::Full(path) => Change::Full(path.clone()),
            PathChange::Prefix(prefix) => Change::Prefix(prefix.clone()),
        }),
    }
}

fn backend_out(backend: &HttpBackend) -> proto::HttpBackend {
    proto::HttpBackend {
        weight: backend.weight,
        backend: backend.backend.as_ref().map(backend_id_out),
        filters: backend.filters.iter().map(filter_out).collect(),
    }
}

// === from the wire ===

pub(super) fn options_in(message: &proto::HttpOptions) -> HttpOptions {
    HttpOptions {
        forwarded: message.forwarded,
        node: message.node,
        tags: message.tags,
        capabilities: message.capabilities.clone(),
        access_log: NonZeroU32::new(message.access_log),
    }
}

pub(super) fn listeners_in(message: &proto::HttpListeners) -> Result<Vec<HttpListener>, Malformed> {
    let listener = |listener: &proto::HttpListener| {
        let hostname = listener.hostname.as_deref().map(HostnamePattern::parse);
        Ok(HttpListener {
            name: listener.name.clone(),
            hostname: hostname.transpose()?,
            routes: attached_in(listener.routes.as_ref())?,
        })
    };
    message.listeners.iter().map(listener).collect()
}

pub(super) fn attached_in(
    message: Option<&proto::AttachedRoutes>,
) -> Result<Vec<AttachedRoute>, Malformed> {
    let message = message.ok_or(Malformed::Missing("the routes"))?;
    let attached = |attached: &proto::AttachedRoute| {
        let hostnames = attached.hostnames.iter();
        let hostnames = hostnames.map(|text| HostnamePattern::parse(text));
        Ok(AttachedRoute {
            route: id_in(attached.route.as_ref())?,
            hostnames: hostnames.collect::<Result<_, _>>()?,
        })
    };
    message.routes.iter().map(attached).collect()
}

fn id_in(message: Option<&proto::RouteId>) -> Result<RouteId, Malformed> {
    let message = message.ok_or(Malformed::Missing("the route"))?;
    let kind = match proto::RouteKind::try_from(message.kind) {
        Ok(proto::RouteKind::Http) => HttpRouteKind::Http,
        Ok(proto::RouteKind::Grpc) => HttpRouteKind::Grpc,
        Ok(proto::RouteKind::Unspecified) | Err(_) => {
            return Err(Malformed::Missing("the kind of the route"));
        }
    };
    let name = name_in(message.name.as_ref())?;
    Ok(RouteId { kind, name })
}

pub(super) fn route_in(message: &proto::HttpRoute) -> Result<(RouteId, HttpRoute), Malformed> {
    let rules = message.rules.iter().map(rule_in);
    let route = HttpRoute {
        rules: rules.collect::<Result<_, _>>()?,
    };
    Ok((id_in(message.id.as_ref())?, route))
}

fn rule_in(message: &proto::HttpRule) -> Result<HttpRule, Malformed> {
    let matches = message.matches.iter().map(match_in);
    let backends = message.backends.iter().map(backend_in);
    Ok(HttpRule {
        name: message.name.clone(),
        matches: matches.collect::<Result<_, _>>()?,
        filters: filters_in(&message.filters)?,
        backends: backends.collect::<Result<_, _>>()?,
        timeouts: Timeouts {
            request: message
                .request_timeout_milliseconds
                .map(Duration::from_millis),
            backend_request: message
                .backend_timeout_milliseconds
                .map(Duration::from_millis),
        },
        retry: message.retry.as_ref().map(retry_in).transpose()?,
    })
}

fn retry_in(message: &proto::Retry) -> Result<Retry, Malformed> {
    let codes = message.codes.iter().map(|code| status_in(*code));
    Ok(Retry {
        codes: codes.collect::<Result<_, _>>()?,
        attempts: message.attempts,
        backoff: Duration::from_millis(message.backoff_milliseconds),
    })
}

fn status_in(code: u32) -> Result<u16, Malformed> {
    u16::try_from(code).map_err(|_| Malformed::Status(code))
}

fn match_in(message: &proto::HttpMatch) -> Result<HttpMatch, Malformed> {
    let path = match &message.path {
        None => return Err(Malformed::Missing("the path")),
        Some(Path::ExactPath(path)) => PathMatch::Exact(path.clone()),
        Some(Path::PathPrefix(prefix)) => PathMatch::Prefix(prefix.clone()),
        Some(Path::PathRegex(regex)) => PathMatch::Regex(regex.clone()),
    };
    Ok(HttpMatch {
        path,
        method: message.method.clone(),
        headers: values_in(&message.headers)?,
        query: values_in(&message.query)?,
    })
}

fn values_in(messages: &[proto::ValueMatch]) -> Result<Vec<ValueMatch>, Malformed> {
    use proto::value_match::Value as In;
    let value = |message: &proto::ValueMatch| {
        Ok(ValueMatch {
            name: message.name.clone(),
            value: match &message.value {
                None => return Err(Malformed::Missing("the value")),
                Some(In::Exact(text)) => Value::Exact(text.clone()),
                Some(In::Regex(text)) => Value::Regex(text.clone()),
            },
        })
    };
    messages.iter().map(value).collect()
}

fn filters_in(messages: &[proto::HttpFilter]) -> Result<Vec<HttpFilter>, Malformed> {
    messages.iter().map(filter_in).collect()
}

fn filter_in(message: &proto::HttpFilter) -> Result<HttpFilter, Malformed> {
    Ok(match &message.filter {
        None => return Err(Malformed::Missing("the filter")),
        Some(Filter::RequestHeaders(change)) => HttpFilter::RequestHeaders(change_in(change)),
        Some(Filter::ResponseHeaders(change)) => HttpFilter::ResponseHeaders(change_in(change)),
        Some(Filter::Redirect(redirect)) => HttpFilter::Redirect(Redirect {
            scheme: redirect.scheme.clone(),
            hostname: redirect.hostname.clone(),
            path: redirect.path.as_ref().map(path_in).transpose()?,
            port: redirect.port.map(number_in).transpose()?,
            status: status_in(redirect.status)?,
        }),
        Some(Filter::Rewrite(rewrite)) => HttpFilter::Rewrite(Rewrite {
            hostname: rewrite.hostname.clone(),
            path: rewrite.path.as_ref().map(path_in).transpose()?,
        }),
        Some(Filter::Mirror(mirror)) => HttpFilter::Mirror(Mirror {
            backend: mirror.backend.as_ref().map(backend_id_in).transpose()?,
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
        Some(Filter::Cors(cors)) => HttpFilter::Cors(Cors {
            allow_origins: cors.allow_origins.clone(),
            allow_credentials: cors.allow_credentials,
            allow_methods: cors.allow_methods.clone(),
            allow_headers: cors.allow_headers.clone(),
            expose_headers: cors.expose_headers.clone(),
            max_age: cors.max_age_seconds,
        }),
        Some(Filter::Broken(proto::Broken {})) => HttpFilter::Broken,
    })
}

fn change_in(message: &proto::HeaderChange) -> HeaderChange {
    let header = |header: &proto::Header| (header.name.clone(), header.value.clone());
    HeaderChange {
        set: message.set.iter().map(header).collect(),
        add: message.add.iter().map(header).collect(),
        remove: message.remove.clone(),
    }
}

fn path_in(message: &proto::PathChange) -> Result<PathChange, Malformed> {
    match &message.change {
        None => Err(Malformed::Missing("the path")),
        Some(Change::Full(path)) => Ok(PathChange::Full(path.clone())),
        Some(Change::Prefix(prefix)) => Ok(PathChange::Prefix(prefix.clone())),
    }
}

fn backend_in(message: &proto::HttpBackend) -> Result<HttpBackend, Malformed> {
    Ok(HttpBackend {
        weight: message.weight,
        backend: message.backend.as_ref().map(backend_id_in).transpose()?,
        filters: filters_in(&message.filters)?,
    })
}
