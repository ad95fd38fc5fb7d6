use super::{
    Error, Listener, PacketSocket, Pending, Status,
    ffi::{NodeHandle, Text},
    listener::{Admit, Ports},
    process,
};
use crate::model::Identity;
use serde::Deserialize;
use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// How a node is to be.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// First label of its name.
    pub hostname: String,
    pub state: State,
    pub auth: Auth,
    /// Whether the tailnet forgets it once it is gone.
    pub ephemeral: bool,
    /// `None`: Tailscale's own.
    pub control_url: Option<String>,
    /// UDP port of WireGuard; 0 lets the system choose.
    pub port: u16,
    /// Upper bounds of a connection's TCP buffers in bytes; 0 for the default.
    pub tcp_receive_buffer: u32,
    pub tcp_send_buffer: u32,
}

/// Where a node keeps its identity and certificates.
#[derive(Clone)]
pub enum State {
    /// A directory, locked while the node runs.
    Directory(PathBuf),
    /// Nowhere: a new node at each start.
    Memory,
    Store(Arc<dyn StateStore>),
}

/// A place for node state. Called on threads of the library, where it may block.
pub trait StateStore: Send + Sync + 'static {
    /// # Errors
    /// When it cannot be read; `Ok(None)` when there is no such key.
    fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>>;
    /// # Errors
    /// When the value is not durable.
    fn write(&self, key: &str, value: &[u8]) -> io::Result<()>;
}

/// How a node without identity joins.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// By a person at the login URL.
    #[default]
    Interactive,
    Key(Secret),
    /// An OAuth client secret, and the tags of the node.
    ClientSecret {
        secret: Secret,
        tags: Vec<String>,
    },
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A tailnet node. The node ends with the last clone, or by [`Node::close`].
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    handle: NodeHandle,
    ports: Arc<Ports>,
    status: watch::Receiver<Status>,
    identities: Mutex<Identities>,
}

/// Identities by the library's key, of the newest epoch seen.
#[derive(Default)]
struct Identities {
    epoch: u64,
    by_node: HashMap<u64, Arc<Identity>>,
}

/// How long the engine may take to end when nobody waits for it.
const ABANDON: Duration = Duration::from_secs(10);

// === impl Secret ===

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => f.debug_tuple("Directory").field(path).finish(),
            Self::Memory => f.write_str("Memory"),
            Self::Store(_) => f.write_str("Store"),
        }
    }
}

// === impl NodeConfig ===

impl NodeConfig {
    /// A node with this name that keeps its state there, with defaults for the rest.
    pub fn new(hostname: impl Into<String>, state: State) -> Self {
        Self {
            hostname: hostname.into(),
            state,
            auth: Auth::Interactive,
            ephemeral: false,
            control_url: None,
            port: 0,
            tcp_receive_buffer: 0,
            tcp_send_buffer: 0,
        }
    }

    fn apply(&self, handle: NodeHandle) -> Result<(), Error> {
        handle.set_text(Text::Hostname, &self.hostname)?;
        match &self.state {
            State::Directory(path) => {
                let path = path.to_str().ok_or_else(|| {
                    Error::Engine(format!(
                        "the state directory {} is not UTF-8",
                        path.display()
                    ))
                })?;
                handle.set_text(Text::Directory, path)?;
            }
            State::Memory => handle.set_memory_store()?,
            State::Store(store) => handle.set_store(Arc::clone(store))?,
        }
        match &self.auth {
            Auth::Interactive => {}
            Auth::Key(key) => handle.set_text(Text::AuthKey, key.reveal())?,
            Auth::ClientSecret { secret, tags } => {
                handle.set_text(Text::ClientSecret, secret.reveal())?;
                handle.set_text(Text::Tags, &tags.join(","))?;
            }
        }
        if let Some(url) = &self.control_url {
            handle.set_text(Text::ControlUrl, url)?;
        }
        handle.set_ephemeral(self.ephemeral)?;
        handle.set_port(self.port)?;
        handle.set_tcp_buffers(self.tcp_receive_buffer, self.tcp_send_buffer)
    }
}

// === impl Node ===

impl Node {
    /// Starts a node and returns before it has joined.
    ///
    /// # Errors
    /// When the state cannot be used (not writable, locked by another process) or an option is
    /// refused.
    pub async fn start(config: NodeConfig) -> Result<Self, Error> {
        // The library works for some 100 ms here, too long for a worker of the runtime.
        tokio::task::spawn_blocking(move || Self::start_blocking(&config))
            .await
            .map_err(|error| Error::Engine(error.to_string()))?
    }

    fn start_blocking(config: &NodeConfig) -> Result<Self, Error> {
        let handle = NodeHandle::new();
        process::name_node(handle, &config.hostname);
        let started = config
            .apply(handle)
            .and_then(|()| handle.start())
            .and_then(|()| {
                let (sender, status) = watch::channel(Status::default());
                handle.watch(Box::new(move |text| match serde_json::from_str(text) {
                    Ok(status) => {
                        sender.send_replace(status);
                    }
                    Err(error) => tracing::warn!(%error, "unreadable status of the tailnet node"),
                }))?;
                let ports = Arc::new(Ports::default());
                handle.listen(ports.clone())?;
                Ok((status, ports))
            });
        match started {
            Ok((status, ports)) => Ok(Self {
                inner: Arc::new(Inner {
                    handle,
                    ports,
                    status,
                    identities: Mutex::default(),
                }),
            }),
            Err(error) => {
                handle.abandon(ABANDON);
                process::forget_node(handle);
                Err(error)
            }
        }
    }

