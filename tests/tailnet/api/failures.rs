//! An API that limits, breaks, does not answer, or is not the one that was meant.

use super::{calls, client, client_credentials, ready_credentials, settings_of};
use crate::tailnet::world::{Tailnet, backend, page, soon};
use hyper::StatusCode;
use serde_json::json;
use std::{fs, sync::Arc, time::Duration};
use tailway::tailnet::api::{ApiClient, ApiError, ApiSettings};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_says_how_long_to_wait_and_nothing_is_tried_again() {
    let tailnet = Tailnet::start().await;
    let api = client(&tailnet);
    api.devices().await.unwrap();
    let limit = |retry_after: &str| json!({"path": "/api/v2/*/*/devices", "status": 429, "retry_after": retry_after, "count": 1});
    tailnet.post("/api/failures", limit("17")).await;
    let error = api.devices().await.unwrap_err();
    let wait = Some(Duration::from_secs(17));
    assert_eq!(error, ApiError::RateLimited { retry_after: wait });
    assert!(error.is_transient() && error.retry_after() == wait);

    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    tailnet.post("/api/failures", limit(past)).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    tailnet.post("/api/failures", limit("")).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(error, ApiError::RateLimited { retry_after: None });

    let down = json!({"status": 503, "retry_after": "5", "count": 1});
    tailnet.post("/api/failures", down).await;
    let error = api.devices().await.unwrap_err();
    assert_eq!(
        error,
        ApiError::Refused {
            operation: "list_devices",
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "service unavailable".into(),
            retry_after: Some(Duration::from_secs(5)),
        }
    );
    assert!(error.is_transient());
    assert_eq!(
        calls(&tailnet).await[2..],
        [
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 429",
            "GET tailnet/-/devices 503",
        ]
    );

    tailnet
        .post(
            "/api/failures",
            json!({"path": "/api/v2/oauth/token", "status": 429, "retry_after": "3"}),
        )
        .await;
    let error = client(&tailnet).verify().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_answer_is_unreachable_in_time() {
    let tailnet = Tailnet::start().await;
    let quick = |url: &str| {
        let settings = ApiSettings {
            base_url: url.into(),
            timeout: Duration::from_millis(500),
            ..ApiSettings::new(ready_credentials(&tailnet))
        };
        ApiClient::new(settings).unwrap()
    };
    let url = tailnet.field("api_url");
    let api = quick(url);
    api.verify().await.unwrap();
    let unreachable = |error: ApiError, reason: &str| {
        let text = error.to_string();
        assert!(error.is_transient(), "{error:?}");
        assert!(
            matches!(error, ApiError::Unreachable { .. }) && text.contains(reason),
            "{text}"
        );
    };
    tailnet
        .post("/api/failures", json!({"hang": true, "count": 1}))
        .await;
    unreachable(api.devices().await.unwrap_err(), "no answer within 500ms");
    tailnet.delete("/api/failures").await;
    tailnet
        .post("/api/failures", json!({"close": true, "count": 1}))
        .await;
    unreachable(api.devices().await.unwrap_err(), url);
    tailnet.post("/api/stop", json!({})).await;
    unreachable(api.devices().await.unwrap_err(), url);
    tailnet.post("/api/start", json!({})).await;
    api.devices().await.unwrap();

    // Nothing listens on a port that was bound and closed again.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    unreachable(
        quick(&nowhere).verify().await.unwrap_err(),
        "Connection refused",
    );
    let secure = url.replace("http://", "https://");
    let error = quick(&secure).verify().await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_api_is_told_as_that() {
    let tailnet = Tailnet::start().await;
    let other = format!("http://127.0.0.1:{}", page("hello").await);
    let settings = ApiSettings {
        base_url: other,
        ..ApiSettings::new(ready_credentials(&tailnet))
    };
    let error = ApiClient::new(settings).unwrap().verify().await;
    assert!(matches!(error, Err(ApiError::Answer { .. })), "{error:?}");
    for url in ["api.tailscale.com", "https://user:secret@host"] {
        let settings = ApiSettings {
            base_url: url.into(),
            ..ApiSettings::new(ready_credentials(&tailnet))
        };
        let error = ApiClient::new(settings).unwrap_err();
        assert!(matches!(error, ApiError::Settings(_)), "{error}");
    }
    let settings = ApiSettings {
        tailnet: "other.example".into(),
        ..settings_of(&tailnet)
    };
    let error = ApiClient::new(settings)
        .unwrap()
        .devices()
        .await
        .unwrap_err();
    assert_eq!(
        error,
        ApiError::Refused {
            operation: "list_devices",
            status: StatusCode::NOT_FOUND,
            message: "tailnet not found".into(),
            retry_after: None,
        }
    );
}

/// Where the child of the next test finds the API, its client id and secret.
const HTTPS_API: [&str; 3] = ["TEST_API_URL", "TEST_API_CLIENT", "TEST_API_SECRET"];

#[tokio::test(flavor = "multi_thread")]
async fn https_is_verified_with_the_roots_of_the_system() {
    let tailnet = Tailnet::start().await;
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = https_in_front_of(tailnet.field("api_url"), &issued).await;
    let directory = tempfile::TempDir::new().unwrap();
    let roots = directory.path().join("roots.pem");
    fs::write(&roots, issued.cert.pem()).unwrap();
    // Roots are found by the environment, which is the process's: a child's is its own.
    let verified = async |host: &str, roots: Option<&std::path::Path>| {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                "tailnet::api::failures::child_verifies",
                "--ignored",
            ])
            .env(HTTPS_API[0], format!("https://{host}:{port}"))
            .env(HTTPS_API[1], tailnet.field("oauth_client_id"))
            .env(HTTPS_API[2], tailnet.field("oauth_client_secret"))
            .kill_on_drop(true);
        if let Some(roots) = roots {
            child.env("SSL_CERT_FILE", roots);
        }
        let output = soon("the child ends", child.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    };
    let (success, text) = verified("localhost", Some(&roots)).await;
    assert!(success, "{text}");
    for (host, roots, reason) in [
        ("localhost", None, "UnknownIssuer"),
        ("127.0.0.1", Some(&*roots), "not valid for name"),
    ] {
        let (success, text) = verified(host, roots).await;
        assert!(!success && text.contains(reason), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by https_is_verified_with_the_roots_of_the_system"]
async fn child_verifies() {
    let [url, id, secret] = HTTPS_API.map(|name| std::env::var(name).unwrap());
    let settings = ApiSettings {
        base_url: url,
        ..ApiSettings::new(client_credentials(&id, &secret))
    };
    let verified = ApiClient::new(settings).unwrap().verify().await;
    assert!(verified.is_ok(), "{}", verified.unwrap_err());
}

/// The port of a server that ends TLS and passes on what is inside.
async fn https_in_front_of(api: &str, issued: &rcgen::CertifiedKey<rcgen::KeyPair>) -> u16 {
    let api: std::net::SocketAddr = api.trim_start_matches("http://").parse().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key.unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    backend(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // A client that does not trust the certificate ends it here.
            let Ok(mut inside) = acceptor.accept(stream).await else {
                return;
            };
            let mut server = tokio::net::TcpStream::connect(api).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut inside, &mut server).await;
        }
    })
    .await
}
