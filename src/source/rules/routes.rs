//! Rules of shape of routes, as their CustomResourceDefinitions have them. All kinds are held to
//! the same, as far as they have the fields.

use super::{Violations, filters::filters};
use crate::{index::Kind, model::HostnamePattern};
use regex::Regex;
use serde_json::Value;
use std::{collections::BTreeSet, sync::LazyLock};

/// Matches of a rule, and of all rules of a route.
const MATCHES: (usize, usize) = (64, 128);

/// What the paths of matches can consist of (RFC 3986 §3.3).
static PATH: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+$").ok());
static GRPC_SERVICE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$").ok());
static GRPC_METHOD: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[A-Za-z_][A-Za-z_0-9]*$").ok());

fn fits(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern
        .as_ref()
        .is_some_and(|pattern| pattern.is_match(text))
}

/// The items of a list, which may not be there.
pub(super) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// A text, which may not be there.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

pub(super) fn is_there(value: &Value, field: &str) -> bool {
    !value[field].is_null()
}

/// Holds the `spec` of a route to the rules.
pub(super) fn route(found: &mut Violations, kind: Kind, spec: &Value) {
    parents(found, items(spec, "parentRefs"));
    hostnames(found, kind, items(spec, "hostnames"));
    let rules = items(spec, "rules");
    let is_http = matches!(kind, Kind::HttpRoute | Kind::GrpcRoute);
    // `v1` of the others has one rule, older versions up to 16; that several mean nothing is a
    // condition.
    let least = usize::from(!is_http || is_there(spec, "rules") && kind == Kind::HttpRoute);
    found.count(rules.len(), least..=16, "spec.rules");
    let mut names = BTreeSet::new();
    for (at, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        if is_there(rule, "name") {
            let name = text(rule, "name");
            found.subdomain(name, format!("{path}.name"));
            let message = format!("another rule is called {name:?}");
            found.check(names.insert(name), format!("{path}.name"), message);
        }
        backends(found, rule, &path, usize::from(!is_http));
        if is_http {
            http_rule(found, kind, rule, &path);
        }
    }
    let all = rules.iter().map(|rule| items(rule, "matches").len());
    let all: usize = all.sum();
    let message = format!("has {all} matches in all rules, but can have {}", MATCHES.1);
    found.check(all <= MATCHES.1, "spec.rules", message);
}

fn parents(found: &mut Violations, parents: &[Value]) {
    found.count(parents.len(), 0..=32, "spec.parentRefs");
    for (index, parent) in parents.iter().enumerate() {
        let path = format!("spec.parentRefs[{index}]");
        found.not_empty(text(parent, "name"), format!("{path}.name"));
        port(found, parent, &path);
        found.check(
            parents[..index].iter().all(|other| distinct(other, parent)),
            path,
            "means the same Gateway as another: tell them apart by sectionName or port in both",
        );
    }
}

/// Whether two parentRefs can both stand (Gateway API, `parentRefs`).
fn distinct(one: &Value, other: &Value) -> bool {
    let object =
        |parent: &Value| ["group", "kind", "namespace", "name"].map(|field| parent[field].clone());
    let (name, other_name) = (text(one, "sectionName"), text(other, "sectionName"));
    let (port, other_port) = (one["port"].as_i64(), other["port"].as_i64());
    object(one) != object(other)
        || (name.is_empty() == other_name.is_empty()
            && port.is_some() == other_port.is_some()
            && (name, port) != (other_name, other_port))
}

fn hostnames(found: &mut Violations, kind: Kind, hostnames: &[Value]) {
    let most = if kind == Kind::TlsRoute { 1024 } else { 16 };
    found.count(hostnames.len(), 0..=most, "spec.hostnames");
    for (at, hostname) in hostnames.iter().enumerate() {
        let hostname = hostname.as_str().unwrap_or_default();
        found.check(
            HostnamePattern::parse(hostname).is_ok_and(|name| name.to_string() == hostname),
            format!("spec.hostnames[{at}]"),
            format!("{hostname:?} is no DNS name in lower case, with or without a leading \"*.\""),
        );
    }
}

pub(super) fn port(found: &mut Violations, value: &Value, path: &str) {
    if let Some(port) = value["port"].as_i64() {
        let port = i32::try_from(port).unwrap_or(0);
        found.port(port, format!("{path}.port"));
    }
}

fn backends(found: &mut Violations, rule: &Value, path: &str, least: usize) {
    let path = format!("{path}.backendRefs");
    let backends = items(rule, "backendRefs");
    found.count(backends.len(), least..=16, &path);
    for (index, backend) in backends.iter().enumerate() {
        let path = format!("{path}[{index}]");
        found.not_empty(text(backend, "name"), format!("{path}.name"));
        port(found, backend, &path);
        let weight = backend["weight"].as_i64().unwrap_or(1);
        found.check(
            (0..=1_000_000).contains(&weight),
            format!("{path}.weight"),
            format!("{weight} is no weight: use 0 to 1000000"),
        );
        filters(found, backend, &path);
    }
}

