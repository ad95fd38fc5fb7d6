//! The CA of the stream and the certificate of its server: what a Secret holds and the time of day
//! in, what it is to hold out.
//!
//! ```text
//!   CA        ├──────────── a year ────────────┤
//!   next CA                      ├─ published ─┼ signs ──────────────┤
//!   server    ├─ 30 days ─┤  ├─ 30 days ─┤  …
//! ```
//!
//! Pods read the bundle from a ConfigMap, which takes minutes to reach them. A CA is therefore in
//! the bundle for a week before anything is signed by it, and stays there for as long as it is valid.

use crate::model::{Certificate, CertificateError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{ServerName, UnixTime},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// `data` of the Secret.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// What the Secret is to hold, and what follows from it.
pub struct Authority {
    /// Differs from what was held when `change` says so.
    pub data: SecretData,
    /// What was done, for a log line or an Event; empty when there was nothing to do.
    pub changes: Vec<&'static str>,
    /// The CAs that pods are to trust, PEM: `ca.crt` of the ConfigMap.
    pub bundle: String,
    /// What the server shows.
    pub certificate: Certificate,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the certificate for {names} cannot be made: {error}")]
    Make { names: String, error: rcgen::Error },
    #[error("the certificate that was just made is of no use: {0}")]
    Made(#[from] CertificateError),
}

const DAY: Duration = Duration::from_secs(24 * 3600);

const CA_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A CA with less left than this gets a successor.
const CA_RENEWAL: Duration = Duration::from_secs(60 * 24 * 3600);

/// A successor is published for this long before it signs.
const OVERLAP: Duration = Duration::from_secs(7 * 24 * 3600);

const SERVER_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

const SERVER_RENEWAL: Duration = Duration::from_secs(10 * 24 * 3600);

/// Clocks of nodes that lag by less than this take a new certificate.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Keys of the Secret.
const CA: (&str, &str) = ("ca.crt", "ca.key");
const NEXT: (&str, &str) = ("next-ca.crt", "next-ca.key");
const PREVIOUS: &str = "previous-ca.crt";
const SERVER: (&str, &str) = ("tls.crt", "tls.key");

const SUCCEEDED: &str = "signs with the next CA from now on";

/// Looks after the CA and the server's certificate. `held` is what the Secret holds, empty when
/// there is none; what cannot be used in it is made anew. `names` are those by which pods reach the
/// server: DNS names or IP addresses. To be called every hour or so.
///
/// # Errors
/// When a certificate for `names` cannot be made.
pub fn maintain(
    held: &SecretData,
    names: &[String],
    now: SystemTime,
) -> Result<Authority, AuthorityError> {
    let mut changes = Vec::new();
    let cas = Cas::read(held, now, &mut changes)?.rotate(now, &mut changes)?;
    let server = match Pair::read(held, SERVER) {
        Some(server)
            if server.left(now) >= SERVER_RENEWAL && server.is_for(names, &cas.current, now) =>
        {
            server
        }
        _ => {
            changes.push("made a server certificate");
            Pair::server(names, &cas.current, now)?
        }
    };
    let (bundle, certificate) = (cas.bundle(), server.certificate.clone());
    let mut data = SecretData::new();
    cas.write(&mut data);
    server.write(&mut data, SERVER);
    if changes.is_empty() && data != *held {
        changes.push("removed what is of no use");
    }
    Ok(Authority {
        data,
        changes,
        bundle,
        certificate,
    })
}

/// The CAs that are trusted.
struct Cas {
    /// Signs.
    current: Pair,
    /// Will sign.
    next: Option<Pair>,
    /// Has signed, PEM.
    previous: Option<Vec<u8>>,
}

impl Cas {
    /// What is valid of what is held, or a new one.
    fn read(
        held: &SecretData,
        now: SystemTime,
        changes: &mut Vec<&'static str>,
    ) -> Result<Self, AuthorityError> {
        let valid = |keys| Pair::read(held, keys).filter(|pair| pair.is_valid(now));
        let previous = held.get(PREVIOUS).cloned();
        let (current, next) = match (valid(CA), valid(NEXT)) {
            (Some(current), next) => (current, next),
            (None, Some(next)) => {
                changes.push(SUCCEEDED);
                (next, None)
            }
            (None, None) => {
                changes.push("made a CA");
                (Pair::ca(now)?, None)
            }
        };
        Ok(Self {
            current,
            next,
            previous: previous.filter(|pem| is_valid(pem, now)),
        })
    }

    /// Makes the next CA in time, and puts it in the place of the current one in time.
    fn rotate(
        mut self,
        now: SystemTime,
        changes: &mut Vec<&'static str>,
    ) -> Result<Self, AuthorityError> {
        let left = self.current.left(now);
        if self.next.is_none() && left < CA_RENEWAL {
            changes.push("made the next CA");
            self.next = Some(Pair::ca(now)?);
        }
        let is_due = |next: &mut Pair| next.age(now) >= OVERLAP + BACKDATE || left < DAY;
        if let Some(next) = self.next.take_if(is_due) {
            changes.push(SUCCEEDED);
            self.previous = Some(std::mem::replace(&mut self.current, next).chain);
        }
        Ok(self)
    }

    fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| &next.chain);
        let all = [&self.current.chain].into_iter().chain(next);
        let bytes: Vec<_> = all.chain(&self.previous).flatten().copied().collect();
        // PEM is ASCII.
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn write(self, data: &mut SecretData) {
        self.current.write(data, CA);
        if let Some(next) = self.next {
            next.write(data, NEXT);
        }
        if let Some(previous) = self.previous {
            data.insert(PREVIOUS.into(), previous);
        }
    }
}

/// A certificate and its key, as the Secret has them.
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
    certificate: Certificate,
}

