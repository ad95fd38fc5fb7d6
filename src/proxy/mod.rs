//! The data plane: serves one Gateway's [`Snapshot`] on a [`Network`].
//!
//! ```text
//!   Snapshot ─→ Proxy::apply ─→ port ─→ accept ─→ admitted? ─→ TLS? ─→ backend drawn ─→ copied
//!                                ↑ Serving, swapped as a whole; running connections keep theirs
//! ```

mod access;
mod backend_tls;
mod balance;
mod certificates;
mod clients;
mod connection;
mod forwards;
mod gateway;
mod health;
mod hello;
pub mod http;
mod limits;
mod peer;
mod proxy_protocol;
mod reach;
mod read_ahead;
mod renewal;
mod tls;
mod udp;

pub use certificates::{CertificateState, IssueError, Issuer, Schedule, TailnetCertificate};
pub use gateway::{Gateway, GatewaySettings};
pub use limits::Limits;

use crate::{
    drain::Drain,
    metrics::{HttpMeter, ListenerMetrics, Metrics},
    model::{
        ClientValidation, Health, Port, Snapshot, TlsListener as TlsConfig, TlsMode, TlsRoutes,
        UdpListener,
    },
    net::{Accepted, BindError, Flow, Listener, Network},
};
use arc_swap::ArcSwap;
use balance::Backends;
use connection::{Connection, Context, Served, Serving, Then, serve};
use forwards::Forwards;
use health::Checks;
use http::{HttpPort, Listening, Made, Metering};
use limits::Gate;
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};
use tls::{Sessions, TlsListener, TlsPort};
use tokio::{sync::watch, task::JoinHandle};
use udp::{UdpPort, UdpServed};

/// Serves the ports of one Gateway.
#[derive(Debug)]
pub struct Proxy<N: Network> {
    network: N,
    drain: Drain,
    context: Arc<Context>,
    certificate: Arc<TailnetCertificate>,
    checks: Checks,
    backends: Backends,
    ports: BTreeMap<u16, OpenPort>,
    udp_ports: BTreeMap<u16, UdpPort>,
    /// By port and listener name.
    sessions: HashMap<(u16, String), Sessions>,
    /// Of the objects that are served: what is not here any more is not counted either.
    meters: Vec<HttpMeter>,
}

#[derive(Debug)]
struct OpenPort {
    address: SocketAddr,
    serving: Arc<ArcSwap<Serving>>,
    gate: Arc<Gate>,
    accepting: JoinHandle<()>,
}

/// Why a port of a snapshot is not served.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("port {port} cannot speak TLS: {error}")]
    Tls { port: u16, error: rustls::Error },
}

impl<N: Network> Proxy<N> {
    /// A proxy without ports. `certificate` is what listeners serve that want the tailnet's.
    pub fn new(
        network: N,
        gateway: String,
        limits: Limits,
        metrics: Metrics,
        drain: Drain,
        certificate: Arc<TailnetCertificate>,
    ) -> Self {
        Self {
            network,
            drain,
            context: Arc::new(Context {
                gateway,
                limits,
                metrics,
            }),
            certificate,
            checks: Checks::default(),
            backends: Backends::default(),
            ports: BTreeMap::new(),
            udp_ports: BTreeMap::new(),
            sessions: HashMap::new(),
            meters: Vec::new(),
        }
    }

