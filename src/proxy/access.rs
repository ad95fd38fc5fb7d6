//! The log line of a connection or of a flow of datagrams.

use super::{balance::Route, connection::Context};
use crate::{model::Identity, net::Flow};
use std::{sync::Arc, time::Instant};

/// Who a connection is from, for its log line.
pub(super) struct Access {
    pub(super) flow: Flow,
    identity: Option<Arc<Identity>>,
    started: Instant,
}

/// What a connection came to, for its log line.
pub(super) struct Course<'a> {
    pub(super) listener: &'a str,
    pub(super) route: &'a Route,
    pub(super) endpoint: String,
    /// Empty when none was asked for.
    pub(super) server_name: &'a str,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) end: &'static str,
}

/// Whether anybody reads the log of connections: making its texts costs.
pub(super) fn logged() -> bool {
    tracing::enabled!(target: "tailway::access", tracing::Level::DEBUG)
}

impl Access {
    /// `identity` is asked for only when there is a log to write it to.
    pub(super) fn of(flow: Flow, identity: impl FnOnce() -> Option<Arc<Identity>>) -> Self {
        Self {
            flow,
            identity: if logged() { identity() } else { None },
            started: Instant::now(),
        }
    }

    fn peer(&self) -> String {
        let identity = self.identity.as_deref();
        identity.map(Identity::principal).unwrap_or_default()
    }

    fn node(&self) -> &str {
        let identity = self.identity.as_deref();
        identity.map_or("", |identity| &identity.node)
    }

    /// Writes the line of a connection, or of a flow of datagrams.
    pub(super) fn log(&self, context: &Context, what: &'static str, course: &Course<'_>) {
        if !logged() {
            return;
        }
        tracing::debug!(
            target: "tailway::access",
            gateway = context.gateway,
            listener = course.listener,
            route = course.route.name,
            source = %self.flow.source,
            peer = self.peer(),
            node = self.node(),
            server_name = course.server_name,
            endpoint = course.endpoint,
            received = course.received,
            sent = course.sent,
            milliseconds = self.started.elapsed().as_millis() as u64,
            end = course.end,
            "{what}"
        );
    }

    pub(super) fn log_failure(&self, context: &Context, reason: &str) {
        if !logged() {
            return;
        }
        tracing::debug!(
            target: "tailway::access",
            gateway = context.gateway,
            source = %self.flow.source,
            peer = self.peer(),
            node = self.node(),
            reason,
            "TLS handshake failed"
        );
    }
}
