//! `tailway controller`: a pod for each Gateway of a cluster.

use super::{
    signals::{SignalError, Signals},
    snapshots_yaml,
};
use crate::{
    admin::{self, Admin},
    args::ControllerArguments,
    check,
    controller::{
        AuthorityKeeper, Classes, Clients, Defaults, Engine, Events, Follower, Gateways,
        GatewaysSettings, Minter, Owned, Site, World, Writer,
    },
    discovery::{self, Publisher, Server, ServerIdentity, ServerSettings, TokenReviewer},
    drain::Drain,
    metrics::Metrics,
    source::{ClusterSettings, Watches, watch_cluster},
};
use kube::Client;
use kube_lease_manager::LeaseManagerBuilder;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error("there is no way to the API server: {0}; run it in a pod, or with a KUBECONFIG")]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Discovery(#[from] discovery::BindError),
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error(
        "the lease {name} cannot be had: {error}; the Role must allow to get, create and patch leases"
    )]
    Lease {
        name: String,
        error: kube_lease_manager::LeaseManagerError,
    },
    #[error("{0} ended, which it never should: starting anew")]
    Ended(&'static str),
    #[error("another replica has the lease now: starting anew")]
    LeaseLost,
}

/// How long the lease lasts without being renewed, and how long before its end that is tried.
const LEASE_SECONDS: u64 = 15;
const LEASE_GRACE_SECONDS: u64 = 5;

/// How long pods may take to leave for another replica.
const FAREWELL: Duration = Duration::from_secs(5);

/// Reports and verdicts that may wait to be taken in.
const NOTES: usize = 1024;

