//! Rules of shape of the filters of routes.

use super::{
    Violations,
    routes::{header_name, is_there, items, port, text},
};
use crate::model::HostnamePattern;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The types of filters, each with its field, and whether there can be several.
const TYPES: [(&str, &str, bool); 7] = [
    ("RequestHeaderModifier", "requestHeaderModifier", false),
    ("ResponseHeaderModifier", "responseHeaderModifier", false),
    ("RequestMirror", "requestMirror", true),
    ("RequestRedirect", "requestRedirect", false),
    ("URLRewrite", "urlRewrite", false),
    ("CORS", "cors", false),
    ("ExtensionRef", "extensionRef", true),
];

/// Holds the filters of a rule or a backendRef to the rules. That some cannot be used together is a
/// condition.
pub(super) fn filters(found: &mut Violations, owner: &Value, path: &str) {
    let path = format!("{path}.filters");
    let filters = items(owner, "filters");
    found.count(filters.len(), 0..=16, &path);
    let mut counts = BTreeMap::new();
    for (at, filter) in filters.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let kind = text(filter, "type");
        *counts.entry(kind).or_insert(0) += 1;
        for (of, field, several) in TYPES {
            let path = format!("{path}.{field}");
            let message = if kind == of {
                format!("is missing, as the type of the filter is {kind}")
            } else {
                format!("cannot be there, as the type of the filter is {kind}")
            };
            found.check((kind == of) == is_there(filter, field), &path, message);
            let first = several || kind != of || counts[kind] == 1;
            found.check(
                first,
                path,
                format!("another filter is of type {kind} too: leave one"),
            );
        }
        filter_of(found, filter, &path);
    }
}

fn filter_of(found: &mut Violations, filter: &Value, path: &str) {
    for field in ["requestHeaderModifier", "responseHeaderModifier"] {
        headers(found, &filter[field], &format!("{path}.{field}"));
    }
    let of = |field: &str| (&filter[field], format!("{path}.{field}"));
    let (mirror, at) = of("requestMirror");
    mirrored(found, mirror, &at);
    let (redirect, at) = of("requestRedirect");
    changed(found, redirect, &at);
    port(found, redirect, &at);
    let status = redirect["statusCode"].as_i64().unwrap_or(302);
    found.check(
        [301, 302, 303, 307, 308].contains(&status),
        format!("{at}.statusCode"),
        format!("{status} is no status of a redirect: use 301, 302, 303, 307 or 308"),
    );
    let (rewrite, at) = of("urlRewrite");
    changed(found, rewrite, &at);
    let (cors, at) = of("cors");
    crossed(found, cors, &at);
    let (extension, at) = of("extensionRef");
    if !extension.is_null() {
        found.not_empty(text(extension, "kind"), format!("{at}.kind"));
        found.not_empty(text(extension, "name"), format!("{at}.name"));
    }
}

fn headers(found: &mut Violations, change: &Value, path: &str) {
    for field in ["set", "add"] {
        let headers = items(change, field);
        found.count(headers.len(), 0..=16, &format!("{path}.{field}"));
        let mut names = BTreeSet::new();
        for (at, header) in headers.iter().enumerate() {
            let name = text(header, "name");
            let path = format!("{path}.{field}[{at}]");
            header_name(found, name, &format!("{path}.name"));
            let message = format!("{name:?} is there twice");
            found.check(names.insert(name), format!("{path}.name"), message);
            let legal = http::HeaderValue::from_str(text(header, "value")).is_ok();
            found.check(
                legal && !text(header, "value").is_empty(),
                format!("{path}.value"),
                "is no value of a header (RFC 9110 §5.5)",
            );
        }
    }
    found.count(
        items(change, "remove").len(),
        0..=16,
        &format!("{path}.remove"),
    );
}

fn mirrored(found: &mut Violations, mirror: &Value, path: &str) {
    if mirror.is_null() {
        return;
    }
    let backend = format!("{path}.backendRef");
    found.not_empty(
        text(&mirror["backendRef"], "name"),
        format!("{backend}.name"),
    );
    port(found, &mirror["backendRef"], &backend);
    found.check(
        !is_there(mirror, "percent") || !is_there(mirror, "fraction"),
        format!("{path}.fraction"),
        "cannot be there beside percent",
    );
    let percent = mirror["percent"].as_i64().unwrap_or(100);
    found.check(
        (0..=100).contains(&percent),
        format!("{path}.percent"),
        format!("{percent} is no percentage: use 0 to 100"),
    );
    if let Some(numerator) = mirror["fraction"]["numerator"].as_i64() {
        let denominator = mirror["fraction"]["denominator"].as_i64().unwrap_or(100);
        found.check(
            denominator >= 1 && (0..=denominator).contains(&numerator),
            format!("{path}.fraction"),
            format!("{numerator}/{denominator} is no part of all requests"),
        );
    }
}

/// Hostname and path of a redirect or rewrite.
fn changed(found: &mut Violations, change: &Value, path: &str) {
    if let Some(hostname) = change["hostname"].as_str() {
        let parsed = HostnamePattern::parse(hostname);
        let is_precise = matches!(parsed, Ok(HostnamePattern::Exact(name)) if name == hostname);
        found.check(
            is_precise,
            format!("{path}.hostname"),
            format!("{hostname:?} is no DNS name in lower case"),
        );
    }
    let kind = text(&change["path"], "type");
    for (of, field) in [
        ("ReplaceFullPath", "replaceFullPath"),
        ("ReplacePrefixMatch", "replacePrefixMatch"),
    ] {
        found.check(
            (kind == of) == is_there(&change["path"], field),
            format!("{path}.path"),
            format!("{field} is for the type {of}, and the type for it"),
        );
    }
}

fn crossed(found: &mut Violations, cors: &Value, path: &str) {
    for (field, most) in [
        ("allowOrigins", 64),
        ("allowMethods", 9),
        ("allowHeaders", 64),
    ] {
        let values = items(cors, field);
        let path = format!("{path}.{field}");
        found.count(values.len(), 0..=most, &path);
        found.check(
            values.len() < 2 || !values.iter().any(|value| value == "*"),
            path,
            "has \"*\" beside others: leave one or the others",
        );
    }
    let age = cors["maxAge"].as_i64().unwrap_or(5);
    let message = format!("{age} is no time in seconds: use 1 or more");
    found.check(age >= 1, format!("{path}.maxAge"), message);
}
