//! Who is believed to be who it says: backends of TLS, and clients that show a certificate.

use super::Certificate;
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Serialize, Serializer};
use std::fmt;

/// TLS to a backend (Gateway API `BackendTLSPolicy`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTls {
    /// Asked for by SNI; the certificate must have it, unless `names` is not empty.
    pub hostname: String,
    pub trust: Trust,
    /// The certificate must have one of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<SubjectName>,
    /// What the Gateway shows of itself (`spec.tls.backend.clientCertificateRef`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Trust {
    /// Those that the system trusts.
    System,
    /// These; with none of them no certificate is believed, and nothing is sent.
    Authorities(Authorities),
    /// Anybody's.
    Anybody,
}

/// A subject alternative name (RFC 5280 §4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectName {
    /// In lower case.
    Dns(String),
    Uri(String),
}

/// What a listener asks of its clients (Gateway API `spec.tls.frontend`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientValidation {
    pub authorities: Authorities,
    /// Whether clients without a certificate, or with another, are let in all the same
    /// (`AllowInsecureFallback`).
    pub optional: bool,
}

/// Certificates of authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities(Vec<CertificateDer<'static>>);

/// Why a text holds no certificates of authorities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthoritiesError {
    #[error("it is not PEM with at least one certificate")]
    Pem,
    #[error("certificate {number} of it is no X.509 certificate: {cause}")]
    X509 { number: usize, cause: String },
}

// === impl Authorities ===

impl Authorities {
    /// Reads certificates. Blocks of other kinds are passed over.
    ///
    /// # Errors
    /// When there is none, or one that cannot be used.
    pub fn from_pem(text: &[u8]) -> Result<Self, AuthoritiesError> {
        let certificates = CertificateDer::pem_slice_iter(text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| AuthoritiesError::Pem)?;
        match certificates.is_empty() {
            true => Err(AuthoritiesError::Pem),
            false => Self::from_der(certificates),
        }
    }

    /// Takes certificates; there may be none.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, AuthoritiesError> {
        for (at, certificate) in certificates.iter().enumerate() {
            let parsed = x509_parser::parse_x509_certificate(certificate);
            parsed.map_err(|error| AuthoritiesError::X509 {
                number: at + 1,
                cause: error.to_string(),
            })?;
        }
        Ok(Self(certificates))
    }

    /// Those of both.
    pub fn and(mut self, others: Self) -> Self {
        for other in others.0 {
            if !self.0.contains(&other) {
                self.0.push(other);
            }
        }
        self
    }

    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// As text that [`Authorities::from_pem`] reads (RFC 7468).
    pub fn to_pem(&self) -> String {
        let mut text = String::new();
        for certificate in &self.0 {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            let mut encoded = STANDARD.encode(certificate);
            while !encoded.is_empty() {
                let rest = encoded.split_off(encoded.len().min(64));
                text.push_str(&encoded);
                text.push('\n');
                encoded = rest;
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
        text
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Authorities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let subject = |certificate: &CertificateDer<'_>| {
            let parsed = x509_parser::parse_x509_certificate(certificate);
            parsed.map_or_else(
                |_| String::new(),
                |(_, parsed)| parsed.subject().to_string(),
            )
        };
        serializer.collect_seq(self.0.iter().map(subject))
    }
}

// === impl SubjectName ===

impl fmt::Display for SubjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
        }
    }
}
