//! Objects of a Kubernetes cluster: each kind is watched at a version that the cluster serves.

use super::fields::{with_hostnames, with_known_filters};
use crate::{
    api::{GATEWAY_GROUP, Object, TAILWAY_GROUP},
    index::{Key, Kind},
    model::ObjectName,
};
use futures_util::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::Value;
use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

/// What is watched besides the kinds themselves.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Namespace of tailway's own objects and of credentials.
    pub system_namespace: String,
    /// Namespaces whose certificates are read; `None`: those of all.
    pub secret_namespaces: Option<Vec<String>>,
}

/// A change of the cluster's objects.
#[derive(Clone, Debug)]
pub enum Change {
    Apply(Object),
    Delete(Key),
    /// Every kind that the cluster serves has been listed: what is not there is not.
    Listed,
}

/// The watches of a cluster. They end when this is dropped.
#[derive(Debug)]
pub struct Watches {
    pub changes: mpsc::Receiver<Change>,
    /// Ends when a watch did, which it never should.
    pub tasks: JoinSet<Infallible>,
}

/// A kind, and the versions of it that can be read, best first.
#[derive(Clone, Copy, Debug)]
struct Watched {
    kind: Kind,
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
}

/// One list-and-watch: a kind in all namespaces or in one, all objects or some.
struct Scope {
    watched: Watched,
    namespace: Option<String>,
    config: watcher::Config,
}

/// How soon a kind that the cluster does not serve is looked for again.
const DISCOVERY: Duration = Duration::from_secs(30);

/// Changes that may wait to be taken in; watches pause beyond it.
const BACKLOG: usize = 1024;

/// Label of the objects that the controller makes.
const MANAGED: &str = "app.kubernetes.io/managed-by!=tailway-controller";

const KINDS: &[Watched] = &[
    gateway_kind(
        Kind::GatewayClass,
        "GatewayClass",
        "gatewayclasses",
        &["v1", "v1beta1"],
    ),
    gateway_kind(Kind::Gateway, "Gateway", "gateways", &["v1", "v1beta1"]),
    gateway_kind(
        Kind::HttpRoute,
        "HTTPRoute",
        "httproutes",
        &["v1", "v1beta1"],
    ),
    gateway_kind(Kind::GrpcRoute, "GRPCRoute", "grpcroutes", &["v1"]),
    gateway_kind(
        Kind::TlsRoute,
        "TLSRoute",
        "tlsroutes",
        &["v1", "v1alpha3", "v1alpha2"],
    ),
    gateway_kind(Kind::TcpRoute, "TCPRoute", "tcproutes", &["v1", "v1alpha2"]),
    gateway_kind(Kind::UdpRoute, "UDPRoute", "udproutes", &["v1", "v1alpha2"]),
    gateway_kind(Kind::ListenerSet, "ListenerSet", "listenersets", &["v1"]),
    gateway_kind(
        Kind::BackendTlsPolicy,
        "BackendTLSPolicy",
        "backendtlspolicies",
        &["v1"],
    ),
    gateway_kind(
        Kind::ReferenceGrant,
        "ReferenceGrant",
        "referencegrants",
        &["v1", "v1beta1"],
    ),
    Watched {
        kind: Kind::Service,
        name: "Service",
        group: "",
        versions: &["v1"],
        plural: "services",
    },
    Watched {
        kind: Kind::EndpointSlice,
        name: "EndpointSlice",
        group: "discovery.k8s.io",
        versions: &["v1"],
        plural: "endpointslices",
    },
    Watched {
        kind: Kind::ConfigMap,
        name: "ConfigMap",
        group: "",
        versions: &["v1"],
        plural: "configmaps",
    },
    Watched {
        kind: Kind::Namespace,
        name: "Namespace",
        group: "",
        versions: &["v1"],
        plural: "namespaces",
    },
    Watched {
        kind: Kind::Tailnet,
        name: "TailscaleTailnet",
        group: TAILWAY_GROUP,
        versions: &["v1alpha1"],
        plural: "tailscaletailnets",
    },
    Watched {
        kind: Kind::Endpoints,
        name: "TailscaleEndpoints",
        group: TAILWAY_GROUP,
        versions: &["v1alpha1"],
        plural: "tailscaleendpoints",
    },
    Watched {
        kind: Kind::Backend,
        name: "TailscaleBackend",
        group: TAILWAY_GROUP,
        versions: &["v1alpha1"],
        plural: "tailscalebackends",
    },
    Watched {
        kind: Kind::EgressSet,
        name: "TailscaleEgressSet",
        group: TAILWAY_GROUP,
        versions: &["v1alpha1"],
        plural: "tailscaleegresssets",
    },
];

const SECRET: Watched = Watched {
    kind: Kind::Secret,
    name: "Secret",
    group: "",
    versions: &["v1"],
    plural: "secrets",
};

const fn gateway_kind(
    kind: Kind,
    name: &'static str,
    plural: &'static str,
    versions: &'static [&'static str],
) -> Watched {
    Watched {
        kind,
        name,
        group: GATEWAY_GROUP,
        versions,
        plural,
    }
}

