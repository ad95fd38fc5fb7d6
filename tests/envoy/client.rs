//! A client that writes requests as they are, byte by byte.

use crate::cluster::network::Network;
use std::{io, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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
    let exchange = async move {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(&request).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok::<_, io::Error>(bytes)
    };
    let bytes = network.run(exchange).await?;
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
