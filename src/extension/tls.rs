//! The server's certificate, and whose it asks for. Files are read again when they change.

use crate::model::{Authorities, AuthoritiesError, Certificate, CertificateError};
use rustls::{
    RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier,
    sign::SingleCertAndKey, version::TLS13,
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Where what TLS needs is kept, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Authorities one of which must have signed the certificate of a client; `None`: clients need
    /// none.
    pub client_authorities: Option<PathBuf>,
}

/// TLS by files that may change.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    /// What was read, or could not be used.
    content: Content,
    config: Arc<ServerConfig>,
}

/// Compared, never shown: it holds the private key.
#[derive(PartialEq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Certificate {
        path: PathBuf,
        error: CertificateError,
    },
    #[error("{}: {error}", path.display())]
    Authorities {
        path: PathBuf,
        error: AuthoritiesError,
    },
    #[error("TLS for Envoy Gateway cannot be set up: {0}")]
    Setup(String),
}

impl Tls {
    /// # Errors
    /// When a file cannot be used.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let content = files.read()?;
        let config = files.config(&content)?;
        Ok(Self {
            files,
            current: Mutex::new(Current { content, config }),
        })
    }

    /// For the next handshake. Files that cannot be used change nothing, and are told of once.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.read() {
            Ok(content) if content != current.content => {
                match self.files.config(&content) {
                    Ok(config) => {
                        tracing::info!(files = ?self.files, "the certificate has changed");
                        current.config = config;
                    }
                    Err(error) => tracing::warn!(%error, "the certificate of before is kept"),
                }
                current.content = content;
            }
            Ok(_) => {}
            // While a file is being replaced it may not be there.
            Err(error) => tracing::debug!(%error, "the certificate of before is kept"),
        }
        Arc::clone(&current.config)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| TlsError::Read {
                path: path.into(),
                error,
            })
        };
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            authorities: self.client_authorities.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, content: &Content) -> Result<Arc<ServerConfig>, TlsError> {
        let certificate =
            Certificate::from_pem(&content.certificate, &content.key).map_err(|error| {
                TlsError::Certificate {
                    path: self.certificate.clone(),
                    error,
                }
            })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let setup = |error: &dyn fmt::Display| TlsError::Setup(error.to_string());
        // Envoy Gateway speaks nothing older.
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| setup(&error))?;
        let builder = match (&self.client_authorities, &content.authorities) {
            (Some(path), Some(pem)) => {
                let roots = roots(path, pem)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| setup(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let key = SingleCertAndKey::from(certificate.certified_key().as_ref().clone());
        let mut config = builder.with_cert_resolver(Arc::new(key));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let authorities = Authorities::from_pem(pem).map_err(|error| TlsError::Authorities {
        path: path.into(),
        error,
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in authorities.certificates() {
        let added = roots.add(certificate.clone());
        added.map_err(|error| TlsError::Setup(error.to_string()))?;
    }
    Ok(roots)
}