    /// Serves `snapshot` from now on. Open connections go on as they are; ports that are gone
    /// accept no more. What could not be opened is told; the rest is served.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> Vec<PortError> {
        let node = self.network.node();
        self.checks.follow(snapshot, &self.context, node);
        self.backends = Backends::of(snapshot, &self.backends, &self.checks, node);
        self.close_ports(snapshot).await;
        // Kept until the new ones are there, so that what stays goes on from its counts.
        let before = std::mem::take(&mut self.meters);
        let mut errors = Vec::new();
        for (&port, config) in &snapshot.ports {
            if let Err(error) = self.apply_port(port, config, snapshot).await {
                errors.push(error);
            }
        }
        for (&port, listener) in &snapshot.udp_ports {
            if let Err(error) = self.apply_udp_port(port, listener).await {
                errors.push(error.into());
            }
        }
        drop(before);
        errors
    }

    /// What is known of the endpoints that are checked, by name, and each change of it.
    pub fn health(&self) -> watch::Receiver<BTreeMap<String, Health>> {
        self.checks.watch()
    }

    /// Where the ports are bound, by the port of the snapshot.
    pub fn addresses(&self) -> BTreeMap<u16, SocketAddr> {
        self.ports
            .iter()
            .map(|(&port, open)| (port, open.address))
            .collect()
    }

    /// Where the ports of UDP are bound, by the port of the snapshot.
    pub fn udp_addresses(&self) -> BTreeMap<u16, SocketAddr> {
        self.udp_ports
            .iter()
            .map(|(&port, open)| (port, open.address()))
            .collect()
    }

    /// Closes the ports that a snapshot has no more. They are free when this returns.
    async fn close_ports(&mut self, snapshot: &Snapshot) {
        let gone = self
            .ports
            .extract_if(.., |port, _| !snapshot.ports.contains_key(port));
        for (_, open) in gone {
            open.accepting.abort();
            // The listener goes with its task. An error says that it was aborted.
            let _ = open.accepting.await;
        }
        let gone = self
            .udp_ports
            .extract_if(.., |port, _| !snapshot.udp_ports.contains_key(port));
        for (_, open) in gone {
            open.close().await;
        }
        self.sessions.retain(|(port, listener), _| {
            snapshot
                .ports
                .get(port)
                .is_some_and(|config| config.listener_names().contains(&listener.as_str()))
        });
    }

    async fn apply_port(
        &mut self,
        port: u16,
        config: &Port,
        snapshot: &Snapshot,
    ) -> Result<(), PortError> {
        let serving = Arc::new(self.serving(port, config, snapshot)?);
        let metrics = self.metrics_of(config);
        if let Some(open) = self.ports.get(&port) {
            open.serving.store(serving);
            open.gate.count_with(metrics);
            return Ok(());
        }
        let gate = Arc::new(Gate::new(&self.context.limits, metrics));
        let listener = self.network.bind(port, Arc::clone(&gate) as Arc<_>).await?;
        let address = listener.address();
        let serving = Arc::new(ArcSwap::new(serving));
        let accepting = accept(
            listener,
            Arc::clone(&serving),
            Arc::clone(&gate),
            Arc::clone(&self.context),
            self.drain.clone(),
        );
        self.ports.insert(
            port,
            OpenPort {
                address,
                serving,
                gate,
                accepting: tokio::spawn(accepting),
            },
        );
        Ok(())
    }

    async fn apply_udp_port(&mut self, port: u16, listener: &UdpListener) -> Result<(), BindError> {
        let context = &self.context;
        let served = UdpServed {
            listener: listener.name.clone(),
            metrics: context
                .metrics
                .udp_listener(&context.gateway, &listener.name),
            route: listener
                .route
                .as_ref()
                .map(|forward| Arc::new(self.backends.route(forward))),
        };
        if let Some(open) = self.udp_ports.get(&port) {
            open.serve(served);
            return Ok(());
        }
        let datagrams = self.network.bind_datagrams(port).await?;
        let (context, drain) = (Arc::clone(context), self.drain.clone());
        let open = UdpPort::open(datagrams, served, context, drain);
        self.udp_ports.insert(port, open);
        Ok(())
    }

    /// Metrics of what cannot be said of one listener: the first of the port stands for it.
    fn metrics_of(&self, config: &Port) -> ListenerMetrics {
        let name = config.listener_names().first().copied().unwrap_or_default();
        self.context.metrics.listener(&self.context.gateway, name)
    }

    fn serving(
        &mut self,
        port: u16,
        config: &Port,
        snapshot: &Snapshot,
    ) -> Result<Serving, PortError> {
        Ok(match config {
            Port::Tcp(listener) => {
                let forwards = Forwards::all(listener.route.as_ref(), &self.backends);
                Serving::Tcp(self.served(&listener.name, forwards))
            }
            Port::Http(listeners) => {
                let listeners = listeners.iter().map(|listener| Listening {
                    name: &listener.name,
                    hostname: listener.hostname.as_ref(),
                    routes: &listener.routes,
                });
                Serving::Http(self.http(port, listeners, snapshot))
            }
            Port::Tls(listeners) => {
                let ready: Result<Vec<_>, _> = listeners
                    .iter()
                    .map(|listener| self.tls_listener(port, listener))
                    .collect();
                let listeners = listeners.iter().filter_map(|listener| {
                    let TlsRoutes::HttpRoutes(routes) = &listener.termination()?.routes else {
                        return None;
                    };
                    Some(Listening {
                        name: &listener.name,
                        hostname: listener.hostname.as_ref(),
                        routes,
                    })
                });
                Serving::Tls {
                    http: self.http(port, listeners, snapshot),
                    tls: TlsPort::new(ready.map_err(|error| PortError::Tls { port, error })?),
                }
            }
        })
    }

    fn tls_listener(
        &mut self,
        port: u16,
        listener: &TlsConfig,
    ) -> Result<TlsListener<Then>, rustls::Error> {
        let hostname = listener.hostname.as_ref();
        let termination = match &listener.mode {
            TlsMode::Passthrough(forwards) => {
                let forwards = Forwards::by_name(forwards, &self.backends);
                let then = Then::Forward(self.served(&listener.name, forwards));
                return Ok(TlsListener::passing(hostname, then));
            }
            TlsMode::Terminate(termination) => termination,
        };
        let then = match &termination.routes {
            TlsRoutes::Forwards(forwards) => {
                let forwards = Forwards::by_name(forwards, &self.backends);
                Then::Forward(self.served(&listener.name, forwards))
            }
            TlsRoutes::HttpRoutes(_) => {
                Then::Http(self.served(&listener.name, Forwards::default()))
            }
        };
        let sessions = self.sessions_of(port, &listener.name, termination.clients.as_ref())?;
        TlsListener::terminating(hostname, termination, &self.certificate, &sessions, then)
    }

    fn http<'a>(
        &mut self,
        port: u16,
        listeners: impl Iterator<Item = Listening<'a>>,
        snapshot: &Snapshot,
    ) -> Arc<HttpPort> {
        let listeners: Vec<_> = listeners.collect();
        let made = Made {
            routes: &snapshot.http_routes,
            backends: &self.backends,
            options: &snapshot.http_options,
        };
        let metering = Metering {
            metrics: &self.context.metrics,
            gateway: &self.context.gateway,
            kept: &mut self.meters,
        };
        Arc::new(HttpPort::new(port, &listeners, made, metering))
    }

    fn served(&self, listener: &str, forwards: Forwards) -> Served {
        Served {
            listener: listener.to_owned(),
            metrics: self
                .context
                .metrics
                .listener(&self.context.gateway, listener),
            forwards,
        }
    }

    /// Those of a listener, unless its clients were asked for something else.
    fn sessions_of(
        &mut self,
        port: u16,
        listener: &str,
        clients: Option<&ClientValidation>,
    ) -> Result<Sessions, rustls::Error> {
        let key = (port, listener.to_owned());
        if let Some(sessions) = self.sessions.get(&key)
            && sessions.are_for(clients)
        {
            return Ok(sessions.clone());
        }
        let sessions = Sessions::new(clients)?;
        self.sessions.insert(key, sessions.clone());
        Ok(sessions)
    }
}

impl<N: Network> Drop for Proxy<N> {
    fn drop(&mut self) {
        for open in self.ports.values() {
            open.accepting.abort();
        }
    }
}

/// Accepts until the proxy drains, the port is closed or the network is gone.
async fn accept<L: Listener>(
    mut listener: L,
    serving: Arc<ArcSwap<Serving>>,
    gate: Arc<Gate>,
    context: Arc<Context>,
    drain: Drain,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.stopping() => return,
        };
        let Some(accepted) = accepted else { return };
        let Flow { source, .. } = accepted.flow();
        match gate.enter(source.ip()) {
            Some(place) => {
                let connection = Connection {
                    port: Arc::clone(&serving),
                    context: Arc::clone(&context),
                    drain: drain.clone(),
                };
                drain.spawn(serve(accepted, connection, place));
            }
            None => accepted.reset(),
        }
    }
}
