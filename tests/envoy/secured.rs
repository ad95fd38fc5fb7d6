//! TLS to targets: whose certificates are believed.

use super::{
    scene::{Scene, Wiring, routed},
    upstream::{HERE, Service},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use std::sync::Arc;
use tailway::api::upstream::{Protocol, UpstreamTls, egress::RoutedService};
use tokio_rustls::TlsAcceptor;

const NAME: &str = "web.example.com";

/// Signs certificates. Its name is not that of leaves, which would look signed by themselves.
pub fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Shows a certificate for `name`.
fn acceptor(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> TlsAcceptor {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &**authority).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

fn https(
    name: &str,
    to: &Service,
    ca_certificates: &str,
    insecure_skip_verify: bool,
) -> RoutedService {
    let mut service = routed(name, NAME, to.address);
    service.upstream.protocol = Protocol::Https;
    service.upstream.tls = Some(UpstreamTls {
        server_name: NAME.into(),
        ca_certificates: ca_certificates.into(),
        insecure_skip_verify,
    });
    service
}

#[tokio::test]
#[ignore = "make envoy"]
async fn a_target_is_asked_by_tls_if_its_certificate_is_good_by_the_authority_that_is_named() {
    let shared = Scene::shared(Wiring::Policies).await;
    let scene = shared.scene();
    let (ours, other) = (authority("ours"), authority("other"));
    let start = async |name: &str, tls| {
        Service::start_on(scene.network(), name, (HERE, 0).into(), Some(tls)).await
    };
    let good = start("good", acceptor(&ours, NAME, |_| {})).await;
    let wrong = start("wrong", acceptor(&ours, "other.example.com", |_| {})).await;
    let expired = acceptor(&ours, NAME, |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let expired = start("expired", expired).await;
    let (trusted, untrusted) = (ours.pem(), other.pem());

    let site = scene.site("secured", "");
    site.set(&[
        https("good", &good, &trusted, false),
        https("wrong", &wrong, &trusted, false),
        https("expired", &expired, &trusted, false),
        https("unknown", &good, &untrusted, false),
        https("system", &good, "", false),
        https("believed", &expired, "", true),
    ]);
    site.until("/api/good/status", 200, "good").await;
    assert_eq!(good.last().line, "GET /status HTTP/1.1");
    assert_eq!(good.last().header("host"), Some(NAME));
    assert_eq!(site.answer("/api/believed").await, (200, "expired".into()));
    for (refused, why) in [
        ("wrong", "fail_verify_san"),
        ("expired", "fail_verify_error"),
        ("unknown", "fail_verify_error"),
        ("system", "fail_verify_error"),
    ] {
        let status = site.get(&format!("/api/{refused}/status")).await.status;
        assert_eq!(status, 503, "{refused}");
        let counter = format!("cluster.external-backend-{refused}.ssl.{why}");
        assert_ne!(site.counter(&counter).await, 0, "{counter}");
    }
    assert_eq!(wrong.requests(), []);
    assert_eq!(expired.requests().len(), 1);
}
