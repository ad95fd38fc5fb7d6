//! Listeners on sockets of this host.

use super::{
    Accepted, Admission, BindError, Datagrams, Flow, Listener, Network, Outbound, Replies,
    SpliceOptions, Stream, Transfer, outbound::copy,
};
use crate::model::Identity;
use socket2::SockRef;
use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// An address of this host.
#[derive(Clone, Copy, Debug)]
pub struct HostNetwork {
    ip: IpAddr,
}

/// A port of this host.
pub struct HostListener {
    listener: TcpListener,
    address: SocketAddr,
    admission: Arc<dyn Admission>,
}

/// A connection to this host.
#[derive(Debug)]
pub struct HostAccepted {
    stream: TcpStream,
    flow: Flow,
}

/// An open connection to this host.
#[derive(Debug)]
pub struct HostStream(TcpStream);

/// A port of UDP of this host. Where it is bound to no address in particular, the system chooses
/// the one that answers come from.
#[derive(Debug)]
pub struct HostDatagrams {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
}

/// Makes closing a socket a reset (RFC 9293 §3.10.5, by `SO_LINGER` of zero).
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that refuses is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

// === impl HostNetwork ===

impl HostNetwork {
    pub fn new(ip: IpAddr) -> Self {
        Self { ip }
    }
}

impl Network for HostNetwork {
    type Listener = HostListener;
    type Datagrams = HostDatagrams;

    async fn bind(
        &self,
        port: u16,
        admission: Arc<dyn Admission>,
    ) -> Result<HostListener, BindError> {
        let bound = TcpListener::bind((self.ip, port))
            .await
            .and_then(|listener| {
                let address = listener.local_addr()?;
                Ok(HostListener {
                    listener,
                    address,
                    admission,
                })
            });
        bound.map_err(|error| bind_error(port, error))
    }

    async fn bind_datagrams(&self, port: u16) -> Result<HostDatagrams, BindError> {
        let bound = UdpSocket::bind((self.ip, port)).await;
        let bound = bound.and_then(|socket| {
            Ok(HostDatagrams {
                address: socket.local_addr()?,
                socket: Arc::new(socket),
            })
        });
        bound.map_err(|error| bind_error(port, error))
    }
}

fn bind_error(port: u16, error: io::Error) -> BindError {
    match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(port),
        _ => BindError::Io { port, error },
    }
}

impl std::fmt::Debug for HostListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl HostListener {
    /// The address that a client asked for.
    fn asked(&self, stream: &TcpStream) -> SocketAddr {
        match self.address.ip().is_unspecified() {
            true => stream.local_addr().unwrap_or(self.address),
            false => self.address,
        }
    }
}

/// Without the disguise that addresses of IPv4 have where a socket takes both (RFC 4291 §2.5.5.2).
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Listener for HostListener {
    type Accepted = HostAccepted;

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn accept(&mut self) -> Option<HostAccepted> {
        loop {
            match self.listener.accept().await {
                Ok((stream, source)) => {
                    let flow = Flow {
                        source: plain(source),
                        destination: plain(self.asked(&stream)),
                    };
                    if self.admission.admit(&flow) {
                        return Some(HostAccepted { stream, flow });
                    }
                    reset_on_close(&stream);
                }
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "cannot accept");
                    // Out of file descriptors, most likely: trying again at once would spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Accepted for HostAccepted {
    type Stream = HostStream;

    fn flow(&self) -> Flow {
        self.flow
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }

    fn open(self) -> io::Result<HostStream> {
        self.stream.set_nodelay(true)?;
        Ok(HostStream(self.stream))
    }

    fn splice(
        self,
        backend: Outbound,
        options: SpliceOptions,
    ) -> impl Future<Output = Transfer> + Send {
        // Not awaited here: that would keep a second copy of all three.
        copy(Outbound::Host(self.stream), backend, options)
    }

    fn reset(self) {
        reset_on_close(&self.stream);
    }
}

/// Undoes [`reset_on_close`].
pub fn close_in_order(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

// === impl HostDatagrams ===

impl Datagrams for HostDatagrams {
    type Replies = UdpSocket;

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn replies(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.socket)
    }

    async fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<(&'b [u8], Flow)> {
        let (length, source) = self.socket.recv_from(buffer).await?;
        let flow = Flow {
            source,
            destination: self.address,
        };
        Ok((&buffer[..length], flow))
    }
}

impl Replies for UdpSocket {
    async fn send(&self, payload: &[u8], flow: &Flow) -> io::Result<()> {
        self.send_to(payload, flow.source).await.map(drop)
    }

    fn identity(&self, _: IpAddr) -> Option<Arc<Identity>> {
        None
    }
}

// === impl HostStream ===

impl Stream for HostStream {
    fn reset(&self) {
        reset_on_close(&self.0);
    }

    fn was_reset(&self) -> bool {
        false // a read fails with ECONNRESET instead
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
