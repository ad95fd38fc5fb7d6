//! `tailway run`: every Gateway of the files is a node in this process.

use super::{
    signals::{SignalError, Signals},
    snapshots_yaml,
};
use crate::{
    admin::{self, Admin},
    args::{NodeArguments, RunArguments},
    check,
    drain::Drain,
    index::{Index, Outcome},
    metrics::Metrics,
    model::{NodeReport, ObjectName, Port, Programmed, Role, Snapshot},
    proxy::{Gateway, GatewaySettings, Limits, Schedule},
    source::{self, LoadError, Loaded, WatchError},
    tailnet::{self, Auth, NodeConfig, Secret, State},
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error("the tailnet engine cannot be set up: {0}")]
    Engine(#[from] tailnet::Error),
    #[error("the state directory {path} cannot be written: {error}; choose another --state-dir")]
    State { path: PathBuf, error: io::Error },
    #[error("there is no home directory to keep state in: set --state-dir")]
    NoStateDirectory,
    #[error(transparent)]
    Signals(#[from] SignalError),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When something that was asked for cannot be used; nothing was served then.
pub async fn run(arguments: RunArguments) -> Result<(), RunError> {
    let mut signals = Signals::register()?;
    tailnet::forward_logs()?;
    let engine = &arguments.node.engine;
    tailnet::set_memory(engine.engine_memory, Some(engine.engine_gc))?;
    let mut changes = source::watch(arguments.files.clone())?;
    let loaded = changes
        .recv()
        .await
        .unwrap_or_else(|| Ok(Loaded::default()))?;
    let nodes = Nodes::new(&arguments.node)?;
    let admin = Admin::bind(arguments.admin.address).await?;
    tracing::info!(address = %admin.address(), "admin pages");

    let settings = GatewaySettings {
        limits: Limits::from(&arguments.limits),
        metrics: Metrics::default(),
        schedule: Schedule {
            check: engine.certificate_check,
            ..Schedule::default()
        },
    };
    let view = Arc::new(View {
        metrics: settings.metrics.clone(),
        outcome: Mutex::default(),
    });
    let mut runner = Runner::new(
        nodes,
        settings,
        Arc::clone(&view),
        arguments.limits.drain_timeout,
    );
    runner.load(loaded);
    // Before that, no Gateway is known that is not ready.
    let admin = tokio::spawn(admin.serve(view));
    tokio::select! {
        () = runner.follow(changes) => {}
        name = signals.next() => tracing::info!(signal = name, "stopping; a second signal ends at once"),
    }
    tokio::select! {
        () = runner.end() => {}
        name = signals.next() => tracing::warn!(signal = name, "ending at once"),
    }
    admin.abort();
    Ok(())
}

/// How the nodes of this process are to be.
struct Nodes {
    state: PathBuf,
    auth: Auth,
    ephemeral: bool,
    control_url: Option<String>,
    tcp_buffer: u32,
}

impl Nodes {
    fn new(arguments: &NodeArguments) -> Result<Self, RunError> {
        let state = match &arguments.state_dir {
            Some(directory) => directory.clone(),
            None => default_state_directory()?,
        };
        // Found out now, and not when the first node has joined.
        prove_writable(&state).map_err(|error| RunError::State {
            path: state.clone(),
            error,
        })?;
        let auth = match (&arguments.auth_key, &arguments.client_secret) {
            (Some(key), _) => Auth::Key(Secret::new(key.as_str())),
            (None, Some(secret)) => Auth::ClientSecret {
                secret: Secret::new(secret.as_str()),
                tags: arguments.tags.clone(),
            },
            (None, None) => Auth::Interactive,
        };
        Ok(Self {
            state,
            auth,
            ephemeral: arguments.engine.ephemeral,
            control_url: arguments.engine.control_url.clone(),
            tcp_buffer: arguments.engine.tcp_buffer,
        })
    }

    /// The node of a Gateway. Its state is found by the Gateway's name, so that it stays the same
    /// node under another hostname.
    fn config(&self, snapshot: &Snapshot) -> NodeConfig {
        let ObjectName { namespace, name } = &snapshot.gateway;
        let directory = self.state.join(namespace).join(name);
        NodeConfig {
            auth: self.auth.clone(),
            ephemeral: self.ephemeral,
            control_url: self.control_url.clone(),
            tcp_receive_buffer: self.tcp_buffer,
            tcp_send_buffer: self.tcp_buffer,
            ..NodeConfig::new(snapshot.node.name.as_str(), State::Directory(directory))
        }
    }
}

fn default_state_directory() -> Result<PathBuf, RunError> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("tailway"))
        .ok_or(RunError::NoStateDirectory)
}

