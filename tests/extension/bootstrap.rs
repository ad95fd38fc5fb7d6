//! The configuration of an Envoy that has nobody to ask for it.

use super::messages::{Draft, draft};
use bytes::Bytes;

/// A `Bootstrap` with a listener that has the routes.
pub fn bootstrap<'a>(clusters: impl Iterator<Item = &'a Bytes>, routes: &[u8]) -> Bytes {
    let resources = clusters
        .fold(draft(), |resources, cluster| resources.bytes(2, cluster))
        .bytes(1, listener(routes));
    draft().bytes(2, resources).done()
}

fn any(name: &str, message: Draft) -> Draft {
    let url = format!("type.googleapis.com/{name}");
    draft().bytes(1, url).bytes(2, message)
}

fn listener(routes: &[u8]) -> Draft {
    let router = any("envoy.extensions.filters.http.router.v3.Router", draft());
    let router = draft()
        .bytes(1, "envoy.filters.http.router")
        .bytes(4, router);
    let manager = draft().bytes(2, "http").bytes(4, routes).bytes(5, router);
    let manager = any(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    );
    let filter = draft()
        .bytes(1, "envoy.filters.network.http_connection_manager")
        .bytes(4, manager);
    let socket = draft().bytes(2, "127.0.0.1").number(3, 0);
    draft()
        .bytes(1, "listener")
        .bytes(2, draft().bytes(1, socket))
        .bytes(3, draft().bytes(3, filter))
}
