//! `tailway extension`: the extension server of Envoy Gateway.

mod sets;

use super::signals::{SignalError, Signals};
use crate::{
    admin::{self, Admin},
    args::ExtensionArguments,
    drain::Drain,
    extension::{
        BindError, Call, Hooks, Keeper, Known, Listener, Notes, Observer, Routed, ServeError,
        Server, ServerSettings, Settings, Tls, TlsError, TlsFiles, Told,
    },
    metrics::{ExtensionCall, Metrics},
};
use kube::Client;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::{sync::watch, task::JoinHandle};

#[derive(Debug, thiserror::Error)]
pub enum ExtensionError {
    #[error("there is no way to the API server: {0}; --kubernetes=false goes without")]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Signals(#[from] SignalError),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When something that was asked for cannot be used.
pub async fn extension(arguments: ExtensionArguments) -> Result<(), ExtensionError> {
    let mut signals = Signals::register()?;
    let hooks = Hooks::new(Settings {
        system_authorities: arguments.system_ca.clone(),
        local_targets: arguments.allow_local_targets,
    });
    let client = client(&arguments).await?;
    let (known, sets) = watch::channel(None);
    let has_source = client.is_some() || !arguments.files.is_empty();
    let sets = (has_source && !arguments.policies_only).then_some(sets);
    let settings = ServerSettings {
        max_message: arguments.max_message,
        bound: arguments.call_timeout,
        ..ServerSettings::default()
    };
    let view = Arc::new(View {
        metrics: Metrics::default(),
        notes: client.is_some().then(Notes::default),
        sets: sets.clone(),
        patient_until: Instant::now() + settings.patience,
        gateways: Mutex::default(),
    });
    // Before anything else: Envoy Gateway translates nothing while nobody listens.
    let listener = listen(&arguments).await?;
    let drain = Drain::default();
    let observer = Arc::clone(&view) as Arc<dyn Observer>;
    let server = Server::new(hooks.clone(), sets, observer, settings);
    let serving = tokio::spawn(server.serve(listener, drain.clone()));
    let admin = Admin::bind(arguments.admin.address).await?;
    tracing::info!(address = %admin.address(), "admin pages");
    let admin = tokio::spawn(admin.serve(Arc::clone(&view) as Arc<dyn admin::View>));
    let source = match (client, &view.notes) {
        (Some(client), Some(notes)) => {
            let (notes, metrics) = (notes.clone(), view.metrics.clone());
            let keeper = Keeper::new(client, hooks, known, notes, metrics);
            Some(tokio::spawn(keeper.run()))
        }
        _ if arguments.files.is_empty() => None,
        _ => Some(tokio::spawn(sets::follow(arguments.files, hooks, known))),
    };
    let ended = end(serving, &mut signals, &drain).await;
    admin.abort();
    if let Some(source) = source {
        source.abort();
    }
    ended
}

/// A way to an API server, when there is to be one. Nothing is asked of it yet.
async fn client(arguments: &ExtensionArguments) -> Result<Option<Client>, ExtensionError> {
    if arguments.kubernetes == Some(false) || !arguments.files.is_empty() {
        return Ok(None);
    }
    match (Client::try_default().await, arguments.kubernetes) {
        (Ok(client), _) => Ok(Some(client)),
        (Err(error), Some(true)) => Err(ExtensionError::Kubernetes(error.into())),
        (Err(error), _) => {
            tracing::info!(%error, "without an API server");
            Ok(None)
        }
    }
}

async fn listen(arguments: &ExtensionArguments) -> Result<Listener, ExtensionError> {
    if let Some(path) = &arguments.socket {
        let listener = Listener::unix(path)?;
        tracing::info!(socket = %path.display(), "serving Envoy Gateway");
        return Ok(listener);
    }
    let address = SocketAddr::new(arguments.address, arguments.port);
    let listener = Listener::tcp(address, tls(arguments)?).await?;
    // Another than was asked for, when that was port 0.
    let address = listener.address().unwrap_or(address);
    tracing::info!(%address, "serving Envoy Gateway");
    Ok(listener)
}

/// Serves until a signal, and calls that have begun to their end.
async fn end(
    mut serving: JoinHandle<Result<(), ServeError>>,
    signals: &mut Signals,
    drain: &Drain,
) -> Result<(), ExtensionError> {
    tokio::select! {
        // A task that was not cancelled panicked, and has said so.
        ended = &mut serving => return Ok(ended.unwrap_or(Ok(()))?),
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; a second signal ends at once");
        }
    }
    drain.stop();
    tokio::select! {
        ended = serving => Ok(ended.unwrap_or(Ok(()))?),
        name = signals.next() => {
            tracing::warn!(signal = name, "ending at once");
            Ok(())
        }
    }
}

