//! `tailway proxy`: the pod of one Gateway.

use super::{
    signals::{SignalError, Signals},
    snapshots_yaml,
};
use crate::{
    admin::{self, Admin},
    api::STATE_REPORT,
    args::ProxyArguments,
    discovery::{ClientSettings, ClientTiming, KeyError, Received, Subscription, subscribe},
    drain::Drain,
    metrics::Metrics,
    model::{NodeReport, Programmed, Role, Snapshot, TailnetState},
    proxy::{Gateway, GatewaySettings, Limits, Schedule},
    tailnet::{self, Auth, NodeConfig, SecretStore, State, StoreError},
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("there is no way to the API server: {0}; this is the program of a Gateway's pod")]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error("the tailnet engine cannot be set up: {0}")]
    Engine(#[from] tailnet::Error),
    #[error(transparent)]
    State(#[from] StoreError),
    #[error(transparent)]
    Signals(#[from] SignalError),
}

/// How long a node may be without a login before it is given another key: joining takes a moment.
const LOGIN_PATIENCE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When something that was asked for cannot be used.
pub async fn proxy(arguments: ProxyArguments) -> Result<(), ProxyError> {
    let mut signals = Signals::register()?;
    tailnet::forward_logs()?;
    let engine = &arguments.engine;
    tailnet::set_memory(engine.engine_memory, Some(engine.engine_gc))?;
    let metrics = Metrics::default();
    let admin = Admin::bind(arguments.admin.address).await?;
    let view = Arc::new(View {
        metrics: metrics.clone(),
        shown: Mutex::default(),
        store: OnceLock::new(),
    });
    let admin = tokio::spawn(admin.serve(Arc::clone(&view) as Arc<dyn admin::View>));
    let client = Client::try_default()
        .await
        .map_err(|error| ProxyError::Kubernetes(error.into()))?;
    let secrets: Api<Secret> = Api::namespaced(client, &arguments.namespace);
    let opening = SecretStore::open(
        &secrets,
        &arguments.state_secret,
        arguments.state_dir.join("node"),
    );
    let store = tokio::select! {
        store = opening => store?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopping");
            return Ok(());
        }
    };
    let _ = view.store.set(store.problem());
    let keeper = {
        let (store, name) = (store.clone(), arguments.state_secret.clone());
        tokio::spawn(async move { store.keep(&secrets, &name).await })
    };
    let subscription = subscribe(client_settings(&arguments), metrics.clone()).await;
    let drain = Drain::default();
    let mut pod = Pod {
        settings: GatewaySettings {
            limits: Limits::from(&arguments.limits),
            metrics,
            schedule: Schedule {
                check: engine.certificate_check,
                ..Schedule::default()
            },
        },
        arguments,
        store,
        subscription,
        view,
        drain: drain.clone(),
        gateway: None,
    };
    tokio::select! {
        () = pod.serve() => {}
        name = signals.next() => tracing::info!(signal = name, "stopping; a second signal ends at once"),
    }
    drain.stop();
    tokio::select! {
        () = pod.end() => {}
        name = signals.next() => tracing::warn!(signal = name, "ending at once"),
    }
    admin.abort();
    keeper.abort();
    Ok(())
}

fn client_settings(arguments: &ProxyArguments) -> ClientSettings {
    ClientSettings {
        endpoint: arguments.discovery.clone(),
        ca_bundle: arguments.discovery_ca.clone(),
        token: arguments.discovery_token.clone(),
        gateway: arguments.gateway.clone(),
        pod: arguments.pod_name.clone(),
        copy: arguments.state_dir.join("snapshot"),
        timing: ClientTiming::default(),
    }
}

struct Pod {
    arguments: ProxyArguments,
    store: SecretStore,
    subscription: Subscription,
    settings: GatewaySettings,
    view: Arc<View>,
    drain: Drain,
    gateway: Option<Gateway>,
}

/// Why a node has to be started anew.
enum Renewal {
    /// It needs a key to join.
    Key,
    /// It is to have another name.
    Name,
}

impl Pod {
    async fn serve(&mut self) {
        let mut snapshots = self.subscription.snapshots();
        let mut needs_key = !self.store.has_identity();
        loop {
            let received = self.first(&mut snapshots).await;
            let auth = if needs_key {
                self.key().await
            } else {
                Auth::Interactive
            };
            // It may have changed while the key was on its way.
            let received = snapshots.borrow_and_update().clone().unwrap_or(received);
            self.start(&received, auth);
            match self.follow(&mut snapshots).await {
                Renewal::Key => needs_key = true,
                Renewal::Name => needs_key = false,
            }
            self.end().await;
        }
    }

    async fn first(&self, snapshots: &mut watch::Receiver<Option<Received>>) -> Received {
        let mut link = self.subscription.link();
        loop {
            if let Some(received) = snapshots.borrow_and_update().clone() {
                return received;
            }
            self.view
                .wait(format!("no snapshot yet: {:?}", *link.borrow_and_update()));
            tokio::select! {
                _ = snapshots.changed() => {}
                _ = link.changed() => {}
            }
        }
    }

    /// Asks the controller for an auth key until there is one.
    async fn key(&self) -> Auth {
        self.view
            .wait("the node has no identity: waiting for an auth key".into());
        loop {
            match self.subscription.need_key().await {
                Ok(key) => return Auth::Key(key),
                Err(KeyError::Refused {
                    message,
                    retry_after,
                }) => {
                    tracing::warn!(message, ?retry_after, "the controller gives no auth key");
                    let report = no_key(&message);
                    self.report(&report);
                    self.view.wait(message);
                    tokio::time::sleep(retry_after).await;
                }
                Err(KeyError::Ended) => std::future::pending().await,
            }
        }
    }

    fn start(&mut self, received: &Received, auth: Auth) {
        let engine = &self.arguments.engine;
        let snapshot = Snapshot::clone(&received.snapshot);
        let state = State::Store(Arc::new(self.store.clone()));
        let config = NodeConfig {
            auth,
            ephemeral: engine.ephemeral,
            control_url: engine.control_url.clone(),
            tcp_receive_buffer: engine.tcp_buffer,
            tcp_send_buffer: engine.tcp_buffer,
            ..NodeConfig::new(node_name(&snapshot, &self.arguments.pod_name), state)
        };
        let gateway = Gateway::start(snapshot, config, self.settings.clone(), &self.drain);
        self.gateway = Some(gateway);
        self.subscription.applied(&received.version);
    }

    /// Applies what comes and tells how it stands, until the node has to be another.
    async fn follow(&self, snapshots: &mut watch::Receiver<Option<Received>>) -> Renewal {
        let Some(gateway) = &self.gateway else {
            return Renewal::Name;
        };
        let mut reports = gateway.report();
        let mut current = snapshots.borrow().clone();
        loop {
            let report = reports.borrow_and_update().clone();
            let needs_login = report.tailnet.state == TailnetState::LoginNeeded;
            self.report(&report);
            self.view.show(current.as_ref(), &report);
            tokio::select! {
                changed = reports.changed() => if changed.is_err() {
                    // The node cannot be started; it says why, and tries again.
                    tokio::time::sleep(LOGIN_PATIENCE).await;
                },
                _ = snapshots.changed() => {
                    let Some(received) = snapshots.borrow_and_update().clone() else { continue };
                    let before = current.replace(received.clone());
                    let name = |received: &Received| received.snapshot.node.name.clone();
                    if before.as_ref().map(name) != Some(name(&received)) {
                        return Renewal::Name;
                    }
                    gateway.apply(Snapshot::clone(&received.snapshot));
                    self.subscription.applied(&received.version);
                }
                () = tokio::time::sleep(LOGIN_PATIENCE), if needs_login => return Renewal::Key,
            }
        }
    }

    fn report(&self, report: &NodeReport) {
        let written = serde_json::to_vec(report)
            .map_err(std::io::Error::other)
            .and_then(|json| self.store.put(STATE_REPORT, &json));
        if let Err(error) = written {
            tracing::warn!(%error, "the controller cannot be told how the node stands");
        }
    }

    async fn end(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.end(self.arguments.limits.drain_timeout).await;
        }
    }
}