fn prove_writable(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

/// The Gateways that are served.
struct Runner {
    nodes: Nodes,
    settings: GatewaySettings,
    drain: Drain,
    drain_timeout: Duration,
    index: Index,
    view: Arc<View>,
    gateways: BTreeMap<ObjectName, Running>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
}

enum Running {
    Up {
        gateway: Gateway,
        hostname: String,
        told: Told,
    },
    /// On its way out; its state is in use until then.
    Ending,
}

/// What the person at the terminal was told of a Gateway last.
#[derive(Default, PartialEq)]
struct Told(String);

enum Event {
    Report(ObjectName, Box<NodeReport>),
    Ended(ObjectName),
}

impl Runner {
    fn new(
        nodes: Nodes,
        settings: GatewaySettings,
        view: Arc<View>,
        drain_timeout: Duration,
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self {
            nodes,
            settings,
            drain: Drain::default(),
            drain_timeout,
            index: Index::default(),
            view,
            gateways: BTreeMap::new(),
            events,
            sender,
        }
    }

    /// Applies changes of files and reports of nodes, for ever.
    async fn follow(&mut self, mut changes: mpsc::Receiver<Result<Loaded, LoadError>>) {
        loop {
            tokio::select! {
                Some(change) = changes.recv() => match change {
                    Ok(loaded) => {
                        tracing::info!(objects = loaded.objects.len(), "files changed");
                        self.load(loaded);
                    }
                    Err(error) => {
                        for problem in &error.problems {
                            tracing::error!("{problem}; the last good state stays");
                        }
                    }
                },
                Some(event) = self.events.recv() => self.take(event),
            }
        }
    }

    fn load(&mut self, loaded: Loaded) {
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        self.index.reset(loaded.objects);
        let outcome = self.evaluate();
        log_problems(&outcome);
        // An egress is for the pods of a cluster.
        let gateways = || {
            let snapshots = outcome.snapshots.iter();
            snapshots.filter(|(_, snapshot)| snapshot.role == Role::Ingress)
        };
        if gateways().next().is_none() {
            tracing::warn!("the files hold no Gateway that can be served; see `tailway check`");
        }
        let gone: Vec<_> = self
            .gateways
            .iter()
            .filter(
                |(name, running)| match (running, outcome.snapshots.get(*name)) {
                    (Running::Up { hostname, .. }, Some(snapshot)) => {
                        snapshot.node.name.as_str() != hostname
                    }
                    (Running::Up { .. }, None) => true,
                    (Running::Ending, _) => false,
                },
            )
            .map(|(name, _)| name.clone())
            .collect();
        gone.into_iter().for_each(|name| self.retire(name));
        for (name, snapshot) in gateways() {
            let snapshot = Snapshot::clone(snapshot);
            match self.gateways.get(&**name) {
                Some(Running::Up { gateway, .. }) => gateway.apply(snapshot),
                Some(Running::Ending) => {} // started again once it has ended
                None => self.start(ObjectName::clone(name), snapshot),
            }
        }
    }

    fn start(&mut self, name: ObjectName, snapshot: Snapshot) {
        let hostname = snapshot.node.name.to_string();
        let config = self.nodes.config(&snapshot);
        let gateway = Gateway::start(snapshot, config, self.settings.clone(), &self.drain);
        let mut reports = gateway.report();
        let (sender, of) = (self.sender.clone(), name.clone());
        tokio::spawn(async move {
            while reports.changed().await.is_ok() {
                let report = Box::new(reports.borrow_and_update().clone());
                if sender.send(Event::Report(of.clone(), report)).is_err() {
                    return;
                }
            }
        });
        self.gateways.insert(
            name,
            Running::Up {
                gateway,
                hostname,
                told: Told::default(),
            },
        );
    }

    /// Ends a Gateway in the background.
    fn retire(&mut self, name: ObjectName) {
        let running = self.gateways.insert(name.clone(), Running::Ending);
        let Some(Running::Up { gateway, .. }) = running else {
            return;
        };
        tracing::info!(gateway = %name, connections = gateway.open_connections(), "ending the Gateway");
        let (sender, timeout) = (self.sender.clone(), self.drain_timeout);
        tokio::spawn(async move {
            gateway.end(timeout).await;
            // The runner may have ended meanwhile.
            let _ = sender.send(Event::Ended(name));
        });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Report(name, report) => {
                if !matches!(self.gateways.get(&name), Some(Running::Up { .. })) {
                    return;
                }
                self.index.report(name.clone(), NodeReport::clone(&report));
                let outcome = self.evaluate();
                if let Some(Running::Up { told, .. }) = self.gateways.get_mut(&name) {
                    let snapshot = outcome.snapshots.get(&name);
                    tell(&name, &report, told, snapshot.map(|snapshot| &**snapshot));
                }
            }
            Event::Ended(name) => {
                self.gateways.remove(&name);
                self.index.forget_report(&name);
                if let Some(snapshot) = self.evaluate().snapshots.get(&name) {
                    self.start(name, Snapshot::clone(snapshot));
                }
            }
        }
    }

    fn evaluate(&mut self) -> Outcome {
        let outcome = self.index.evaluate();
        *self.view.outcome() = outcome.clone();
        outcome
    }

    /// Ends all Gateways, waiting for their connections until the deadline.
    async fn end(&mut self) {
        self.drain.stop();
        let mut ends = tokio::task::JoinSet::new();
        for (_, running) in std::mem::take(&mut self.gateways) {
            if let Running::Up { gateway, .. } = running {
                ends.spawn(gateway.end(self.drain_timeout));
            }
        }
        while ends.join_next().await.is_some() {}
    }
}