/// What all tasks have in common.
struct Parts {
    client: Client,
    worlds: watch::Receiver<Arc<World>>,
    owned: watch::Receiver<Arc<Owned>>,
    notes: mpsc::Sender<crate::controller::Note>,
    clients: Arc<Clients>,
    defaults: Defaults,
    events: Events,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When something that was asked for cannot be used, or a part ends that never should: what
/// started it is to start it anew.
pub async fn controller(arguments: ControllerArguments) -> Result<(), ControllerError> {
    let mut signals = Signals::register()?;
    let client = Client::try_default()
        .await
        .map_err(|error| ControllerError::Kubernetes(error.into()))?;
    let admin = Admin::bind(arguments.admin_addr).await?;
    let listener = discovery::Listener::bind(arguments.discovery_addr).await?;
    let metrics = Metrics::default();
    let (world, worlds) = watch::channel(Arc::<World>::default());
    let (owned_sender, owned) = watch::channel(Arc::<Owned>::default());
    let (notes, notes_in) = mpsc::channel(NOTES);
    let parts = Parts {
        events: Events::new(client.clone(), arguments.pod_name.clone()),
        clients: Arc::default(),
        defaults: Defaults {
            namespace: arguments.namespace.clone(),
            api_url: arguments.api_url.clone(),
            control_url: arguments.control_url.clone(),
        },
        client,
        worlds,
        owned,
        notes,
    };
    let view = View {
        metrics: metrics.clone(),
        worlds: parts.worlds.clone(),
    };
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    tasks.spawn(async move {
        admin.serve(Arc::new(view)).await;
        "the admin server"
    });
    let settings = ClusterSettings {
        system_namespace: arguments.namespace.clone(),
        secret_namespaces: arguments.secret_namespaces.clone(),
    };
    let Watches {
        changes,
        tasks: mut watches,
    } = watch_cluster(&parts.client, &settings);
    tasks.spawn(async move {
        watches.join_next().await;
        "a watch"
    });
    let engine = Engine::new(arguments.namespace.clone());
    tasks.spawn(async move {
        engine.run(changes, notes_in, world).await;
        "the index"
    });
    let follower = Follower::new(
        parts.client.clone(),
        arguments.namespace.clone(),
        parts.notes.clone(),
    );
    tasks.spawn(async move {
        follower.run(owned_sender).await;
        "the watch of the workloads"
    });
    let drain = Drain::default();
    serve_snapshots(&arguments, &parts, listener, metrics, &drain, &mut tasks);

    let result = tokio::select! {
        ended = tasks.join_next() => {
            let name = ended.and_then(Result::ok).unwrap_or("a part");
            Err(ControllerError::Ended(name))
        }
        error = lead(&arguments, &parts) => Err(error),
        name = signals.next() => {
            tracing::info!(signal = name, "stopping");
            Ok(())
        }
    };
    drain.stop();
    tokio::time::timeout(FAREWELL, async {
        // The server of snapshots ends by itself, the others do not.
        while let Some(ended) = tasks.join_next().await {
            if matches!(ended, Ok(SNAPSHOTS)) {
                return;
            }
        }
    })
    .await
    .ok();
    result
}

const SNAPSHOTS: &str = "the server of snapshots";

/// Every replica serves the snapshots.
fn serve_snapshots(
    arguments: &ControllerArguments,
    parts: &Parts,
    listener: discovery::Listener,
    metrics: Metrics,
    drain: &Drain,
    tasks: &mut JoinSet<&'static str>,
) {
    let publisher = Publisher::default();
    let (target, mut worlds) = (publisher.clone(), parts.worlds.clone());
    tasks.spawn(async move {
        while worlds.changed().await.is_ok() {
            let world = worlds.borrow_and_update().clone();
            target.publish(world.outcome.snapshots.clone());
        }
        "the publisher"
    });
    let worlds = parts.worlds.clone();
    let gateway_of = move |account: &str| worlds.borrow().workloads.get(account).cloned();
    let reviewer = TokenReviewer::new(parts.client.clone(), &arguments.namespace, gateway_of);
    let minter = Minter::new(
        parts.worlds.clone(),
        parts.defaults.clone(),
        Arc::clone(&parts.clients),
    );
    let server = Server::new(
        publisher,
        reviewer,
        minter,
        metrics,
        ServerSettings::default(),
    );
    let keeper = AuthorityKeeper::new(
        parts.client.clone(),
        &arguments.namespace,
        vec![discovery_host(arguments)],
    );
    let drain = drain.clone();
    let mut worlds = parts.worlds.clone();
    tasks.spawn(async move {
        let identity = Arc::new(ServerIdentity::new(&keeper.first().await.certificate));
        // A pod that asks before the objects are known would be told that its Gateway is not there.
        let _ = worlds.wait_for(|world| world.listed).await;
        let served = server.serve(listener, Arc::clone(&identity), drain);
        tokio::select! {
            result = served => if let Err(error) = result {
                tracing::error!(%error, "snapshots are not served");
            },
            never = keeper.keep(identity) => match never {},
        }
        SNAPSHOTS
    });
}

fn discovery_host(arguments: &ControllerArguments) -> String {
    arguments
        .discovery_host
        .clone()
        .unwrap_or_else(|| format!("tailway-controller.{}.svc", arguments.namespace))
}

/// Waits for the lease, then writes for as long as it holds.
async fn lead(arguments: &ControllerArguments, parts: &Parts) -> ControllerError {
    let failed = |error| ControllerError::Lease {
        name: arguments.lease.clone(),
        error,
    };
    let lease = LeaseManagerBuilder::new(parts.client.clone(), &arguments.lease)
        .with_namespace(&arguments.namespace)
        .with_identity(&arguments.pod_name)
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await;
    let lease = match lease {
        Ok(lease) => lease,
        Err(error) => return failed(error),
    };
    let (mut holds, watch) = lease.watch().await;
    if holds.wait_for(|holds| *holds).await.is_err() {
        return ended_lease(watch.await, arguments);
    }
    tracing::info!(lease = arguments.lease, "leading: this replica writes");
    let lost = async {
        match holds.wait_for(|holds| !*holds).await {
            Ok(_) => ControllerError::LeaseLost,
            Err(_) => ControllerError::Ended("the lease"),
        }
    };
    tokio::select! {
        error = lost => error,
        never = write(arguments, parts) => match never {},
    }
}

fn ended_lease<T>(
    ended: Result<Result<T, kube_lease_manager::LeaseManagerError>, tokio::task::JoinError>,
    arguments: &ControllerArguments,
) -> ControllerError {
    match ended {
        Ok(Err(error)) => ControllerError::Lease {
            name: arguments.lease.clone(),
            error,
        },
        _ => ControllerError::Ended("the lease"),
    }
}

/// What only one replica may do.
async fn write(arguments: &ControllerArguments, parts: &Parts) -> Infallible {
    let settings = GatewaysSettings {
        site: Site {
            namespace: arguments.namespace.clone(),
            image: arguments.proxy_image.clone(),
            image_pull_policy: arguments.proxy_image_pull_policy.clone(),
            discovery: format!(
                "https://{}:{}",
                discovery_host(arguments),
                arguments.discovery_addr.port()
            ),
            environment: arguments.proxy_env.iter().cloned().collect(),
        },
        defaults: parts.defaults.clone(),
        removal_patience: arguments.removal_patience,
    };
    let gateways = Gateways::new(
        parts.client.clone(),
        settings,
        Arc::clone(&parts.clients),
        parts.events.clone(),
    );
    let classes = Classes::new(
        parts.defaults.clone(),
        Arc::clone(&parts.clients),
        parts.notes.clone(),
    );
    let writer = Writer::new(parts.client.clone(), parts.events.clone());
    tokio::select! {
        never = gateways.run(parts.worlds.clone(), parts.owned.clone()) => never,
        never = classes.run(parts.worlds.clone()) => never,
        never = writer.run(parts.worlds.clone()) => never,
    }
}

/// What the admin pages show.
struct View {
    metrics: Metrics,
    worlds: watch::Receiver<Arc<World>>,
}

impl admin::View for View {
    fn ready(&self) -> Result<(), String> {
        if self.worlds.borrow().listed {
            Ok(())
        } else {
            Err("the objects of the cluster have not all been listed".into())
        }
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn config(&self) -> String {
        snapshots_yaml(self.worlds.borrow().outcome.snapshots.values())
    }

    fn status(&self) -> String {
        check::yaml(&self.worlds.borrow().outcome.statuses)
    }
}