    /// Waits until the node is usable. Dropping the future gives up waiting; the node goes on.
    ///
    /// # Errors
    /// At once when the control server refuses the key; after `timeout`, if there is one.
    pub async fn up(&self, timeout: Option<Duration>) -> Result<Status, Error> {
        parse(&self.inner.handle.up(timeout)?.await?)
    }

    /// # Errors
    /// When the node is closed.
    pub fn status(&self) -> Result<Status, Error> {
        parse(&self.inner.handle.status()?)
    }

    /// The status, and each change of it. The sender is gone once the node is closed.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// Accepts connections to `port` on every address of the node. `admit` is asked before a
    /// handshake is answered, on a thread of the library, and must not block; a refused
    /// connection is reset.
    ///
    /// # Errors
    /// When the port is taken by another listener of this node.
    pub fn listen(&self, port: u16, admit: Admit) -> Result<Listener, Error> {
        self.inner.ports.listen(self, port, admit)
    }

    /// Connects to `host:port` in the tailnet, and nowhere else.
    ///
    /// # Errors
    /// When nobody in the tailnet has the host, it refuses, or `timeout` passes.
    pub async fn dial(&self, address: &str, timeout: Duration) -> Result<Pending, Error> {
        let (connection, flow) = self.inner.handle.dial(address, timeout)?.await?;
        Ok(Pending::new(connection, flow, self.clone()))
    }

    /// Binds a UDP port on a tailnet address of this node; port 0 for any.
    ///
    /// # Errors
    /// When the address is not the node's or the port is taken.
    pub fn listen_packet(&self, address: SocketAddr) -> Result<PacketSocket, Error> {
        let (fd, port) = self.inner.handle.listen_packet(&address.to_string())?;
        PacketSocket::new(fd, SocketAddr::new(address.ip(), port))
    }

    /// The address of somebody in the tailnet: of a device by name (full, or its first label) or IP
    /// address, of a service by name or as `svc:` and its name.
    ///
    /// # Errors
    /// When the tailnet has none of that name or address.
    pub fn look_up(&self, host: &str) -> Result<IpAddr, Error> {
        let text = self.inner.handle.look_up(host)?;
        let wrong = |_| Error::Answer(format!("{text:?} is no IP address"));
        text.parse().map_err(wrong)
    }

    /// Who has a tailnet address.
    ///
    /// # Errors
    /// When nobody has.
    pub fn whois(&self, ip: IpAddr) -> Result<Identity, Error> {
        parse(&self.inner.handle.whois(&ip.to_string())?)
    }

    /// Who is at the other end of a connection; asked of the library once per peer and change of
    /// the network map.
    pub(super) fn identity(&self, ip: IpAddr, key: Option<(u64, u64)>) -> Option<Arc<Identity>> {
        let (node, epoch) = key?;
        let mut identities = self
            .inner
            .identities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if identities.epoch == epoch
            && let Some(identity) = identities.by_node.get(&node)
        {
            return Some(Arc::clone(identity));
        }
        let identity = Arc::new(self.whois(ip).ok()?);
        if epoch > identities.epoch {
            identities.epoch = epoch;
            identities.by_node.clear();
        }
        if epoch == identities.epoch {
            identities.by_node.insert(node, Arc::clone(&identity));
        }
        Some(identity)
    }

    /// Certificate chain and private key for `domain`, PEM. The stored one while it is valid for
    /// `min_validity` more (zero: until its renewal is due), else a new one.
    ///
    /// # Errors
    /// [`Error::Certificate`] with the time to wait when the authority told one.
    pub async fn certificate(
        &self,
        domain: &str,
        min_validity: Duration,
        timeout: Duration,
    ) -> Result<Secret, Error> {
        let operation = self
            .inner
            .handle
            .certificate(domain, min_validity, timeout)?;
        operation.await.map(Secret).map_err(certificate_error)
    }

    /// Tailscale's own metrics, Prometheus text format.
    ///
    /// # Errors
    /// When the node is closed.
    pub fn metrics(&self) -> Result<String, Error> {
        self.inner.handle.metrics()
    }

    /// Waits, for a second at most, until connections that ended in order are gone from the
    /// engine, so that closing the node does not cut their last bytes.
    pub async fn settle(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        while process::counts().connections > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What TCP has sent is on its way to the peer once more time than a packet takes is over.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Ends the node: listeners, connections (reset), then the engine.
    ///
    /// # Errors
    /// When the engine did not end within `timeout`; the process should then exit.
    pub async fn close(&self, timeout: Duration) -> Result<(), Error> {
        match self.inner.handle.close(timeout) {
            Ok(operation) => operation.await.map(drop),
            Err(Error::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Answer(error.to_string()))
}

/// The library tells certificate failures as JSON.
fn certificate_error(error: Error) -> Error {
    #[derive(Deserialize)]
    struct Failure {
        error: String,
        #[serde(default)]
        retry_after_s: u64,
    }
    let Error::Engine(text) = &error else {
        return error;
    };
    match serde_json::from_str::<Failure>(text) {
        Ok(failure) => Error::Certificate {
            message: failure.error,
            retry_after: (failure.retry_after_s > 0)
                .then(|| Duration::from_secs(failure.retry_after_s)),
        },
        Err(_) => error,
    }
}

impl Secret {
    /// The text itself, for the one place that needs it.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.handle.abandon(ABANDON);
        process::forget_node(self.handle);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