/// The name of the pod's node. Those of an egress are several, and are told apart by the number that
/// the pod has in its StatefulSet.
fn node_name(snapshot: &Snapshot, pod: &str) -> String {
    let name = snapshot.node.name.as_str();
    let ordinal = pod.rsplit_once('-').map(|(_, ordinal)| ordinal);
    let ordinal = ordinal.filter(|ordinal| ordinal.parse::<u16>().is_ok());
    match (snapshot.role, ordinal) {
        (Role::Egress, Some(ordinal)) => format!("{name}-{ordinal}"),
        _ => name.to_owned(),
    }
}

fn no_key(message: &str) -> NodeReport {
    let mut report = NodeReport::default();
    report.tailnet.state = TailnetState::LoginNeeded;
    report.tailnet.message = message.to_owned();
    report.programmed = Programmed::No {
        reason: crate::model::Unready::Pending,
        message: message.to_owned(),
    };
    report
}

/// What the admin pages show.
struct View {
    metrics: Metrics,
    shown: Mutex<Shown>,
    /// Why the node's state is not kept; empty when it is.
    store: OnceLock<watch::Receiver<String>>,
}

#[derive(Default)]
struct Shown {
    snapshot: Option<Arc<Snapshot>>,
    report: NodeReport,
    /// Why there is nothing to report yet.
    waiting: String,
}

impl View {
    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, reason: String) {
        self.shown().waiting = reason;
    }

    fn show(&self, received: Option<&Received>, report: &NodeReport) {
        let mut shown = self.shown();
        shown.waiting.clear();
        shown.snapshot = received.map(|received| Arc::clone(&received.snapshot));
        shown.report = report.clone();
    }
}

impl admin::View for View {
    fn ready(&self) -> Result<(), String> {
        let shown = self.shown();
        let problem = self.store.get().map(|problem| problem.borrow().clone());
        match (problem.unwrap_or_default(), &shown.report.programmed) {
            (problem, _) if !problem.is_empty() => Err(problem),
            _ if !shown.waiting.is_empty() => Err(shown.waiting.clone()),
            (_, Programmed::Generation(_)) => Ok(()),
            (_, Programmed::No { message, .. }) => Err(message.clone()),
        }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn config(&self) -> String {
        snapshots_yaml(&self.shown().snapshot)
    }

    fn status(&self) -> String {
        let shown = self.shown();
        serde_saphyr::to_string(&shown.report)
            .unwrap_or_else(|error| format!("# the status cannot be written: {error}\n"))
    }
}
