//! The answers to Envoy Gateway. Each is a function of what was asked and, for
//! [`Hooks::virtual_host`], of the sets that are known; none waits for anything.

use super::{
    cluster::{METADATA, Settings},
    placement::insert,
    plan::{Plan, Served},
    proto::{
        ExtensionResource, PostClusterModifyRequest, PostTranslateModifyRequest,
        PostTranslateModifyResponse,
    },
    refusal::Refusal,
    route::{virtual_host, virtual_host_name},
    set::{EgressSet, SetError, backend},
    splice::fill,
    wire::{self, Malformed, Value},
};
use crate::model::ObjectName;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// Of `envoy.config.cluster.v3.Cluster`.
const CLUSTER_NAME: u32 = 1;
const CLUSTER_METADATA: u32 = 25;

/// Of `envoy.config.route.v3.RouteConfiguration`.
const CONFIGURATION_NAME: u32 = 1;
const VIRTUAL_HOSTS: u32 = 2;

/// Of `envoy.config.route.v3.VirtualHost`.
const HOST_NAME: u32 = 1;
const HOST_METADATA: u32 = 24;

/// Key of the metadata that says which objects something was made from.
const ENVOY_GATEWAY: &str = "envoy-gateway";

/// The hooks, with what is the same for all calls.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    settings: Settings,
    /// Plans that were made last: most translations are about something else than our services.
    made: Arc<Mutex<VecDeque<Made>>>,
}

/// A plan and all that it follows from.
#[derive(Debug)]
struct Made {
    sets: Vec<EgressSet>,
    foreign: BTreeSet<String>,
    plan: Arc<Plan>,
}

/// How many plans are kept: one for each Gateway of a cluster, most likely.
const KEPT_PLANS: usize = 8;

/// An answer, and what is worth telling of it.
#[derive(Clone, PartialEq)]
pub struct Answer<T> {
    pub message: T,
    pub told: Told,
}

/// What became of a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Routes that were put in.
    pub routes: usize,
    /// Clusters that were put in, or filled.
    pub clusters: usize,
    /// Sets that were served by it, by name.
    pub served: BTreeMap<ObjectName, Served>,
    /// Why the input came back as it was, when something was asked for.
    pub untouched: Option<Untouched>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untouched {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Object(String),
    #[error("a rule has {0} backends of which one is a TailscaleBackend; it may have no other")]
    Several(usize),
    #[error("TailscaleBackend {name}: {refusal}")]
    Refused { name: ObjectName, refusal: Refusal },
    #[error("the cluster of TailscaleBackend {0} is not one to be filled")]
    Cluster(ObjectName),
}

