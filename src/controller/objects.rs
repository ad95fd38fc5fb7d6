//! What is made in the namespace of tailway: applied, marked and deleted, whoever it is for.

use super::{
    failure::Failure,
    labels::{MANAGED_BY, MANAGER, NODE_IDS},
    owned::StateSecret,
    requests::unless_gone,
    workload::WorkloadInput,
    writer::FIELD_MANAGER,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy,
    },
};
use serde_json::json;
use std::collections::BTreeMap;

/// The objects of that namespace.
pub(super) struct Objects {
    client: Client,
    namespace: String,
}

// === impl Objects ===

impl Objects {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.into(),
        }
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, resource)
    }

    /// Applies all objects of a workload; the generation of its StatefulSet.
    pub(super) async fn apply(&self, input: &WorkloadInput) -> Result<Option<i64>, Failure> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let mut generation = None;
        for made in input.objects() {
            let api = self.api(&made.resource);
            let patch = Patch::Apply(&made.object);
            let mut applied = api.patch(&made.name, &parameters, &patch).await;
            if made.resource.kind == "StatefulSet" && is_immutable(&applied) {
                // Its pods go on, and the new one takes them over.
                let orphan = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Orphan),
                    ..DeleteParams::default()
                };
                let deleted = api.delete(&made.name, &orphan).await;
                deleted.map_err(|error| Failure::write(&made.resource.kind, &made.name, error))?;
                applied = api.patch(&made.name, &parameters, &patch).await;
            }
            let applied =
                applied.map_err(|error| Failure::write(&made.resource.kind, &made.name, error))?;
            generation = applied.metadata.generation;
        }
        Ok(generation)
    }

    /// Whether there was one.
    pub(super) async fn delete(&self, resource: &ApiResource, name: &str) -> Result<bool, Failure> {
        let api = self.api(resource);
        let deleted = api.delete(name, &DeleteParams::background()).await;
        let deleted =
            unless_gone(deleted).map_err(|error| Failure::write(&resource.kind, name, error))?;
        Ok(deleted.is_some())
    }

    /// Writes down the nodes that there were. Under a manager of its own, so that applying the
    /// object leaves it alone.
    pub(super) async fn record(
        &self,
        resource: &ApiResource,
        name: &str,
        node_ids: &str,
    ) -> Result<(), Failure> {
        let patch = json!({ "metadata": { "annotations": { NODE_IDS: node_ids } } });
        let parameters = PatchParams {
            field_manager: Some("tailway-controller-nodes".into()),
            ..PatchParams::default()
        };
        self.api(resource)
            .patch_metadata(name, &parameters, &Patch::Merge(patch))
            .await
            .map(drop)
            .map_err(|error| Failure::write(&resource.kind, name, error))
    }

    /// Whether a workload has pods yet. Those that no StatefulSet takes along are ended.
    pub(super) async fn end_pods(&self, workload: &str) -> Result<bool, Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pods = api
            .list_metadata(&of(workload))
            .await
            .map_err(|error| Failure::write("Pod", workload, error))?;
        for pod in &pods.items {
            if pod.metadata.deletion_timestamp.is_some() || !pod.owner_references().is_empty() {
                continue;
            }
            let name = pod.name_any();
            let deleted = api.delete(&name, &DeleteParams::default()).await;
            unless_gone(deleted).map_err(|error| Failure::write("Pod", &name, error))?;
        }
        Ok(!pods.items.is_empty())
    }

    /// The states of a workload's nodes, by the names of their Secrets.
    pub(super) async fn states(
        &self,
        workload: &str,
    ) -> Result<BTreeMap<String, StateSecret>, Failure> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secrets = api.list(&of(workload)).await;
        let secrets = secrets.map_err(|error| Failure::write("Secret", workload, error))?;
        let states = secrets.items.iter();
        Ok(states
            .map(|secret| (secret.name_any(), StateSecret::of(secret)))
            .collect())
    }
}

fn of(workload: &str) -> ListParams {
    let labels = format!("app.kubernetes.io/instance={workload},{MANAGED_BY}={MANAGER}");
    ListParams::default().labels(&labels)
}

/// Whether a field was to change that cannot: another version of tailway made it. Other refusals
/// have causes of their own, such as a value in the class that Kubernetes does not take.
fn is_immutable<K>(applied: &kube::Result<K>) -> bool {
    let Err(kube::Error::Api(status)) = applied else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes: Vec<_> = causes
        .map(|cause| (cause.field.as_str(), cause.reason.as_str()))
        .collect();
    status.code == 422 && causes == [("spec", "FieldValueForbidden")]
}
