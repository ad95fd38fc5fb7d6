//! What is written on a TailscaleEgressSet of how it was served, and when one has to be translated
//! again. Envoy Gateway does so only when something that it watches changes.

use super::{plan::Served, set::EgressSet};
use crate::model::ObjectName;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Who counts `spec.resync` up.
pub const FIELD_MANAGER: &str = "tailway-extension";

/// How a set was last served: the content of [`SERVED_ANNOTATION`](crate::api::SERVED_ANNOTATION).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    pub revision: String,
    pub resync: i64,
    /// When it was first served like this (RFC 3339).
    pub at: String,
    /// Of all services that were left out, the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<RecordedSkip>,
    /// How many more there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_skipped: usize,
}

/// A service that was left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecordedSkip {
    pub service: String,
    /// `namespace/name` of its TailscaleEndpoints.
    pub source: String,
    pub reason: String,
    pub message: String,
}

/// A set as it is in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SeenSet {
    pub(super) set: EgressSet,
    pub(super) record: Option<Record>,
    pub(super) resource_version: String,
}

/// All annotations of an object have 256 KiB together.
const MOST_SKIPPED: usize = 200;
const LONGEST_MESSAGE: usize = 256;

/// How long a set may go without being served as it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same after many tries: most likely nobody asks for it at all.
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it like this"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Record {
    pub fn new(served: &Served, at: String) -> Self {
        let skipped = served.skipped.iter().take(MOST_SKIPPED);
        let recorded = skipped.map(|one| RecordedSkip {
            service: one.service.clone(),
            source: one.source.clone(),
            reason: one.refusal.reason().into(),
            message: one
                .refusal
                .to_string()
                .chars()
                .take(LONGEST_MESSAGE)
                .collect(),
        });
        Self {
            revision: served.revision.clone(),
            resync: served.resync,
            at,
            skipped: recorded.collect(),
            more_skipped: served.skipped.len().saturating_sub(MOST_SKIPPED),
        }
    }

    /// Whether both say the same, whenever it was.
    pub fn says(&self, other: &Self) -> bool {
        let (mut one, mut other) = (self.clone(), other.clone());
        one.at.clear();
        other.at.clear();
        one == other
    }
}

/// Finds sets that have to be translated again.
#[derive(Debug, Default)]
pub(super) struct Resyncs {
    /// Whether each set was asked for once after the start: calls may have failed before it, and
    /// Envoy Gateway does not make them again.
    started: bool,
    waiting: BTreeMap<ObjectName, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    revision: String,
    resync: i64,
    since: Instant,
    /// How often it was counted up in vain.
    tries: u32,
}

impl Resyncs {
    /// The sets whose `spec.resync` is to be counted up now.
    pub(super) fn due<'a>(
        &mut self,
        now: Instant,
        sets: impl IntoIterator<Item = &'a SeenSet>,
    ) -> Vec<ObjectName> {
        let first = !std::mem::replace(&mut self.started, true);
        let mut before = std::mem::take(&mut self.waiting);
        let mut due = Vec::new();
        for seen in sets {
            let name = seen.set.name.clone();
            let waiting = Waiting::next(before.remove(&name), now, seen);
            let is_due = match &waiting {
                Some(waiting) => now.duration_since(waiting.since) >= waiting.patience(),
                None => false,
            };
            if first || is_due {
                due.push(name.clone());
            }
            if let Some(waiting) = waiting {
                let since = if is_due { now } else { waiting.since };
                self.waiting.insert(name, Waiting { since, ..waiting });
            }
        }
        due
    }
}

impl Waiting {
    /// `None` when the set is served as it is.
    fn next(before: Option<Self>, now: Instant, seen: &SeenSet) -> Option<Self> {
        let EgressSet {
            revision, resync, ..
        } = &seen.set;
        let record = seen.record.as_ref();
        if record.is_some_and(|one| one.revision == *revision && one.resync == *resync) {
            return None;
        }
        let tries = match before {
            Some(before) if before.revision == *revision && before.resync == *resync => {
                return Some(before);
            }
            Some(before) if before.revision == *revision => before.tries.saturating_add(1),
            _ => 0,
        };
        Some(Self {
            revision: revision.clone(),
            resync: *resync,
            since: now,
            tries,
        })
    }

