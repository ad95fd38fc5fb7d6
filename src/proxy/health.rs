//! Health checks of endpoints: whether each can be used, found out by trying.
//!
//! ```text
//!   member with a check ─→ its task: try, wait, try … ─→ Tally ─→ changed? ─→ Standing (who is drawn)
//!                                                                          └─→ NodeReport, log, metrics
//! ```
//! There is one task for each name, whoever uses the endpoint. It ends with the snapshot that wants it.

mod probe;

use super::{backend_tls::Link, balance::below, connection::Context};
use crate::{
    model::{Health, HealthCheck, Member, Snapshot},
    tailnet::Node,
};
use probe::{Failure, Prober};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

/// The checks of a snapshot. Dropping them ends them.
#[derive(Debug, Default)]
pub(super) struct Checks {
    by_name: BTreeMap<String, Running>,
    found: Arc<watch::Sender<BTreeMap<String, Health>>>,
}

/// A check that is made.
#[derive(Debug)]
struct Running {
    member: Member,
    standing: Arc<Standing>,
    task: Option<JoinHandle<()>>,
}

/// Whether an endpoint is to be left out.
#[derive(Debug, Default)]
pub(super) struct Standing(AtomicBool);

/// Tries in a row, and what they amount to.
#[derive(Debug)]
struct Tally {
    healthy_threshold: u32,
    unhealthy_threshold: u32,
    /// `None`: nothing is known yet.
    health: Option<Health>,
    good: u32,
    failed: u32,
}

/// Where the outcome of a check goes.
struct Outlet {
    name: String,
    standing: Arc<Standing>,
    found: Arc<watch::Sender<BTreeMap<String, Health>>>,
    context: Arc<Context>,
}

/// Longest time until the first try: many that begin at once spread out.
const FIRST: Duration = Duration::from_secs(1);

// === impl Checks ===

impl Checks {
    /// Makes the checks of a snapshot from now on. `node`: from which those in a tailnet are tried.
    pub(super) fn follow(
        &mut self,
        snapshot: &Snapshot,
        context: &Arc<Context>,
        node: Option<&Node>,
    ) {
        let members = snapshot.backends.values().flat_map(|of| &of.members);
        let wanted: BTreeMap<_, _> = members
            .filter(|member| member.check.is_some())
            .map(|member| (member.name.as_str(), member))
            .collect();
        let gone = self
            .by_name
            .extract_if(.., |name, _| !wanted.contains_key(name.as_str()));
        for (name, _) in gone.collect::<Vec<_>>() {
            self.forget(&name, context);
        }
        for (name, member) in wanted {
            let before = self.by_name.get(name);
            if before.is_some_and(|before| before.is_for(member)) {
                continue;
            }
            let same_place = before.filter(|before| {
                before.member.endpoint == member.endpoint && before.member.tls == member.tls
            });
            let standing = same_place.map(|before| Arc::clone(&before.standing));
            if standing.is_none() {
                self.forget(name, context);
            }
            let standing = standing.unwrap_or_default();
            let running = self.start(member, standing, context, node);
            self.by_name.insert(name.to_owned(), running);
        }
    }

    fn start(
        &self,
        member: &Member,
        standing: Arc<Standing>,
        context: &Arc<Context>,
        node: Option<&Node>,
    ) -> Running {
        let outlet = Outlet {
            name: member.name.clone(),
            standing: Arc::clone(&standing),
            found: Arc::clone(&self.found),
            context: Arc::clone(context),
        };
        let known = self.found.borrow().get(&member.name).cloned();
        let task = member.check.clone().map(|check| {
            let prober = Prober {
                endpoint: member.endpoint.clone(),
                link: Link::new(&member.name, member.tls.as_ref(), None),
                node: node.cloned(),
                probe: check.probe.clone(),
                timeout: check.timeout,
            };
            let tally = Tally::new(&check, known);
            tokio::spawn(async move {
                run(check.interval, tally, &outlet, async || {
                    prober.attempt().await
                })
                .await;
            })
        });
        Running {
            member: member.clone(),
            standing,
            task,
        }
    }

