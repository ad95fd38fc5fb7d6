//! Tailscale's HTTP API: auth keys and devices, in the name of a trust credential.
//!
//! ```text
//!   ApiClient ──token──→ POST oauth/token            Credentials::Client
//!    │                   POST oauth/token-exchange   Credentials::Federated
//!    └──operation──→ GET, POST, DELETE tailnet/…, device/…
//! ```
//!
//! A token is kept until shortly before it expires, and replaced once when the API refuses it.
//! Nothing else is tried again here: each error says what failed, whose turn it is, and how long
//! the API asks to be left alone.

mod error;
mod objects;
mod token;
mod transport;

pub use error::ApiError;
pub use objects::{AuthKey, Device, Key, KeyRequest, Service};
pub use token::{AskIdentityToken, Credentials, IdentityToken};

use super::Secret;
use hyper::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use std::{fmt, sync::Arc, time::Duration};
use token::Tokens;
use transport::{Body, Call, Transport, encode};

/// Where Tailscale's own API is.
pub const DEFAULT_API_URL: &str = "https://api.tailscale.com";

/// The tailnet that the credential belongs to.
pub const DEFAULT_TAILNET: &str = "-";

/// How a client of the API is to be.
#[derive(Clone)]
pub struct ApiSettings {
    /// Scheme, host and port; `http` is for servers of one's own.
    pub base_url: String,
    /// Id or name of the tailnet; `-` is the credential's own.
    pub tailnet: String,
    pub credentials: Credentials,
    /// How long an operation may take, with the token it needs.
    pub timeout: Duration,
    /// Told of every request.
    pub observe: Observe,
}

/// Is given each request's operation and the status of its answer; `None` is no answer.
pub type Observe = Arc<dyn Fn(Operation, Option<u16>) + Send + Sync>;

/// What is asked of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Token,
    ListDevices,
    ReadDevice,
    DeleteDevice,
    RenameDevice,
    ListServices,
    ListKeys,
    MintKey,
    RevokeKey,
}

/// A client of the API, for one tailnet and credential. Clones share its token and connections.
#[derive(Clone)]
pub struct ApiClient {
    inner: Arc<Inner>,
}

struct Inner {
    tailnet: String,
    timeout: Duration,
    transport: Transport,
    tokens: Tokens,
}

/// How long an operation may take unless the settings say otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

// === impl ApiSettings ===

impl ApiSettings {
    /// Tailscale's own API and the credential's own tailnet.
    pub fn new(credentials: Credentials) -> Self {
        Self {
            base_url: DEFAULT_API_URL.into(),
            tailnet: DEFAULT_TAILNET.into(),
            credentials,
            timeout: TIMEOUT,
            observe: Arc::new(|_, _| {}),
        }
    }
}

impl fmt::Debug for ApiSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiSettings")
            .field("base_url", &self.base_url)
            .field("tailnet", &self.tailnet)
            .field("credentials", &self.credentials)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

// === impl Operation ===

impl Operation {
    /// Its name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::ListDevices => "list_devices",
            Self::ReadDevice => "read_device",
            Self::DeleteDevice => "delete_device",
            Self::RenameDevice => "rename_device",
            Self::ListServices => "list_services",
            Self::ListKeys => "list_keys",
            Self::MintKey => "mint_key",
            Self::RevokeKey => "revoke_key",
        }
    }

    /// The scope that a credential of tailway needs for it.
    fn scope(self) -> &'static str {
        match self {
            Self::ListKeys | Self::MintKey | Self::RevokeKey | Self::Token => SCOPES[0],
            Self::ListDevices | Self::ReadDevice | Self::DeleteDevice | Self::RenameDevice => {
                SCOPES[1]
            }
            Self::ListServices => SERVICES_SCOPE,
        }
    }
}

/// What a credential must be allowed to do, and nothing more
/// (<https://tailscale.com/kb/1623/trust-credentials#scopes>).
const SCOPES: [&str; 2] = ["auth_keys", "devices:core"];

/// What a credential must be allowed to do in addition where services are looked for.
const SERVICES_SCOPE: &str = "services:read";

/// Scopes that include both of [`SCOPES`]: everything, and the name devices had before 2025.
const WIDE_SCOPES: [&str; 2] = ["all", "devices"];