impl Hooks {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            made: Arc::default(),
        }
    }

    /// What sets are together, for [`Self::virtual_host`] and [`Self::translation`].
    pub fn plan<'a>(&self, sets: impl IntoIterator<Item = &'a EgressSet>) -> Plan {
        Plan::new(sets, &BTreeSet::new(), &self.settings)
    }

    /// `PostTranslateModify`: routes and clusters of the sets among the policies. Without any, and
    /// without anything in which a route could stand, the clusters of all sets that are known:
    /// the routes to them were put in by [`Self::virtual_host`].
    pub fn translation(
        &self,
        request: PostTranslateModifyRequest,
        known: Option<&Plan>,
    ) -> Answer<PostTranslateModifyResponse> {
        let context = request.post_translate_context.as_ref();
        let resources = context.map_or(&[][..], |context| &context.extension_resources);
        let result = match policies(resources) {
            Ok(sets) if !sets.is_empty() => self.inject(&request, sets),
            Ok(_) if Self::needs_known(&request) => {
                known.map_or_else(|| Ok(echo(&request)), |plan| add_clusters(&request, plan))
            }
            Ok(_) => Ok(echo(&request)),
            Err(error) => Err(Untouched::Object(error.to_string())),
        };
        result.unwrap_or_else(|untouched| Answer {
            told: Told {
                untouched: Some(untouched),
                ..Told::default()
            },
            ..echo(&request)
        })
    }

    /// Whether the answer depends on the sets that are known.
    pub(super) fn needs_known(request: &PostTranslateModifyRequest) -> bool {
        let context = request.post_translate_context.as_ref();
        context.is_none_or(|context| context.extension_resources.is_empty())
            && request.routes.is_empty()
            && request.listeners.is_empty()
    }

    /// `PostVirtualHostModify`: the routes of the Gateway that it is of.
    pub fn virtual_host(&self, host: Bytes, known: Option<&Plan>) -> Answer<Bytes> {
        let changed = known.map_or(Ok(None), |plan| {
            let gateway = gateway_of(&host)?;
            let routes = gateway.and_then(|gateway| plan.routes.get(&gateway));
            let Some(routes) = routes.filter(|routes| !routes.is_empty()) else {
                return Ok(None);
            };
            Ok(Some((Bytes::from(insert(&host, routes)?), routes.len())))
        });
        match changed {
            Ok(Some((message, routes))) => Answer {
                message,
                told: Told {
                    routes,
                    ..Told::default()
                },
            },
            Ok(None) => Answer::unchanged(host),
            Err(error) => Answer::untouched(host, Untouched::Malformed(error)),
        }
    }

    /// `PostClusterModify`: the cluster of a rule with one TailscaleBackend becomes its.
    pub fn cluster(&self, request: PostClusterModifyRequest) -> Answer<Bytes> {
        let context = request.post_cluster_context.unwrap_or_default();
        match self.filled(&request.cluster, &context.backend_extension_resources) {
            Ok(Some(message)) => Answer {
                message,
                told: Told {
                    clusters: 1,
                    ..Told::default()
                },
            },
            Ok(None) => Answer::unchanged(request.cluster),
            Err(untouched) => Answer::untouched(request.cluster, untouched),
        }
    }

    fn filled(
        &self,
        cluster: &Bytes,
        resources: &[ExtensionResource],
    ) -> Result<Option<Bytes>, Untouched> {
        let mut ours = Vec::new();
        for resource in resources {
            let backend = backend(&resource.unstructured_bytes);
            ours.extend(backend.map_err(|error| Untouched::Object(error.to_string()))?);
        }
        match (ours.as_slice(), resources.len()) {
            ([], _) => Ok(None),
            ([(name, upstream)], 1) => {
                let filled = fill(cluster, upstream, name, &self.settings)?;
                Ok(Some(filled.into()))
            }
            (_, several) => Err(Untouched::Several(several)),
        }
    }

    fn inject(
        &self,
        request: &PostTranslateModifyRequest,
        sets: Vec<EgressSet>,
    ) -> Result<Answer<PostTranslateModifyResponse>, Untouched> {
        let plan = self.remembered(sets, foreign(&request.clusters)?);
        let alone = alone(&plan, &request.routes)?;
        let mut answer = add_clusters(request, &plan)?;
        let mut routes = Vec::with_capacity(request.routes.len());
        for configuration in &request.routes {
            let (configuration, added) = put_in(configuration, &plan, alone)?;
            routes.push(configuration);
            answer.told.routes += added;
        }
        answer.message.routes = routes;
        Ok(answer)
    }

    /// The plan of sets, made now unless it was before.
    fn remembered(&self, sets: Vec<EgressSet>, foreign: BTreeSet<String>) -> Arc<Plan> {
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |made: &&Made| made.sets == sets && made.foreign == foreign;
        let before = made().iter().find(same).map(|made| Arc::clone(&made.plan));
        before.unwrap_or_else(|| {
            let plan = Arc::new(Plan::new(&sets, &foreign, &self.settings));
            let mut made = made();
            made.truncate(KEPT_PLANS - 1);
            made.push_front(Made {
                sets,
                foreign,
                plan: Arc::clone(&plan),
            });
            plan
        })
    }
}

// === impl Answer ===

impl<T> fmt::Debug for Answer<T> {
    /// Messages may hold keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

impl<T> Answer<T> {
    pub(super) fn map<U>(self, message: impl FnOnce(T) -> U) -> Answer<U> {
        Answer {
            message: message(self.message),
            told: self.told,
        }
    }

    pub(super) fn unchanged(message: T) -> Self {
        Self {
            message,
            told: Told::default(),
        }
    }

    fn untouched(message: T, why: Untouched) -> Self {
        Self {
            message,
            told: Told {
                untouched: Some(why),
                ..Told::default()
            },
        }
    }
}

/// The sets among the policies.
fn policies(resources: &[ExtensionResource]) -> Result<Vec<EgressSet>, SetError> {
    let sets = resources
        .iter()
        .map(|resource| EgressSet::from_json(&resource.unstructured_bytes));
    sets.filter_map(Result::transpose).collect()
}

/// Everything that came: what an answer leaves out is removed.
fn echo(request: &PostTranslateModifyRequest) -> Answer<PostTranslateModifyResponse> {
    Answer::unchanged(PostTranslateModifyResponse {
        clusters: request.clusters.clone(),
        secrets: request.secrets.clone(),
        listeners: request.listeners.clone(),
        routes: request.routes.clone(),
    })
}

/// Adds clusters, sorted by name, in the place of those of the same names that are ours already.
fn add_clusters(
    request: &PostTranslateModifyRequest,
    plan: &Plan,
) -> Result<Answer<PostTranslateModifyResponse>, Untouched> {
    let mut answer = echo(request);
    let mut clusters = Vec::with_capacity(request.clusters.len() + plan.clusters.len());
    let mut taken = BTreeSet::new();
    for cluster in &request.clusters {
        let name = wire::text(cluster, CLUSTER_NAME)?.unwrap_or_default();
        if plan.clusters.contains_key(name) {
            if is_ours(cluster)? {
                continue;
            }
            taken.insert(name);
        }
        clusters.push(cluster.clone());
    }
    let ours = plan.clusters.iter();
    let ours = ours.filter(|(name, _)| !taken.contains(name.as_str()));
    clusters.extend(ours.map(|(_, cluster)| cluster.clone()));
    answer.message.clusters = clusters;
    answer.told.clusters = plan.clusters.len() - taken.len();
    answer.told.served = plan.served.clone();
    Ok(answer)
}

/// Names of the clusters that are not ours.
fn foreign(clusters: &[Bytes]) -> Result<BTreeSet<String>, Malformed> {
    let mut names = BTreeSet::new();
    for cluster in clusters {
        if !is_ours(cluster)? {
            let name = wire::text(cluster, CLUSTER_NAME)?;
            names.insert(name.unwrap_or_default().to_owned());
        }
    }
    Ok(names)
}

/// Clusters that were filled have the metadata of both.
fn is_ours(cluster: &[u8]) -> Result<bool, Malformed> {
    let Some(metadata) = wire::message(cluster, CLUSTER_METADATA)? else {
        return Ok(false);
    };
    let has = |key| Ok::<_, Malformed>(wire::entry(&metadata, 1, key)?.is_some());
    Ok(has(METADATA)? && !has(ENVOY_GATEWAY)?)
}

/// The Gateway of the plan, when no other is translated with it: what is not named is its.
fn alone<'a>(plan: &'a Plan, routes: &[Bytes]) -> Result<Option<&'a ObjectName>, Malformed> {
    let mut gateways = plan.routes.keys();
    let (Some(only), None) = (gateways.next(), gateways.next()) else {
        return Ok(None);
    };
    for configuration in routes {
        for host in wire::all(configuration, VIRTUAL_HOSTS) {
            if gateway_of(host?)?.is_some_and(|gateway| gateway != *only) {
                return Ok(None);
            }
        }
    }
    Ok(Some(only))
}