    fn forget(&self, name: &str, context: &Context) {
        self.found
            .send_if_modified(|found| found.remove(name).is_some());
        context.metrics.forget_health(&context.gateway, name);
    }

    /// The endpoint's, if it is checked.
    pub(super) fn standing(&self, name: &str) -> Option<Arc<Standing>> {
        let running = self.by_name.get(name)?;
        Some(Arc::clone(&running.standing))
    }

    /// What is known of all that are checked, and each change of it.
    pub(super) fn watch(&self) -> watch::Receiver<BTreeMap<String, Health>> {
        self.found.subscribe()
    }
}

impl Running {
    fn is_for(&self, member: &Member) -> bool {
        self.member.endpoint == member.endpoint
            && self.member.tls == member.tls
            && self.member.check == member.check
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Tries for ever.
async fn run<F>(interval: Duration, mut tally: Tally, outlet: &Outlet, attempt: impl Fn() -> F)
where
    F: Future<Output = Result<(), Failure>>,
{
    tokio::time::sleep(part(FIRST.min(interval))).await;
    loop {
        let outcome = match attempt().await {
            Ok(()) => Some(Ok(())),
            Err(Failure::Failed(reason)) => Some(Err(reason)),
            // Nothing that speaks of the endpoint.
            Err(Failure::NoTailnet) => None,
        };
        if let Some(outcome) = outcome {
            outlet.count(outcome.is_ok());
            if let Some(health) = tally.take(outcome) {
                outlet.tell(health);
            }
        }
        // Up to a tenth more or less, so that checks that began together do not stay so.
        let tenth = interval / 10;
        tokio::time::sleep(part(tenth * 2) + (interval - tenth)).await;
    }
}

/// Some of a time, at random.
fn part(of: Duration) -> Duration {
    of.mul_f64(below(1001) as f64 / 1000.0)
}

// === impl Standing ===

impl Standing {
    pub(super) fn is_unhealthy(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Tally ===

impl Tally {
    fn new(check: &HealthCheck, known: Option<Health>) -> Self {
        Self {
            healthy_threshold: check.healthy_threshold,
            unhealthy_threshold: check.unhealthy_threshold,
            health: known,
            good: 0,
            failed: 0,
        }
    }

    /// Counts a try, and says what is new. The first good one is enough where nothing is known.
    fn take(&mut self, outcome: Result<(), String>) -> Option<Health> {
        let health = match outcome {
            Ok(()) => {
                (self.good, self.failed) = (self.good.saturating_add(1), 0);
                let enough = self.health.is_none() || self.good >= self.healthy_threshold;
                enough.then_some(Health::Healthy)?
            }
            Err(reason) => {
                (self.good, self.failed) = (0, self.failed.saturating_add(1));
                let was_so = matches!(self.health, Some(Health::Unhealthy { .. }));
                let enough = was_so || self.failed >= self.unhealthy_threshold;
                enough.then_some(Health::Unhealthy { reason })?
            }
        };
        if self.health.as_ref() == Some(&health) {
            return None;
        }
        self.health = Some(health.clone());
        Some(health)
    }
}

// === impl Outlet ===

impl Outlet {
    fn count(&self, is_good: bool) {
        let Context {
            gateway, metrics, ..
        } = &*self.context;
        metrics.health_check(gateway, &self.name, is_good);
    }

    fn tell(&self, health: Health) {
        let Context {
            gateway, metrics, ..
        } = &*self.context;
        let endpoint = &self.name;
        match &health {
            Health::Healthy => tracing::info!(gateway, endpoint, "the endpoint is healthy"),
            Health::Unhealthy { reason } => {
                tracing::warn!(gateway, endpoint, reason, "the endpoint is unhealthy");
            }
        }
        let is_unhealthy = health != Health::Healthy;
        self.standing.0.store(is_unhealthy, Ordering::Relaxed);
        metrics.health(gateway, endpoint, !is_unhealthy);
        self.found.send_modify(|found| {
            found.insert(endpoint.clone(), health);
        });
    }
}

#[cfg(test)]
mod tests;
