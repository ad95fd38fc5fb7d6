use super::{ApiError, Observe, Operation, Secret};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
    },
    http::uri::Scheme,
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use jiff::{Timestamp, fmt::rfc2822};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider};
use serde::Deserialize;
use std::{error::Error, fmt::Write, sync::Arc, time::Duration};

/// Requests and answers, over HTTP.
pub(super) struct Transport {
    base_url: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    observe: Observe,
}

/// One request.
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) method: Method,
    /// Below `/api/v2/`.
    pub(super) path: String,
    pub(super) body: Body,
}

pub(super) enum Body {
    Empty,
    Json(serde_json::Value),
    /// Values may be secrets.
    Form(Vec<(&'static str, Secret)>),
}

/// The API knows no pages: a tailnet of 10,000 devices takes some 10 MB.
const MAX_ANSWER: usize = 32 << 20;

/// What of a message of the API is told, in bytes.
const MAX_MESSAGE: usize = 300;

/// The longest wait that is passed on.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Until a connection that is not used is closed, which is before most servers do so.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

// === impl Transport ===

impl Transport {
    pub(super) fn new(base_url: &str, observe: Observe) -> Result<Self, ApiError> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let scheme = scheme_of(&base_url)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let https = if scheme == Scheme::HTTPS {
            HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(default_provider())
                .map_err(|error| {
                    ApiError::Settings(format!(
                        "no root certificates to verify Tailscale's API with: {error}; install \
                         ca-certificates or point SSL_CERT_FILE at a bundle"
                    ))
                })?
                .https_only()
        } else {
            HttpsConnectorBuilder::new()
                .with_tls_config(unused_tls()?)
                .https_or_http()
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(https.enable_http1().wrap_connector(connector));
        Ok(Self {
            base_url,
            client,
            observe,
        })
    }

    pub(super) fn base_url(&self) -> &str {
        &self.base_url
    }

    pub(super) fn timed_out(&self, operation: Operation, timeout: Duration) -> ApiError {
        (self.observe)(operation, None);
        ApiError::Unreachable {
            url: self.base_url.clone(),
            reason: format!("no answer within {timeout:?}"),
        }
    }

    /// The body of an answer with a status of 2xx.
    pub(super) async fn send(
        &self,
        call: &Call,
        token: Option<&Secret>,
    ) -> Result<Bytes, ApiError> {
        let request = self.request(call, token)?;
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => {
                (self.observe)(call.operation, None);
                return Err(self.unreachable(&error));
            }
        };
        let (head, body) = response.into_parts();
        (self.observe)(call.operation, Some(head.status.as_u16()));
        let body = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(ApiError::Answer {
                    operation: call.operation.name(),
                    reason: format!("it is longer than {} MB", MAX_ANSWER >> 20),
                });
            }
            Err(error) => return Err(self.unreachable(&*error)),
        };
        if head.status.is_success() {
            Ok(body)
        } else {
            Err(refusal(call.operation, head.status, &head.headers, &body))
        }
    }

    fn request(
        &self,
        call: &Call,
        token: Option<&Secret>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let (content_type, body) = match &call.body {
            Body::Empty => (None, Bytes::new()),
            Body::Json(value) => (Some("application/json"), value.to_string().into()),
            Body::Form(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| format!("{name}={}", encode(value.reveal())));
                let form = fields.collect::<Vec<_>>().join("&");
                (Some("application/x-www-form-urlencoded"), form.into())
            }
        };
        let mut request = Request::builder()
            .method(&call.method)
            .uri(format!("{}/api/v2/{}", self.base_url, call.path))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("tailway/", env!("CARGO_PKG_VERSION")));
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, bearer(call.operation, token)?);
        }
        request.body(Full::new(body)).map_err(|error| {
            ApiError::Settings(format!("no request can be made of the API URL: {error}"))
        })
    }

    fn unreachable(&self, error: &(dyn Error + 'static)) -> ApiError {
        ApiError::Unreachable {
            url: self.base_url.clone(),
            reason: chain(error),
        }
    }
}

fn scheme_of(base_url: &str) -> Result<Scheme, ApiError> {
    let wrong = |reason| {
        ApiError::Settings(format!(
            "the API URL cannot be used: {reason}; it is written as https://api.tailscale.com"
        ))
    };
    let uri: Uri = base_url.parse().map_err(|_| wrong("it is no URL"))?;
    if uri.authority().is_none_or(|it| it.as_str().contains('@')) {
        return Err(wrong("it must have a host, and no user"));
    }
    if uri.query().is_some() {
        return Err(wrong("it must have no query"));
    }
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP => Ok(scheme.clone()),
        _ => Err(wrong("its scheme must be https or http")),
    }
}

