//! Where Envoy Gateway connects: a port or a socket in the file system.

use super::tls::Tls;
use crate::drain::Drain;
use s2n_tls_tokio::TlsAcceptor;
use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
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
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::transport::server::Connected;

/// A bound socket that takes no connections yet.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<Tls>),
    /// Its file is removed when this is dropped.
    Unix(UnixListener, PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot serve Envoy Gateway at {address}: {error}; choose another GRPC_PORT")]
    Tcp {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot serve Envoy Gateway at {}: {error}; choose another --socket", path.display())]
    Unix { path: PathBuf, error: io::Error },
}

/// What a connection is read from and written to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A connection of whatever kind.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    peer: Peer,
}

/// What is known of the Envoy Gateway at the other end.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer(Arc<AtomicBool>);

/// A client that takes longer for its handshake is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

impl Listener {
    /// # Errors
    /// When the address is taken or not this host's.
    pub async fn tcp(address: SocketAddr, tls: Option<Tls>) -> Result<Self, BindError> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.map_err(|error| BindError::Tcp { address, error })?;
        Ok(match tls {
            Some(tls) => Self::Tls(bound, Arc::new(tls)),
            None => Self::Tcp(bound),
        })
    }

    /// A socket that an earlier process left behind is replaced.
    ///
    /// # Errors
    /// When the path is something else, or cannot be written.
    pub fn unix(path: &Path) -> Result<Self, BindError> {
        let bind = || {
            match fs::symlink_metadata(path) {
                Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
                Ok(_) => return Err(io::Error::other("there is something that is no socket")),
                Err(_) => {}
            }
            UnixListener::bind(path)
        };
        match bind() {
            Ok(listener) => Ok(Self::Unix(listener, path.into())),
            Err(error) => Err(BindError::Unix {
                path: path.into(),
                error,
            }),
        }
    }

    /// Where it listens, for whoever chose port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) | Self::Tls(listener, _) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Takes connections until the drain stops.
    pub(super) fn accept(self, drain: Drain) -> mpsc::Receiver<Result<Connection, Infallible>> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = self.take(&sender) => {}
                () = drain.stopping() => {}
            }
        });
        receiver
    }

    async fn take(&self, sender: &mpsc::Sender<Result<Connection, Infallible>>) {
        while !sender.is_closed() {
            if let Err(error) = self.next(sender).await {
                tracing::warn!(%error, "the extension server cannot accept");
                // Out of file descriptors, most likely: trying again at once would spin.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn next(&self, sender: &mpsc::Sender<Result<Connection, Infallible>>) -> io::Result<()> {
        let connection = match self {
            Self::Tcp(listener) => Connection::new(accept(listener).await?),
            Self::Unix(listener, _) => Connection::new(listener.accept().await?.0),
            Self::Tls(listener, tls) => {
                let stream = accept(listener).await?;
                // Apart, so that a client that says nothing holds up nobody.
                tokio::spawn(shake_hands(stream, Arc::clone(tls), sender.clone()));
                return Ok(());
            }
        };
        // A server that ended takes no more.
        let _ = sender.send(Ok(connection)).await;
        Ok(())
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // Small messages are answered one by one.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn shake_hands(
    stream: TcpStream,
    tls: Arc<Tls>,
    sender: mpsc::Sender<Result<Connection, Infallible>>,
) {
    let acceptor = TlsAcceptor::new(tls.config());
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let _ = sender.send(Ok(Connection::new(stream))).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, "no handshake with Envoy Gateway"),
        Err(_) => tracing::debug!("the handshake took too long"),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been replaced or removed already.
            let _ = fs::remove_file(path);
        }
    }
}

// === impl Peer ===

impl Peer {
    /// Notes that its calls bring routes or policies.
    pub(super) fn brings_routes(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_brought_routes(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Connection ===

impl Connection {
    fn new(stream: impl Stream) -> Self {
        Self {
            stream: Box::new(stream),
            peer: Peer::default(),
        }
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
