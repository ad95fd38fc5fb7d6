//! The certificate that the tailnet issues for a node: obtained, renewed, swapped.

use crate::model::Certificate;
use arc_swap::ArcSwapOption;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// Who issues certificates for the node's names.
pub trait Issuer: Send + Sync + 'static {
    /// The certificate for `domain`: the stored one while it is valid for `min_validity` more
    /// (zero: until its renewal is due), else a new one.
    fn issue(
        &self,
        domain: &str,
        min_validity: Duration,
    ) -> impl Future<Output = Result<Certificate, IssueError>> + Send;
}

/// Why no certificate was issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IssueError {
    pub message: String,
    /// How long the issuer asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether the tailnet issues no certificates at all.
    pub disabled: bool,
}

/// The certificate of the tailnet for one node, and how it stands with it.
#[derive(Debug, Default)]
pub struct TailnetCertificate {
    domain: ArcSwapOption<String>,
    current: ArcSwapOption<Certificate>,
    state: watch::Sender<CertificateState>,
}

/// How it stands with a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateState {
    /// When the certificate that is served expires; `None` while there is none.
    pub expires: Option<SystemTime>,
    /// Why the last try failed; empty when it did not.
    pub error: String,
    /// Until when the issuer asks to be left alone, when it does.
    pub limited_until: Option<SystemTime>,
    /// Whether the tailnet issued no certificates at all then.
    pub disabled: bool,
}

/// How often a certificate is looked at, and how long the issuer is left alone after the first,
/// second, … failure in a row.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub check: Duration,
    pub retries: Vec<Duration>,
}

impl Default for Schedule {
    /// Hourly; after failures such that an ACME server's limit of five an hour (Let's Encrypt,
    /// failed validations) is not met.
    fn default() -> Self {
        Self {
            check: Duration::from_secs(3600),
            retries: [10, 60, 600, 6_000, 86_400].map(Duration::from_secs).into(),
        }
    }
}

// === impl TailnetCertificate ===

impl TailnetCertificate {
    pub fn current(&self) -> Option<Arc<Certificate>> {
        self.current.load_full()
    }

    /// Whether this is the name that the certificate is or will be for.
    pub fn is_for(&self, name: &str) -> bool {
        self.domain
            .load()
            .as_ref()
            .is_some_and(|domain| domain.eq_ignore_ascii_case(name))
    }

    pub fn watch(&self) -> watch::Receiver<CertificateState> {
        self.state.subscribe()
    }

    /// Keeps a certificate for `domain`, for ever. The one there is stays in use on errors.
    pub async fn maintain(&self, domain: &str, issuer: &impl Issuer, schedule: &Schedule) {
        self.domain.store(Some(Arc::new(domain.to_owned())));
        if self
            .current()
            .is_some_and(|current| !current.covers(domain))
        {
            self.current.store(None);
            self.state.send_replace(CertificateState::default());
        }
        let mut failures = 0;
        loop {
            let wait = match issuer.issue(domain, self.min_validity()).await {
                Ok(certificate) => {
                    failures = 0;
                    self.accept(domain, certificate);
                    jitter(schedule.check)
                }
                Err(error) => {
                    let wait = error
                        .retry_after
                        .unwrap_or_else(|| jitter(schedule.retry(failures)));
                    failures += 1;
                    tracing::warn!(domain, %error, retry_in = ?wait, "no certificate");
                    self.state.send_modify(|state| {
                        state.limited_until =
                            error.retry_after.map(|wait| SystemTime::now() + wait);
                        state.disabled = error.disabled;
                        state.error = error.message;
                    });
                    wait
                }
            };
            // An issuer that says "now" is not asked in a tight loop.
            tokio::time::sleep(wait.max(Duration::from_secs(1))).await;
        }
    }

    /// Renewal in the background is enough until a tenth of the lifetime is left; from then on an
    /// error has to show.
    fn min_validity(&self) -> Duration {
        let Some(current) = self.current() else {
            return Duration::ZERO;
        };
        let lifetime = current
            .not_after()
            .duration_since(current.not_before())
            .unwrap_or_default();
        let left = current
            .not_after()
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if left < lifetime / 10 {
            lifetime / 10
        } else {
            Duration::ZERO
        }
    }

