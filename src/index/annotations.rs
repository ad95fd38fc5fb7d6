//! Annotations of ours: what the Gateway API has no field for. One that cannot be read has no
//! effect, which a condition tells; all else is served.

use super::{objects::Kind, status::Finding};
use crate::{
    api::{
        ACCESS_LOG_ANNOTATION, APP_CAPABILITIES_ANNOTATION, PROXY_PROTOCOL_ANNOTATION,
        REQUEST_HEADERS_ANNOTATION, conditions as c,
    },
    model::{HttpOptions, ProxyProtocol},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::num::NonZeroU32;

/// The entries of a list with commas.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    let entries = text.split(',').map(str::trim);
    entries.filter(|entry| !entry.is_empty())
}

fn value<'a>(metadata: &'a ObjectMeta, annotation: &str) -> Option<&'a str> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(annotation).map(|value| value.trim())
}

fn unsupported(annotation: &str, wrong: &str, right: &str) -> Finding {
    let message = format!("annotation {annotation} has {wrong:?}, which has no effect: {right}");
    Finding::new(c::UNSUPPORTED_VALUE, message)
}

/// What the annotations of a Gateway say of its requests.
pub(super) fn http_options(metadata: &ObjectMeta) -> (HttpOptions, Option<Finding>) {
    let (mut options, mut wrong) = (HttpOptions::default(), Vec::new());
    let headers = value(metadata, REQUEST_HEADERS_ANNOTATION).unwrap_or_default();
    for header in entries(headers) {
        match header {
            "forwarded" => options.forwarded = true,
            "node" => options.node = true,
            "tags" => options.tags = true,
            other => wrong.push(unsupported(
                REQUEST_HEADERS_ANNOTATION,
                other,
                "there are forwarded, node and tags",
            )),
        }
    }
    let capabilities = value(metadata, APP_CAPABILITIES_ANNOTATION).unwrap_or_default();
    for capability in entries(capabilities) {
        if !is_capability(capability) {
            let right = "a capability is a domain and a path, such as example.com/cap/edit";
            wrong.push(unsupported(APP_CAPABILITIES_ANNOTATION, capability, right));
        } else if !options.capabilities.iter().any(|known| known == capability) {
            options.capabilities.push(capability.into());
        }
    }
    if let Some(log) = value(metadata, ACCESS_LOG_ANNOTATION) {
        options.access_log = one_in(log);
        if options.access_log.is_none() {
            let right = "write all, or 1/100 for one request in a hundred";
            wrong.push(unsupported(ACCESS_LOG_ANNOTATION, log, right));
        }
    }
    (options, Finding::join(wrong))
}

fn one_in(log: &str) -> Option<NonZeroU32> {
    match log.split_once('/') {
        None => (log == "all").then_some(NonZeroU32::MIN),
        Some((part, whole)) => whole.trim().parse().ok().filter(|_| part.trim() == "1"),
    }
}

fn is_capability(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
    let parts = text.split_once('/');
    text.bytes().all(legal)
        && parts.is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty())
}

/// How the backends of a route are told of clients.
pub(super) fn proxy_protocol(
    kind: Kind,
    metadata: &ObjectMeta,
) -> (Option<ProxyProtocol>, Option<Finding>) {
    let Some(text) = value(metadata, PROXY_PROTOCOL_ANNOTATION) else {
        return (None, None);
    };
    if !matches!(kind, Kind::TcpRoute | Kind::TlsRoute) {
        let right = format!("{kind}s have no PROXY protocol, TCPRoutes and TLSRoutes have");
        let wrong = unsupported(PROXY_PROTOCOL_ANNOTATION, text, &right);
        return (None, Some(wrong));
    }
    match text {
        "v1" => (Some(ProxyProtocol::V1), None),
        "v2" => (Some(ProxyProtocol::V2), None),
        other => {
            let wrong = unsupported(PROXY_PROTOCOL_ANNOTATION, other, "there are v1 and v2");
            (None, Some(wrong))
        }
    }
}
