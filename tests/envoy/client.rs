//! A client that writes requests as they are, byte by byte.

use crate::cluster::network::Network;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// An answer of HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Requests `target` by GET, with `Host: host`.
pub async fn get(
    network: &Network,
    to: SocketAddr,
    host: &str,
    target: &str,
) -> io::Result<Answer> {
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes();
    send(network, to, request).await
}

/// Sends `request`, and reads until the connection ends.
pub async fn send(network: &Network, to: SocketAddr, request: Vec<u8>) -> io::Result<Answer> {
    let exchange = async move { exchange(TcpStream::connect(to).await?, &request).await };
    network.run(exchange).await
}

/// The same by TLS with whoever has this certificate, by the name that is in it.
pub async fn send_by_tls(
    network: &Network,
    to: SocketAddr,
    (name, leaf): (&'static str, CertificateDer<'static>),
    request: Vec<u8>,
) -> io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(leaf).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let exchange = async move {
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from(name).unwrap();
        exchange(connector.connect(name, stream).await?, &request).await
    };
    network.run(exchange).await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> io::Result<Answer> {
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    parse(&bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = bytes[end + 4..].to_vec();
    if head.contains("\r\ntransfer-encoding: chunked") {
        body = whole(&body)?;
    }
    Some(Answer {
        status,
        head,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// Joins the chunks of a body (RFC 9112 section 7.1).
fn whole(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&chunks[..end]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let begin = end + 2;
        body.extend_from_slice(chunks.get(begin..begin + size)?);
        chunks = chunks.get(begin + size + 2..)?;
    }
}