    fn accept(&self, domain: &str, certificate: Certificate) {
        let expires = Some(certificate.not_after());
        let before = self.current();
        if before.as_deref() != Some(&certificate) {
            let serial = certificate.serial();
            match before {
                None => tracing::info!(domain, serial, "certificate ready"),
                Some(_) => tracing::info!(domain, serial, "certificate renewed"),
            }
            self.current.store(Some(Arc::new(certificate)));
        }
        self.state.send_if_modified(|state| {
            let fresh = CertificateState {
                expires,
                ..CertificateState::default()
            };
            let changed = *state != fresh;
            *state = fresh;
            changed
        });
    }
}

impl Schedule {
    fn retry(&self, failures: usize) -> Duration {
        self.retries
            .get(failures)
            .or(self.retries.last())
            .copied()
            .unwrap_or(self.check)
    }
}

/// Up to a tenth more, so that many nodes do not ask at once.
fn jitter(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let tenth = u64::try_from(wait.as_millis() / 10).unwrap_or(u64::MAX);
    wait + Duration::from_millis(RandomState::new().hash_one(wait) % (tenth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::time::Instant;

    fn certificate(name: &str) -> Certificate {
        let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (chain, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    /// Answers what it was given, in order, and notes when it was asked.
    struct Script {
        answers: Mutex<Vec<Result<Certificate, IssueError>>>,
        asked: Mutex<Vec<Duration>>,
        started: Instant,
    }

    impl Script {
        fn new(mut answers: Vec<Result<Certificate, IssueError>>) -> Self {
            answers.reverse();
            Self {
                answers: answers.into(),
                asked: Mutex::default(),
                started: Instant::now(),
            }
        }

        fn asked_seconds(&self) -> Vec<u64> {
            self.asked
                .lock()
                .unwrap()
                .iter()
                .map(Duration::as_secs)
                .collect()
        }
    }

    impl Issuer for Script {
        async fn issue(&self, _: &str, _: Duration) -> Result<Certificate, IssueError> {
            self.asked.lock().unwrap().push(self.started.elapsed());
            let answer = self.answers.lock().unwrap().pop();
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    fn error(retry_after: Option<u64>) -> Result<Certificate, IssueError> {
        Err(IssueError {
            message: "no".into(),
            retry_after: retry_after.map(Duration::from_secs),
            disabled: false,
        })
    }

    async fn run(script: &Script, store: &TailnetCertificate) {
        let schedule = Schedule::default();
        let maintain = store.maintain("a.example", script, &schedule);
        // The script ends in an answer that never comes.
        let _ = tokio::time::timeout(Duration::from_secs(1_000_000), maintain).await;
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_ever_more_rarely() {
        let script = Script::new(vec![error(None), error(None), error(None)]);
        run(&script, &TailnetCertificate::default()).await;
        let asked = script.asked_seconds();
        assert_eq!(asked.len(), 4);
        for (at, (from, to)) in asked.iter().zip([(0, 0), (10, 11), (70, 77), (670, 737)]) {
            assert!((from..=to).contains(at), "{asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_the_issuer_names_is_kept() {
        let script = Script::new(vec![error(Some(1234)), Ok(certificate("a.example"))]);
        let store = TailnetCertificate::default();
        run(&script, &store).await;
        assert_eq!(script.asked_seconds()[..2], [0, 1234]);
        assert_eq!(store.watch().borrow().error, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_stays_in_use_when_its_renewal_fails_and_is_swapped_when_it_succeeds() {
        let (first, second) = (certificate("a.example"), certificate("a.example"));
        let store = TailnetCertificate::default();
        run(&Script::new(vec![Ok(first.clone()), error(None)]), &store).await;
        assert_eq!(store.current().as_deref(), Some(&first));
        assert_eq!(store.watch().borrow().error, "no");
        run(&Script::new(vec![Ok(second.clone())]), &store).await;
        assert_eq!(store.current().as_deref(), Some(&second));
        assert_eq!(
            *store.watch().borrow(),
            CertificateState {
                expires: Some(second.not_after()),
                ..CertificateState::default()
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_for_another_name_is_dropped_when_the_node_is_renamed() {
        let store = TailnetCertificate::default();
        run(&Script::new(vec![Ok(certificate("b.example"))]), &store).await;
        run(&Script::new(vec![]), &store).await;
        assert_eq!(store.current(), None);
        assert!(store.is_for("A.example"));
    }
}