/// Watches the cluster for ever. A kind that it does not serve is left out, with a log line, until
/// it does; an object that cannot be read is told of and keeps its last state.
pub fn watch_cluster(client: &Client, settings: &ClusterSettings) -> Watches {
    let (sender, changes) = mpsc::channel(BACKLOG);
    let scopes = scopes(settings);
    let listed = Arc::new(Semaphore::new(0));
    let count = u32::try_from(scopes.len()).unwrap_or(u32::MAX);
    let mut tasks = JoinSet::new();
    for scope in scopes {
        let watch = Watch {
            client: client.clone(),
            scope,
            sender: sender.clone(),
            listed: Some(Arc::clone(&listed)),
            known: BTreeSet::new(),
        };
        tasks.spawn(watch.run());
    }
    tasks.spawn(async move {
        // One permit of each watch; the semaphore is never closed.
        if let Ok(permits) = listed.acquire_many(count).await {
            permits.forget();
        }
        // Without a receiver the process is on its way out.
        let _ = sender.send(Change::Listed).await;
        std::future::pending().await
    });
    Watches { changes, tasks }
}

/// All kinds; of Secrets only what may be needed: certificates where they may be, and in the
/// system namespace credentials.
fn scopes(settings: &ClusterSettings) -> Vec<Scope> {
    let everything = |watched: &Watched| Scope {
        watched: *watched,
        namespace: None,
        config: watcher::Config::default(),
    };
    let certificates = |namespace: Option<String>| Scope {
        watched: SECRET,
        namespace,
        config: watcher::Config::default().fields("type=kubernetes.io/tls"),
    };
    let mut scopes: Vec<_> = KINDS.iter().map(everything).collect();
    match &settings.secret_namespaces {
        None => scopes.push(certificates(None)),
        Some(namespaces) => {
            scopes.extend(namespaces.iter().cloned().map(Some).map(certificates));
        }
    }
    scopes.push(Scope {
        watched: SECRET,
        namespace: Some(settings.system_namespace.clone()),
        config: watcher::Config::default()
            .fields("type!=kubernetes.io/tls")
            .labels(MANAGED),
    });
    scopes
}

/// The best version of a kind that can be read and that the cluster serves.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn served(client: &Client, kind: Kind) -> kube::Result<Option<ApiResource>> {
    let mut kinds = KINDS.iter().chain([&SECRET]);
    match kinds.find(|watched| watched.kind == kind) {
        Some(watched) => best(client, watched).await,
        None => Ok(None),
    }
}

async fn best(client: &Client, watched: &Watched) -> kube::Result<Option<ApiResource>> {
    let Watched {
        name,
        group,
        versions,
        plural,
        ..
    } = *watched;
    for version in versions {
        let found = if group.is_empty() {
            client.list_core_api_resources(version).await
        } else {
            let group_version = format!("{group}/{version}");
            client.list_api_group_resources(&group_version).await
        };
        let resources = match found {
            Ok(resources) => resources,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        if resources.resources.iter().any(|r| r.name == plural) {
            let kind = GroupVersionKind::gvk(group, version, name);
            return Ok(Some(ApiResource::from_gvk_with_plural(&kind, plural)));
        }
    }
    Ok(None)
}

struct Watch {
    client: Client,
    scope: Scope,
    sender: mpsc::Sender<Change>,
    /// Told once, when all objects were listed or there is no such kind.
    listed: Option<Arc<Semaphore>>,
    /// The objects that were told of.
    known: BTreeSet<ObjectName>,
}

impl Watch {
    async fn run(mut self) -> Infallible {
        let mut missed = false;
        loop {
            match best(&self.client, &self.scope.watched).await {
                Ok(Some(resource)) => {
                    if missed {
                        tracing::info!(kind = self.scope.watched.name, "the cluster serves it now");
                    }
                    self.follow(&resource).await;
                }
                Ok(None) => {
                    if !missed {
                        tracing::warn!(
                            kind = self.scope.watched.name,
                            group = self.scope.watched.group,
                            "the cluster does not serve this kind, it is left out: install its CustomResourceDefinition"
                        );
                    }
                    missed = true;
                    self.told();
                    tokio::time::sleep(DISCOVERY).await;
                }
                Err(error) => {
                    tracing::warn!(kind = self.scope.watched.name, %error, "cannot ask the API server for its kinds");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Watches until the cluster serves the kind no more.
    async fn follow(&mut self, resource: &ApiResource) {
        let client = self.client.clone();
        let api: Api<DynamicObject> = match &self.scope.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, resource),
            None => Api::all_with(client, resource),
        };
        let events = watcher::watcher(api, self.scope.config.clone()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut listing = BTreeSet::new();
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    failing = false;
                    self.take(event, &mut listing).await;
                }
                Err(error) if is_gone(&error) => {
                    tracing::warn!(kind = resource.kind, "the cluster serves this kind no more");
                    self.forget(BTreeSet::new()).await;
                    return;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(kind = resource.kind, %error, "the watch failed, it goes on when the API server answers");
                    }
                    failing = true;
                }
            }
        }
    }

    async fn take(&mut self, event: Event<DynamicObject>, listing: &mut BTreeSet<ObjectName>) {
        match event {
            Event::Init => listing.clear(),
            Event::InitApply(object) => {
                listing.insert(name_of(&object));
                self.apply(object).await;
            }
            Event::InitDone => {
                self.forget(std::mem::take(listing)).await;
                self.told();
            }
            Event::Apply(object) => self.apply(object).await,
            Event::Delete(object) => self.delete(name_of(&object)).await,
        }
    }

    async fn apply(&mut self, mut object: DynamicObject) {
        // Most of an object's bytes, and nobody reads them.
        object.metadata.managed_fields = None;
        let name = name_of(&object);
        match typed(self.scope.watched.kind, object) {
            Ok(object) => {
                self.known.insert(name);
                // Without a receiver the process is on its way out.
                let _ = self.sender.send(Change::Apply(object)).await;
            }
            Err(error) => {
                tracing::warn!(kind = self.scope.watched.name, %name, %error, "the object cannot be read, its last state stays");
            }
        }
    }

    async fn delete(&mut self, name: ObjectName) {
        if self.known.remove(&name) {
            let kind = self.scope.watched.kind;
            let _ = self.sender.send(Change::Delete(Key { kind, name })).await;
        }
    }

    /// Deletes what is known and not in `listing`.
    async fn forget(&mut self, listing: BTreeSet<ObjectName>) {
        let gone: Vec<_> = self.known.difference(&listing).cloned().collect();
        for name in gone {
            self.delete(name).await;
        }
    }

    fn told(&mut self) {
        if let Some(listed) = self.listed.take() {
            listed.add_permits(1);
        }
    }
}

