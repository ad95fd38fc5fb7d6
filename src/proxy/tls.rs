//! TLS: which listener and certificate a client means, and the handshake, unless TLS is passed on.

use super::{certificates::TailnetCertificate, clients, read_ahead::ReadAhead};
use crate::model::{self, Certificate, ClientValidation, HostnamePattern};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
        StoresServerSessions,
    },
    sign::CertifiedKey,
};
use std::{fmt, io, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

/// TLS 1.2 sessions that a listener remembers; TLS 1.3 and tickets need no memory.
const SESSIONS: usize = 4096;

/// Alert `unrecognized_name` as a whole record (RFC 8446 §5.1, §6; RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// Alert `decode_error`, the same way.
const DECODE_ERROR: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x32];

/// The TLS listeners of a port, most specific hostname first.
#[derive(Debug)]
pub(super) struct TlsPort<R> {
    listeners: Vec<TlsListener<R>>,
}

/// A TLS listener, ready for clients.
#[derive(Debug)]
pub(super) struct TlsListener<R> {
    hostname: Option<HostnamePattern>,
    mode: Mode,
    serving: R,
}

/// Where TLS ends.
#[derive(Debug)]
enum Mode {
    Here(Handshakes),
    /// At the backend.
    There,
}

/// What a listener needs to end TLS.
#[derive(Debug)]
struct Handshakes {
    certificates: Arc<Certificates>,
    config: Arc<ServerConfig>,
}

/// What is served on a listener.
pub(super) trait Serves {
    /// Whether there is anything for this server name; empty when a client asks for none.
    fn is_for(&self, server_name: &str) -> bool;
}

/// Session tickets and caches of a listener: they outlive certificates and snapshots, and are
/// never shared, so that no session moves from one listener to another.
#[derive(Clone)]
pub(super) struct Sessions {
    tickets: Arc<dyn ProducesTickets>,
    cache: Arc<dyn StoresServerSessions>,
    /// What their clients were asked for: a session that is resumed is not asked again.
    clients: Option<ClientValidation>,
}

#[derive(Debug)]
struct Certificates {
    tailnet: Option<Arc<TailnetCertificate>>,
    secrets: Vec<Certificate>,
    /// Whether the listener names its host: a Secret is then served for it whatever names it has.
    named: bool,
}

/// Why there is no TLS connection. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    UnknownName,
    NoRoute,
    NoCertificate,
    ClientCertificate,
    NotTls,
    NoCommonProtocol,
    NoCommonVersion,
    PeerAlert,
    Closed,
    Other,
}

/// A client that has a listener.
pub(super) struct Accepted<'a, S, R> {
    pub(super) stream: Secured<S>,
    pub(super) serving: &'a R,
    /// Empty when it asked for none.
    pub(super) server_name: String,
}

/// The bytes of a client.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub(super) enum Secured<S> {
    /// What was in TLS, whose handshake is complete.
    Plain(TlsStream<ReadAhead<S>>),
    /// TLS itself, from its first byte on.
    Passed(ReadAhead<S>),
}

// === impl Sessions ===

impl Sessions {
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn new(clients: Option<&ClientValidation>) -> Result<Self, rustls::Error> {
        Ok(Self {
            tickets: aws_lc_rs::Ticketer::new()?,
            cache: ServerSessionMemoryCache::new(SESSIONS),
            clients: clients.cloned(),
        })
    }

