//! What clients are told when no backend answers them.

use super::{body::ResponseBody, request::Malformed};
use crate::proxy::reach::Unreachable;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE},
};

/// Why a request was not answered by a backend. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed(Malformed),
    /// No listener of the port is for this host.
    NoListener,
    /// Another listener of the port is for this host (RFC 9110 §15.5.20).
    Misdirected,
    NoRoute,
    BrokenFilter,
    InvalidBackend,
    NotReached(Unreachable),
    /// The backend ended the connection before its response.
    Failed,
    TooLate,
    /// The client sent nothing of its body for too long.
    Stalled,
    /// The client ended before its body did. Nobody reads the answer.
    Gone,
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed(malformed) => malformed.status(),
            Self::NoListener | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::BrokenFilter | Self::InvalidBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReached(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed => StatusCode::BAD_GATEWAY,
            Self::TooLate => StatusCode::GATEWAY_TIMEOUT,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Gone => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.as_str(),
            Self::NoListener => "no_listener",
            Self::Misdirected => "misdirected",
            Self::NoRoute => "no_route",
            Self::BrokenFilter => "broken_filter",
            Self::InvalidBackend => "invalid_backend",
            Self::NotReached(reason) => reason.as_str(),
            Self::Failed => "backend_failed",
            Self::TooLate => "timeout",
            Self::Stalled => "body_stalled",
            Self::Gone => "body_cut",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.text(),
            Self::NoListener | Self::NoRoute => "no route is for this request\n",
            Self::Misdirected => "this connection is for another host\n",
            Self::BrokenFilter => "a filter of the route cannot be applied\n",
            Self::InvalidBackend => "the route has no valid backend\n",
            Self::NotReached(_) => "the backend could not be reached\n",
            Self::Failed => "the backend ended the connection\n",
            Self::TooLate => "the backend did not answer in time\n",
            Self::Stalled => "the body did not come in time\n",
            Self::Gone => "the body was cut\n",
        }
    }

    /// As gRPC tells it (gRPC over HTTP/2, "HTTP to gRPC Status Code Mapping"; a route that
    /// nobody has is a method that nobody implements).
    fn grpc(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Misdirected => "13",
            Self::NoListener | Self::NoRoute => "12",
            Self::TooLate | Self::Stalled => "4",
            Self::Gone => "1",
            Self::BrokenFilter | Self::InvalidBackend | Self::NotReached(_) | Self::Failed => "14",
        }
    }

    /// The answer; to a call of gRPC it is of trailers only.
    pub(super) fn response(self, grpc: bool) -> Response<ResponseBody> {
        if grpc {
            return self.grpc_response();
        }
        let mut response = Response::new(ResponseBody::text(self.text()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(CONTENT_TYPE, text);
        // What follows on the connection cannot be told from what was not understood.
        if matches!(self, Self::Malformed(_) | Self::Stalled) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn grpc_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::default());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(self.grpc()));
        let message = HeaderValue::from_static(self.text().trim_ascii_end());
        headers.insert("grpc-message", message);
        response
    }
}

/// Whether a request is a call of gRPC, by its type of content ("gRPC over HTTP/2", Requests).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}
