//! Certificates of clients (Gateway API `spec.tls.frontend`).

use super::tls::provider;
use crate::model::{Authorities, ClientValidation};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::sync::Arc;

/// Who is let in by a listener that asks its clients for certificates.
pub(super) fn verifier(validation: &ClientValidation) -> Arc<dyn ClientCertVerifier> {
    let roots = roots(&validation.authorities);
    let unread = Unread {
        hints: roots.subjects(),
        everybody: validation.optional,
    };
    if validation.optional {
        return Arc::new(unread);
    }
    // Without a root it refuses to be built; nobody is let in then.
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap_or_else(|_| Arc::new(unread))
}

/// An authority that cannot be used is told and left out: fewer are let in, never more.
fn roots(authorities: &Authorities) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for (at, certificate) in authorities.certificates().iter().enumerate() {
        if let Err(error) = roots.add(certificate.clone()) {
            tracing::warn!(
                number = at + 1,
                %error,
                "an authority for client certificates is left out"
            );
        }
    }
    roots
}

/// Looks at no certificate, for whoever shows one. Who is let in must have its key all the same.
#[derive(Debug)]
struct Unread {
    hints: Vec<DistinguishedName>,
    /// Whether everybody is let in (`AllowInsecureFallback`), or nobody, as there is no authority
    /// to believe.
    everybody: bool,
}

// === impl Unread ===

impl ClientCertVerifier for Unread {
    fn client_auth_mandatory(&self) -> bool {
        !self.everybody
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.everybody {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = provider();
        let algorithms = &provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let provider = provider();
        let algorithms = &provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