/// Puts routes into the virtual hosts of a route configuration, and says how many.
fn put_in(
    configuration: &Bytes,
    plan: &Plan,
    alone: Option<&ObjectName>,
) -> Result<(Bytes, usize), Malformed> {
    let routes_of = |gateway: Option<ObjectName>| {
        let gateway = gateway.as_ref().or(alone)?;
        let (gateway, routes) = plan.routes.get_key_value(gateway)?;
        (!routes.is_empty()).then_some((gateway, routes))
    };
    let (mut out, mut hosts, mut added) = (Vec::with_capacity(configuration.len()), 0, 0);
    for field in wire::fields(configuration) {
        let field = field?;
        match field.value {
            Value::Bytes(host) if field.number == VIRTUAL_HOSTS => {
                hosts += 1;
                match routes_of(gateway_of(host)?) {
                    Some((_, routes)) => {
                        wire::put(&mut out, VIRTUAL_HOSTS, &insert(host, routes)?);
                        added += routes.len();
                    }
                    None => out.extend_from_slice(field.whole),
                }
            }
            _ => out.extend_from_slice(field.whole),
        }
    }
    if hosts == 0 {
        let name = wire::text(configuration, CONFIGURATION_NAME)?.unwrap_or_default();
        if let Some((gateway, routes)) = routes_of(gateway_in(name)) {
            let host = insert(&virtual_host(gateway), routes)?;
            wire::put(&mut out, VIRTUAL_HOSTS, &host);
            added += routes.len();
        }
    }
    match added {
        0 => Ok((configuration.clone(), 0)),
        _ => Ok((out.into(), added)),
    }
}

/// The Gateway that a virtual host is of.
fn gateway_of(host: &[u8]) -> Result<Option<ObjectName>, Malformed> {
    let name = wire::text(host, HOST_NAME)?.unwrap_or_default();
    if let Some(gateway) = name.strip_prefix("tailscale-egress/").and_then(gateway_in)
        && virtual_host_name(&gateway) == name
    {
        return Ok(Some(gateway));
    }
    let Some(metadata) = wire::message(host, HOST_METADATA)? else {
        return Ok(None);
    };
    let Some(made_from) = wire::entry(&metadata, 1, ENVOY_GATEWAY)? else {
        return Ok(None);
    };
    // Struct.fields, of Value.list_value the values, of Value.struct_value the fields.
    let Some(resources) = wire::entry(made_from, 1, "resources")? else {
        return Ok(None);
    };
    let Some(list) = wire::message(resources, 6)? else {
        return Ok(None);
    };
    let Some(first) = wire::all(&list, 1).next().transpose()? else {
        return Ok(None);
    };
    let resource = wire::message(first, 5)?.unwrap_or_default();
    let text = |key| {
        let value = wire::entry(&resource, 1, key)?.unwrap_or_default();
        Ok(wire::text(value, 3)?.unwrap_or_default().to_owned())
    };
    let gateway = ObjectName::new(text("namespace")?, text("name")?);
    Ok(Some(gateway).filter(|gateway| !gateway.name.is_empty()))
}

/// The Gateway at the beginning of a name, as in `namespace/gateway/listener`.
fn gateway_in(name: &str) -> Option<ObjectName> {
    let mut parts = name.split('/');
    match (parts.next(), parts.next()) {
        (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
            Some(ObjectName::new(namespace, name))
        }
        _ => None,
    }
}
