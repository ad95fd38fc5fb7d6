//! The end of a Gateway: nothing of it stays behind, in the cluster or in the tailnet.

use super::{
    events::Weight,
    failure::Failure,
    gateways::Shared,
    names::{key_description, workload_name},
    owned::Workload,
    parameters::Parameters,
    workload::{kinds, object_name, state_secret},
};
use crate::{
    api::gateway_api::{gatewayclasses::GatewayClass, gateways::Gateway},
    model::ObjectName,
    tailnet::api::{ApiClient, ApiError},
};
use std::{collections::BTreeSet, sync::Arc};

/// What is to be removed.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    pub gateway: ObjectName,
    /// Name of its GatewayClass, as far as known, and the parameters of that.
    pub class: Option<String>,
    pub class_object: Option<Arc<GatewayClass>>,
    pub parameters: Option<Parameters>,
    pub workload: Workload,
    /// Since when it is to go.
    pub since: jiff::Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    All,
    /// Its pods are draining.
    Waiting,
}

impl Shared {
    /// Removes the workload, then the tailnet devices and unused keys, then the rest. It can be
    /// called again at any point.
    pub(super) async fn remove(
        &self,
        removal: &Removal,
        gateway: Option<&Gateway>,
    ) -> Result<Removed, Failure> {
        // The watch may lag behind what was made a moment ago, and nothing may be overlooked here.
        let workload = workload_name(&removal.gateway);
        let [sets, ..] = kinds();
        if self.objects.delete(&sets, &workload).await? || self.objects.end_pods(&workload).await? {
            return Ok(Removed::Waiting);
        }
        let mut removal = removal.clone();
        let mut states = self.objects.states(&workload).await?;
        let state = states.remove(&state_secret(&workload));
        removal.workload.secret = state.or(removal.workload.secret);
        let removal = &removal;
        if let Err(error) = self.remove_from_tailnet(removal).await {
            let waited = jiff::Timestamp::now().duration_since(removal.since);
            if waited.unsigned_abs() < self.settings.removal_patience {
                return Err(error.into());
            }
            self.tell_left_behind(removal, gateway, &error).await;
        }
        self.remove_objects(&removal.gateway).await?;
        tracing::info!(gateway = %removal.gateway, "removed");
        Ok(Removed::All)
    }

    async fn remove_from_tailnet(&self, removal: &Removal) -> Result<(), ApiError> {
        let node_ids = removal.workload.node_ids();
        let client = match self.client_for(removal) {
            Ok(client) => client,
            // Nothing has been made with credentials that never were.
            Err(_) if node_ids.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        let tags = removal.parameters.iter().flat_map(|p| &p.tags);
        let tags: Vec<_> = tags.cloned().collect();
        for id in &node_ids {
            remove_device(&client, id, &tags, &removal.gateway).await?;
        }
        revoke_keys(&client, [&removal.gateway]).await
    }

    fn client_for(&self, removal: &Removal) -> Result<ApiClient, ApiError> {
        let class = removal.class.as_deref().unwrap_or_default();
        if let Some(parameters) = &removal.parameters {
            return self.clients.client(class, parameters);
        }
        match self.clients.last(class) {
            Some((_, client)) => Ok(client),
            None => Err(ApiError::Settings(format!(
                "the credentials of GatewayClass {class} are gone"
            ))),
        }
    }

    /// Revokes the keys of a node that has joined: what was not used is of no use any more.
    pub(super) async fn revoke_used_keys(&self, name: &ObjectName, gateway: Option<&Gateway>) {
        let class = gateway.map(|gateway| gateway.spec.gateway_class_name.as_str());
        let Some((_, client)) = self.clients.last(class.unwrap_or_default()) else {
            return;
        };
        if let Err(error) = revoke_keys(&client, [name]).await {
            // They expire within minutes.
            tracing::warn!(gateway = %name, %error, "its auth keys could not be revoked");
        }
    }

    async fn tell_left_behind(
        &self,
        removal: &Removal,
        gateway: Option<&Gateway>,
        error: &ApiError,
    ) {
        let ids: Vec<_> = removal.workload.node_ids().into_iter().collect();
        let report = removal.workload.secret.as_ref();
        let name = report
            .and_then(|secret| secret.report.as_ref())
            .map(|report| report.dns_name.clone())
            .unwrap_or_default();
        let note = format!(
            "device {name} (ID {}) stays in the tailnet, as it could not be removed in time: {error}; remove it in the admin console",
            ids.join(", ")
        );
        tracing::warn!(gateway = %removal.gateway, "{note}");
        let (weight, reason) = (Weight::Warning, "DeviceLeftBehind");
        if let Some(gateway) = gateway
            && self
                .events
                .tell(gateway, weight, reason, note.clone())
                .await
        {
            return;
        }
        // A namespace that is being deleted takes no events.
        if let Some(class) = &removal.class_object {
            let note = format!("Gateway {}: {note}", removal.gateway);
            self.events.tell(&**class, weight, reason, note).await;
        }
    }

    async fn remove_objects(&self, gateway: &ObjectName) -> Result<(), Failure> {
        let workload = workload_name(gateway);
        for resource in kinds() {
            let name = object_name(&resource.kind, &workload);
            self.objects.delete(&resource, &name).await?;
        }
        Ok(())
    }

    /// Deletes the device that holds a Gateway's name, when it is offline and was its own; then
    /// renames the node that is there.
    pub(super) async fn take_back(
        &self,
        gateway: &ObjectName,
        class: &str,
        devices: &[String],
        current: &str,
        wanted: &str,
    ) -> Result<(), Failure> {
        let Some((_, client)) = self.clients.last(class) else {
            return Ok(());
        };
        for id in devices {
            let Some(device) = client.device(id).await? else {
                continue;
            };
            let label = device.name.split('.').next().unwrap_or_default();
            if label != wanted || device.connected_to_control {
                continue;
            }
            client.delete_device(id).await?;
            client.rename_device(current, wanted).await?;
            tracing::info!(%gateway, name = wanted, "took the name back from a device of an earlier pod");
            return Ok(());
        }
        Ok(())
    }
}

/// Removes a node of a workload. A device is ours when it has the ID that our node had, and tags that
/// such nodes are given; where these are not known, by its ID alone.
pub(super) async fn remove_device(
    client: &ApiClient,
    id: &str,
    tags: &[String],
    of: &ObjectName,
) -> Result<(), ApiError> {
    let Some(device) = client.device(id).await? else {
        return Ok(());
    };
    if !tags.is_empty() && !device.tags.iter().any(|tag| tags.contains(tag)) {
        tracing::warn!(%of, device = device.name, "the device has other tags than its nodes are given: it is left alone");
        return Ok(());
    }
    client.delete_device(id).await?;
    tracing::info!(%of, device = device.name, "device removed from the tailnet");
    Ok(())
}

/// Revokes the keys that were minted for these nodes and not used. They are known by their
/// description.
pub(super) async fn revoke_keys<'a>(
    client: &ApiClient,
    nodes: impl IntoIterator<Item = &'a ObjectName>,
) -> Result<(), ApiError> {
    let descriptions: BTreeSet<_> = nodes.into_iter().map(key_description).collect();
    for key in client.keys().await? {
        if descriptions.contains(&key.description) {
            client.revoke_key(&key.id).await?;
        }
    }
    Ok(())
}
