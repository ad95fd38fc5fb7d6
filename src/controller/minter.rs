//! Auth keys for nodes that have no identity.

use super::{
    classes::Clients,
    egress::client_of,
    names::key_description,
    parameters::{Defaults, Parameters, parameters},
    world::World,
};
use crate::{
    api::CONTROLLER,
    discovery::KeyMinter,
    index::egress,
    model::ObjectName,
    tailnet::Secret,
    tailnet::api::{ApiClient, KeyRequest},
};
use std::sync::Arc;
use tokio::sync::watch;

/// Mints keys with the credentials of a Gateway's class.
#[derive(Debug)]
pub struct Minter {
    worlds: watch::Receiver<Arc<World>>,
    defaults: Defaults,
    clients: Arc<Clients>,
}

// === impl Minter ===

impl Minter {
    pub fn new(
        worlds: watch::Receiver<Arc<World>>,
        defaults: Defaults,
        clients: Arc<Clients>,
    ) -> Self {
        Self {
            worlds,
            defaults,
            clients,
        }
    }
}

impl KeyMinter for Minter {
    async fn mint(&self, gateway: &ObjectName) -> Result<Secret, String> {
        let world = self.worlds.borrow().clone();
        let (client, parameters) = match egress::object_of(gateway) {
            None => self.of_gateway(gateway, &world)?,
            Some((endpoints, _)) => self.of_egress(&endpoints, &world)?,
        };
        let request = KeyRequest {
            tags: parameters.tags,
            ephemeral: parameters.ephemeral,
            expiry: parameters.key_lifetime,
            description: key_description(gateway),
        };
        let key = client
            .mint_key(&request)
            .await
            .map_err(|error| format!("no auth key: {error}"))?;
        tracing::info!(%gateway, key = key.id, "auth key minted");
        Ok(key.key)
    }
}

impl Minter {
    fn of_egress(
        &self,
        name: &ObjectName,
        world: &World,
    ) -> Result<(ApiClient, Parameters), String> {
        let object = world
            .subjects
            .endpoints
            .get(name)
            .filter(|object| object.metadata.deletion_timestamp.is_none())
            .ok_or_else(|| format!("there is no TailscaleEndpoints {name}"))?;
        client_of(object, world, &self.defaults, &self.clients)
    }

    fn of_gateway(
        &self,
        gateway: &ObjectName,
        world: &World,
    ) -> Result<(ApiClient, Parameters), String> {
        let object = world
            .subjects
            .gateways
            .get(gateway)
            .filter(|object| object.metadata.deletion_timestamp.is_none())
            .ok_or_else(|| format!("there is no Gateway {gateway}"))?;
        let name = &object.spec.gateway_class_name;
        let class = world
            .subjects
            .classes
            .get(&ObjectName::new("", name))
            .filter(|class| class.spec.controller_name == CONTROLLER)
            .ok_or_else(|| format!("there is no GatewayClass {name} of tailway's"))?;
        let parameters = parameters(class, world, &self.defaults)
            .map_err(|error| format!("GatewayClass {name}: {error}"))?;
        let client = self
            .clients
            .client(name, &parameters)
            .map_err(|error| format!("GatewayClass {name}: {error}"))?;
        Ok((client, parameters))
    }
}
