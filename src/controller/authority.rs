//! Keeps the certificate authority of the snapshot stream: in a Secret, and published to the pods.

use super::{requests::unless_gone, workload::AUTHORITY, writer::FIELD_MANAGER};
use crate::discovery::{
    ServerIdentity,
    authority::{Authority, AuthorityError, SecretData, maintain},
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The authority of one controller, whichever replica is asked.
#[expect(missing_debug_implementations, reason = "kube's Client has none")]
pub struct AuthorityKeeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    /// By which pods reach the server.
    names: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("{kind} {AUTHORITY} cannot be kept: {error}")]
    Write {
        kind: &'static str,
        error: kube::Error,
    },
}

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(1800);

/// How soon again after a failure.
const RETRY: Duration = Duration::from_secs(5);

// === impl AuthorityKeeper ===

impl AuthorityKeeper {
    pub fn new(client: Client, namespace: &str, names: Vec<String>) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            names,
        }
    }

    /// The authority as it is to be; made when there is none.
    ///
    /// # Errors
    /// When it cannot be read or written. A replica that was slower than another gets an error,
    /// too, and finds the other's work at its next try.
    pub async fn look(&self) -> Result<Authority, KeepError> {
        let failed = |error| KeepError::Write {
            kind: "Secret",
            error,
        };
        let secret = self.secrets.get_opt(AUTHORITY).await.map_err(failed)?;
        let held = held(secret.as_ref());
        let authority = maintain(&held, &self.names, SystemTime::now())?;
        if !authority.changes.is_empty() {
            let version = secret.and_then(|secret| secret.metadata.resource_version);
            self.write(&authority.data, version).await.map_err(failed)?;
            for change in &authority.changes {
                tracing::info!("the snapshot stream's authority: {change}");
            }
        }
        self.publish(&authority.bundle)
            .await
            .map_err(|error| KeepError::Write {
                kind: "ConfigMap",
                error,
            })?;
        Ok(authority)
    }

    /// Waits until there is one.
    pub async fn first(&self) -> Authority {
        loop {
            match self.look().await {
                Ok(authority) => return authority,
                Err(error) => tracing::warn!(%error, retry_in = ?RETRY, "no authority yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews it in time, for ever.
    pub async fn keep(self, identity: Arc<ServerIdentity>) -> Infallible {
        loop {
            tokio::time::sleep(PERIOD).await;
            identity.replace(&self.first().await.certificate);
        }
    }

    /// Removes it, for good.
    ///
    /// # Errors
    /// When it is still there.
    pub async fn remove(&self) -> Result<(), KeepError> {
        let parameters = DeleteParams::default();
        let secret = self.secrets.delete(AUTHORITY, &parameters).await;
        gone("Secret", secret)?;
        let config_map = self.config_maps.delete(AUTHORITY, &parameters).await;
        gone("ConfigMap", config_map)
    }

    async fn write(&self, data: &SecretData, version: Option<String>) -> kube::Result<()> {
        let data = data
            .iter()
            .map(|(key, value)| (key.clone(), ByteString(value.clone())));
        let exists = version.is_some();
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(AUTHORITY.into()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            data: Some(data.collect()),
            ..Secret::default()
        };
        let parameters = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        if exists {
            self.secrets
                .replace(AUTHORITY, &parameters, &secret)
                .await?;
        } else {
            self.secrets.create(&parameters, &secret).await?;
        }
        Ok(())
    }

    async fn publish(&self, bundle: &str) -> kube::Result<()> {
        let there = self.config_maps.get_opt(AUTHORITY).await?;
        let data = there.and_then(|map| map.data);
        if data.is_some_and(|data| data.get("ca.crt").is_some_and(|there| there == bundle)) {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": AUTHORITY },
            "data": { "ca.crt": bundle },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(map);
        let patched = self.config_maps.patch(AUTHORITY, &parameters, &patch).await;
        patched.map(drop)
    }
}

fn gone<T>(kind: &'static str, deleted: kube::Result<T>) -> Result<(), KeepError> {
    let deleted = unless_gone(deleted).map(drop);
    deleted.map_err(|error| KeepError::Write { kind, error })
}

fn held(secret: Option<&Secret>) -> SecretData {
    let data = secret.and_then(|secret| secret.data.clone());
    data.unwrap_or_default()
        .into_iter()
        .map(|(key, ByteString(value))| (key, value))
        .collect()
}