fn http_rule(found: &mut Violations, kind: Kind, rule: &Value, path: &str) {
    let matches = items(rule, "matches");
    found.count(matches.len(), 0..=MATCHES.0, &format!("{path}.matches"));
    for (at, wanted) in matches.iter().enumerate() {
        let path = format!("{path}.matches[{at}]");
        if is_there(wanted, "path") {
            path_match(found, &wanted["path"], &format!("{path}.path"));
        }
        if kind == Kind::GrpcRoute && is_there(wanted, "method") {
            grpc_method(found, &wanted["method"], &format!("{path}.method"));
        }
        values(found, wanted, "headers", &path);
        values(found, wanted, "queryParams", &path);
    }
    filters(found, rule, path);
    let own = items(rule, "filters").iter();
    let backends = items(rule, "backendRefs");
    let nested = backends
        .iter()
        .flat_map(|backend| items(backend, "filters"));
    found.check(
        backends.is_empty()
            || !own
                .clone()
                .any(|filter| is_there(filter, "requestRedirect")),
        format!("{path}.backendRefs"),
        "cannot be used with a RequestRedirect, which sends requests to no backend",
    );
    let prefix = |filter: &Value| {
        let changes = ["requestRedirect", "urlRewrite"].map(|field| &filter[field]["path"]["type"]);
        changes.iter().any(|kind| **kind == "ReplacePrefixMatch")
    };
    let one_prefix = match matches {
        [only] => only["path"]["type"].as_str().unwrap_or("PathPrefix") == "PathPrefix",
        // What has no matches matches the prefix of all paths.
        matches => matches.is_empty(),
    };
    found.check(
        one_prefix || !own.chain(nested).any(prefix),
        format!("{path}.matches"),
        "must be one of type PathPrefix, as a filter has ReplacePrefixMatch",
    );
    if is_there(rule, "timeouts") {
        timeouts(found, &rule["timeouts"], &format!("{path}.timeouts"));
    }
    if is_there(rule, "retry") {
        retry(found, &rule["retry"], &format!("{path}.retry"));
    }
}

fn path_match(found: &mut Violations, wanted: &Value, path: &str) {
    if wanted["type"] == "RegularExpression" {
        return;
    }
    let value = wanted["value"].as_str().unwrap_or("/");
    let parts = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let legal = value.starts_with('/')
        && value.len() <= 1024
        && !parts.iter().any(|part| value.contains(part))
        && !value.ends_with("/..")
        && !value.ends_with("/.")
        && fits(&PATH, value);
    found.check(
        legal,
        format!("{path}.value"),
        format!(
            "{value:?} is no path to match: begin with /, without //, /./, /../, %2f, # and what a path cannot have"
        ),
    );
}

fn grpc_method(found: &mut Violations, wanted: &Value, path: &str) {
    let (service, method) = (text(wanted, "service"), text(wanted, "method"));
    found.check(
        !is_there(wanted, "type") || !service.is_empty() || !method.is_empty(),
        path,
        "needs a service or a method, as it has a type",
    );
    if wanted["type"] == "RegularExpression" {
        return;
    }
    found.check(
        service.is_empty() || fits(&GRPC_SERVICE, service),
        format!("{path}.service"),
        format!("{service:?} is no name of a gRPC service, such as package.Service"),
    );
    found.check(
        method.is_empty() || fits(&GRPC_METHOD, method),
        format!("{path}.method"),
        format!("{method:?} is no name of a gRPC method"),
    );
}

/// Headers or query parameters of a match.
fn values(found: &mut Violations, wanted: &Value, field: &str, path: &str) {
    let values = items(wanted, field);
    let path = format!("{path}.{field}");
    found.count(values.len(), 0..=16, &path);
    let mut names = BTreeSet::new();
    for (at, value) in values.iter().enumerate() {
        let name = text(value, "name");
        let path = format!("{path}[{at}].name");
        header_name(found, name, &path);
        let message = format!("{name:?} is there twice");
        found.check(names.insert(name), path, message);
    }
}

pub(super) fn header_name(found: &mut Violations, name: &str, path: &str) {
    let legal = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    let message = format!("{name:?} is no name of a header (RFC 9110 §5.1)");
    found.check(legal, path, message);
}

fn timeouts(found: &mut Violations, timeouts: &Value, path: &str) {
    let limit = |found: &mut Violations, field: &str| {
        is_there(timeouts, field)
            .then(|| duration(found, text(timeouts, field), &format!("{path}.{field}")))
            .flatten()
    };
    let whole = limit(found, "request");
    let one = limit(found, "backendRequest");
    if let (Some(whole), Some(one)) = (whole, one) {
        found.check(
            whole == 0 || one <= whole,
            format!("{path}.backendRequest"),
            "is longer than request, of which it is a part",
        );
    }
}

fn retry(found: &mut Violations, retry: &Value, path: &str) {
    let mut known = BTreeSet::new();
    for (at, code) in items(retry, "codes").iter().enumerate() {
        let code = code.as_i64().unwrap_or(0);
        let path = format!("{path}.codes[{at}]");
        let message = format!("{code} is no status of an error: use 400 to 599");
        found.check((400..=599).contains(&code), &path, message);
        found.check(known.insert(code), path, format!("{code} is there twice"));
    }
    let attempts = retry["attempts"].as_i64().unwrap_or(1);
    let message = format!("{attempts} is no number of attempts: use 0 or more");
    found.check(attempts >= 0, format!("{path}.attempts"), message);
    if is_there(retry, "backoff") {
        duration(found, text(retry, "backoff"), &format!("{path}.backoff"));
    }
}

/// Milliseconds of a duration (GEP-2257): up to four numbers of five digits with their units.
fn duration(found: &mut Violations, text: &str, path: &str) -> Option<u64> {
    let read = || -> Option<u64> {
        let (mut rest, mut parts, mut total) = (text, 0, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 5)?;
            rest = &rest[digits..];
            let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
            let (unit, length) = units
                .iter()
                .find_map(|(unit, length)| Some((rest.strip_prefix(unit)?, length)))?;
            rest = unit;
            total += number * length;
            parts += 1;
        }
        (1..=4).contains(&parts).then_some(total)
    };
    let read = read();
    let message = format!("{text:?} is no duration: write 10s, 1m30s or 250ms");
    found.check(read.is_some(), path, message);
    read
}
