//! `tailway extension`: the extension server of Envoy Gateway.

use super::signals::{SignalError, Signals};
use crate::{
    admin::{self, Admin},
    args::ExtensionArguments,
    drain::Drain,
    extension::{
        BindError, Call, Hooks, Listener, Observer, ServeError, Server, ServerSettings, Settings,
        Told,
    },
    metrics::{ExtensionCall, Metrics},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Debug, thiserror::Error)]
pub enum ExtensionError {
    #[error(transparent)]
    Bind(#[from] BindError),
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
    let view = Arc::new(View::default());
    // Before anything else: Envoy Gateway translates nothing while nobody listens.
    let listener = match &arguments.socket {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(SocketAddr::new(arguments.address, arguments.port)).await?,
    };
    let hooks = Hooks::new(Settings {
        system_authorities: arguments.system_ca.clone(),
        local_targets: arguments.allow_local_targets,
    });
    let settings = ServerSettings {
        max_message: arguments.max_message,
        bound: arguments.call_timeout,
        ..ServerSettings::default()
    };
    let drain = Drain::default();
    match (&arguments.socket, listener.address()) {
        (Some(path), _) => tracing::info!(socket = %path.display(), "serving Envoy Gateway"),
        (None, address) => tracing::info!(?address, "serving Envoy Gateway"),
    }
    let observer = Arc::clone(&view) as Arc<dyn Observer>;
    let server = Server::new(hooks, None, observer, settings);
    let mut serving = tokio::spawn(server.serve(listener, drain.clone()));
    let admin = Admin::bind(arguments.admin.address).await?;
    let admin = tokio::spawn(admin.serve(Arc::clone(&view) as Arc<dyn admin::View>));
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            None
        }
    };
    drain.stop();
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = serving => ended,
            name = signals.next() => {
                tracing::warn!(signal = name, "ending at once");
                Ok(Ok(()))
            }
        },
    };
    admin.abort();
    // A task that was not cancelled panicked, and has said so.
    Ok(ended.unwrap_or(Ok(()))?)
}

/// What the admin pages show, and whom the server tells of calls.
#[derive(Default)]
struct View {
    metrics: Metrics,
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
    services: usize,
    skipped: Vec<ShownSkip>,
    answered_at: String,
}

#[derive(Clone, Debug, Serialize)]
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
            for ShownSkip {
                service, message, ..
            } in &skipped
            {
                tracing::warn!(%set, service, message, "a service is left out");
            }
            let shown = Shown {
                gateway: served.gateway.to_string(),
                set: set.to_string(),
                revision: served.revision.clone(),
                resync: served.resync,
                services: served.services,
                skipped,
                answered_at: now.clone(),
            };
            self.gateways().insert(set.to_string(), shown);
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
    }
}

impl admin::View for View {
    fn ready(&self) -> Result<(), String> {
        Ok(())
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
