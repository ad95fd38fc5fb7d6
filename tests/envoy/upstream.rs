//! Services that tests play themselves: they record what arrives, as it is.

use crate::cluster::network::Network;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, UdpSocket},
};
use tokio_rustls::TlsAcceptor;

/// What health checks ask for.
pub const HEALTH: &str = "/health";

/// Where services are, as targets cannot be on a loopback; all of 192.0.2.0/24 is there.
pub const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

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
        Self::start_on(network, name, (HERE, 0).into(), None).await
    }

    /// The same at an address of the namespace, and behind TLS perhaps.
    pub async fn start_on(
        network: &Network,
        name: &str,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let state = Arc::new(State {
            name: name.to_owned(),
            health: AtomicU16::new(200),
            requests: Mutex::default(),
        });
        let listener = network.run(TcpListener::bind(address)).await.unwrap();
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

/// A server of DNS at 127.0.0.1, whose answers are good for a second.
pub struct Names(Arc<Mutex<BTreeMap<String, Ipv4Addr>>>);

impl Names {
    pub async fn start(network: &Network) -> Self {
        let names = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let served = Arc::clone(&names);
        network
            .run(async move {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await.unwrap();
                tokio::spawn(async move {
                    let mut query = [0; 512];
                    while let Ok((size, peer)) = socket.recv_from(&mut query).await {
                        if let Some(answer) = answer(&query[..size], &served.lock().unwrap()) {
                            // Who has gone does not miss it.
                            let _ = socket.try_send_to(&answer, peer);
                        }
                    }
                });
            })
            .await;
        Self(names)
    }

    pub fn set(&self, name: &str, address: IpAddr) {
        let IpAddr::V4(address) = address else {
            panic!("{address} is not of IPv4");
        };
        self.0.lock().unwrap().insert(name.into(), address);
    }
}

/// The answer to a query (RFC 1035 section 4): an address for those who ask for one of IPv4, nothing
/// for those who ask for something else of that name, and that there is no other name.
fn answer(query: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?));
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let known = names.get(&labels.join("."));
    let address = known.filter(|_| question.ends_with(&[0, 1, 0, 1]));
    let mut answer = query[..2].to_vec();
    // Recursion was available; code 3 is a name that is not there.
    answer.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    answer.extend([0, 1, 0, address.is_some().into(), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        // The name of the question, A, IN, one second, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
