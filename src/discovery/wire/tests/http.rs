//! Any parts of a Snapshot that concern HTTP.

use super::{backend_id, hostname, object_name};
use crate::model::{
    AttachedRoute, Cors, HeaderChange, HttpBackend, HttpFilter, HttpListener, HttpMatch,
    HttpOptions, HttpRoute, HttpRouteKind, HttpRule, Mirror, PathChange, PathMatch, Redirect,
    Retry, Rewrite, RouteId, Timeouts, Value, ValueMatch,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::time::Duration;

fn text() -> impl Strategy<Value = String> {
    any::<String>()
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    vec(text(), 0..3)
}

pub(super) fn id() -> impl Strategy<Value = RouteId> {
    let kinds = select(vec![HttpRouteKind::Http, HttpRouteKind::Grpc]);
    (kinds, object_name()).prop_map(|(kind, name)| RouteId { kind, name })
}

pub(super) fn attached() -> impl Strategy<Value = Vec<AttachedRoute>> {
    let one = (id(), vec(hostname(), 0..3))
        .prop_map(|(route, hostnames)| AttachedRoute { route, hostnames });
    vec(one, 0..3)
}

pub(super) fn listener() -> impl Strategy<Value = HttpListener> {
    (text(), option::of(hostname()), attached()).prop_map(|(name, hostname, routes)| HttpListener {
        name,
        hostname,
        routes,
    })
}

pub(super) fn route() -> impl Strategy<Value = HttpRoute> {
    vec(rule(), 0..3).prop_map(|rules| HttpRoute { rules })
}

fn milliseconds() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|count| Duration::from_millis(count.into()))
}

fn rule() -> impl Strategy<Value = HttpRule> {
    let timeouts = (option::of(milliseconds()), option::of(milliseconds())).prop_map(
        |(request, backend_request)| Timeouts {
            request,
            backend_request,
        },
    );
    let retry = (vec(any::<u16>(), 0..3), any::<u32>(), milliseconds()).prop_map(
        |(codes, attempts, backoff)| Retry {
            codes,
            attempts,
            backoff,
        },
    );
    (
        text(),
        vec(wanted(), 0..3),
        vec(filter(), 0..3),
        vec(backend(), 0..3),
        timeouts,
        option::of(retry),
    )
        .prop_map(
            |(name, matches, filters, backends, timeouts, retry)| HttpRule {
                name,
                matches,
                filters,
                backends,
                timeouts,
                retry,
            },
        )
}

fn value() -> impl Strategy<Value = ValueMatch> {
    let value = prop_oneof![text().prop_map(Value::Exact), text().prop_map(Value::Regex)];
    (text(), value).prop_map(|(name, value)| ValueMatch { name, value })
}

fn wanted() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        text().prop_map(PathMatch::Exact),
        text().prop_map(PathMatch::Prefix),
        text().prop_map(PathMatch::Regex),
    ];
    (
        path,
        option::of(text()),
        vec(value(), 0..3),
        vec(value(), 0..3),
    )
        .prop_map(|(path, method, headers, query)| HttpMatch {
            path,
            method,
            headers,
            query,
        })
}

fn change() -> impl Strategy<Value = HeaderChange> {
    let pairs = || vec((text(), text()), 0..3);
    (pairs(), pairs(), texts()).prop_map(|(set, add, remove)| HeaderChange { set, add, remove })
}

fn path() -> impl Strategy<Value = Option<PathChange>> {
    option::of(prop_oneof![
        text().prop_map(PathChange::Full),
        text().prop_map(PathChange::Prefix),
    ])
}

fn filter() -> impl Strategy<Value = HttpFilter> {
    let redirect = (
        option::of(text()),
        option::of(text()),
        path(),
        option::of(any::<u16>()),
        any::<u16>(),
    )
        .prop_map(|(scheme, hostname, path, port, status)| Redirect {
            scheme,
            hostname,
            path,
            port,
            status,
        });
    let rewrite =
        (option::of(text()), path()).prop_map(|(hostname, path)| Rewrite { hostname, path });
    let mirror = (option::of(backend_id()), any::<u32>(), any::<u32>()).prop_map(
        |(backend, numerator, denominator)| Mirror {
            backend,
            numerator,
            denominator,
        },
    );
    let cors = (
        texts(),
        any::<bool>(),
        texts(),
        texts(),
        texts(),
        any::<u32>(),
    )
        .prop_map(
            |(
                allow_origins,
                allow_credentials,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
            )| Cors {
                allow_origins,
                allow_credentials,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
            },
        );
    prop_oneof![
        change().prop_map(HttpFilter::RequestHeaders),
        change().prop_map(HttpFilter::ResponseHeaders),
        redirect.prop_map(HttpFilter::Redirect),
        rewrite.prop_map(HttpFilter::Rewrite),
        mirror.prop_map(HttpFilter::Mirror),
        cors.prop_map(HttpFilter::Cors),
        Just(HttpFilter::Broken),
    ]
}

fn backend() -> impl Strategy<Value = HttpBackend> {
    (any::<u32>(), option::of(backend_id()), vec(filter(), 0..2)).prop_map(
        |(weight, backend, filters)| HttpBackend {
            weight,
            backend,
            filters,
        },
    )
}

pub(super) fn options() -> impl Strategy<Value = HttpOptions> {
    (
        any::<[bool; 3]>(),
        texts(),
        option::of(any::<std::num::NonZeroU32>()),
    )
        .prop_map(
            |([forwarded, node, tags], capabilities, access_log)| HttpOptions {
                forwarded,
                node,
                tags,
                capabilities,
                access_log,
            },
        )
}
