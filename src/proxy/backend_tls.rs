//! TLS to backends: who is believed to be one (Gateway API `BackendTLSPolicy`), and the handshake.

use super::{reach::Unreachable, tls::provider};
use crate::{
    model::{BackendTls, SubjectName, Trust},
    net::Outbound,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{
    io,
    sync::{Arc, OnceLock},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use x509_parser::extensions::GeneralName;

/// How connections to an endpoint are made.
#[derive(Clone, Debug)]
pub(super) enum Link {
    Plain,
    Tls(Arc<Security>),
    /// TLS is asked for, but can be of no use: nothing is sent.
    Broken,
}

/// TLS to a backend, ready for handshakes. Sessions are remembered here, so that none moves from
/// one policy to another.
#[derive(Debug)]
pub(super) struct Security {
    wanted: BackendTls,
    name: ServerName<'static>,
    config: ClientConfig,
    /// By [`Offer`].
    offering: [OnceLock<Arc<ClientConfig>>; 4],
}

/// A connection to a backend, in TLS when its policy asks for that.
pub(super) type BackendStream = Either<Outbound, Box<TlsStream<Outbound>>>;

/// What is offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Nothing,
    Http1,
    Http2,
    Either,
}

/// Why no TLS to a backend can be.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecurityError {
    #[error("{0:?} is no name that a certificate can be for")]
    Name(String),
    #[error("no authority is trusted, so that no certificate can be believed")]
    NobodyTrusted,
    #[error("an authority cannot be used: {0}")]
    Authority(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

/// Believes certificates of some authorities for some names.
#[derive(Debug)]
struct Verifier {
    /// `None`: anybody is believed.
    roots: Option<RootCertStore>,
    /// Empty: the name of the server that was asked for.
    names: Vec<SubjectName>,
    algorithms: WebPkiSupportedAlgorithms,
}

// === impl Link ===

impl Link {
    /// Takes over what `before` was made of, when that is still wanted.
    pub(super) fn new(backend: &str, wanted: Option<&BackendTls>, before: Option<&Self>) -> Self {
        let Some(wanted) = wanted else {
            return Self::Plain;
        };
        if let Some(Self::Tls(security)) = before
            && security.wanted == *wanted
        {
            return Self::Tls(Arc::clone(security));
        }
        match Security::new(wanted) {
            Ok(security) => Self::Tls(Arc::new(security)),
            Err(error) => {
                tracing::warn!(backend, %error, "nothing is sent to a backend of TLS");
                Self::Broken
            }
        }
    }

    /// Makes a connection what it must be before the first byte.
    pub(super) async fn secure(
        &self,
        stream: Outbound,
        offer: Offer,
    ) -> Result<BackendStream, Unreachable> {
        match self {
            Self::Plain => Ok(Either::Left(stream)),
            Self::Broken => Err(Unreachable::Tls),
            Self::Tls(security) => match security.connect(stream, offer).await {
                Ok(stream) => Ok(Either::Right(Box::new(stream))),
                Err(error) if is_distrust(&error) => Err(Unreachable::Distrusted),
                Err(_) => Err(Unreachable::Tls),
            },
        }
    }

    /// Whether it was made of this.
    pub(super) fn is_for(&self, wanted: Option<&BackendTls>) -> bool {
        match self {
            Self::Plain => wanted.is_none(),
            Self::Tls(security) => wanted == Some(&security.wanted),
            Self::Broken => false,
        }
    }

    /// Whether connections of the one can be used for the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) | (Self::Broken, Self::Broken) => true,
            (Self::Tls(one), Self::Tls(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

// === impl Security ===

impl Security {
    fn new(wanted: &BackendTls) -> Result<Self, SecurityError> {
        let name = ServerName::try_from(wanted.hostname.clone())
            .map_err(|_| SecurityError::Name(wanted.hostname.clone()))?;
        let verifier = Verifier {
            roots: roots(&wanted.trust)?,
            names: wanted.names.clone(),
            algorithms: provider().signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(SecurityError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &wanted.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let key = CertifiedKey::clone(certificate.certified_key());
                let shown = SingleCertAndKey::from(key);
                builder.with_client_cert_resolver(Arc::new(shown) as Arc<dyn ResolvesClientCert>)
            }
        };
        Ok(Self {
            wanted: wanted.clone(),
            name,
            config,
            offering: Default::default(),
        })
    }

    async fn connect(&self, stream: Outbound, offer: Offer) -> io::Result<TlsStream<Outbound>> {
        let config = self.offering[offer as usize].get_or_init(|| {
            let mut config = self.config.clone();
            let protocols = offer.protocols().iter();
            config.alpn_protocols = protocols.map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        });
        let connector = TlsConnector::from(Arc::clone(config));
        connector.connect(self.name.clone(), stream).await
    }
}

impl Offer {
    fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Nothing => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Either => &[b"h2", b"http/1.1"],
        }
    }
}

/// The socket below a connection.
pub(super) fn socket(stream: &BackendStream) -> &Outbound {
    match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// Whether a handshake failed because of the certificate that the backend showed.
fn is_distrust(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// The authorities that are believed; `None`: anybody is.
fn roots(trust: &Trust) -> Result<Option<RootCertStore>, SecurityError> {
    let roots = match trust {
        Trust::System => system_roots().clone(),
        Trust::Anybody => return Ok(None),
        Trust::Authorities(authorities) => {
            let mut roots = RootCertStore::empty();
            for certificate in authorities.certificates() {
                let added = roots.add(certificate.clone());
                added.map_err(SecurityError::Authority)?;
            }
            roots
        }
    };
    match roots.is_empty() {
        true => Err(SecurityError::NobodyTrusted),
        false => Ok(Some(roots)),
    }
}

/// Those of the system, as they were when they were first needed.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::warn!(%error, "certificates of the system are left out");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

// === impl Verifier ===

impl Verifier {
    fn is_for(&self, server: &ServerName<'_>, certificate: &Shown<'_>) -> bool {
        match self.names.is_empty() {
            true => verify_server_name(&certificate.parsed, server).is_ok(),
            false => self.names.iter().any(|name| certificate.has(name)),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = Shown {
            der: end_entity,
            parsed: ParsedCertificate::try_from(end_entity)?,
        };
        verify_server_cert_signed_by_trust_anchor(
            &certificate.parsed,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match self.is_for(server, &certificate) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate that a backend showed.
struct Shown<'a> {
    der: &'a CertificateDer<'a>,
    parsed: ParsedCertificate<'a>,
}

impl Shown<'_> {
    fn has(&self, name: &SubjectName) -> bool {
        let of_server = match name {
            SubjectName::Dns(name) => ServerName::try_from(name.as_str()).ok(),
            SubjectName::Uri(_) => None,
        };
        // A certificate may have a wildcard for the name, and the name be one itself.
        of_server.is_some_and(|name| verify_server_name(&self.parsed, &name).is_ok())
            || self.lists(name)
    }

    fn lists(&self, wanted: &SubjectName) -> bool {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(self.der) else {
            return false;
        };
        let Ok(Some(names)) = certificate.subject_alternative_name() else {
            return false;
        };
        let mut names = names.value.general_names.iter();
        names.any(|name| match (name, wanted) {
            (GeneralName::DNSName(name), SubjectName::Dns(wanted)) => {
                name.eq_ignore_ascii_case(wanted)
            }
            (GeneralName::URI(name), SubjectName::Uri(wanted)) => name == wanted,
            _ => false,
        })
    }
}
