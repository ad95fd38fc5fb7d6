//! Listeners that ask their clients for certificates.

use super::{
    scene::{
        HOST, Scene, TLS, certificate, client_of, echo, handshake, leaf, ping, read_all, snapshot,
        termination, tls_listener, within,
    },
    tls::alert,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    version::{TLS12, TLS13},
};
use std::sync::Arc;
use tailway::model::{Authorities, Certificate, ClientValidation, Port, TlsListener, TlsRoutes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Who gives certificates to clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
type Shown = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = format!("authority {:?}", key.public_key_raw());
        let name = name.get(..60).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn trusted(&self) -> Authorities {
        Authorities::from_der(vec![self.certificate.clone()]).unwrap()
    }

    /// A client's certificate, good until this year.
    fn client(&self, until: i32) -> Shown {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client".into()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.der().clone(), key.into())
    }
}

/// A client that shows this certificate, or none.
fn showing(
    server: &Certificate,
    shown: Option<&Shown>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let Some((certificate, key)) = shown else {
        return Arc::new(client_of(&[server], &[version]));
    };
    let mut roots = RootCertStore::empty();
    roots.add(leaf(server)).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
        .unwrap();
    Arc::new(config)
}

fn validated(server: &Certificate, authorities: Authorities, optional: bool) -> TlsListener {
    let mut listener = tls_listener("tls", None, &[server]);
    termination(&mut listener).clients = Some(ClientValidation {
        authorities,
        optional,
    });
    listener
}

async fn scene(listener: TlsListener) -> Scene {
    let app = echo().await;
    let port = Port::Tls(vec![listener]);
    Scene::new(&snapshot([(TLS, port)], &[("app", &[app])])).await
}

/// Whether a client gets through to the backend; in TLS 1.3 it learns only after its handshake
/// that it is not let in.
async fn is_let_in(scene: &Scene, config: &Arc<ClientConfig>) -> Result<(), AlertDescription> {
    let result = async {
        let mut stream = handshake(scene.address(TLS), config, HOST).await?;
        ping(&mut stream).await
    };
    result.await.map_err(|error| alert(&error))
}

#[tokio::test]
async fn who_shows_no_valid_certificate_is_refused_at_the_handshake() {
    let (server, authority, other) = (certificate(&[HOST]), Authority::new(), Authority::new());
    let scene = scene(validated(&server, authority.trusted(), false)).await;
    let mut refused = 0;
    for version in [&TLS12, &TLS13] {
        for (shown, expected) in [
            (Some(authority.client(2050)), Ok(())),
            (None, Err(AlertDescription::CertificateRequired)),
            (Some(other.client(2050)), Err(AlertDescription::UnknownCA)),
            (
                Some(authority.client(2001)),
                Err(AlertDescription::CertificateExpired),
            ),
        ] {
            let config = showing(&server, shown.as_ref(), version);
            assert_eq!(is_let_in(&scene, &config).await, expected, "{version:?}");
            refused += usize::from(expected.is_err());
        }
    }
    scene
        .until_metric(&format!(
            "tailway_tls_failures_total{{gateway=\"default/web\",listener=\"tls\",reason=\"client_certificate\"}} {refused}"
        ))
        .await;
}

#[tokio::test]
async fn everybody_is_let_in_where_certificates_are_optional() {
    let (server, authority, other) = (certificate(&[HOST]), Authority::new(), Authority::new());
    for trusted in [authority.trusted(), Authorities::default()] {
        let scene = scene(validated(&server, trusted, true)).await;
        for version in [&TLS12, &TLS13] {
            for shown in [
                Some(authority.client(2050)),
                None,
                Some(other.client(2050)),
                Some(authority.client(2001)),
            ] {
                let config = showing(&server, shown.as_ref(), version);
                assert_eq!(is_let_in(&scene, &config).await, Ok(()), "{version:?}");
            }
        }
    }
}