// === impl ApiClient ===

impl ApiClient {
    /// # Errors
    /// When the base URL cannot be used, or the system has no root certificates to verify the
    /// API's with.
    pub fn new(settings: ApiSettings) -> Result<Self, ApiError> {
        let transport = Transport::new(&settings.base_url, settings.observe)?;
        Ok(Self {
            inner: Arc::new(Inner {
                tailnet: encode(&settings.tailnet),
                timeout: settings.timeout,
                transport,
                tokens: Tokens::new(settings.credentials),
            }),
        })
    }

    /// Tries the credential without changing anything: a token, the scopes that it has, and one
    /// read of devices and of keys.
    ///
    /// # Errors
    /// [`ApiError::Credentials`], [`ApiError::MissingScope`], [`ApiError::Tailnet`],
    /// [`ApiError::Unreachable`], [`ApiError::RateLimited`] and the others say which.
    pub async fn verify(&self) -> Result<(), ApiError> {
        let granted = self
            .bounded(Operation::Token, async {
                let token = self.inner.tokens.token(&self.inner.transport).await?;
                Ok(token.scopes().to_vec())
            })
            .await?;
        if let Some(scope) = missing_scope(&granted) {
            return Err(ApiError::MissingScope { scope });
        }
        // No device has this id, so that the answer is small in a tailnet of any size.
        let path = self.tailnet_path("devices?fields=default&nodeId=none");
        let listed: Result<Devices, _> = self
            .read(Operation::ListDevices, Method::GET, path, Body::Empty)
            .await;
        listed.map_err(|error| match error {
            ApiError::Refused {
                status: StatusCode::NOT_FOUND,
                message,
                ..
            } => ApiError::Tailnet {
                tailnet: self.inner.tailnet.clone(),
                message,
            },
            other => other,
        })?;
        self.keys().await.map(drop)
    }

    /// Makes a key that lets one node in, preauthorized, with the tags.
    ///
    /// # Errors
    /// [`ApiError::Tags`] when the credential may not give these tags; the others as for
    /// [`ApiClient::verify`].
    pub async fn mint_key(&self, request: &KeyRequest) -> Result<AuthKey, ApiError> {
        let body = Body::Json(json!({
            "capabilities": {"devices": {"create": {
                "reusable": false,
                "ephemeral": request.ephemeral,
                "preauthorized": true,
                "tags": request.tags,
            }}},
            "expirySeconds": request.expiry.as_secs().max(1),
            "description": request.legal_description(),
        }));
        let minted: objects::Minted = self
            .read(
                Operation::MintKey,
                Method::POST,
                self.tailnet_path("keys"),
                body,
            )
            .await?;
        Ok(AuthKey {
            id: minted.id,
            key: Secret::new(minted.key),
        })
    }

    /// Makes a key useless. One that is gone already is as good.
    ///
    /// # Errors
    /// As for [`ApiClient::verify`].
    pub async fn revoke_key(&self, id: &str) -> Result<(), ApiError> {
        let path = self.tailnet_path(&format!("keys/{}", encode(id)));
        self.remove(Operation::RevokeKey, path).await
    }

    /// The auth keys of the tailnet that still let nodes in, without their secrets.
    ///
    /// # Errors
    /// As for [`ApiClient::verify`].
    pub async fn keys(&self) -> Result<Vec<Key>, ApiError> {
        // Without `all`, a client is shown other clients instead of auth keys.
        let path = self.tailnet_path("keys?all=true");
        let listed: Keys = self
            .read(Operation::ListKeys, Method::GET, path, Body::Empty)
            .await?;
        let mut keys = listed.keys;
        keys.retain(Key::admits_nodes);
        Ok(keys)
    }

