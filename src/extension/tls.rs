//! The server's certificate, and whose it asks for. Files are read again when they change.
//!
//! By s2n-tls: Envoy Gateway names the server with its port (`host:5005`), which is no DNS name
//! (RFC 6066 §3), and rustls 0.23 ends such a handshake.

use crate::model::{Authorities, AuthoritiesError, Certificate, CertificateError};
use s2n_tls::{
    callbacks::VerifyHostNameCallback, config::Config, enums::ClientAuthType, security::Policy,
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
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
    config: Config,
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
    #[error("{} cannot be used: {error}; it has to be of RSA or ECDSA", path.display())]
    Unusable {
        path: PathBuf,
        error: s2n_tls::error::Error,
    },
    #[error("TLS for Envoy Gateway cannot be set up: {0}")]
    Setup(#[from] s2n_tls::error::Error),
}

/// TLS 1.3 alone: Envoy Gateway speaks nothing older.
const POLICY: &str = "AWS-CRT-SDK-TLSv1.3-2023";

/// Seconds that a failed handshake is held at most, so that its time tells nothing: less than a
/// handshake may take, or its error would not be seen.
const LONGEST_BLINDING: u32 = 3;

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
    pub(super) fn config(&self) -> Config {
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
        current.config.clone()
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

    fn config(&self, content: &Content) -> Result<Config, TlsError> {
        let Content {
            certificate, key, ..
        } = content;
        // What s2n-tls says of them names no cause.
        Certificate::from_pem(certificate, key).map_err(|error| TlsError::Certificate {
            path: self.certificate.clone(),
            error,
        })?;
        let unusable = |path: &PathBuf, error| TlsError::Unusable {
            path: path.clone(),
            error,
        };
        let mut config = Config::builder();
        config
            .set_security_policy(&Policy::from_version(POLICY)?)?
            .set_max_blinding_delay(LONGEST_BLINDING)?
            .set_application_protocol_preference(["h2"])?
            // A client is known by what is given here alone.
            .wipe_trust_store()?;
        config
            .load_pem(certificate, key)
            .map_err(|error| unusable(&self.certificate, error))?;
        if let (Some(path), Some(pem)) = (&self.client_authorities, &content.authorities) {
            let authorities = Authorities::from_pem(pem);
            let authorities = authorities.map_err(|error| TlsError::Authorities {
                path: path.clone(),
                error,
            })?;
            config
                // Without what else may stand in the file, which s2n-tls would not take.
                .trust_pem(authorities.to_pem().as_bytes())
                .map_err(|error| unusable(path, error))?
                .set_client_auth_type(ClientAuthType::Required)?
                .set_verify_host_callback(AnyName)?;
        }
        Ok(config.build()?)
    }
}

/// Whoever an authority for clients has signed is let in, by whatever name.
struct AnyName;

impl VerifyHostNameCallback for AnyName {
    fn verify_host_name(&self, _: &str) -> bool {
        true
    }
}
