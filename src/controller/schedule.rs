use crate::model::ObjectName;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// When something is to be done for each name, the soonest first.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    times: BTreeMap<ObjectName, Instant>,
    order: BTreeSet<(Instant, ObjectName)>,
}

impl Schedule {
    /// Replaces the time of a name; `None`: nothing is to be done.
    pub(super) fn set(&mut self, name: &ObjectName, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.times.insert(name.clone(), at),
            None => self.times.remove(name),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, name.clone()));
        }
        self.order.extend(at.map(|at| (at, name.clone())));
    }

    /// The soonest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    /// Takes out what is due.
    pub(super) fn take_due(&mut self, now: Instant) -> BTreeSet<ObjectName> {
        let mut due = BTreeSet::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some((_, name)) = self.order.pop_first() else {
                break;
            };
            self.times.remove(&name);
            due.insert(name);
        }
        due
    }
}

/// Waits until then; for ever, when there is no time.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_due_is_taken_once_and_at_the_time_that_was_set_last() {
        let name = |name: &str| ObjectName::new("x", name);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::default();
        schedule.set(&name("soon"), Some(now));
        schedule.set(&name("put-off"), Some(now));
        schedule.set(&name("put-off"), Some(later));
        schedule.set(&name("dropped"), Some(now));
        schedule.set(&name("dropped"), None);
        assert_eq!((schedule.next(), schedule.len()), (Some(now), 2));
        assert_eq!(schedule.take_due(now), [name("soon")].into());
        assert_eq!(schedule.take_due(now), BTreeSet::new());
        assert_eq!((schedule.next(), schedule.len()), (Some(later), 1));
    }
}