/// The connector wants a TLS configuration for plain HTTP, too; this one trusts nobody.
fn unused_tls() -> Result<ClientConfig, ApiError> {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| {
            builder
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        })
        .map_err(|error| ApiError::Settings(format!("TLS cannot be set up: {error}")))
}

fn bearer(operation: Operation, token: &Secret) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal())).map_err(|_| {
        ApiError::Answer {
            operation: operation.name(),
            reason: "the access token holds characters that a header may not".into(),
        }
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Tells the kinds of refusals apart, by status and by the API's own words.
fn refusal(operation: Operation, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ApiError {
    let retry_after = header(headers, RETRY_AFTER).and_then(|text| wait(text, Timestamp::now()));
    let message = message_of(body, status);
    match (operation, status) {
        (_, StatusCode::UNAUTHORIZED) => ApiError::Credentials { message },
        (_, StatusCode::TOO_MANY_REQUESTS) => ApiError::RateLimited { retry_after },
        (operation, StatusCode::FORBIDDEN) if operation != Operation::Token => {
            ApiError::MissingScope {
                scope: operation.scope(),
            }
        }
        (Operation::MintKey, StatusCode::BAD_REQUEST) if message.contains("tags") => {
            ApiError::Tags { message }
        }
        _ => ApiError::Refused {
            operation: operation.name(),
            status,
            message,
            retry_after,
        },
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// How long Retry-After says to wait: seconds, or until a date (RFC 9110, section 10.2.3).
fn wait(retry_after: &str, now: Timestamp) -> Option<Duration> {
    let text = retry_after.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            // A date that is past is no time to wait.
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_WAIT))
}

/// The API's own words, as far as they can be shown.
fn message_of(body: &[u8], status: StatusCode) -> String {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(Message { message }) => message,
        Err(_) => String::new(),
    };
    let mut shown = text
        .split_whitespace()
        .map(|word| if is_secret(word) { "[redacted]" } else { word })
        .collect::<Vec<_>>()
        .join(" ");
    if shown.is_empty() {
        shown = status.canonical_reason().unwrap_or("no message").into();
    }
    let end = shown.floor_char_boundary(MAX_MESSAGE);
    shown.truncate(end);
    shown
}

/// Keys, tokens and client secrets of Tailscale start with `tskey-`, encoded JSON (a JWT) with
/// `eyJ`.
fn is_secret(word: &str) -> bool {
    word.contains("tskey-") || word.contains("eyJ")
}

/// An error with its causes: the first of hyper's alone says little.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // A String takes every write.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3).
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now: Timestamp = "2026-11-21T09:00:00Z".parse().unwrap();
        for (text, seconds) in [
            ("30", Some(30)),
            (" 0 ", Some(0)),
            ("Sat, 21 Nov 2026 09:01:30 GMT", Some(90)),
            ("Sat, 21 Nov 2026 08:00:00 GMT", Some(0)),
            ("99999999999999", Some(24 * 3600)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(wait(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn api_urls_are_http_or_https_with_a_host_alone() {
        for good in [
            "https://api.tailscale.com",
            "http://127.0.0.1:8080",
            "https://headscale.example/base",
        ] {
            assert!(scheme_of(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "api.tailscale.com",
            "ftp://api.tailscale.com",
            "https://user:tskey-x@host",
            "https://host?a=b",
            "/path",
        ] {
            let error = scheme_of(wrong).unwrap_err().to_string();
            assert!(!error.contains("tskey-"), "{error}");
        }
    }

    #[test]
    fn messages_of_the_api_are_shown_without_secrets_and_not_at_length() {
        let status = StatusCode::BAD_REQUEST;
        for (body, shown) in [
            (r#"{"message":"no such tailnet"}"#, "no such tailnet"),
            (
                r#"{"message":"bad \"tskey-api-k1\" and eyJhbGci.x.y"}"#,
                "bad [redacted] and [redacted]",
            ),
            ("<html>", "Bad Request"),
            ("", "Bad Request"),
        ] {
            assert_eq!(message_of(body.as_bytes(), status), shown);
        }
        let long = format!(r#"{{"message":"{}"}}"#, "é".repeat(400));
        assert_eq!(message_of(long.as_bytes(), status), "é".repeat(150));
    }

    #[test]
    fn what_is_put_into_a_path_or_a_form_stays_one_part_of_it() {
        assert_eq!(encode("n1-a_b.c~"), "n1-a_b.c~");
        assert_eq!(encode("../a?b=c&d é"), "..%2Fa%3Fb%3Dc%26d%20%C3%A9");
    }
}