    fn patience(&self) -> Duration {
        let factor = 1u32.checked_shl(self.tries).unwrap_or(u32::MAX);
        PATIENCE.saturating_mul(factor).min(LONGEST_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: &str, resync: i64, served: Option<(&str, i64)>) -> SeenSet {
        let name = ObjectName::new("default", "eg");
        SeenSet {
            set: EgressSet {
                gateway: name.clone(),
                name,
                revision: revision.into(),
                resync,
                services: Vec::new(),
                skipped: Vec::new(),
            },
            record: served.map(|(revision, resync)| Record {
                revision: revision.into(),
                resync,
                ..Record::default()
            }),
            resource_version: String::new(),
        }
    }

    /// Whether the set was due at each of these seconds.
    fn due(resyncs: &mut Resyncs, start: Instant, at: u64, set: &SeenSet) -> bool {
        !resyncs
            .due(start + Duration::from_secs(at), [set])
            .is_empty()
    }

    #[test]
    fn every_set_is_asked_for_once_after_the_start() {
        let (mut resyncs, start) = (Resyncs::default(), Instant::now());
        let served = seen("r1", 1, Some(("r1", 1)));
        assert!(due(&mut resyncs, start, 0, &served));
        for at in 1..1000 {
            assert!(!due(&mut resyncs, start, at, &served), "second {at}");
        }
    }

    #[test]
    fn a_set_that_is_not_served_as_it_is_is_asked_for_after_ten_seconds_and_then_ever_less() {
        let (mut resyncs, start) = (Resyncs::default(), Instant::now());
        resyncs.due(start, []);
        let mut set = seen("r2", 1, Some(("r1", 1)));
        let mut asked = Vec::new();
        for at in 0..1200 {
            if due(&mut resyncs, start, at, &set) {
                asked.push(at);
                set.set.resync += 1;
            }
        }
        // Seen a second later: 10, 20, 40, 80, 160, then 300 seconds.
        assert_eq!(asked, [10, 31, 72, 153, 314, 615, 916]);
        // Another revision is a new hope.
        set.set.revision = "r3".into();
        assert!(!due(&mut resyncs, start, 1200, &set));
        assert!(due(&mut resyncs, start, 1210, &set));
    }

    #[test]
    fn a_set_that_was_served_in_time_is_left_alone() {
        let (mut resyncs, start) = (Resyncs::default(), Instant::now());
        resyncs.due(start, []);
        assert!(!due(&mut resyncs, start, 0, &seen("r1", 1, None)));
        assert!(!due(&mut resyncs, start, 9, &seen("r1", 1, None)));
        assert!(!due(
            &mut resyncs,
            start,
            10,
            &seen("r1", 1, Some(("r1", 1)))
        ));
        assert!(!due(
            &mut resyncs,
            start,
            60,
            &seen("r1", 1, Some(("r1", 1)))
        ));
        // A refused patch is tried again.
        assert!(!due(&mut resyncs, start, 61, &seen("r2", 1, None)));
        assert!(due(&mut resyncs, start, 71, &seen("r2", 1, None)));
        assert!(!due(&mut resyncs, start, 80, &seen("r2", 1, None)));
        assert!(due(&mut resyncs, start, 81, &seen("r2", 1, None)));
    }

    #[test]
    fn a_record_is_the_same_whenever_it_was_made_and_never_too_long() {
        let skipped = |number: usize| super::super::set::Skipped {
            service: format!("service-{number}"),
            source: "default/endpoints".into(),
            refusal: super::super::refusal::Refusal::Target("x".repeat(1000)),
        };
        let served = Served {
            gateway: ObjectName::new("default", "eg"),
            revision: "r1".into(),
            resync: 2,
            services: Vec::new(),
            skipped: (0..5000).map(skipped).collect(),
        };
        let (one, other) = (
            Record::new(&served, "then".into()),
            Record::new(&served, "now".into()),
        );
        assert!(one.says(&other));
        assert_ne!(one, other);
        assert_eq!((one.skipped.len(), one.more_skipped), (200, 4800));
        assert!(serde_json::to_string(&one).unwrap().len() < 128 << 10);
    }
}
