use super::Error;
use socket2::SockRef;
use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    os::{fd::OwnedFd, unix::net::UnixDatagram as StdUnixDatagram},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{Interest, ReadBuf},
    net::UnixDatagram,
};

/// Length of `tailscale_packet_header`.
const HEADER: usize = 20;

/// Largest payload of a datagram (RFC 768, RFC 791: 65535 less both headers).
const MAX_PAYLOAD: usize = 65_507;

/// A UDP port of a node: datagrams with their boundaries and the address of the peer.
#[derive(Debug)]
pub struct PacketSocket {
    // A SOCK_SEQPACKET socket; sending and receiving are the same calls.
    socket: UnixDatagram,
    address: SocketAddr,
}

impl PacketSocket {
    pub(super) fn new(fd: OwnedFd, address: SocketAddr) -> Result<Self, Error> {
        let socket = UnixDatagram::from_std(StdUnixDatagram::from(fd))
            .map_err(|error| Error::Engine(error.to_string()))?;
        Ok(Self { socket, address })
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Receives one datagram: its payload and who sent it.
    ///
    /// # Errors
    /// `UnexpectedEof` once the node is closed.
    pub async fn receive(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        let mut message = vec![0; HEADER + MAX_PAYLOAD];
        let (payload, source) = poll_fn(|context| self.poll_receive(context, &mut message)).await?;
        message.truncate(payload.end);
        message.drain(..payload.start);
        Ok((message, source))
    }

    /// Receives one datagram into a buffer, which is to have 65,527 bytes: where its payload is in
    /// it, and who sent it. Only the task that asked last is woken.
    pub fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(Range<usize>, SocketAddr)>> {
        let mut message = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(context, &mut message))?;
        let message = message.filled();
        if message.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let header = message
            .get(..HEADER)
            .and_then(|bytes| <&[u8; HEADER]>::try_from(bytes).ok());
        let source = header.map(decode).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a packet of {} bytes has no header", message.len()),
            )
        });
        Poll::Ready(source.map(|source| (HEADER..message.len(), source)))
    }

    /// Sends one datagram, or fails with `WouldBlock` rather than to wait.
    ///
    /// # Errors
    /// As [`PacketSocket::send`].
    pub fn try_send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let header = encode(to);
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        SockRef::from(&self.socket).send_vectored(&parts).map(drop)
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// When the payload is larger than 65,507 bytes (RFC 768, RFC 791), or the node is closed.
    pub async fn send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a datagram carries {MAX_PAYLOAD} bytes, not {}",
                    payload.len()
                ),
            ));
        }
        let header = encode(to);
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        let send = || SockRef::from(&self.socket).send_vectored(&parts);
        self.socket
            .async_io(Interest::WRITABLE, send)
            .await
            .map(drop)
    }
}

fn encode(address: SocketAddr) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[2..4].copy_from_slice(&address.port().to_ne_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            header[0] = 4;
            header[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            header[0] = 6;
            header[4..].copy_from_slice(&ip.octets());
        }
    }
    header
}

fn decode(header: &[u8; HEADER]) -> SocketAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[4..]);
    let ip: IpAddr = if header[0] == 4 {
        Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
    } else {
        Ipv6Addr::from(octets).into()
    };
    SocketAddr::new(ip, u16::from_ne_bytes([header[2], header[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_carries_any_address() {
        for address in ["100.64.0.1:53", "[fd7a:115c:a1e0::1]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(decode(&encode(address)), address);
        }
    }
}
