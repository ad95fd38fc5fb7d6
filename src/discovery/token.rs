//! Pods' tokens, reviewed by the API server.

use super::server::{AuthError, Authenticator};
use crate::model::ObjectName;
use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// The audience that pods' tokens are made for: one for the API server opens nothing here, and one
/// from here opens nothing there.
pub const AUDIENCE: &str = "tailway-discovery";

/// Asks the API server whose a token is. The ServiceAccount then names the Gateway.
pub struct TokenReviewer<L> {
    client: Client,
    namespace: String,
    gateway_of: L,
    known: Mutex<Known>,
    /// Reviews at a time: whoever reaches the port cannot make the API server busy.
    reviews: Semaphore,
}

/// ServiceAccounts by the hash of their token, and until when the answer counts.
type Known = HashMap<[u8; 32], (String, Instant)>;

/// So long a token opens streams after its pod is gone.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Tokens known at a time; a pod has one an hour.
const KNOWN_LIMIT: usize = 4096;

const TIMEOUT: Duration = Duration::from_secs(10);

const REVIEWS: usize = 16;

// === impl TokenReviewer ===

impl<L: Fn(&str) -> Option<ObjectName> + Send + Sync + 'static> TokenReviewer<L> {
    /// `gateway_of` tells whose ServiceAccount, by its name in `namespace`, is which Gateway's.
    pub fn new(client: Client, namespace: impl Into<String>, gateway_of: L) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            gateway_of,
            known: Mutex::default(),
            reviews: Semaphore::new(REVIEWS),
        }
    }

    async fn review(&self, token: &str) -> Result<String, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.into()]),
                token: token.into(),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let reviewed = tokio::time::timeout(TIMEOUT, async {
            // Never closed.
            let _permit = self.reviews.acquire().await;
            reviews.create(&PostParams::default(), &review).await
        });
        let unavailable = |cause: String| {
            AuthError::Unavailable(format!("the API server reviews no tokens: {cause}"))
        };
        match reviewed.await {
            Err(_) => Err(unavailable(format!("no answer in {TIMEOUT:?}"))),
            Ok(Err(error)) => Err(unavailable(error.to_string())),
            Ok(Ok(review)) => service_account(review.status.unwrap_or_default(), &self.namespace),
        }
    }

    fn recall(&self, hash: &[u8; 32]) -> Option<String> {
        let known = self.known();
        let (account, until) = known.get(hash)?;
        (*until > Instant::now()).then(|| account.clone())
    }

    fn remember(&self, hash: [u8; 32], account: String) {
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= KNOWN_LIMIT {
            known.retain(|_, (_, until)| *until > now);
        }
        // Full of others: this one is reviewed again next time.
        if known.len() < KNOWN_LIMIT {
            known.insert(hash, (account, now + KNOWN_FOR));
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Fn(&str) -> Option<ObjectName> + Send + Sync + 'static> Authenticator for TokenReviewer<L> {
    async fn authenticate(&self, token: &str) -> Result<ObjectName, AuthError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let account = match self.recall(&hash) {
            Some(account) => account,
            None => {
                let account = self.review(token).await?;
                self.remember(hash, account.clone());
                account
            }
        };
        // Asked each time: Gateways come and go faster than tokens.
        (self.gateway_of)(&account).ok_or_else(|| {
            AuthError::Stranger(format!(
                "ServiceAccount {}/{account} belongs to no Gateway",
                self.namespace
            ))
        })
    }
}

/// The name of the ServiceAccount in `namespace` that the API server says the token is of.
fn service_account(status: TokenReviewStatus, namespace: &str) -> Result<String, AuthError> {
    let invalid = |cause: String| Err(AuthError::Invalid(cause));
    if status.authenticated != Some(true) {
        return invalid(
            status
                .error
                .unwrap_or_else(|| "the API server does not know it".into()),
        );
    }
    // An API server that passes audiences over would take a token for anything.
    if !status
        .audiences
        .is_some_and(|audiences| audiences.iter().any(|one| one == AUDIENCE))
    {
        return invalid(format!("it is not for the audience {AUDIENCE}"));
    }
    let user = status
        .user
        .and_then(|user| user.username)
        .unwrap_or_default();
    let prefix = format!("system:serviceaccount:{namespace}:");
    match user.strip_prefix(&prefix) {
        Some(account) if !account.is_empty() => Ok(account.into()),
        _ => Err(AuthError::Stranger(format!(
            "{user} is no ServiceAccount in {namespace}"
        ))),
    }
}

impl<L> fmt::Debug for TokenReviewer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviewer")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
