//! Services that tests play themselves: they record what arrives, as it is.

use crate::cluster::network::Network;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// What health checks ask for.
pub const HEALTH: &str = "/health";

/// A service that answers each request with its name.
pub struct Service {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    name: String,
    health: AtomicU16,
    requests: Mutex<Vec<Request>>,
}

/// A request as it arrived, but for its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, target and version.
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Service {
    pub async fn start(network: &Network, name: &str) -> Self {
        Self::start_on(network, name, None).await
    }

    /// The same behind TLS.
    pub async fn start_tls(network: &Network, name: &str, tls: TlsAcceptor) -> Self {
        Self::start_on(network, name, Some(tls)).await
    }

    async fn start_on(network: &Network, name: &str, tls: Option<TlsAcceptor>) -> Self {
        let state = Arc::new(State {
            name: name.to_owned(),
            health: AtomicU16::new(200),
            requests: Mutex::default(),
        });
        let bind = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = network.run(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&state);
        network
            .run(async move {
                tokio::spawn(accept(listener, serving, tls));
            })
            .await;
        Self { address, state }
    }

    /// Answers health checks so from now on.
    pub fn set_health(&self, status: u16) {
        self.state.health.store(status, Ordering::Relaxed);
    }

    /// Requests that have arrived, without health checks.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The request that arrived last.
    pub fn last(&self) -> Request {
        let requests = self.state.requests.lock().unwrap();
        requests.last().expect("a request arrived").clone()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, tls) = (Arc::clone(&state), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, &state).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, &state).await;
                    }
                }
            }
        });
    }
}

/// Serves one connection until its peer ends it.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = head(&mut stream).await {
        let mut status = 200;
        if request.line.starts_with(&format!("GET {HEALTH} ")) {
            status = state.health.load(Ordering::Relaxed);
        } else {
            state.requests.lock().unwrap().push(request.clone());
        }
        if request.header("upgrade").is_some() {
            return echo(stream).await;
        }
        let length = request.header("content-length").unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        let name = &state.name;
        let answer = format!(
            "HTTP/1.1 {status} Here\r\nContent-Length: {}\r\n\r\n{name}",
            name.len()
        );
        if stream.read_exact(&mut body).await.is_err()
            || stream.write_all(answer.as_bytes()).await.is_err()
        {
            return;
        }
    }
}

/// Agrees to another protocol, which sends back what it gets.
async fn echo(mut stream: BufReader<impl AsyncRead + AsyncWrite + Unpin>) {
    let agreed = "HTTP/1.1 101 Here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    if stream.write_all(agreed.as_bytes()).await.is_err() {
        return;
    }
    let (mut from, mut to) = tokio::io::split(stream);
    // An error is a peer that left.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// The next request up to its body; `None` when the connection ends.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).unwrap();
    let (line, headers) = text.trim_end().split_once("\r\n").unwrap_or((&text, ""));
    let headers = headers.split("\r\n").filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    });
    Some(Request {
        line: line.to_owned(),
        headers: headers.collect(),
    })
}
