//! TLS between Envoy Gateway and the extension.

use super::serving::Scene;
use crate::envoy::secured::authority;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tailway::extension::{ServerSettings, Tls, TlsFiles};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// An authority and what it signed.
pub struct Signed {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

fn sign() -> Signed {
    sign_for("localhost")
}

pub fn sign_for(name: &str) -> Signed {
    let authority = authority("authority");
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &*authority).unwrap();
    Signed {
        authority: authority.pem(),
        certificate: leaf.pem(),
        key: key.serialize_pem(),
    }
}

fn write(directory: &Path, server: &Signed, clients: Option<&Signed>) -> TlsFiles {
    let files = TlsFiles {
        certificate: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        client_authorities: clients.map(|_| directory.join("ca.crt")),
    };
    fs::write(&files.certificate, &server.certificate).unwrap();
    fs::write(&files.key, &server.key).unwrap();
    if let (Some(path), Some(clients)) = (&files.client_authorities, clients) {
        fs::write(path, &clients.authority).unwrap();
    }
    files
}

/// Whether somebody who believes `authority`, and shows `identity`, is answered.
async fn is_answered(scene: &Scene, authority: &Signed, identity: Option<&Signed>) -> bool {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.authority))
        .domain_name("localhost");
    if let Some(identity) = identity {
        tls = tls.identity(Identity::from_pem(&identity.certificate, &identity.key));
    }
    let address = scene.address.unwrap();
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap();
    let Ok(channel) = endpoint.connect().await else {
        return false;
    };
    let mut health = HealthClient::<Channel>::new(channel);
    let check = health.check(HealthCheckRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(30), check).await;
    answer.unwrap().is_ok()
}

#[tokio::test]
async fn its_certificate_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (sign(), sign());
    let files = write(directory.path(), &first, None);
    let tls = Tls::new(files).unwrap();
    let scene = Scene::start_on_port(Some(tls), ServerSettings::default()).await;
    assert!(is_answered(&scene, &first, None).await);
    assert!(!is_answered(&scene, &second, None).await);
    write(directory.path(), &second, None);
    assert!(is_answered(&scene, &second, None).await);
    assert!(!is_answered(&scene, &first, None).await);
    // What cannot be used changes nothing.
    fs::write(directory.path().join("tls.key"), &first.key).unwrap();
    assert!(is_answered(&scene, &second, None).await);
    fs::remove_file(directory.path().join("tls.crt")).unwrap();
    assert!(is_answered(&scene, &second, None).await);
}

#[tokio::test]
async fn with_authorities_for_clients_only_those_whom_they_signed_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients, strangers) = (sign(), sign(), sign());
    let files = write(directory.path(), &server, Some(&clients));
    let text = format!("Whose clients\n{}are let in\n", clients.authority);
    fs::write(files.client_authorities.as_ref().unwrap(), text).unwrap();
    let tls = Tls::new(files).unwrap();
    let scene = Scene::start_on_port(Some(tls), ServerSettings::default()).await;
    assert!(is_answered(&scene, &server, Some(&clients)).await);
    assert!(!is_answered(&scene, &server, Some(&strangers)).await);
    assert!(!is_answered(&scene, &server, None).await);
}

/// Lets any name do.
struct Unchecked;

impl s2n_tls::callbacks::VerifyHostNameCallback for Unchecked {
    fn verify_host_name(&self, _: &str) -> bool {
        true
    }
}

/// As Envoy Gateway does, which names the server as it dials it.
#[tokio::test]
async fn a_client_that_names_the_server_with_its_port_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients) = (sign(), sign());
    let files = write(directory.path(), &server, Some(&clients));
    let tls = Tls::new(files).unwrap();
    let scene = Scene::start_on_port(Some(tls), ServerSettings::default()).await;
    let address = scene.address.unwrap();
    let mut config = s2n_tls::config::Config::builder();
    config.trust_pem(server.authority.as_bytes()).unwrap();
    config
        .load_pem(clients.certificate.as_bytes(), clients.key.as_bytes())
        .unwrap();
    config.set_application_protocol_preference(["h2"]).unwrap();
    config.set_verify_host_callback(Unchecked).unwrap();
    let connector = s2n_tls_tokio::TlsConnector::new(config.build().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let name = format!("localhost:{}", address.port());
    let mut stream = connector.connect(&name, stream).await.unwrap();
    // The server's part of HTTP/2 comes once the client's certificate was believed.
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut settings = [0; 9];
    let read = stream.read_exact(&mut settings);
    let read = tokio::time::timeout(Duration::from_secs(30), read).await;
    read.unwrap().unwrap();
    assert_eq!(
        settings[3..],
        [4, 0, 0, 0, 0, 0],
        "a SETTINGS frame of stream 0"
    );
}

#[tokio::test]
async fn who_speaks_nothing_newer_than_tls_1_2_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = sign();
    let tls = Tls::new(write(directory.path(), &server, None)).unwrap();
    let scene = Scene::start_on_port(Some(tls), ServerSettings::default()).await;
    for (version, is_answered) in [(&TLS12, false), (&TLS13, true)] {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(server.authority.as_bytes());
        roots.add(authority.unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(scene.address.unwrap()).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let shaken = connector.connect("localhost".try_into().unwrap(), stream);
        let shaken = tokio::time::timeout(Duration::from_secs(30), shaken).await;
        assert_eq!(shaken.unwrap().is_ok(), is_answered, "{version:?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (sign(), sign());
    let files = write(directory.path(), &one, Some(&other));
    let path = |name: &str| directory.path().join(name);
    let wrong = |name: &str, content: &str| {
        let before = fs::read(path(name)).unwrap();
        fs::write(path(name), content).unwrap();
        let error = Tls::new(files.clone()).unwrap_err().to_string();
        fs::write(path(name), before).unwrap();
        error
    };
    let mismatch = wrong("tls.key", &other.key);
    assert!(mismatch.contains("does not belong"), "{mismatch}");
    assert!(wrong("tls.crt", "nothing").contains("tls.crt"));
    assert!(wrong("ca.crt", "nothing").contains("ca.crt"));
    fs::remove_file(path("tls.key")).unwrap();
    let missing = Tls::new(files).unwrap_err().to_string();
    assert!(missing.contains("tls.key cannot be read"), "{missing}");
}
