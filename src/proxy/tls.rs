//! TLS: which listener and certificate a client means, and the handshake.

use super::certificates::TailnetCertificate;
use crate::{
    model::{self, Certificate, HostnamePattern},
    net::relay::Buffer,
};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
        StoresServerSessions,
    },
    sign::CertifiedKey,
};
use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

/// TLS 1.2 sessions that a listener remembers; TLS 1.3 and tickets need no memory.
const SESSIONS: usize = 4096;

/// Alert `unrecognized_name` as a whole record (RFC 8446 §5.1, §6; RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// The TLS listeners of a port, most specific hostname first.
#[derive(Debug)]
pub(super) struct TlsPort<R> {
    listeners: Vec<TlsListener<R>>,
}

/// A TLS listener, ready for handshakes.
#[derive(Debug)]
pub(super) struct TlsListener<R> {
    hostname: Option<HostnamePattern>,
    certificates: Arc<Certificates>,
    config: Arc<ServerConfig>,
    pub(super) serving: R,
}

/// Session tickets and caches of a listener: they outlive certificates and snapshots, and are
/// never shared, so that no session moves from one listener to another.
#[derive(Clone)]
pub(super) struct Sessions {
    tickets: Arc<dyn ProducesTickets>,
    cache: Arc<dyn StoresServerSessions>,
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
    NoCertificate,
    NotTls,
    NoCommonProtocol,
    NoCommonVersion,
    PeerAlert,
    Closed,
    Other,
}

/// A peer whose handshake is complete.
pub(super) struct Accepted<'a, S, R> {
    pub(super) stream: TlsStream<ReadAhead<S>>,
    pub(super) serving: &'a R,
    pub(super) server_name: String,
}

// === impl Sessions ===

impl Sessions {
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn new() -> Result<Self, rustls::Error> {
        Ok(Self {
            tickets: aws_lc_rs::Ticketer::new()?,
            cache: ServerSessionMemoryCache::new(SESSIONS),
        })
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

    /// Takes a client through its handshake. `refused` is told of the listener that failed.
    pub(super) async fn accept<S>(
        &self,
        stream: S,
    ) -> Result<Accepted<'_, S, R>, (Option<&R>, Failure)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), ReadAhead::new(stream));
        let mut start = hello.await.map_err(|error| (None, Failure::of(&error)))?;
        let name = start.client_hello().server_name().map(str::to_owned);
        let Some(listener) = self.listener(name.as_deref()) else {
            refuse(&mut start.io).await;
            return Err((None, Failure::UnknownName));
        };
        let serving = Some(&listener.serving);
        if listener.certificates.choose(name.as_deref()).is_none() {
            let failure = match &name {
                Some(name) if listener.certificates.expects(name) => Failure::NoCertificate,
                _ => Failure::UnknownName,
            };
            refuse(&mut start.io).await;
            return Err((serving, failure));
        }
        let mut stream = start
            .into_stream(Arc::clone(&listener.config))
            .await
            .map_err(|error| (serving, Failure::of(&error)))?;
        stream.get_mut().1.set_buffer_limit(Some(64 * 1024));
        Ok(Accepted {
            stream,
            serving: &listener.serving,
            server_name: name.unwrap_or_default(),
        })
    }
}

/// Tells a client that its server name is not known here. It may be gone already.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S) {
    let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
    let _ = stream.shutdown().await;
}

// === impl TlsListener ===

impl<R> TlsListener<R> {
    /// # Errors
    /// When rustls refuses the configuration.
    pub(super) fn new(
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
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
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
            certificates,
            config: Arc::new(config),
            serving,
        })
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
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls,
            Some(rustls::Error::NoApplicationProtocol) => Self::NoCommonProtocol,
            Some(rustls::Error::PeerIncompatible(_)) => Self::NoCommonVersion,
            Some(rustls::Error::AlertReceived(_)) => Self::PeerAlert,
            Some(_) => Self::Other,
            None => Self::Closed,
        }
    }

    /// A label for metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::NoCertificate => "no_certificate_yet",
            Self::NotTls => "not_tls",
            Self::NoCommonProtocol => "no_common_alpn",
            Self::NoCommonVersion => "no_common_version_or_cipher",
            Self::PeerAlert => "alert_from_peer",
            Self::Closed => "closed_by_peer",
            Self::Other => "other",
        }
    }
}

/// Reads large pieces from a stream for a reader that asks for small ones: rustls reads 4 KiB at
/// a time, which is four system calls for a record. It has a buffer only while that holds bytes.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    stream: S,
    /// The buffer, and where its unread bytes start and end.
    ahead: Option<(Buffer, usize, usize)>,
}

impl<S> ReadAhead<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            ahead: None,
        }
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_none() {
            let mut buffer = Buffer::take();
            let mut slice = ReadBuf::new(buffer.bytes());
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut slice))?;
            let length = slice.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            this.ahead = Some((buffer, 0, length));
        }
        if let Some((buffer, start, end)) = &mut this.ahead {
            let taken = out.remaining().min(*end - *start);
            out.put_slice(&buffer.bytes()[*start..*start + taken]);
            *start += taken;
            if start == end {
                this.ahead = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
