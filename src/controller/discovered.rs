//! Finds endpoints in the tailnet: its devices and services, as `spec.autoDiscovery` asks for them.
//! What is found goes into the object's status, from where every replica's index reads it.

mod choice;

use super::{
    classes::Clients,
    egress::client_of,
    parameters::Defaults,
    schedule::{Schedule, until},
    world::{Note, World},
};
use crate::{
    api::endpoints::{AutoDiscovery, EndpointStatus, TailscaleEndpoints},
    model::{ObjectName, Role},
    tailnet::api::{ApiClient, ApiError},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// What was found for a TailscaleEndpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovered {
    /// By name.
    pub endpoints: Vec<EndpointStatus>,
    /// When that became so; `None`: not since this replica leads.
    pub at: Option<Timestamp>,
    /// Why the tailnet could not be asked last.
    pub problem: Option<String>,
}

/// Asks tailnets for their devices and services; for the lease holder.
#[derive(Debug)]
pub struct Discoverer {
    defaults: Defaults,
    clients: Arc<Clients>,
    notes: mpsc::Sender<Note>,
    due: Schedule,
    /// What was asked for when it was last looked, and what came of it.
    known: HashMap<ObjectName, (AutoDiscovery, Discovered)>,
}

/// However short an interval is asked for, the API is not asked more often.
const LEAST_INTERVAL: Duration = Duration::from_secs(10);

const INTERVAL: Duration = Duration::from_secs(30);

// === impl Discoverer ===

impl Discoverer {
    pub fn new(defaults: Defaults, clients: Arc<Clients>, notes: mpsc::Sender<Note>) -> Self {
        Self {
            defaults,
            clients,
            notes,
            due: Schedule::default(),
            known: HashMap::new(),
        }
    }

    pub async fn run(mut self, mut worlds: watch::Receiver<Arc<World>>) -> Infallible {
        loop {
            let world = worlds.borrow_and_update().clone();
            if world.listed {
                self.look(&world).await;
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = until(self.due.next()) => {}
            }
        }
    }

    async fn look(&mut self, world: &World) {
        let endpoints = world.subjects.endpoints.iter();
        let wanted: HashMap<ObjectName, (&TailscaleEndpoints, &AutoDiscovery)> = endpoints
            .filter_map(|(name, object)| {
                let discovery = object.spec.auto_discovery.as_ref()?;
                let stays = object.metadata.deletion_timestamp.is_none();
                (discovery.enabled && stays)
                    .then(|| (ObjectName::clone(name), (&**object, discovery)))
            })
            .collect();
        let gone: Vec<_> = self.known.keys().cloned().collect();
        for name in gone.into_iter().filter(|name| !wanted.contains_key(name)) {
            self.known.remove(&name);
            self.due.set(&name, None);
            self.tell(&name, None).await;
        }
        let due = self.due.take_due(Instant::now());
        for (name, (object, discovery)) in wanted {
            let known = self.known.get(&name);
            let is_as_before = known.is_some_and(|(asked, _)| asked == discovery);
            if is_as_before && !due.contains(&name) {
                continue;
            }
            let found = self.ask(object, discovery, world).await;
            self.take(&name, object, discovery, found).await;
            let interval = choice::interval(discovery).unwrap_or(INTERVAL);
            let next = Instant::now() + interval.max(LEAST_INTERVAL);
            self.due.set(&name, Some(next));
        }
    }

    /// What there is in the tailnet now.
    async fn ask(
        &self,
        object: &TailscaleEndpoints,
        discovery: &AutoDiscovery,
        world: &World,
    ) -> Result<Vec<EndpointStatus>, String> {
        let (client, _) = client_of(object, world, &self.defaults, &self.clients)?;
        let asked = endpoints(&client, discovery, &egress_names(world)).await;
        asked.map_err(|error| format!("the Tailscale API: {error}"))
    }

    async fn take(
        &mut self,
        name: &ObjectName,
        object: &TailscaleEndpoints,
        discovery: &AutoDiscovery,
        found: Result<Vec<EndpointStatus>, String>,
    ) {
        let before = self
            .known
            .get(name)
            .map(|(_, discovered)| discovered.clone());
        // What the leader before found is not new.
        let before = before.unwrap_or_else(|| recalled(object));
        let discovered = match found {
            Err(problem) => Discovered {
                problem: Some(problem),
                ..before.clone()
            },
            Ok(endpoints) if same(&endpoints, &before.endpoints) => Discovered {
                problem: None,
                at: before.at.or_else(|| Some(Timestamp::now())),
                ..before.clone()
            },
            Ok(endpoints) => Discovered {
                endpoints,
                at: Some(Timestamp::now()),
                problem: None,
            },
        };
        let is_news = self.known.get(name).map(|(_, known)| known) != Some(&discovered);
        if is_news {
            self.tell(name, Some(discovered.clone())).await;
        }
        self.known
            .insert(name.clone(), (discovery.clone(), discovered));
    }

    async fn tell(&self, name: &ObjectName, discovered: Option<Discovered>) {
        // Without a receiver the process is on its way out.
        let note = Note::Discovered(name.clone(), discovered);
        let _ = self.notes.send(note).await;
    }
}

/// What the status says was found.
fn recalled(object: &TailscaleEndpoints) -> Discovered {
    let status = object.status.as_ref();
    let endpoints = status
        .into_iter()
        .flat_map(|status| &status.endpoint_status);
    Discovered {
        endpoints: endpoints.filter(|e| choice::is_found(e)).cloned().collect(),
        at: status.and_then(|status| status.last_sync.as_ref().map(|time| time.0)),
        problem: None,
    }
}

/// Whether the same was found, whatever has become of it since.
fn same(found: &[EndpointStatus], before: &[EndpointStatus]) -> bool {
    let what = |status: &EndpointStatus| {
        (
            status.name.clone(),
            status.port,
            status.protocol,
            status.tailscale_fqdn.clone(),
            status.tailscale_ip.clone(),
            status.tags.clone(),
        )
    };
    found.iter().map(what).eq(before.iter().map(what))
}

async fn endpoints(
    client: &ApiClient,
    discovery: &AutoDiscovery,
    ours: &BTreeSet<String>,
) -> Result<Vec<EndpointStatus>, ApiError> {
    let devices = client.devices().await?;
    let mut found = choice::of_devices(&devices, discovery, ours);
    let services = discovery.service_discovery.as_ref();
    if let Some(services) = services.filter(|services| services.enabled) {
        let listed = client.services().await?;
        found.extend(choice::of_services(&listed, services));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|b, a| a.name == b.name);
    Ok(found)
}

/// Names that the nodes of egresses ask for, but for their ordinal.
fn egress_names(world: &World) -> BTreeSet<String> {
    let snapshots = world.outcome.snapshots.iter();
    snapshots
        .filter(|(_, snapshot)| snapshot.role == Role::Egress)
        .map(|(_, snapshot)| snapshot.node.name.to_string())
        .collect()
}
