use hyper::StatusCode;
use std::time::Duration;

/// What can go wrong with Tailscale's API. No message holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The settings cannot be used, whatever the API would say.
    #[error("{0}")]
    Settings(String),
    /// The identity token of this workload could not be had.
    #[error(
        "the identity token for Tailscale's API cannot be read: {0}; mount a projected ServiceAccount token with the audience of the federated identity"
    )]
    IdentityToken(String),
    /// The API does not know the credential.
    #[error(
        "Tailscale's API does not accept the credential ({message}): it is wrong, or was revoked; \
         make a new one with the scopes auth_keys and devices:core at \
         https://login.tailscale.com/admin/settings/trust-credentials"
    )]
    Credentials { message: String },
    /// The API knows no federated identity that fits the identity token.
    #[error(
        "Tailscale's API does not accept the identity token of this workload ({message}): compare \
         its issuer, subject and audience, and the client id, with those of the federated identity \
         at https://login.tailscale.com/admin/settings/trust-credentials"
    )]
    FederatedIdentity { message: String },
    /// The credential may not do what tailway needs.
    #[error(
        "the credential for Tailscale's API lacks the scope {scope}: give it {scope} with write \
         access, at https://login.tailscale.com/admin/settings/trust-credentials"
    )]
    MissingScope { scope: &'static str },
    /// The credential may not give the tags to a node.
    #[error(
        "Tailscale's API does not let the credential give these tags ({message}): choose exactly \
         the tags of the credential, or let one of them own the others in tagOwners of the policy \
         file, https://login.tailscale.com/admin/acls/file"
    )]
    Tags { message: String },
    /// The API has no such tailnet, or does not show it to the credential.
    #[error(
        "Tailscale's API knows no tailnet {tailnet} ({message}): correct the name, or use - for the \
         tailnet of the credential"
    )]
    Tailnet { tailnet: String, message: String },
    /// No answer: the network, a name, TLS, or nothing within the time.
    #[error(
        "Tailscale's API at {url} cannot be reached: {reason}; check the API URL, DNS and egress \
         from here"
    )]
    Unreachable { url: String, reason: String },
    /// The API asks to be left alone for a while.
    #[error("Tailscale's API limits the rate of requests{}", after(*retry_after))]
    RateLimited { retry_after: Option<Duration> },
    /// Any other refusal or failure of the API.
    #[error(
        "Tailscale's API answered {operation} with status {status}: {message}{}",
        after(*retry_after)
    )]
    Refused {
        operation: &'static str,
        status: StatusCode,
        message: String,
        retry_after: Option<Duration>,
    },
    /// An answer that is not the API's.
    #[error(
        "the answer of Tailscale's API to {operation} cannot be used: {reason}; check that the \
         API URL is Tailscale's or that of a compatible server"
    )]
    Answer {
        operation: &'static str,
        reason: String,
    },
}

// === impl ApiError ===

impl ApiError {
    /// How long the API asks to be left alone, when it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::RateLimited { .. } => true,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Settings(_)
            | Self::IdentityToken(_)
            | Self::Credentials { .. }
            | Self::FederatedIdentity { .. }
            | Self::MissingScope { .. }
            | Self::Tags { .. }
            | Self::Tailnet { .. }
            | Self::Answer { .. } => false,
        }
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

fn after(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |time| {
        format!("; it asks to be asked again in {} s", time.as_secs())
    })
}
