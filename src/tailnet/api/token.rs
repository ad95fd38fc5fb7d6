use super::{
    ApiError, Operation, Secret,
    transport::{Body, Call, Transport},
};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// In whose name the API is used: a trust credential of the tailnet
/// (<https://tailscale.com/kb/1623/trust-credentials>).
#[derive(Clone, Debug)]
pub enum Credentials {
    /// An OAuth client.
    Client { id: String, secret: Secret },
    /// A federated identity: the workload shows an identity token of its cluster instead of a
    /// secret.
    Federated {
        client_id: String,
        token: IdentityToken,
    },
}

/// Where the identity token of a workload comes from. It is asked for each time, since such
/// tokens are short-lived.
#[derive(Clone)]
pub enum IdentityToken {
    /// A projected ServiceAccount token.
    File(PathBuf),
    Ask(AskIdentityToken),
}

/// Gives an identity token.
pub type AskIdentityToken =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Secret>> + Send>> + Send + Sync>;

/// An access token of the API. Clones are the same token.
#[derive(Clone)]
pub(super) struct Token {
    inner: Arc<Granted>,
}

struct Granted {
    secret: Secret,
    scopes: Vec<String>,
    stale: Instant,
}

/// The token of a client, one at a time.
pub(super) struct Tokens {
    credentials: Credentials,
    current: Mutex<Option<Token>>,
}

/// A token is replaced so long before it expires, so that it does not expire on its way.
const MARGIN: Duration = Duration::from_secs(60);

/// How long a token lives when the API does not say (its documentation: one hour).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// The longest that an API may say.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

// === impl IdentityToken ===

impl IdentityToken {
    async fn ask(&self) -> Result<Secret, ApiError> {
        let token = match self {
            Self::File(path) => tokio::fs::read_to_string(path)
                .await
                .map(|text| Secret::new(text.trim()))
                .map_err(|error| format!("{}: {error}", path.display())),
            Self::Ask(ask) => ask().await.map_err(|error| error.to_string()),
        };
        token.map_err(ApiError::IdentityToken)
    }
}

impl fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

// === impl Token ===

impl Token {
    pub(super) fn secret(&self) -> &Secret {
        &self.inner.secret
    }

    /// What it may be used for; empty when the API did not say.
    pub(super) fn scopes(&self) -> &[String] {
        &self.inner.scopes
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.inner.stale
    }
}

// === impl Tokens ===

impl Tokens {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            current: Mutex::default(),
        }
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The current token, or a new one; who comes meanwhile waits for it.
    pub(super) async fn token(&self, transport: &Transport) -> Result<Token, ApiError> {
        let mut current = self.current.lock().await;
        if let Some(token) = current.as_ref().filter(|token| token.is_fresh()) {
            return Ok(token.clone());
        }
        let token = self.grant(transport).await?;
        *current = Some(token.clone());
        Ok(token)
    }

    /// Lets go of a token that the API refused, unless another one has taken its place.
    pub(super) async fn forget(&self, refused: &Token) {
        let mut current = self.current.lock().await;
        if let Some(token) = &*current
            && Arc::ptr_eq(&token.inner, &refused.inner)
        {
            *current = None;
        }
    }

    /// A refused identity token is mended elsewhere than a refused secret.
    fn explain(&self, error: ApiError) -> ApiError {
        match (&self.credentials, error) {
            (Credentials::Federated { .. }, ApiError::Credentials { message }) => {
                ApiError::FederatedIdentity { message }
            }
            (
                Credentials::Federated { .. },
                ApiError::Refused {
                    status: StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN,
                    message,
                    ..
                },
            ) => ApiError::FederatedIdentity { message },
            (_, error) => error,
        }
    }

    async fn grant(&self, transport: &Transport) -> Result<Token, ApiError> {
        /// RFC 6749, section 5.1.
        #[derive(Deserialize)]
        struct Answer {
            access_token: String,
            expires_in: Option<u64>,
            #[serde(default)]
            scope: String,
        }
        let asked = Instant::now();
        let (path, form) = match &self.credentials {
            Credentials::Client { id, secret } => (
                "oauth/token",
                vec![
                    ("grant_type", Secret::from("client_credentials")),
                    ("client_id", Secret::new(id.as_str())),
                    ("client_secret", secret.clone()),
                ],
            ),
            Credentials::Federated { client_id, token } => (
                "oauth/token-exchange",
                vec![
                    ("client_id", Secret::new(client_id.as_str())),
                    ("jwt", token.ask().await?),
                ],
            ),
        };
        let call = Call {
            operation: Operation::Token,
            method: Method::POST,
            path: path.into(),
            body: Body::Form(form),
        };
        let answer = transport
            .send(&call, None)
            .await
            .map_err(|error| self.explain(error))?;
        // What the parser would say of the answer could hold the token.
        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| ApiError::Answer {
            operation: Operation::Token.name(),
            reason: "it holds no access token".into(),
        })?;
        let lifetime = answer
            .expires_in
            .map_or(DEFAULT_LIFETIME, Duration::from_secs)
            .min(MAX_LIFETIME);
        // Of a short life, half is left.
        let usable = lifetime - MARGIN.min(lifetime / 2);
        Ok(Token {
            inner: Arc::new(Granted {
                secret: Secret::new(answer.access_token),
                scopes: answer.scope.split_whitespace().map(Into::into).collect(),
                stale: asked + usable,
            }),
        })
    }
}
