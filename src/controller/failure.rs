//! Why a step was not taken, and when it is tried again.

use crate::tailnet::api::ApiError;
use std::time::Duration;

/// What can go wrong with the objects and the nodes of a workload.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{kind} {name} cannot be written: {error}")]
    Write {
        kind: String,
        name: String,
        error: kube::Error,
    },
    #[error("the Tailscale API: {0}")]
    Api(#[from] ApiError),
    #[error("the Gateway has changed meanwhile")]
    Outdated,
}

pub(super) const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

// === impl Failure ===

impl Failure {
    pub(super) fn write(kind: &str, name: &str, error: kube::Error) -> Self {
        Self::Write {
            kind: kind.into(),
            name: name.into(),
            error,
        }
    }

    /// How long to wait after it, when so many came before it without a success between.
    pub(super) fn wait(&self, before: u32) -> Duration {
        let asked = match self {
            Self::Api(error) => error.retry_after(),
            _ => None,
        };
        match asked {
            Some(asked) => asked.max(FIRST_RETRY),
            None => (FIRST_RETRY * 2u32.saturating_pow(before)).min(LAST_RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_waits_longer_and_what_the_api_asks_for_goes_before() {
        let waits = [0, 1, 5, 6, u32::MAX].map(|before| Failure::Outdated.wait(before).as_secs());
        assert_eq!(waits, [1, 2, 32, 60, 60]);
        let asked = [0, 90].map(|seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let failure = Failure::Api(ApiError::RateLimited { retry_after });
            failure.wait(3).as_secs()
        });
        assert_eq!(asked, [1, 90]);
    }
}
