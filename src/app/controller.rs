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
        AuthorityKeeper, Classes, Clients, Defaults, Discoverer, EgressFollower, EgressOwned,
        EgressSettings, Egresses, Engine, Envoy, Events, Follower, Gateways, GatewaysSettings,
        KeepError, Minter, Note, Owned, Site, World, Writer, unless_gone,
    },
    discovery::{self, Publisher, Server, ServerIdentity, ServerSettings, TokenReviewer},
    drain::Drain,
    metrics::Metrics,
    source::{ClusterSettings, Watches, watch_cluster},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::{Lease, LeaseSpec},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
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
        error: LeaseManagerError,
    },
    #[error("Deployment {name} cannot be scaled to none: {error}")]
    Deployment { name: String, error: kube::Error },
    #[error("{0} ended, which it never should: starting anew")]
    Ended(&'static str),
    #[error("another replica has the lease now: starting anew")]
    LeaseLost,
    #[error("{0} came before all was cleaned up")]
    Interrupted(&'static str),
    #[error(transparent)]
    Authority(#[from] KeepError),
    #[error("the lease {name} cannot be removed: {error}")]
    LeaseStays { name: String, error: kube::Error },
}

/// How long the lease lasts without being renewed, and how long before its end that is tried.
const LEASE_SECONDS: u64 = 15;
const LEASE_GRACE_SECONDS: u64 = 5;

/// How often a replica that does not lead looks whether the lease is free.
const LEASE_LOOK: Duration = Duration::from_secs(2);

/// How long pods may take to leave for another replica.
const FAREWELL: Duration = Duration::from_secs(5);

/// Reports and verdicts that may wait to be taken in.
const NOTES: usize = 1024;

/// What all tasks have in common.
struct Parts {
    client: Client,
    worlds: watch::Receiver<Arc<World>>,
    owned: watch::Receiver<Arc<Owned>>,
    egress_owned: watch::Receiver<Arc<EgressOwned>>,
    notes: mpsc::Sender<Note>,
    clients: Arc<Clients>,
    defaults: Defaults,
    events: Events,
    metrics: Metrics,
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
    let admin = Admin::bind(arguments.admin.address).await?;
    let listener = discovery::Listener::bind(arguments.discovery_addr).await?;
    let metrics = Metrics::default();
    let (world, worlds) = watch::channel(Arc::<World>::default());
    let (owned_sender, owned) = watch::channel(Arc::<Owned>::default());
    let (egress_sender, egress_owned) = watch::channel(Arc::<EgressOwned>::default());
    let (notes, notes_in) = mpsc::channel(NOTES);
    let parts = Parts {
        events: Events::new(client.clone(), arguments.pod_name.clone()),
        clients: Arc::new(Clients::new(metrics.clone())),
        metrics: metrics.clone(),
        defaults: Defaults {
            namespace: arguments.namespace.clone(),
            api_url: arguments.api_url.clone(),
            control_url: arguments.control_url.clone(),
        },
        client,
        worlds,
        owned,
        egress_owned,
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
    let engine = Engine::new(
        &arguments.namespace,
        &arguments.cluster_domain,
        metrics.clone(),
    )
    .with_local_targets(arguments.allow_local_targets);
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
    let follower = EgressFollower::new(
        parts.client.clone(),
        arguments.namespace.clone(),
        parts.notes.clone(),
    );
    tasks.spawn(async move {
        follower.run(egress_sender).await;
        "the watch of the egresses"
    });
    let drain = Drain::default();
    serve_snapshots(&arguments, &parts, listener, metrics, &drain, &mut tasks);

    let mut lease = None;
    let result = tokio::select! {
        ended = tasks.join_next() => {
            let name = ended.and_then(Result::ok).unwrap_or("a part");
            Err(ControllerError::Ended(name))
        }
        result = lead(&arguments, &parts, &mut lease) => result,
        name = signals.next() => {
            tracing::info!(signal = name, "stopping");
            match arguments.cleanup {
                true => Err(ControllerError::Interrupted(name)),
                false => Ok(()),
            }
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
    if let Some(lease) = lease {
        // Nobody watches it any more, so it is being released; the next leader need not wait.
        tokio::time::timeout(FAREWELL, lease).await.ok();
    }
    if arguments.cleanup && result.is_ok() {
        drop(tasks);
        forget(&arguments, &parts).await?;
    }
    result
}

/// Removes what the controller made for itself.
async fn forget(arguments: &ControllerArguments, parts: &Parts) -> Result<(), ControllerError> {
    let namespace = &arguments.namespace;
    let keeper = AuthorityKeeper::new(parts.client.clone(), namespace, Vec::new());
    keeper.remove().await?;
    let leases: Api<Lease> = Api::namespaced(parts.client.clone(), namespace);
    let name = &arguments.lease;
    let deleted = leases.delete(name, &DeleteParams::default()).await;
    let stays = |error| ControllerError::LeaseStays {
        name: name.clone(),
        error,
    };
    unless_gone(deleted).map(drop).map_err(stays)
}

type LeaseTask = JoinHandle<Result<LeaseManager, LeaseManagerError>>;

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
            let since = world.since.unwrap_or_else(Instant::now);
            target.publish(&world.outcome.snapshots, since);
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

/// Waits for the lease, then writes for as long as it holds, or until all is cleaned up.
async fn lead(
    arguments: &ControllerArguments,
    parts: &Parts,
    task: &mut Option<LeaseTask>,
) -> Result<(), ControllerError> {
    let failed = |error| ControllerError::Lease {
        name: arguments.lease.clone(),
        error,
    };
    if arguments.cleanup {
        end_deployment(arguments, parts).await?;
    }
    lease_free(arguments, parts).await;
    let lease = LeaseManagerBuilder::new(parts.client.clone(), &arguments.lease)
        .with_namespace(&arguments.namespace)
        .with_identity(&arguments.pod_name)
        .with_duration(LEASE_SECONDS)
        .with_grace(LEASE_GRACE_SECONDS)
        .build()
        .await;
    let (mut holds, watch) = lease.map_err(failed)?.watch().await;
    *task = Some(watch);
    let ended = |_| ControllerError::Ended("the lease");
    holds.wait_for(|holds| *holds).await.map_err(ended)?;
    parts.metrics.leading(true);
    tracing::info!(lease = arguments.lease, "leading: this replica writes");
    tokio::select! {
        lost = holds.wait_for(|holds| !*holds) => {
            lost.map_err(ended)?;
            Err(ControllerError::LeaseLost)
        }
        () = write(arguments, parts) => {
            tracing::info!("nothing is left");
            Ok(())
        }
    }
}

/// Waits until nobody holds the lease. Its manager would sleep until it runs out, also when the
/// holder gives it back before.
async fn lease_free(arguments: &ControllerArguments, parts: &Parts) {
    let leases: Api<Lease> = Api::namespaced(parts.client.clone(), &arguments.namespace);
    loop {
        let lease = leases.get_opt(&arguments.lease).await;
        match &lease {
            Ok(lease) => {
                let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
                if spec.is_none_or(|spec| is_free(spec, &arguments.pod_name, Timestamp::now())) {
                    return;
                }
            }
            // The manager says the same, as an error that ends us.
            Err(kube::Error::Api(status)) if status.code == 403 => return,
            Err(error) => tracing::debug!(%error, "the lease cannot be read"),
        }
        tokio::time::sleep(LEASE_LOOK).await;
    }
}

fn is_free(lease: &LeaseSpec, replica: &str, now: Timestamp) -> bool {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let (Some(renewed), Some(seconds)) = (&lease.renew_time, lease.lease_duration_seconds) else {
        return true;
    };
    let age = now.duration_since(renewed.0);
    holder.is_empty() || holder == replica || age.as_secs() >= i64::from(seconds)
}

/// A controller that runs would make again what is removed.
async fn end_deployment(
    arguments: &ControllerArguments,
    parts: &Parts,
) -> Result<(), ControllerError> {
    let deployments: Api<Deployment> = Api::namespaced(parts.client.clone(), &arguments.namespace);
    let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    let name = &arguments.deployment;
    let scaled = deployments
        .patch_scale(name, &PatchParams::default(), &patch)
        .await;
    let failed = |error| ControllerError::Deployment {
        name: name.clone(),
        error,
    };
    unless_gone(scaled).map(drop).map_err(failed)
}

/// What only one replica may do. Ends only when it cleans up.
async fn write(arguments: &ControllerArguments, parts: &Parts) {
    let site = Site {
        namespace: arguments.namespace.clone(),
        image: arguments.proxy_image.clone(),
        image_pull_policy: arguments.proxy_image_pull_policy.clone(),
        discovery: format!(
            "https://{}:{}",
            discovery_host(arguments),
            arguments.discovery_addr.port()
        ),
        environment: arguments.proxy_env.iter().cloned().collect(),
    };
    let settings = GatewaysSettings {
        site: site.clone(),
        defaults: parts.defaults.clone(),
        removal_patience: arguments.removal_patience,
        cleanup: arguments.cleanup,
    };
    let egresses = Egresses::new(
        parts.client.clone(),
        EgressSettings {
            site,
            defaults: parts.defaults.clone(),
            removal_patience: arguments.removal_patience,
            cleanup: arguments.cleanup,
        },
        Arc::clone(&parts.clients),
        parts.events.clone(),
        parts.metrics.clone(),
    );
    let gateways = Gateways::new(
        parts.client.clone(),
        settings,
        Arc::clone(&parts.clients),
        parts.events.clone(),
        parts.metrics.clone(),
    );
    let classes = Classes::new(
        parts.client.clone(),
        parts.defaults.clone(),
        Arc::clone(&parts.clients),
        parts.notes.clone(),
    );
    let writer = Writer::new(
        parts.client.clone(),
        parts.events.clone(),
        parts.metrics.clone(),
    );
    let envoy = Envoy::new(parts.client.clone());
    let discoverer = Discoverer::new(
        parts.defaults.clone(),
        Arc::clone(&parts.clients),
        parts.notes.clone(),
    );
    let (worlds, owned) = (parts.worlds.clone(), parts.owned.clone());
    let egress_owned = parts.egress_owned.clone();
    if arguments.cleanup {
        envoy.clean_up(worlds.clone()).await;
        egresses.clean_up(worlds.clone(), egress_owned).await;
        gateways.clean_up(worlds.clone(), owned).await;
        return classes.release(worlds).await;
    }
    tokio::select! {
        never = gateways.run(worlds.clone(), owned.clone()) => match never {},
        never = classes.run(worlds.clone(), owned) => match never {},
        never = egresses.run(worlds.clone(), egress_owned) => match never {},
        never = envoy.run(worlds.clone()) => match never {},
        never = discoverer.run(worlds.clone()) => match never {},
        never = writer.run(worlds.clone()) => match never {},
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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    #[test]
    fn a_lease_is_free_when_it_was_given_back_ran_out_or_is_one_s_own() {
        let renewed: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let held = LeaseSpec {
            holder_identity: Some("one".into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        };
        let after = |seconds| renewed + Duration::from_secs(seconds);
        assert!(!is_free(&held, "other", after(14)));
        assert!(is_free(&held, "other", after(15)));
        assert!(is_free(&held, "one", after(1)));
        assert!(is_free(&LeaseSpec::default(), "other", after(1)));
    }
}
