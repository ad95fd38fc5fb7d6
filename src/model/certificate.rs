use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A certificate chain with its private key, checked to belong together.
///
/// Neither `Debug` nor `Serialize` shows the key.
#[derive(Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    private_key: Arc<PrivateKeyDer<'static>>,
    subject: Subject,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    /// DNS names of the leaf, lower case.
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    /// Hexadecimal serial number of the leaf.
    serial: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate is not PEM with at least one certificate: {0}")]
    Chain(String),
    #[error("the private key is not a PEM key that can be used: {0}")]
    Key(String),
    #[error("the certificate is no X.509 certificate: {0}")]
    X509(String),
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

// === impl Certificate ===

impl Certificate {
    /// Reads a chain, leaf first, and its key. Blocks of other kinds are passed over, so both
    /// arguments may be the same text.
    ///
    /// # Errors
    /// When either is missing or unusable, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Chain(error.to_string()))?;
        let subject = Subject::of(&chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        Self::join(chain, subject, key)
    }

    /// Takes a chain, leaf first, and its key.
    ///
    /// # Errors
    /// When either is unusable, or they do not belong together.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        private_key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let subject = Subject::of(&chain)?;
        Self::join(chain, subject, private_key)
    }

    fn join(
        chain: Vec<CertificateDer<'static>>,
        subject: Subject,
        private_key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let key = any_supported_type(&private_key)
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(CertificateError::Mismatch),
        }
        Ok(Self {
            key: Arc::new(key),
            private_key: Arc::new(private_key),
            subject,
        })
    }

    /// What rustls signs handshakes with.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The private key itself, for the place that passes it on to the data plane.
    pub fn private_key(&self) -> &PrivateKeyDer<'static> {
        &self.private_key
    }

    /// DNS names of the leaf, lower case; `*.` stands for one label (RFC 6125 §6.4.3).
    pub fn names(&self) -> &[String] {
        &self.subject.names
    }

    pub fn not_before(&self) -> SystemTime {
        self.subject.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.subject.not_after
    }

    pub fn serial(&self) -> &str {
        &self.subject.serial
    }

    /// Whether a client that asks for `host` would accept one of the names.
    pub fn covers(&self, host: &str) -> bool {
        self.subject
            .names
            .iter()
            .any(|name| match name.strip_prefix("*.") {
                None => name.eq_ignore_ascii_case(host),
                Some(suffix) => host.split_once('.').is_some_and(|(label, rest)| {
                    !label.is_empty() && rest.eq_ignore_ascii_case(suffix)
                }),
            })
    }
}

impl Subject {
    fn of(chain: &[CertificateDer<'_>]) -> Result<Self, CertificateError> {
        let leaf = chain
            .first()
            .ok_or_else(|| CertificateError::Chain("it holds no certificate".into()))?;
        let invalid = |error: String| CertificateError::X509(error);
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| invalid(error.to_string()))?;
        let names = match parsed.subject_alternative_name() {
            Ok(extension) => extension
                .iter()
                .flat_map(|extension| &extension.value.general_names)
                .filter_map(|name| match name {
                    x509_parser::extensions::GeneralName::DNSName(name) => {
                        Some(name.to_ascii_lowercase())
                    }
                    _ => None,
                })
                .collect(),
            Err(error) => return Err(invalid(error.to_string())),
        };
        let time = |time: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH
                + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        Ok(Self {
            names,
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            serial: parsed.raw_serial_as_string(),
        })
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

/// Equal when leaf and chain are: the key is checked to belong to the leaf.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl Eq for Certificate {}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let date = |time: SystemTime| {
            jiff::Timestamp::try_from(time)
                .map(|t| t.to_string())
                .unwrap_or_default()
        };
        let mut fields = serializer.serialize_struct("Certificate", 5)?;
        fields.serialize_field("names", &self.subject.names)?;
        fields.serialize_field("serial", &self.subject.serial)?;
        fields.serialize_field("notBefore", &date(self.subject.not_before))?;
        fields.serialize_field("notAfter", &date(self.subject.not_after))?;
        fields.serialize_field("privateKey", "redacted")?;
        fields.end()
    }
}
