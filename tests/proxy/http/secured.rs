//! TLS to backends: whom we believe, what we show, and that nothing is sent otherwise.

use super::scene::{ask, below, get, request, rule, site, text};
use crate::proxy::scene::{
    HOST, Scene, TLS, accept, backend, backend_id, certificate, client, ping, read_all, snapshot,
    tls_port, within,
};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use std::{convert::Infallible, net::SocketAddr, sync::Arc};
use tailway::model::{
    Authorities, BackendProtocol, BackendTls, Certificate, Snapshot, SubjectName, Trust,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

const NAME: &str = "backend.example.com";
const URI: &str = "spiffe://example.com/backend";

/// Signs certificates.
pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    pub(super) fn trusted(&self) -> Trust {
        Trust::Authorities(Authorities::from_der(vec![self.der()]).unwrap())
    }

    /// A certificate as it is in files.
    pub(super) fn issue(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &*self.0).unwrap(), key)
    }
}

pub(super) fn policy(trust: Trust) -> BackendTls {
    BackendTls {
        hostname: NAME.into(),
        trust,
        names: Vec::new(),
        certificate: None,
    }
}

/// A TLS backend that answers with the protocol of ALPN, the name it was asked for, and how many
/// certificates it was shown.
pub(super) async fn secure(
    certificate: (rcgen::Certificate, KeyPair),
    clients: Option<&Ca>,
    alpn: &[&str],
) -> SocketAddr {
    let (listener, address) = backend().await;
    let acceptor = TlsAcceptor::from(server_config(certificate, clients, alpn));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let session = stream.get_ref().1;
                let alpn = session.alpn_protocol().unwrap_or(b"nothing");
                let told = format!(
                    "{} {} {}",
                    String::from_utf8_lossy(alpn),
                    session.server_name().unwrap_or_default(),
                    session.peer_certificates().unwrap_or_default().len(),
                );
                let service = service_fn(move |_| {
                    let told = Full::<Bytes>::from(told.clone());
                    async move { Ok::<_, Infallible>(Response::new(told)) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn server_config(
    (certificate, key): (rcgen::Certificate, KeyPair),
    clients: Option<&Ca>,
    alpn: &[&str],
) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = vec![certificate.der().clone()];
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn to(address: SocketAddr, tls: BackendTls) -> Snapshot {
    let rules = vec![rule(vec![below("/")], "app")];
    let mut snapshot = site(&[("route", rules)], &[("app", &[address])]);
    snapshot.backends.get_mut(&backend_id("app")).unwrap().tls = Some(tls);
    snapshot
}

/// What a request to this backend is answered: the text, or the status.
async fn answered(address: SocketAddr, tls: BackendTls) -> String {
    let scene = Scene::new(&to(address, tls)).await;
    let response = ask(&scene, get("/")).await;
    match response.status() {
        StatusCode::OK => text(response).await,
        status => status.as_u16().to_string(),
    }
}

#[tokio::test]
async fn a_backend_is_believed_for_its_hostname_by_an_authority_that_is_trusted() {
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let app = secure(ca.issue(|_| {}), None, &["h2", "http/1.1"]).await;
    let good = policy(ca.trusted());
    let expected = format!("h2 {NAME} 0");
    assert_eq!(answered(app, good.clone()).await, expected);
    let named = |hostname: &str| BackendTls {
        hostname: hostname.into(),
        ..good.clone()
    };
    assert_eq!(answered(app, named("other.example.com")).await, "503");
    assert_eq!(answered(app, policy(other.trusted())).await, "503");
    assert_eq!(answered(app, policy(Trust::System)).await, "503");
    let nobody = Trust::Authorities(Authorities::default());
    assert_eq!(answered(app, policy(nobody)).await, "503");
    let expired = secure(
        ca.issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)),
        None,
        &[],
    )
    .await;
    assert_eq!(answered(expired, good.clone()).await, "503");
    // A certificate for clients is none for servers.
    let of_client = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let wrong_use = secure(ca.issue(of_client), None, &[]).await;
    assert_eq!(answered(wrong_use, good).await, "503");
}

#[tokio::test]
async fn names_of_the_policy_count_instead_of_the_hostname() {
    let ca = Ca::new("ours");
    let with_uri = |params: &mut CertificateParams| {
        let names = [
            SanType::URI(URI.try_into().unwrap()),
            SanType::DnsName("*.wild.example.com".try_into().unwrap()),
        ];
        params.subject_alt_names.extend(names);
    };
    let app = secure(ca.issue(with_uri), None, &["http/1.1"]).await;
    let dns = |name: &str| SubjectName::Dns(name.into());
    let uri = |name: &str| SubjectName::Uri(name.into());
    let table = [
        (vec![uri(URI)], true),
        (vec![uri("spiffe://example.com/other")], false),
        (vec![dns(NAME)], true),
        (vec![dns("other.example.com")], false),
        (vec![dns("a.wild.example.com")], true),
        (vec![dns("*.wild.example.com")], true),
        (vec![dns("*.example.com")], false),
        (vec![dns("other.example.com"), uri(URI)], true),
        // A URI is no DNS name.
        (vec![uri(NAME), dns(URI)], false),
    ];
    for (names, is_believed) in table {
        // The certificate does not have the hostname, which is asked for all the same.
        let tls = BackendTls {
            hostname: "asked.example.com".into(),
            names: names.clone(),
            ..policy(ca.trusted())
        };
        let expected = match is_believed {
            true => "http/1.1 asked.example.com 0",
            false => "503",
        };
        assert_eq!(answered(app, tls).await, expected, "{names:?}");
    }
}

#[tokio::test]
async fn a_backend_that_asks_for_a_certificate_is_shown_the_gateways() {
    let (ca, clients) = (Ca::new("ours"), Ca::new("clients"));
    let app = secure(ca.issue(|_| {}), Some(&clients), &["http/1.1"]).await;
    let (certificate, key) = clients.issue(|_| {});
    let shown = Certificate::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes());
    let tls = BackendTls {
        certificate: Some(shown.unwrap()),
        ..policy(ca.trusted())
    };
    let expected = format!("http/1.1 {NAME} 1");
    assert_eq!(answered(app, tls).await, expected);
    let status = answered(app, policy(ca.trusted())).await;
    assert!(["502", "503"].contains(&status.as_str()), "{status}");
}

#[tokio::test]
async fn a_backend_speaks_what_it_says_by_alpn_unless_the_route_says_it() {
    let ca = Ca::new("ours");
    let old = secure(ca.issue(|_| {}), None, &[]).await;
    let expected = format!("nothing {NAME} 0");
    assert_eq!(answered(old, policy(ca.trusted())).await, expected);
    let both = secure(ca.issue(|_| {}), None, &["http/1.1", "h2"]).await;
    let mut snapshot = to(both, policy(ca.trusted()));
    let backend = snapshot.backends.get_mut(&backend_id("app")).unwrap();
    backend.protocol = BackendProtocol::H2c;
    let scene = Scene::new(&snapshot).await;
    let expected = format!("h2 {NAME} 0");
    assert_eq!(text(ask(&scene, get("/")).await).await, expected);
}

#[tokio::test]
async fn without_anybody_to_trust_not_a_byte_is_sent() {
    let (listener, address) = backend().await;
    let nobody = Trust::Authorities(Authorities::default());
    let scene = Scene::new(&to(address, policy(nobody))).await;
    let response = ask(&scene, get("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    // The next connection to the backend is the test's own.
    let ours = crate::proxy::scene::connect(address).await;
    let first = accept(&listener).await;
    assert_eq!(first.peer_addr().unwrap(), ours.local_addr().unwrap());
}

#[tokio::test]
async fn a_connection_made_under_one_policy_is_not_used_under_another() {
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let app = secure(ca.issue(|_| {}), None, &["http/1.1"]).await;
    let mut scene = Scene::new(&to(app, policy(ca.trusted()))).await;
    assert_eq!(ask(&scene, get("/")).await.status(), StatusCode::OK);
    // The kept connection would still answer.
    scene.apply(&to(app, policy(other.trusted()))).await;
    let status = ask(&scene, get("/")).await.status();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    // Without TLS the backend understands nothing.
    let mut plain = to(app, policy(ca.trusted()));
    plain.backends.get_mut(&backend_id("app")).unwrap().tls = None;
    scene.apply(&plain).await;
    let status = ask(&scene, get("/")).await.status();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    scene.apply(&to(app, policy(ca.trusted()))).await;
    assert_eq!(ask(&scene, get("/")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_goes_to_a_backend_of_tls_over_http1() {
    let ca = Ca::new("ours");
    let (listener, address) = backend().await;
    let acceptor = TlsAcceptor::from(server_config(ca.issue(|_| {}), None, &["h2", "http/1.1"]));
    let (told, mut tells) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stream = acceptor.accept(accept(&listener).await).await.unwrap();
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        told.send(alpn).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let scene = Scene::new(&to(address, policy(ca.trusted()))).await;
    let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let response = ask(&scene, request(Method::GET, "/", &headers)).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(within(tells.recv()).await.unwrap().unwrap(), b"http/1.1");
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    let mut hi = [0; 2];
    within(tunnel.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
}

#[tokio::test]
async fn bytes_whose_tls_ends_here_go_on_in_tls_of_the_backends_own() {
    let (ca, other) = (Ca::new("ours"), Ca::new("other"));
    let (listener, address) = backend().await;
    let acceptor = TlsAcceptor::from(server_config(ca.issue(|_| {}), None, &[]));
    tokio::spawn(async move {
        loop {
            // An echo, for those that believe it.
            if let Ok(stream) = acceptor.accept(accept(&listener).await).await {
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            }
        }
    });
    let certificate = certificate(&[HOST]);
    let trusting = |trust| {
        let port = tls_port(&certificate);
        let mut snapshot = snapshot([(TLS, port)], &[("app", &[address])]);
        snapshot.backends.get_mut(&backend_id("app")).unwrap().tls = Some(policy(trust));
        snapshot
    };
    let mut scene = Scene::new(&trusting(ca.trusted())).await;
    let config = client(&[&certificate]);
    let mut stream = scene.connect_tls(TLS, &config).await;
    ping(&mut stream).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), b"");
    scene.apply(&trusting(other.trusted())).await;
    let mut stream = scene.connect_tls(TLS, &config).await;
    assert!(read_all(&mut stream).await.is_err());
    scene
        .until_metric(r#"tailway_backend_errors_total{gateway="default/web",backend="default/app:80",reason="certificate_not_believed"} 1"#)
        .await;
}
