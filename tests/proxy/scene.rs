//! What the tests stand on: a proxy whose ports are mapped to free ones of loopback, backends
//! that the test plays itself, and clients.

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tailway::{
    drain::Drain,
    metrics::Metrics,
    model::{
        Backend, BackendId, BackendKind, Certificate, Certificates, Endpoint, Forward,
        HostnamePattern, HttpOptions, NamedForward, NodeName, NodeSpec, ObjectName, Port, Role,
        Snapshot, TcpListener as TcpConfig, Termination, TlsListener as TlsConfig, TlsMode,
        TlsRoutes, Transport, WeightedBackend,
    },
    net::{
        Admission, BindError, Network,
        host::{HostDatagrams, HostListener, HostNetwork},
    },
    proxy::{Limits, Proxy, TailnetCertificate},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const TCP: u16 = 80;
pub const TLS: u16 = 443;
pub const HOST: &str = "web.example.com";

/// How long a test waits for what has to come.
const DEADLINE: Duration = Duration::from_secs(30);

/// Loopback, where every port is one that the system chose.
#[derive(Clone, Copy, Debug)]
pub struct Loopback;

impl Network for Loopback {
    type Listener = HostListener;
    type Datagrams = HostDatagrams;

    async fn bind(&self, _: u16, admission: Arc<dyn Admission>) -> Result<HostListener, BindError> {
        HostNetwork::new(Ipv4Addr::LOCALHOST.into())
            .bind(0, admission)
            .await
    }

    async fn bind_datagrams(&self, _: u16) -> Result<HostDatagrams, BindError> {
        HostNetwork::new(Ipv4Addr::LOCALHOST.into())
            .bind_datagrams(0)
            .await
    }
}

/// A proxy and what it was made with.
pub struct Scene {
    pub proxy: Proxy<Loopback>,
    pub drain: Drain,
    pub metrics: Metrics,
    pub tailnet: Arc<TailnetCertificate>,
}

impl Scene {
    pub async fn new(snapshot: &Snapshot) -> Self {
        Self::with(Limits::default(), snapshot).await
    }

    pub async fn with(limits: Limits, snapshot: &Snapshot) -> Self {
        let (drain, metrics) = (Drain::default(), Metrics::default());
        let tailnet = Arc::new(TailnetCertificate::default());
        let mut proxy = Proxy::new(
            Loopback,
            "default/web".into(),
            limits,
            metrics.clone(),
            drain.clone(),
            Arc::clone(&tailnet),
        );
        let errors = proxy.apply(snapshot).await;
        assert!(errors.is_empty(), "{errors:?}");
        Self {
            proxy,
            drain,
            metrics,
            tailnet,
        }
    }

    pub async fn apply(&mut self, snapshot: &Snapshot) {
        let errors = self.proxy.apply(snapshot).await;
        assert!(errors.is_empty(), "{errors:?}");
    }

    pub fn address(&self, port: u16) -> SocketAddr {
        self.proxy.addresses()[&port]
    }

    pub async fn connect(&self, port: u16) -> TcpStream {
        connect(self.address(port)).await
    }

    pub async fn connect_tls(&self, port: u16, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
        handshake(self.address(port), config, HOST).await.unwrap()
    }

    /// Waits until the metrics have this line.
    pub async fn until_metric(&self, line: &str) {
        let has_line = async {
            while !self.metrics.encode().lines().any(|known| known == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, has_line).await.is_err() {
            panic!("no line {line} in\n{}", self.metrics.encode());
        }
    }

    /// Waits until a connection to the port is refused.
    pub async fn until_refused(address: SocketAddr) {
        within(async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// Waits for what has to come.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("it did not come in time")
}

// === objects ===

pub fn backend_id(name: &str) -> BackendId {
    BackendId {
        kind: BackendKind::Service,
        object: ObjectName::new("default", name),
        port: 80,
        transport: Transport::Tcp,
    }
}

/// A route to backends by weight; `None` is an invalid reference.
pub fn route(backends: &[(u32, Option<&str>)]) -> Option<Forward> {
    Some(Forward {
        route: ObjectName::new("default", "route"),
        backends: backends
            .iter()
            .map(|&(weight, backend)| WeightedBackend {
                weight,
                backend: backend.map(backend_id),
            })
            .collect(),
        proxy_protocol: None,
    })
}

/// A TCP listener "tcp" that forwards to the backend "app".
pub fn tcp_port() -> Port {
    tcp_port_to(route(&[(1, Some("app"))]))
}

pub fn tcp_port_to(route: Option<Forward>) -> Port {
    Port::Tcp(TcpConfig {
        name: "tcp".into(),
        route,
    })
}

/// A TLS listener that forwards to the backend "app".
pub fn tls_listener(name: &str, hostname: Option<&str>, secrets: &[&Certificate]) -> TlsConfig {
    TlsConfig {
        name: name.into(),
        hostname: hostname.map(|text| HostnamePattern::parse(text).unwrap()),
        mode: TlsMode::Terminate(Termination::new(
            Certificates {
                tailnet: false,
                secrets: secrets.iter().map(|&secret| secret.clone()).collect(),
            },
            TlsRoutes::all(route(&[(1, Some("app"))])),
        )),
    }
}

/// A route to the backend of this name, for these server names.
pub fn named(backend: &str, hostnames: &[&str]) -> NamedForward {
    let pattern = |hostname: &&str| HostnamePattern::parse(hostname).unwrap();
    NamedForward {
        hostnames: hostnames.iter().map(pattern).collect(),
        forward: route(&[(1, Some(backend))]).unwrap(),
    }
}

/// A TLS listener whose backends end TLS.
pub fn passing_listener(
    name: &str,
    hostname: Option<&str>,
    forwards: Vec<NamedForward>,
) -> TlsConfig {
    TlsConfig {
        name: name.into(),
        hostname: hostname.map(|text| HostnamePattern::parse(text).unwrap()),
        mode: TlsMode::Passthrough(forwards),
    }
}

/// How a listener that terminates TLS does so.
pub fn termination(listener: &mut TlsConfig) -> &mut Termination {
    match &mut listener.mode {
        TlsMode::Terminate(termination) => termination,
        TlsMode::Passthrough(_) => panic!("{} passes TLS on", listener.name),
    }
}

/// A TLS listener "tls" for every name of the certificate.
pub fn tls_port(certificate: &Certificate) -> Port {
    Port::Tls(vec![tls_listener("tls", None, &[certificate])])
}

pub fn snapshot<const P: usize>(
    ports: [(u16, Port); P],
    backends: &[(&str, &[SocketAddr])],
) -> Snapshot {
    let endpoint = |address: &SocketAddr| Endpoint::Address(address.ip(), address.port());
    Snapshot {
        gateway: ObjectName::new("default", "web"),
        role: Role::Ingress,
        generation: 1,
        node: NodeSpec {
            name: NodeName::parse("web").unwrap(),
        },
        ports: ports.into(),
        udp_ports: BTreeMap::new(),
        http_options: HttpOptions::default(),
        http_routes: BTreeMap::new(),
        backends: backends
            .iter()
            .map(|(name, addresses)| {
                let endpoints = addresses.iter().map(endpoint).collect();
                (backend_id(name), Backend::new(endpoints))
            })
            .collect(),
    }
}

pub fn certificate(names: &[&str]) -> Certificate {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names).unwrap();
    let chain = params.self_signed(&key).unwrap();
    Certificate::from_pem(chain.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

/// The leaf, as it is on the wire.
pub fn leaf(certificate: &Certificate) -> CertificateDer<'static> {
    certificate.certified_key().cert[0].clone()
}

// === backends ===

/// A backend whose connections the test takes itself.
pub async fn backend() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub async fn accept(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.unwrap().0
}

/// A backend that sends back what it gets, for as long as the test runs.
pub async fn echo() -> SocketAddr {
    let (listener, address) = backend().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// A backend that tells its name and ends.
pub async fn greeter(name: &'static str) -> SocketAddr {
    let (listener, address) = backend().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    });
    address
}

/// An endpoint that refuses; its port is nobody else's while the socket lives.
pub fn dead() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

// === clients ===

pub async fn connect(address: SocketAddr) -> TcpStream {
    within(TcpStream::connect(address)).await.unwrap()
}

/// A client that trusts these certificates and no other.
pub fn client(trusted: &[&Certificate]) -> Arc<ClientConfig> {
    Arc::new(client_of(trusted, rustls::ALL_VERSIONS))
}

pub fn client_of(
    trusted: &[&Certificate],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(leaf(certificate)).unwrap();
    }
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub async fn handshake(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &'static str,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = connect(address).await;
    let name = ServerName::try_from(name).unwrap();
    within(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await
}

/// Says something and expects it back.
pub async fn ping<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    within(async {
        stream.write_all(b"ping").await?;
        stream.flush().await?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).await?;
        assert_eq!(&back, b"ping");
        Ok(())
    })
    .await
}

/// Passes a word from one side to the other: the two are connected.
pub async fn pass(
    from: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncRead + Unpin),
    word: &[u8],
) {
    let mut got = vec![0; word.len()];
    within(async {
        from.write_all(word).await.unwrap();
        from.flush().await.unwrap();
        to.read_exact(&mut got).await.unwrap();
    })
    .await;
    assert_eq!(got, word);
}

/// Everything up to the end of the other side's bytes.
pub async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

/// Expects a reset, and nothing before it.
pub async fn expect_reset(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 1];
    let error = within(stream.read(&mut buffer)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

/// Resets a connection.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
