//! Tries the credentials of each GatewayClass, and says what came of it.

use super::{
    owned::{Owned, Workload},
    parameters::{Defaults, Parameters, parameters},
    requests::set_finalizer,
    world::{Note, World},
};
use crate::{
    api::{
        CONTROLLER, conditions as c,
        gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
    },
    index::Verdict,
    metrics::Metrics,
    model::Table,
    tailnet::api::{ApiClient, ApiError, ApiSettings},
};
use kube::{Api, Client, ResourceExt};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// A client of the Tailscale API for each class. It outlives the class's credentials, so that
/// nodes of a class that is gone can still be removed.
pub struct Clients {
    metrics: Metrics,
    by_class: Mutex<BTreeMap<String, (Parameters, ApiClient)>>,
}

/// Tries credentials; for the lease holder.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct Classes {
    client: Client,
    defaults: Defaults,
    clients: Arc<Clients>,
    notes: mpsc::Sender<Note>,
    trials: BTreeMap<String, Trial>,
    /// By Gateways, and by what was made for them: a Gateway may have gone, or to another class,
    /// before its node.
    wanted: Used<Gateway>,
    made: Used<Workload>,
    /// What was looked at last.
    seen: Arc<World>,
}

/// How many objects use each class.
#[derive(Debug)]
struct Used<T> {
    objects: Table<T>,
    by_class: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Trial {
    parameters: Result<Parameters, String>,
    task: Option<JoinHandle<()>>,
}

/// On a GatewayClass that Gateways use.
const IN_USE: &str = "gateway-exists-finalizer.gateway.networking.k8s.io";

/// How often credentials that work are tried again: they may have been revoked.
const PERIOD: Duration = Duration::from_secs(3600);

/// Until credentials are tried again after the first failure; doubled after each.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(300);

// === impl Clients ===

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl Clients {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            by_class: Mutex::default(),
        }
    }

    /// The client for a class with these parameters.
    ///
    /// # Errors
    /// When none can be made of them.
    pub fn client(&self, class: &str, parameters: &Parameters) -> Result<ApiClient, ApiError> {
        let mut clients = self.by_class.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(class)
            && known == parameters
        {
            return Ok(client.clone());
        }
        let mut settings = ApiSettings::new(parameters.credentials.credentials());
        settings.tailnet.clone_from(&parameters.tailnet);
        if let Some(url) = &parameters.api_url {
            settings.base_url.clone_from(url);
        }
        let metrics = self.metrics.clone();
        settings.observe = Arc::new(move |operation, status| {
            metrics.api_request(operation.name(), status);
        });
        let client = ApiClient::new(settings)?;
        clients.insert(class.into(), (parameters.clone(), client.clone()));
        Ok(client)
    }

    /// The last client that there was for a class, with its parameters.
    pub fn last(&self, class: &str) -> Option<(Parameters, ApiClient)> {
        let clients = self.by_class.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(class).cloned()
    }
}

// === impl Classes ===

impl Classes {
    pub fn new(
        client: Client,
        defaults: Defaults,
        clients: Arc<Clients>,
        notes: mpsc::Sender<Note>,
    ) -> Self {
        Self {
            client,
            defaults,
            clients,
            notes,
            trials: BTreeMap::new(),
            wanted: Used::default(),
            made: Used::default(),
            seen: Arc::default(),
        }
    }

