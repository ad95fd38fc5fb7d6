//! One try to use an endpoint.

use crate::{
    model::{Endpoint, Probe},
    net::relay::Buffer,
    proxy::{
        backend_tls::{BackendStream, Link, Offer},
        reach::{Unreachable, look_up, reach, running},
    },
    tailnet::Node,
};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    future::poll_fn,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    time::Duration,
};
use tokio::{net::UdpSocket, time::timeout};

/// What tries an endpoint, as it is connected to for use.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) endpoint: Endpoint,
    pub(super) link: Link,
    pub(super) node: Option<Node>,
    pub(super) probe: Probe,
    pub(super) timeout: Duration,
}

/// Why a try says nothing good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The node is not in its tailnet: that is no fault of the endpoint.
    NoTailnet,
    Failed(String),
}

/// What is sent to ports of UDP. Few protocols take it for anything, and it is more than nothing,
/// which some systems never hand on.
const DATAGRAM: &[u8] = &[0];

// === impl Prober ===

impl Prober {
    pub(super) async fn attempt(&self) -> Result<(), Failure> {
        if self.probe == Probe::Udp {
            return self.send_datagram().await;
        }
        match timeout(self.timeout, self.connect()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Failure {
        Failure::Failed(format!("no answer within {:?}", self.timeout))
    }

    async fn connect(&self) -> Result<(), Failure> {
        let stream = reach(&self.endpoint, self.node.as_ref(), self.timeout).await?;
        stream.set_nodelay();
        let (offer, request) = match &self.probe {
            Probe::Http { path, host } => (Offer::Http1, Some((path, host))),
            Probe::Tcp | Probe::Udp => (Offer::Nothing, None),
        };
        let stream = self.link.secure(stream, offer).await?;
        match request {
            Some((path, host)) => get(stream, path, host).await,
            None => Ok(()),
        }
    }

    /// Sends a datagram. An answer of any kind is good, and so is silence: services of UDP need not
    /// answer what they do not understand. Bad is only what says that nobody is there (ICMP, RFC 1122
    /// §3.2.2.1), which reaches sockets of this host alone.
    async fn send_datagram(&self) -> Result<(), Failure> {
        match &self.endpoint {
            Endpoint::Tailnet(host, port) => self.send_into_tailnet(host, *port).await,
            Endpoint::Address(ip, port) => self.send_to(SocketAddr::new(*ip, *port)).await,
            Endpoint::Name(name, port) => {
                let found = tokio::net::lookup_host((name.as_str(), *port));
                let found = timeout(self.timeout, found).await;
                let mut found = found
                    .map_err(|_| self.too_late())?
                    .map_err(|_| Unreachable::Name)?;
                let first = found.next().ok_or(Unreachable::Name)?;
                self.send_to(first).await
            }
        }
    }

    async fn send_to(&self, to: SocketAddr) -> Result<(), Failure> {
        let from: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let talk = async {
            let socket = UdpSocket::bind((from, 0)).await?;
            socket.connect(to).await?;
            socket.send(DATAGRAM).await?;
            let mut buffer = Buffer::take();
            socket.recv(buffer.bytes()).await
        };
        match timeout(self.timeout, talk).await {
            Err(_) | Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Unreachable::of(error).into()),
        }
    }

    async fn send_into_tailnet(&self, host: &str, port: u16) -> Result<(), Failure> {
        let node = running(self.node.as_ref())?;
        let to = SocketAddr::new(look_up(host, Some(node))?, port);
        let own = node.watch().borrow().ips.clone();
        let own = own.into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let own = own.ok_or(Unreachable::Other)?;
        let socket = node.listen_packet(SocketAddr::new(own, 0));
        let socket = socket.map_err(|_| Unreachable::Other)?;
        socket.try_send(DATAGRAM, to).map_err(Unreachable::of)?;
        let mut buffer = Buffer::take();
        let answer = poll_fn(|context| socket.poll_receive(context, buffer.bytes()));
        match timeout(self.timeout, answer).await {
            Err(_) | Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Unreachable::of(error).into()),
        }
    }
}

async fn get(stream: BackendStream, path: &str, host: &str) -> Result<(), Failure> {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "tailway-health-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Failed(format!("no request can be made: {error}")))?;
    let no_response = |error| Failure::Failed(format!("no response: {error}"));
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(no_response)?;
    let mut response = pin!(sender.send_request(request));
    // The connection may end with the response, which is there all the same then.
    let response = tokio::select! {
        response = &mut response => response,
        _ = connection => response.await,
    };
    let response = response.map_err(no_response)?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(Failure::Failed(format!("status {}", status.as_u16()))),
    }
}

// === impl Failure ===

impl From<Unreachable> for Failure {
    fn from(reason: Unreachable) -> Self {
        match reason {
            Unreachable::NoTailnet => Self::NoTailnet,
            reason => Self::Failed(reason.as_str().replace('_', " ")),
        }
    }
}