#[tokio::test]
async fn who_has_not_the_key_of_a_certificate_is_refused_also_where_it_is_optional() {
    let (server, authority) = (certificate(&[HOST]), Authority::new());
    let scene = scene(validated(&server, authority.trusted(), true)).await;
    for version in [&TLS12, &TLS13] {
        let (certificate, _) = authority.client(2050);
        let (_, other_key) = authority.client(2050);
        let resolver = Stolen(certificate, other_key);
        let mut config = client_of(&[&server], &[version]);
        config.client_auth_cert_resolver = Arc::new(resolver);
        let refused = is_let_in(&scene, &Arc::new(config)).await;
        assert_eq!(refused, Err(AlertDescription::DecryptError), "{version:?}");
    }
}

/// Shows a certificate and signs with another key.
#[derive(Debug)]
struct Stolen(CertificateDer<'static>, PrivateKeyDer<'static>);

impl rustls::client::ResolvesClientCert for Stolen {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let key = aws_lc_rs::sign::any_supported_type(&self.1).unwrap();
        let shown = rustls::sign::CertifiedKey::new(vec![self.0.clone()], key);
        Some(Arc::new(shown))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn nobody_is_let_in_without_an_authority() {
    let (server, authority) = (certificate(&[HOST]), Authority::new());
    let scene = scene(validated(&server, Authorities::default(), false)).await;
    for version in [&TLS12, &TLS13] {
        for shown in [None, Some(authority.client(2050))] {
            let config = showing(&server, shown.as_ref(), version);
            assert!(is_let_in(&scene, &config).await.is_err(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_session_does_not_outlive_what_its_client_was_asked_for() {
    let (server, old, new) = (certificate(&[HOST]), Authority::new(), Authority::new());
    let app = echo().await;
    let serving = |listener| snapshot([(TLS, Port::Tls(vec![listener]))], &[("app", &[app])]);
    let open = || tls_listener("tls", None, &[&server]);
    for version in [&TLS12, &TLS13] {
        let mut scene = Scene::new(&serving(open())).await;
        let (without, with) = (
            showing(&server, None, version),
            showing(&server, Some(&old.client(2050)), version),
        );
        kind(&scene, &without).await;
        assert_eq!(kind(&scene, &without).await, HandshakeKind::Resumed);

        let mandatory = validated(&server, old.trusted(), false);
        scene.apply(&serving(mandatory.clone())).await;
        assert!(is_let_in(&scene, &without).await.is_err(), "{version:?}");
        kind(&scene, &with).await;
        scene.apply(&serving(mandatory)).await;
        assert_eq!(kind(&scene, &with).await, HandshakeKind::Resumed);

        let others = validated(&server, new.trusted(), false);
        scene.apply(&serving(others)).await;
        assert_eq!(
            is_let_in(&scene, &with).await,
            Err(AlertDescription::UnknownCA)
        );
        scene.apply(&serving(open())).await;
        assert_eq!(kind(&scene, &with).await, HandshakeKind::Full);
    }
}

async fn kind(scene: &Scene, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = scene.connect_tls(TLS, config).await;
    // Tickets come after the handshake.
    ping(&mut stream).await.unwrap();
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn listeners_of_https_ask_for_certificates_too() {
    let (server, authority) = (certificate(&[HOST]), Authority::new());
    let mut listener = validated(&server, authority.trusted(), false);
    termination(&mut listener).routes = TlsRoutes::HttpRoutes(Vec::new());
    let scene = scene(listener).await;
    let ask = async |shown: Option<&Shown>| {
        let config = showing(&server, shown, &TLS13);
        let mut stream = handshake(scene.address(TLS), &config, HOST).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: web.example.com\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = vec![0; 12];
        within(stream.read_exact(&mut answer)).await?;
        std::io::Result::Ok(answer)
    };
    let answer = ask(Some(&authority.client(2050))).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 404");
    let refused = ask(None).await.unwrap_err();
    assert_eq!(alert(&refused), AlertDescription::CertificateRequired);
    // Nothing of HTTP answers who is refused.
    let mut plain = scene.connect(TLS).await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(read_all(&mut plain).await.unwrap().len(), 7);
}
