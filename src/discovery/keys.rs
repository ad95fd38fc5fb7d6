//! Auth keys for nodes without identity: few, and told apart from all else that is sent.

use crate::{model::ObjectName, tailnet::Secret};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Who makes auth keys.
pub trait KeyMinter: Send + Sync + 'static {
    /// A key that lets the node of this Gateway into its tailnet, once. `Err` says, for a person,
    /// why there is none and what to do.
    fn mint(&self, gateway: &ObjectName) -> impl Future<Output = Result<Secret, String>> + Send;
}

/// When the next key of each Gateway may be asked for, whichever pod asks.
#[derive(Debug, Default)]
pub(super) struct Keys {
    next: Mutex<BTreeMap<ObjectName, Instant>>,
}

/// A node that joined needs no further key; one that asks again so soon is in a loop.
const INTERVAL: Duration = Duration::from_secs(60);

/// After a failure, which made no key.
const RETRY: Duration = Duration::from_secs(15);

// === impl Keys ===

impl Keys {
    /// Takes the turn of a Gateway. `Err` says how long there is none.
    pub(super) fn take_turn(&self, gateway: &ObjectName) -> Result<(), Duration> {
        let now = Instant::now();
        let mut next = self.next();
        next.retain(|_, at| *at > now);
        if let Some(at) = next.get(gateway) {
            return Err(*at - now);
        }
        next.insert(gateway.clone(), now + INTERVAL);
        Ok(())
    }

    /// Says that a turn made no key, and how long it takes to the next.
    pub(super) fn failed(&self, gateway: &ObjectName) -> Duration {
        self.next().insert(gateway.clone(), Instant::now() + RETRY);
        RETRY
    }

    fn next(&self) -> std::sync::MutexGuard<'_, BTreeMap<ObjectName, Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gateway_has_one_turn_a_minute_and_a_failure_gives_it_back_earlier() {
        let keys = Keys::default();
        let (one, other) = (ObjectName::new("a", "one"), ObjectName::new("a", "other"));
        assert_eq!(keys.take_turn(&one), Ok(()));
        assert_eq!(keys.take_turn(&one), Err(INTERVAL));
        assert_eq!(keys.take_turn(&other), Ok(()));
        tokio::time::advance(INTERVAL).await;
        assert_eq!(keys.take_turn(&one), Ok(()));
        assert_eq!(keys.failed(&one), RETRY);
        tokio::time::advance(RETRY / 3).await;
        assert_eq!(keys.take_turn(&one), Err(RETRY * 2 / 3));
        tokio::time::advance(RETRY).await;
        assert_eq!(keys.take_turn(&one), Ok(()));
    }
}
