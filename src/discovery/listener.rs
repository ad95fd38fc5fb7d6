//! Where pods connect: TCP, then TLS with a certificate that can be replaced at any time.

use crate::{drain::Drain, model::Certificate};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

/// A bound socket that takes no connections yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot serve snapshots at {address}: {error}; choose another --discovery-addr")]
pub struct BindError {
    address: SocketAddr,
    error: io::Error,
}

/// The certificate that the server shows.
pub struct ServerIdentity {
    current: ArcSwap<CertifiedKey>,
}

/// A pod's connection, one of a limited number.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// When it ends unless somebody was admitted on it.
    deadline: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    admitted: Arc<AtomicBool>,
}

/// How many connections there may be, and what they may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Open at a time; more wait in the kernel's queue.
    pub(super) connections: usize,
    /// How long one may stay on which nobody is admitted.
    pub(super) admission: Duration,
}

/// A client that takes longer for its handshake is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

// === impl Listener ===

impl Listener {
    /// # Errors
    /// When the address is taken or not this host's.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = TcpListener::bind(address).await.and_then(|tcp| {
            let address = tcp.local_addr()?;
            Ok(Self { tcp, address })
        });
        bound.map_err(|error| BindError { address, error })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes connections until the drain stops.
    pub(super) fn accept(
        self,
        identity: Arc<ServerIdentity>,
        bounds: Bounds,
        drain: Drain,
    ) -> Result<mpsc::Receiver<Result<Connection, Infallible>>, rustls::Error> {
        let acceptor = TlsAcceptor::from(Arc::new(tls(identity)?));
        let (sender, receiver) = mpsc::channel(1);
        let permits = Arc::new(Semaphore::new(bounds.connections));
        tokio::spawn(async move {
            tokio::select! {
                () = self.take(&acceptor, bounds.admission, &permits, &sender) => {}
                () = drain.stopping() => {}
            }
        });
        Ok(receiver)
    }

    async fn take(
        &self,
        acceptor: &TlsAcceptor,
        admission: Duration,
        permits: &Arc<Semaphore>,
        sender: &mpsc::Sender<Result<Connection, Infallible>>,
    ) {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(permits).acquire_owned().await {
            match self.tcp.accept().await {
                Ok((stream, address)) => {
                    let (acceptor, sender) = (acceptor.clone(), sender.clone());
                    tokio::spawn(async move {
                        let Some(stream) = handshake(acceptor, stream, address).await else {
                            return;
                        };
                        let connection = Connection {
                            stream,
                            peer: Peer {
                                address,
                                admitted: Arc::default(),
                            },
                            deadline: Some(Box::pin(sleep(admission))),
                            _permit: permit,
                        };
                        // A server that ended takes no more.
                        let _ = sender.send(Ok(connection)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "discovery cannot accept");
                    // Out of file descriptors, most likely: trying again at once would spin.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    // Small messages are answered one by one.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no handshake");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "the handshake took too long");
            None
        }
    }
}

fn tls(identity: Arc<ServerIdentity>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

// === impl ServerIdentity ===

impl ServerIdentity {
    pub fn new(certificate: &Certificate) -> Self {
        Self {
            current: ArcSwap::new(Arc::clone(certificate.certified_key())),
        }
    }

    /// Shows another certificate from the next handshake on. Connections are not touched.
    pub fn replace(&self, certificate: &Certificate) {
        self.current.store(Arc::clone(certificate.certified_key()));
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity")
    }
}

// === impl Peer ===

impl Peer {
    /// Lets the connection live for as long as the peer wants.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Connection {
    fn is_overdue(&mut self, context: &mut Context<'_>) -> bool {
        if self.peer.admitted.load(Ordering::Relaxed) {
            self.deadline = None;
        }
        let deadline = self.deadline.as_mut();
        deadline.is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_overdue(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
