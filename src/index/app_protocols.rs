//! What Services say that their ports speak.

use super::Kind;
use crate::model::BackendProtocol;

/// `appProtocol` of a Service's port: an IANA service name, one of Kubernetes (KEP-3726) or
/// somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spoken<'a>(Option<&'a str>);

// === impl Spoken ===

impl<'a> Spoken<'a> {
    pub(super) fn of(app_protocol: Option<&'a str>) -> Self {
        Self(app_protocol.filter(|name| !name.is_empty()))
    }

    /// What a proxy of HTTP is to speak.
    pub(super) fn protocol(self) -> BackendProtocol {
        match self.0 {
            Some("kubernetes.io/h2c" | "http2" | "grpc") => BackendProtocol::H2c,
            _ => BackendProtocol::Http1,
        }
    }

    /// Why a route cannot send there (Gateway API `HTTPRouteRule.backendRefs`). `tls`: whether a
    /// BackendTLSPolicy says how to trust the backend. Routes of bytes need not know what they are.
    pub(super) fn problem(self, route: Kind, tls: bool) -> Option<String> {
        let name = self.0?;
        let is_grpc = match route {
            Kind::HttpRoute => false,
            Kind::GrpcRoute => true,
            _ => return None,
        };
        match name {
            "kubernetes.io/ws" | "kubernetes.io/wss" if is_grpc => Some(format!(
                "has appProtocol {name}, which a {route} cannot speak: use kubernetes.io/h2c"
            )),
            "http" | "http2" | "grpc" | "kubernetes.io/h2c" | "kubernetes.io/ws" => None,
            "https" | "kubernetes.io/wss" if tls => None,
            "https" | "kubernetes.io/wss" => Some(format!(
                "has appProtocol {name}, but no BackendTLSPolicy says whom to trust: add one"
            )),
            _ => Some(format!(
                "has appProtocol {name}, which is not supported: use http, https, kubernetes.io/h2c, kubernetes.io/ws or kubernetes.io/wss"
            )),
        }
    }
}