    /// Whether they may go on for clients that are asked for this.
    pub(super) fn are_for(&self, clients: Option<&ClientValidation>) -> bool {
        self.clients.as_ref() == clients
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

// === impl TlsPort ===

impl<R> TlsPort<R> {
    pub(super) fn new(mut listeners: Vec<TlsListener<R>>) -> Self {
        listeners.sort_by_key(|listener| {
            std::cmp::Reverse(listener.hostname.as_ref().map(HostnamePattern::specificity))
        });
        Self { listeners }
    }

    /// The listener that a server name belongs to.
    fn listener(&self, name: Option<&str>) -> Option<&TlsListener<R>> {
        self.listeners
            .iter()
            .find(|listener| match (&listener.hostname, name) {
                (None, _) => true,
                (Some(pattern), Some(name)) => pattern.matches(name),
                (Some(_), None) => false,
            })
    }

    /// Finds the listener of a client, and takes it through its handshake where TLS ends here. A
    /// failure comes with what the listener serves, if there is one.
    pub(super) async fn accept<S>(
        &self,
        stream: S,
    ) -> Result<Accepted<'_, S, R>, (Option<&R>, Failure)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        R: Serves,
    {
        let mut stream = ReadAhead::new(stream);
        if self.listeners.iter().any(TlsListener::passes_on) {
            let hello = match stream.hello().await {
                Ok(hello) => hello,
                Err(error) => {
                    let failure = Failure::of(&error);
                    if failure == Failure::NotTls {
                        refuse(&mut stream, &DECODE_ERROR).await;
                    }
                    return Err((None, failure));
                }
            };
            let name = hello.server_name;
            if let Some(listener) = self.listener(name.as_deref())
                && listener.passes_on()
            {
                return listener.pass_on(stream, name.unwrap_or_default()).await;
            }
        }
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let mut start = hello.await.map_err(|error| (None, Failure::of(&error)))?;
        let name = start.client_hello().server_name().map(str::to_owned);
        let Some(listener) = self.listener(name.as_deref()) else {
            refuse(&mut start.io, &UNRECOGNIZED_NAME).await;
            return Err((None, Failure::UnknownName));
        };
        let serving = Some(&listener.serving);
        let config = match listener.config(name.as_deref()) {
            Ok(config) => config,
            Err(failure) => {
                refuse(&mut start.io, &UNRECOGNIZED_NAME).await;
                return Err((serving, failure));
            }
        };
        let mut stream = start
            .into_stream(config)
            .await
            .map_err(|error| (serving, Failure::of(&error)))?;
        stream.get_mut().1.set_buffer_limit(Some(64 * 1024));
        Ok(Accepted {
            stream: Secured::Plain(stream),
            serving: &listener.serving,
            server_name: name.unwrap_or_default(),
        })
    }
}

/// Tells a client why it is refused. It may be gone already.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, alert: &[u8]) {
    let _ = stream.write_all(alert).await;
    let _ = stream.shutdown().await;
}

// === impl TlsListener ===

impl<R> TlsListener<R> {
    /// One that ends TLS.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub(super) fn terminating(
        hostname: Option<&HostnamePattern>,
        termination: &model::Termination,
        tailnet: &Arc<TailnetCertificate>,
        sessions: &Sessions,
        serving: R,
    ) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(Certificates {
            tailnet: termination
                .certificates
                .tailnet
                .then(|| Arc::clone(tailnet)),
            secrets: termination.certificates.secrets.clone(),
            named: hostname.is_some(),
        });
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match &termination.clients {
            Some(clients) => builder.with_client_cert_verifier(clients::verifier(clients)),
            None => builder.with_no_client_auth(),
        };
        let resolver = Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = termination
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config.ticketer = Arc::clone(&sessions.tickets);
        config.session_storage = Arc::clone(&sessions.cache);
        // One ticket is what a client needs; the default of two doubles the work.
        config.send_tls13_tickets = 1;
        Ok(Self {
            hostname: hostname.cloned(),
            mode: Mode::Here(Handshakes {
                certificates,
                config: Arc::new(config),
            }),
            serving,
        })
    }

    /// One whose backends end TLS.
    pub(super) fn passing(hostname: Option<&HostnamePattern>, serving: R) -> Self {
        Self {
            hostname: hostname.cloned(),
            mode: Mode::There,
            serving,
        }
    }

    fn passes_on(&self) -> bool {
        matches!(self.mode, Mode::There)
    }

    async fn pass_on<S>(
        &self,
        mut stream: ReadAhead<S>,
        server_name: String,
    ) -> Result<Accepted<'_, S, R>, (Option<&R>, Failure)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        R: Serves,
    {
        if !self.serving.is_for(&server_name) {
            refuse(&mut stream, &UNRECOGNIZED_NAME).await;
            return Err((Some(&self.serving), Failure::NoRoute));
        }
        Ok(Accepted {
            stream: Secured::Passed(stream),
            serving: &self.serving,
            server_name,
        })
    }

    /// How a client that asks for this name is spoken to.
    fn config(&self, name: Option<&str>) -> Result<Arc<ServerConfig>, Failure>
    where
        R: Serves,
    {
        let Mode::Here(Handshakes {
            certificates,
            config,
        }) = &self.mode
        else {
            // Only if rustls read another name than we did: nobody may choose whom to believe.
            return Err(Failure::UnknownName);
        };
        if !self.serving.is_for(name.unwrap_or_default()) {
            return Err(Failure::NoRoute);
        }
        match name {
            _ if certificates.choose(name).is_some() => Ok(Arc::clone(config)),
            Some(name) if certificates.expects(name) => Err(Failure::NoCertificate),
            _ => Err(Failure::UnknownName),
        }
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

// === impl Certificates ===

impl Certificates {
    /// The certificate for a server name: that of the tailnet for the node's own name, else the
    /// first Secret with the name, exact before wildcard. Without a name, the one that most
    /// clients mean.
    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let tailnet = self.tailnet.as_ref().and_then(|tailnet| tailnet.current());
        let chosen = match name {
            None => tailnet.as_deref().or(self.secrets.first()),
            Some(name) => {
                let exact = |certificate: &&Certificate| {
                    certificate
                        .names()
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(name))
                };
                let covers = |certificate: &&Certificate| certificate.covers(name);
                tailnet
                    .as_deref()
                    .filter(covers)
                    .or_else(|| self.secrets.iter().find(exact))
                    .or_else(|| self.secrets.iter().find(covers))
                    .or_else(|| self.secrets.first().filter(|_| self.named))
            }
        };
        chosen.map(|certificate| Arc::clone(certificate.certified_key()))
    }

    /// Whether the tailnet's certificate for this name is on its way.
    fn expects(&self, name: &str) -> bool {
        self.tailnet
            .as_ref()
            .is_some_and(|tailnet| tailnet.is_for(name))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

// === impl Failure ===

impl Failure {
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidData && error.get_ref().is_none() {
            return Self::NotTls;
        }
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls,
            Some(rustls::Error::NoApplicationProtocol) => Self::NoCommonProtocol,
            Some(rustls::Error::PeerIncompatible(_)) => Self::NoCommonVersion,
            Some(rustls::Error::AlertReceived(_)) => Self::PeerAlert,
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Self::ClientCertificate
            }
            Some(_) => Self::Other,
            None => Self::Closed,
        }
    }

    /// A label for metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::NoRoute => "no_route",
            Self::NoCertificate => "no_certificate_yet",
            Self::ClientCertificate => "client_certificate",
            Self::NotTls => "not_tls",
            Self::NoCommonProtocol => "no_common_alpn",
            Self::NoCommonVersion => "no_common_version_or_cipher",
            Self::PeerAlert => "alert_from_peer",
            Self::Closed => "closed_by_peer",
            Self::Other => "other",
        }
    }
}