    pub async fn run(
        mut self,
        mut worlds: watch::Receiver<Arc<World>>,
        mut owned: watch::Receiver<Arc<Owned>>,
    ) -> Infallible {
        loop {
            let (world, there) = (
                worlds.borrow_and_update().clone(),
                owned.borrow_and_update().clone(),
            );
            let mut done = true;
            if world.listed && there.listed {
                done = self.look(&world, &there).await;
                self.seen = if done { world } else { Arc::default() };
            }
            let changed = tokio::select! {
                changed = worlds.changed() => changed,
                changed = owned.changed() => changed,
                () = tokio::time::sleep(FIRST_RETRY), if !done => Ok(()),
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Lets all classes go, whoever uses them; ends when no class is held any more.
    pub async fn release(self, mut worlds: watch::Receiver<Arc<World>>) {
        loop {
            let world = worlds.borrow_and_update().clone();
            let held: Vec<_> = world
                .subjects
                .classes
                .values()
                .filter(|class| class.spec.controller_name == CONTROLLER)
                .filter(|class| class.finalizers().iter().any(|f| f == IN_USE))
                .collect();
            if world.listed && held.is_empty() {
                return;
            }
            for class in held {
                if let Err(error) = self.keep(class, false).await {
                    tracing::warn!(class = class.name_any(), %error, "its finalizer could not be removed");
                }
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(FIRST_RETRY) => {}
            }
        }
    }

    /// Whether all was done that is to be done.
    async fn look(&mut self, world: &World, owned: &Owned) -> bool {
        let (subjects, seen) = (&world.subjects, &self.seen.subjects);
        let is_seen = self.seen.listed
            && subjects.classes.is_same(&seen.classes)
            && subjects.tailnets.is_same(&seen.tailnets)
            && Arc::ptr_eq(&world.credentials, &self.seen.credentials);
        let wanted_as_before = self.wanted.follow(&subjects.gateways, |gateway| {
            Some(gateway.spec.gateway_class_name.clone())
        });
        let made_as_before = self
            .made
            .follow(&owned.workloads, |workload| workload.class().cloned());
        if is_seen && wanted_as_before && made_as_before {
            return true;
        }
        let mut done = true;
        let ours = subjects
            .classes
            .iter()
            .filter(|(_, class)| class.spec.controller_name == CONTROLLER);
        let mut gone = std::mem::take(&mut self.trials);
        for (name, class) in ours {
            let name = &name.name;
            let parameters = parameters(class, world, &self.defaults);
            let trial = match gone.remove(name) {
                Some(trial) if trial.parameters == parameters => trial,
                _ => self.start(name, parameters).await,
            };
            self.trials.insert(name.clone(), trial);
            let in_use = self.wanted.contains(name) || self.made.contains(name);
            if let Err(error) = self.keep(class, in_use).await {
                tracing::warn!(class = name, %error, "its finalizer could not be written");
                done = false;
            }
        }
        done
    }

    /// A class that Gateways use is not to go before them (Gateway API,
    /// `GatewayClassFinalizerGatewaysExist`): its credentials are needed to remove their nodes.
    async fn keep(&self, class: &GatewayClass, in_use: bool) -> kube::Result<()> {
        if in_use && class.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let api = Api::all(self.client.clone());
        match set_finalizer(&api, class, IN_USE, in_use).await {
            // Its new version is on the way.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            result => result,
        }
    }

    async fn start(&self, class: &str, parameters: Result<Parameters, String>) -> Trial {
        let refuse = |reason, message| Verdict::Refused { reason, message };
        let verdict = match &parameters {
            Err(message) => refuse(c::INVALID_PARAMETERS, message.clone()),
            Ok(known) => match self.clients.client(class, known) {
                Err(error) => refuse(reason(&error), error.to_string()),
                Ok(client) => {
                    let task = try_for_ever(class.to_owned(), client, self.notes.clone());
                    return Trial {
                        parameters,
                        task: Some(tokio::spawn(task)),
                    };
                }
            },
        };
        tell(&self.notes, class, verdict).await;
        Trial {
            parameters,
            task: None,
        }
    }
}

// === impl Used ===

impl<T> Used<T> {
    fn contains(&self, class: &str) -> bool {
        self.by_class.contains_key(class)
    }

    /// Whether the same classes are used as before.
    fn follow(&mut self, objects: &Table<T>, class: fn(&T) -> Option<String>) -> bool {
        let mut same = true;
        for name in objects.differences(&self.objects) {
            if let Some(class) = objects.get(name).and_then(|object| class(object)) {
                let count = self.by_class.entry(class).or_default();
                same &= *count > 0;
                *count += 1;
            }
            if let Some(class) = self.objects.get(name).and_then(|object| class(object))
                && let Entry::Occupied(mut entry) = self.by_class.entry(class)
            {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                    same = false;
                }
            }
        }
        self.objects = objects.clone();
        same
    }
}

impl<T> Default for Used<T> {
    fn default() -> Self {
        Self {
            objects: Table::default(),
            by_class: BTreeMap::new(),
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Tries until it is known whether the credentials work, then now and then. What worked is taken
/// back only when the API says so, and not because it is away.
async fn try_for_ever(class: String, client: ApiClient, notes: mpsc::Sender<Note>) {
    let mut worked = false;
    let mut retry = FIRST_RETRY;
    loop {
        let wait = match client.verify().await {
            Ok(()) => {
                worked = true;
                retry = FIRST_RETRY;
                tell(&notes, &class, Verdict::Accepted).await;
                PERIOD
            }
            Err(error) => {
                tracing::warn!(class, %error, "the credentials of the GatewayClass cannot be used");
                let reason = reason(&error);
                let is_final = [c::INVALID_CREDENTIALS, c::MISSING_SCOPE].contains(&reason);
                if is_final || !worked {
                    worked = false;
                    let message = error.to_string();
                    tell(&notes, &class, Verdict::Refused { reason, message }).await;
                }
                let wait = error.retry_after().unwrap_or(retry);
                retry = (retry * 2).min(LAST_RETRY);
                wait
            }
        };
        tokio::time::sleep(jitter(wait)).await;
    }
}

async fn tell(notes: &mpsc::Sender<Note>, class: &str, verdict: Verdict) {
    // Without a receiver the process is on its way out.
    let _ = notes.send(Note::Verdict(class.into(), verdict)).await;
}

fn reason(error: &ApiError) -> &'static str {
    match error {
        ApiError::Settings(_) | ApiError::Tags { .. } | ApiError::Tailnet { .. } => {
            c::INVALID_PARAMETERS
        }
        ApiError::Credentials { .. }
        | ApiError::IdentityToken(_)
        | ApiError::FederatedIdentity { .. } => c::INVALID_CREDENTIALS,
        ApiError::MissingScope { .. } => c::MISSING_SCOPE,
        ApiError::RateLimited { .. } => c::API_RATE_LIMITED,
        _ => c::API_UNREACHABLE,
    }
}

/// Up to a quarter more, so that replicas and classes do not ask at once.
pub(super) fn jitter(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let quarter = u64::try_from(wait.as_millis() / 4).unwrap_or(u64::MAX);
    wait + Duration::from_millis(RandomState::new().hash_one(wait) % (quarter + 1))
}
