//! The cluster that Envoy Gateway makes for a rule with a TailscaleBackend, filled.

use super::{
    cluster::{HTTP_OPTIONS, Sending, Settings, cluster, is_tls},
    hooks::Untouched,
    wire::{self, Field, Malformed, Value},
};
use crate::{api::upstream::Upstream, model::ObjectName};
use prost::Message;

/// Numbers of the fields of `envoy.config.cluster.v3.Cluster`.
const NAME: u32 = 1;
const TYPE: u32 = 2;
const EDS: u32 = 3;
const ALT_STAT_NAME: u32 = 28;
const TRANSPORT_SOCKET: u32 = 24;
const LOAD_ASSIGNMENT: u32 = 33;
const PROTOCOL_OPTIONS: u32 = 36;
const CLUSTER_TYPE: u32 = 38;
const TRANSPORT_SOCKET_MATCHES: u32 = 43;

/// What a policy may have set already: connect timeout, buffer, checks, outlier detection and
/// keepalive.
const ONLY_WHERE_MISSING: [u32; 5] = [4, 5, 8, 19, 30];

/// `EDS` of `DiscoveryType`.
const BY_EDS: u64 = 3;

/// Of `HttpProtocolOptions`: the protocol towards the target.
const PROTOCOLS: std::ops::RangeInclusive<u32> = 3..=5;

/// Gives a cluster endpoints, TLS and checks. Its name and what policies made of it stay.
///
/// # Errors
/// When it is no cluster without endpoints, or when the upstream cannot be used.
pub(super) fn fill(
    empty: &[u8],
    upstream: &Upstream,
    backend: &ObjectName,
    settings: &Settings,
) -> Result<Vec<u8>, Untouched> {
    let name = wire::text(empty, NAME)?.unwrap_or_default().to_owned();
    if !waits_for_endpoints(empty)? {
        return Err(Untouched::Cluster(backend.clone()));
    }
    let options = http_options(empty)?;
    let sending = match name.starts_with("grpcroute/") || asks_for_http2(&options)? {
        true => Sending::Http2,
        false => Sending::Any,
    };
    let backend_name = backend.to_string();
    let labels = [("backend", backend_name.as_str())];
    let ours = cluster(&name, upstream, sending, &labels, settings).map_err(|refusal| {
        Untouched::Refused {
            name: backend.clone(),
            refusal,
        }
    })?;
    let ours = ours.encode_to_vec();
    let our_options = http_options(&ours)?;
    let (tls, new_options) = (is_tls(upstream), our_options.is_some());
    let mut out = wire::without(empty, |field| match field.number {
        TYPE | CLUSTER_TYPE | EDS | LOAD_ASSIGNMENT => true,
        TRANSPORT_SOCKET | TRANSPORT_SOCKET_MATCHES => tls,
        PROTOCOL_OPTIONS => new_options && is_http_options(field),
        _ => false,
    })?;
    let mut there = Vec::new();
    for field in wire::fields(empty) {
        there.push(field?.number);
    }
    for field in wire::fields(&ours) {
        let field = field?;
        let put = match field.number {
            NAME | ALT_STAT_NAME | PROTOCOL_OPTIONS => false,
            number if ONLY_WHERE_MISSING.contains(&number) => !there.contains(&number),
            _ => true,
        };
        if put {
            out.extend_from_slice(field.whole);
        }
    }
    if let Some(ours) = our_options {
        put_options(&mut out, &options.unwrap_or_default(), &ours)?;
    }
    Ok(out)
}

fn waits_for_endpoints(cluster: &[u8]) -> Result<bool, Malformed> {
    let mut by_eds = false;
    for field in wire::fields(cluster) {
        match field? {
            Field {
                number: TYPE,
                value: Value::Varint(kind),
                ..
            } => by_eds = kind == BY_EDS,
            Field {
                number: CLUSTER_TYPE | LOAD_ASSIGNMENT,
                ..
            } => return Ok(false),
            _ => {}
        }
    }
    Ok(by_eds)
}

/// The `HttpProtocolOptions` of a cluster.
fn http_options(cluster: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    match wire::entry(cluster, PROTOCOL_OPTIONS, HTTP_OPTIONS)? {
        Some(any) => Ok(Some(
            wire::all(any, 2)
                .last()
                .transpose()?
                .unwrap_or_default()
                .to_vec(),
        )),
        None => Ok(None),
    }
}

fn is_http_options(field: &Field<'_>) -> bool {
    match field.value {
        Value::Bytes(entry) => matches!(wire::text(entry, 1), Ok(Some(HTTP_OPTIONS))),
        _ => false,
    }
}

/// Whether the protocol is HTTP/2 and nothing else, as for gRPC.
fn asks_for_http2(options: &Option<Vec<u8>>) -> Result<bool, Malformed> {
    let Some(options) = options else {
        return Ok(false);
    };
    let explicit = wire::message(options, 3)?;
    Ok(match explicit {
        Some(explicit) => wire::message(&explicit, 2)?.is_some(),
        None => false,
    })
}

/// Writes options of HTTP that are theirs, but for the protocol, which is ours.
fn put_options(out: &mut Vec<u8>, theirs: &[u8], ours: &[u8]) -> Result<(), Malformed> {
    let mut options = wire::without(theirs, |field| PROTOCOLS.contains(&field.number))?;
    options.extend_from_slice(ours);
    let (mut any, mut entry) = (Vec::new(), Vec::new());
    let url = format!("type.googleapis.com/{HTTP_OPTIONS}");
    wire::put(&mut any, 1, url.as_bytes());
    wire::put(&mut any, 2, &options);
    wire::put(&mut entry, 1, HTTP_OPTIONS.as_bytes());
    wire::put(&mut entry, 2, &any);
    wire::put(out, PROTOCOL_OPTIONS, &entry);
    Ok(())
}