impl Pair {
    fn new(chain: String, key: String) -> Result<Self, CertificateError> {
        let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes())?;
        Ok(Self {
            chain: chain.into(),
            key: key.into(),
            certificate,
        })
    }

    fn read(data: &SecretData, (chain, key): (&str, &str)) -> Option<Self> {
        let (chain, key) = (data.get(chain)?, data.get(key)?);
        let certificate = Certificate::from_pem(chain, key).ok()?;
        Some(Self {
            chain: chain.clone(),
            key: key.clone(),
            certificate,
        })
    }

    fn write(self, data: &mut SecretData, (chain, key): (&str, &str)) {
        data.insert(chain.into(), self.chain);
        data.insert(key.into(), self.key);
    }

    fn ca(now: SystemTime) -> Result<Self, AuthorityError> {
        let make = || {
            let key = KeyPair::generate()?;
            // Two CAs are in the bundle at a time: a name of its own tells which is which.
            let id: String = key
                .public_key_raw()
                .iter()
                .rev()
                .take(4)
                .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            let mut params = params(
                &[],
                now,
                now + CA_LIFETIME,
                &format!("tailway discovery {id}"),
            )?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let certificate = params.self_signed(&key)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (chain, key) = make().map_err(|error| AuthorityError::Make {
            names: "the CA".into(),
            error,
        })?;
        Ok(Self::new(chain, key)?)
    }

    fn server(names: &[String], ca: &Self, now: SystemTime) -> Result<Self, AuthorityError> {
        let make = || {
            let issuer = Issuer::new(ca.issuer_params(), ca.key_pair()?);
            let end = (now + SERVER_LIFETIME).min(ca.certificate.not_after());
            let mut params = params(names, now, end, "tailway discovery server")?;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (chain, key) = make().map_err(|error| AuthorityError::Make {
            names: names.join(", "),
            error,
        })?;
        Ok(Self::new(chain, key)?)
    }

    fn key_pair(&self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::from_pem(&String::from_utf8_lossy(&self.key))
    }

    /// What a certificate says of this one as its issuer.
    fn issuer_params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let leaf = self.certificate.chain().first();
        let parsed = leaf.and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
        let name = parsed.as_ref().and_then(|(_, parsed)| {
            let mut names = parsed.subject().iter_common_name();
            names.next().and_then(|name| name.as_str().ok())
        });
        params
            .distinguished_name
            .push(DnType::CommonName, name.unwrap_or_default());
        params
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.certificate.not_before() <= now && now < self.certificate.not_after()
    }

    fn left(&self, now: SystemTime) -> Duration {
        let end = self.certificate.not_after();
        end.duration_since(now).unwrap_or_default()
    }

    fn age(&self, now: SystemTime) -> Duration {
        let start = self.certificate.not_before();
        now.duration_since(start).unwrap_or_default()
    }

    /// Whether a client that trusts `ca` takes this for each of the names.
    fn is_for(&self, names: &[String], ca: &Self, now: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        let root = ca.certificate.chain().first().cloned();
        let Some((leaf, root)) = self.certificate.chain().first().zip(root) else {
            return false;
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        if roots.add(root).is_err() {
            return false;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let Ok(verifier) = verifier.build() else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| {
                let verified = verifier.verify_server_cert(leaf, &[], &name, &[], now);
                verified.is_ok()
            })
        })
    }
}

fn params(
    names: &[String],
    now: SystemTime,
    end: SystemTime,
    common_name: &str,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.not_before = (now - BACKDATE).into();
    params.not_after = end.into();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    Ok(params)
}

/// Whether a CA without its key is still of use to those who verify.
fn is_valid(pem: &[u8], now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let parsed = x509_parser::pem::parse_x509_pem(pem).ok();
    parsed.is_some_and(|(_, pem)| {
        pem.parse_x509().is_ok_and(|certificate| {
            let end = certificate.validity().not_after.timestamp();
            u64::try_from(end).is_ok_and(|end| now < end)
        })
    })
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("changes", &self.changes)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}
