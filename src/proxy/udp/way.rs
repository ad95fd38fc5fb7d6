//! The way of a flow to its backend.

use crate::{
    net::relay::Buffer,
    tailnet::{Node, PacketSocket},
};
use socket2::SockRef;
use std::{
    future::poll_fn,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    task::Poll,
};
use tokio::{io::Interest, net::UdpSocket};

/// A socket that has one peer.
#[derive(Debug)]
pub(super) enum Way {
    Host(UdpSocket),
    /// From a port of a node.
    Tailnet {
        socket: PacketSocket,
        to: SocketAddr,
    },
}

impl Way {
    pub(super) fn to_host(to: SocketAddr) -> io::Result<Self> {
        let from: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self::Host(UdpSocket::from_std(socket)?))
    }

    pub(super) fn into_tailnet(node: &Node, to: SocketAddr) -> io::Result<Self> {
        let own = node.watch().borrow().ips.clone();
        let own = own.into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let own = own.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = node.listen_packet(SocketAddr::new(own, 0));
        let socket = socket.map_err(io::Error::other)?;
        Ok(Self::Tailnet { socket, to })
    }

    /// Sends without asking whether the socket is ready: a fresh one is not known to be.
    pub(super) fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self {
            Self::Host(socket) => SockRef::from(socket).send(payload).map(drop),
            Self::Tailnet { socket, to } => socket.try_send(payload, *to),
        }
    }

    /// Waits for what the backend sends: a buffer, and where in it. No buffer is held until then.
    pub(super) async fn receive(&self) -> io::Result<(Buffer, Range<usize>)> {
        match self {
            Self::Host(socket) => receive_on_host(socket).await,
            Self::Tailnet { socket, to } => loop {
                let received = poll_fn(|context| {
                    let mut buffer = Buffer::take();
                    match socket.poll_receive(context, buffer.bytes()) {
                        Poll::Ready(received) => Poll::Ready((buffer, received)),
                        Poll::Pending => Poll::Pending,
                    }
                });
                let (buffer, received) = received.await;
                let (payload, source) = received?;
                // Its port takes datagrams of anybody.
                if source == *to {
                    return Ok((buffer, payload));
                }
            },
        }
    }
}

async fn receive_on_host(socket: &UdpSocket) -> io::Result<(Buffer, Range<usize>)> {
    loop {
        // What ICMP says is an error without anything to read. Errors are told by the read.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await;
        let interest = match ready {
            Ok(ready) if ready.is_error() => Interest::ERROR,
            _ => Interest::READABLE,
        };
        let mut buffer = Buffer::take();
        let read = || (&*SockRef::from(socket)).read(buffer.bytes());
        match socket.try_io(interest, read) {
            Ok(length) => return Ok((buffer, 0..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