fn tls(arguments: &ExtensionArguments) -> Result<Option<Tls>, TlsError> {
    let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) else {
        return Ok(None);
    };
    Tls::new(TlsFiles {
        certificate: certificate.clone(),
        key: key.clone(),
        client_authorities: arguments.tls_client_ca.clone(),
    })
    .map(Some)
}

/// What the admin pages show, and whom the server tells of calls.
struct View {
    metrics: Metrics,
    /// For whoever tells the sets how they were served.
    notes: Option<Notes>,
    /// `None` when only what requests bring counts.
    sets: Option<Known>,
    /// Calls are answered after that, whatever is known.
    patient_until: Instant,
    /// The last answer for each Gateway.
    gateways: Mutex<BTreeMap<String, Shown>>,
}

/// How a Gateway was last served.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    gateway: String,
    set: String,
    revision: String,
    resync: i64,
    services: Vec<Routed>,
    skipped: Vec<ShownSkip>,
    answered_at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ShownSkip {
    service: String,
    source: String,
    reason: &'static str,
    message: String,
}

impl View {
    fn gateways(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Shown>> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, told: &Told) {
        let now = jiff::Timestamp::now().to_string();
        for (set, served) in &told.served {
            let skipped: Vec<_> = served
                .skipped
                .iter()
                .map(|skipped| ShownSkip {
                    service: skipped.service.clone(),
                    source: skipped.source.clone(),
                    reason: skipped.refusal.reason(),
                    message: skipped.refusal.to_string(),
                })
                .collect();
            let mut gateways = self.gateways();
            let before = gateways.get(&set.to_string());
            let news = skipped
                .iter()
                .filter(|one| before.is_none_or(|before| !before.skipped.contains(one)));
            for one in news {
                let (service, message) = (&one.service, &one.message);
                tracing::warn!(%set, service, message, "a service is left out");
            }
            let shown = Shown {
                gateway: served.gateway.to_string(),
                set: set.to_string(),
                revision: served.revision.clone(),
                resync: served.resync,
                services: served.services.clone(),
                skipped,
                answered_at: now.clone(),
            };
            gateways.insert(set.to_string(), shown);
        }
    }
}

impl Observer for View {
    fn called(&self, call: Call) {
        let hook = call.hook.name();
        let nothing = Told::default();
        let told = call.result.as_ref().unwrap_or(&nothing);
        let result = match (&call.result, &told.untouched) {
            (Err(message), _) => {
                tracing::error!(hook, message, "a call failed");
                "failed"
            }
            (Ok(_), Some(why)) => {
                tracing::warn!(hook, %why, "the answer is what came");
                "untouched"
            }
            (Ok(told), None) if told.routes + told.clusters > 0 => "changed",
            (Ok(_), None) => "unchanged",
        };
        tracing::debug!(
            hook, result, took = ?call.took, routes = told.routes, clusters = told.clusters, "called"
        );
        let skipped: Vec<_> = told
            .served
            .values()
            .flat_map(|served| &served.skipped)
            .map(|skipped| skipped.refusal.reason())
            .collect();
        self.metrics.extension_call(&ExtensionCall {
            hook,
            result,
            took: call.took,
            sizes: call.sizes,
            routes: told.routes,
            clusters: told.clusters,
            skipped: &skipped,
        });
        self.note(told);
        if let Some(notes) = &self.notes {
            notes.add(&told.served);
        }
    }
}

impl admin::View for View {
    fn ready(&self) -> Result<(), String> {
        match &self.sets {
            Some(sets) if sets.borrow().is_none() && Instant::now() < self.patient_until => {
                Err("the TailscaleEgressSets have not all been read".into())
            }
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn config(&self) -> String {
        let shown: Vec<_> = self.gateways().values().cloned().collect();
        serde_saphyr::to_string(&shown)
            .unwrap_or_else(|error| format!("# the answers cannot be written: {error}\n"))
    }

    fn status(&self) -> String {
        self.config()
    }
}
