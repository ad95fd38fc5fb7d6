//! Connections that become something else: WebSocket and whatever else both sides agreed on.

use super::{
    account::{Account, COMPLETE},
    body::ResponseBody,
    headers::strip_hop_by_hop,
    pool::Lease,
    request::Upgrade,
};
use crate::net::{End, Progress, relay::copy_both};
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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

/// Both ends of a tunnel, and who is to learn of its end.
pub(super) struct Ends {
    pub(super) client: OnUpgrade,
    pub(super) backend: OnUpgrade,
    pub(super) lease: Lease,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) account: Arc<Account>,
    /// Told when one end was cut, so that the other one is as well.
    pub(super) cut: Arc<AtomicBool>,
}

/// Passes bytes both ways until both sides have ended.
pub(super) async fn join(ends: Ends) {
    let account = ends.account;
    let both = tokio::try_join!(ends.client, ends.backend);
    let (client, backend): (Upgraded, Upgraded) = match both {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a connection that was to become another did not");
            account.ends("not_switched");
            return;
        }
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    let progress = Progress::default();
    let end = copy_both(&mut client, &mut backend, ends.idle_timeout, &progress).await;
    account.tunnelled(
        progress.received.load(Ordering::Relaxed),
        progress.sent.load(Ordering::Relaxed),
    );
    if end != End::Eof {
        ends.cut.store(true, Ordering::Relaxed);
    }
    account.ends(match end {
        End::Eof => COMPLETE,
        _ => end.as_str(),
    });
    drop(ends.lease);
}
