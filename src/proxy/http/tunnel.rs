//! Connections that become something else: WebSocket and whatever else both sides agreed on.

use super::{body::ResponseBody, headers::strip_hop_by_hop, pool::Lease, request::Upgrade};
use crate::net::{Progress, relay::copy_both};
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::time::Duration;

const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// The response that tells a client that its connection is the backend's now.
pub(super) fn switched(response: Response<Incoming>, upgrade: &Upgrade) -> Response<ResponseBody> {
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.get(UPGRADE).cloned();
    strip_hop_by_hop(&mut parts.headers);
    match (upgrade, protocol) {
        (Upgrade::Http1(_), Some(protocol)) => {
            let connection = HeaderValue::from_static("upgrade");
            parts.headers.insert(CONNECTION, connection);
            parts.headers.insert(UPGRADE, protocol);
        }
        // Of HTTP/2 a success is all there is (RFC 8441 §5).
        (Upgrade::Http2(_), _) => {
            parts.status = StatusCode::OK;
            parts.headers.remove(ACCEPT);
        }
        _ => {}
    }
    parts.version = http::Version::default();
    Response::from_parts(parts, ResponseBody::default())
}

/// Passes bytes both ways until both sides have ended.
pub(super) async fn join(
    client: OnUpgrade,
    backend: OnUpgrade,
    lease: Lease,
    idle_timeout: Option<Duration>,
) {
    let (client, backend): (Upgraded, Upgraded) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a connection that was to become another did not");
            return;
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    let progress = Progress::default();
    copy_both(&mut client, &mut backend, idle_timeout, &progress).await;
    drop(lease);
}