fn log_problems(outcome: &Outcome) {
    if !outcome.statuses.all_accepted() {
        for line in check::problems(&outcome.statuses) {
            tracing::warn!("{line}");
        }
    }
}

/// Says in one line that a Gateway is up, or why not; nothing when that was said already.
fn tell(name: &ObjectName, report: &NodeReport, told: &mut Told, snapshot: Option<&Snapshot>) {
    let line = match (&report.programmed, snapshot) {
        (Programmed::Generation(_), Some(snapshot)) => up_line(name, report, snapshot),
        (Programmed::Generation(_), None) => return,
        (Programmed::No { message, .. }, _) => message.clone(),
    };
    if told.0 == line {
        return;
    }
    match &report.programmed {
        Programmed::Generation(_) => print_line(&line),
        Programmed::No { .. } => tracing::warn!(gateway = %name, "not ready: {line}"),
    }
    told.0 = line;
}

fn up_line(name: &ObjectName, report: &NodeReport, snapshot: &Snapshot) -> String {
    let addresses: Vec<_> = report.addresses.iter().map(ToString::to_string).collect();
    let listeners: Vec<_> = snapshot
        .ports
        .iter()
        .map(|(number, port)| {
            format!(
                "{} {} {number}",
                port.listener_names().join("+"),
                port.protocol()
            )
        })
        .collect();
    let name_of_node = match snapshot.ports.get(&443) {
        Some(Port::Tls(_)) => format!("https://{}", report.dns_name),
        _ => report.dns_name.clone(),
    };
    format!(
        "{name} is up: {name_of_node} ({}), listening: {}",
        addresses.join(", "),
        listeners.join(", ")
    )
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
fn print_line(line: &str) {
    println!("{line}");
}

/// What the admin pages show.
struct View {
    metrics: Metrics,
    outcome: Mutex<Outcome>,
}

impl View {
    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl admin::View for View {
    fn ready(&self) -> Result<(), String> {
        let waiting = check::unprogrammed(&self.outcome().statuses);
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(waiting)
        }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn config(&self) -> String {
        let outcome = self.outcome().clone();
        let served = outcome.snapshots.values();
        snapshots_yaml(served.filter(|snapshot| snapshot.role == Role::Ingress))
    }

    fn status(&self) -> String {
        check::yaml(&self.outcome().statuses)
    }
}