fn name_of(object: &DynamicObject) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Whether the API server has no such kind any more.
fn is_gone(error: &watcher::Error) -> bool {
    let is_not_found =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            is_not_found(error)
        }
        _ => false,
    }
}

/// The object as the type of its kind. Only the shape is checked: the API server has held it to
/// the rules. A Secret's values are in no message.
fn typed(kind: Kind, object: DynamicObject) -> Result<Object, String> {
    let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
    match kind {
        Kind::GatewayClass => parse(value).map(Object::GatewayClass),
        Kind::Gateway => parse(value).map(Object::Gateway),
        Kind::TcpRoute => parse(value).map(Object::TcpRoute),
        Kind::HttpRoute => parse(with_known_filters(value)).map(Object::HttpRoute),
        Kind::GrpcRoute => parse(value).map(Object::GrpcRoute),
        Kind::TlsRoute => parse(with_hostnames(value)).map(Object::TlsRoute),
        Kind::UdpRoute => parse(value).map(Object::UdpRoute),
        Kind::ListenerSet => parse(value).map(Object::ListenerSet),
        Kind::BackendTlsPolicy => parse(value).map(Object::BackendTlsPolicy),
        Kind::ConfigMap => parse(value).map(Object::ConfigMap),
        Kind::ReferenceGrant => parse(value).map(Object::ReferenceGrant),
        Kind::Service => parse(value).map(Object::Service),
        Kind::EndpointSlice => parse(value).map(Object::EndpointSlice),
        Kind::Secret => parse(value)
            .map(Object::Secret)
            .map_err(|_| "its data is not as a Secret's".into()),
        Kind::Namespace => parse(value).map(Object::Namespace),
        Kind::Tailnet => parse(value).map(Object::Tailnet),
        Kind::Endpoints => parse(value).map(Object::Endpoints),
        Kind::Backend => parse(value).map(Object::Backend),
        Kind::EgressSet => parse(value).map(Object::EgressSet),
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<Box<T>, String> {
    serde_json::from_value(value)
        .map(Box::new)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::CONTROLLER, index::Index};
    use serde_json::json;

    fn read(kind: Kind, object: Value) -> Object {
        typed(kind, serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_filter_of_a_type_that_is_not_known_is_told_and_not_passed_over() {
        let external = json!({"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}});
        let class = json!({"metadata": {"name": "c"}, "spec": {"controllerName": CONTROLLER}});
        let gateway = json!({
            "metadata": {"name": "gw", "namespace": "default"},
            "spec": {
                "gatewayClassName": "c",
                "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}],
            },
        });
        let route = json!({
            "metadata": {"name": "r", "namespace": "default"},
            "spec": {"parentRefs": [{"name": "gw"}], "rules": [{"filters": [external]}]},
        });
        let mut index = Index::default();
        index.apply(read(Kind::GatewayClass, class));
        index.apply(read(Kind::Gateway, gateway));
        index.apply(read(Kind::HttpRoute, route));
        let outcome = index.evaluate();
        let route = outcome.statuses.routes.values().next().unwrap();
        let accepted = &route.parents[0].conditions[0];
        assert_eq!(
            (accepted.status, accepted.reason),
            (false, "UnsupportedValue")
        );
        assert_eq!(
            accepted.message,
            "rule 1: there are no filters of type ExternalAuth, requests get status 500"
        );
    }
}