    /// The device with a node id, or with the numeric id of old.
    ///
    /// # Errors
    /// As for [`ApiClient::verify`].
    pub async fn device(&self, id: &str) -> Result<Option<Device>, ApiError> {
        let path = format!("device/{}?fields=default", encode(id));
        match self
            .read(Operation::ReadDevice, Method::GET, path, Body::Empty)
            .await
        {
            Ok(device) => Ok(Some(device)),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every device of the tailnet.
    ///
    /// # Errors
    /// As for [`ApiClient::verify`].
    pub async fn devices(&self) -> Result<Vec<Device>, ApiError> {
        let path = self.tailnet_path("devices?fields=default");
        let listed: Devices = self
            .read(Operation::ListDevices, Method::GET, path, Body::Empty)
            .await?;
        Ok(listed.devices)
    }

    /// Every service of the tailnet.
    ///
    /// # Errors
    /// [`ApiError::MissingScope`] without `services:read`; the others as for
    /// [`ApiClient::verify`].
    pub async fn services(&self) -> Result<Vec<Service>, ApiError> {
        let path = self.tailnet_path("vip-services");
        let listed: Services = self
            .read(Operation::ListServices, Method::GET, path, Body::Empty)
            .await?;
        Ok(listed.services)
    }

    /// Takes a device out of the tailnet. One that is gone already is as good.
    ///
    /// # Errors
    /// As for [`ApiClient::verify`].
    pub async fn delete_device(&self, id: &str) -> Result<(), ApiError> {
        let path = format!("device/{}", encode(id));
        self.remove(Operation::DeleteDevice, path).await
    }

    /// Gives a device another name: a label, or a full name of the tailnet.
    ///
    /// # Errors
    /// [`ApiError::Refused`] with 404 when there is no such device; the others as for
    /// [`ApiClient::verify`].
    pub async fn rename_device(&self, id: &str, name: &str) -> Result<(), ApiError> {
        let path = format!("device/{}/name", encode(id));
        let body = Body::Json(json!({ "name": name }));
        self.send(Operation::RenameDevice, Method::POST, path, body)
            .await
            .map(drop)
    }

    fn tailnet_path(&self, rest: &str) -> String {
        format!("tailnet/{}/{rest}", self.inner.tailnet)
    }

    async fn remove(&self, operation: Operation, path: String) -> Result<(), ApiError> {
        match self
            .send(operation, Method::DELETE, path, Body::Empty)
            .await
        {
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        operation: Operation,
        method: Method,
        path: String,
        body: Body,
    ) -> Result<T, ApiError> {
        let answer = self.send(operation, method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| ApiError::Answer {
            operation: operation.name(),
            // serde_json's message may quote what it read; its place may not.
            reason: format!(
                "it is not the JSON it should be, at line {} column {}",
                error.line(),
                error.column()
            ),
        })
    }

    /// Sends a request with the token, and again with another one when the API refuses it.
    async fn send(
        &self,
        operation: Operation,
        method: Method,
        path: String,
        body: Body,
    ) -> Result<hyper::body::Bytes, ApiError> {
        let Inner {
            transport, tokens, ..
        } = &*self.inner;
        let call = Call {
            operation,
            method,
            path,
            body,
        };
        self.bounded(operation, async {
            let token = tokens.token(transport).await?;
            let answer = transport.send(&call, Some(token.secret())).await;
            if !matches!(answer, Err(ApiError::Credentials { .. })) {
                return answer;
            }
            tokens.forget(&token).await;
            let fresh = tokens.token(transport).await?;
            transport.send(&call, Some(fresh.secret())).await
        })
        .await
    }

    async fn bounded<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(self.inner.timeout, work).await {
            Ok(answer) => answer,
            Err(_) => Err(self
                .inner
                .transport
                .timed_out(operation, self.inner.timeout)),
        }
    }
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient")
            .field("base_url", &self.inner.transport.base_url())
            .field("tailnet", &self.inner.tailnet)
            .field("credentials", self.inner.tokens.credentials())
            .finish_non_exhaustive()
    }
}

/// The first scope that is needed and not granted. A server of one's own may tell none; then the
/// reads alone decide.
fn missing_scope(granted: &[String]) -> Option<&'static str> {
    let has = |wanted: &&str| granted.iter().any(|scope| scope == wanted);
    if granted.is_empty() || WIDE_SCOPES.iter().any(has) {
        return None;
    }
    SCOPES.into_iter().find(|scope| !has(scope))
}

#[derive(Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Services {
    #[serde(rename = "vipServices", default)]
    services: Vec<Service>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Key>,
}
