//! The tailnet's certificate for a node: whether one is wanted, and keeping it.

use super::{IssueError, Issuer, Schedule, TailnetCertificate};
use crate::{
    model::{Certificate, Port, Snapshot, TlsListener},
    tailnet::{self, Node, Status},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// How long an ACME exchange may take; an issuer that limits answers much sooner.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(180);

fn tls_listeners(snapshot: &Snapshot) -> impl Iterator<Item = &TlsListener> {
    snapshot.ports.values().flat_map(|port| match port {
        Port::Tcp(_) | Port::Http(_) => &[][..],
        Port::Tls(listeners) => listeners,
    })
}

/// Whether clients of the node's name are meant by a listener that serves its certificate.
pub(super) fn wants_tailnet_certificate(snapshot: &Snapshot, name: &str) -> bool {
    tls_listeners(snapshot).any(|listener| {
        let termination = listener.termination();
        let serves = termination.is_some_and(|termination| termination.certificates.tailnet);
        serves && is_for(listener, name)
    })
}

fn is_for(listener: &TlsListener, name: &str) -> bool {
    listener
        .hostname
        .as_ref()
        .is_none_or(|hostname| hostname.matches(name))
}

/// A certificate that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    domain: String,
    /// Whether the tailnet says that it can be had.
    promised: bool,
}

impl Wish {
    fn of(status: &Status, snapshot: &Snapshot) -> Option<Self> {
        let name = &status.dns_name;
        let is_wanted =
            status.is_running() && !name.is_empty() && wants_tailnet_certificate(snapshot, name);
        is_wanted.then(|| Self {
            domain: name.clone(),
            promised: status.cert_domains.contains(name),
        })
    }
}

/// Keeps the certificate of the node's name while a listener wants it.
pub(super) struct Renewal {
    wish: watch::Sender<Option<Wish>>,
    task: JoinHandle<()>,
}

impl Renewal {
    pub(super) fn start(
        node: Node,
        certificate: Arc<TailnetCertificate>,
        schedule: Schedule,
    ) -> Self {
        let (wish, mut wishes) = watch::channel::<Option<Wish>>(None);
        let task = tokio::spawn(async move {
            loop {
                let wish = wishes.borrow_and_update().clone();
                let maintain = async {
                    match &wish {
                        Some(wish) => certificate.maintain(&wish.domain, &node, &schedule).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = maintain => {}
                    changed = wishes.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { wish, task }
    }

    /// Tells what is wanted; a change starts over at once, also after failures: what kept the
    /// certificate from being issued may be what changed.
    pub(super) fn tell(&self, status: &Status, snapshot: &Snapshot) {
        let wish = Wish::of(status, snapshot);
        self.wish.send_if_modified(|current| {
            // Without the tailnet for a moment, the name stays what it was.
            let changed = wish.is_some() && *current != wish;
            if changed {
                *current = wish;
            }
            changed
        });
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer for Node {
    async fn issue(&self, domain: &str, min_validity: Duration) -> Result<Certificate, IssueError> {
        let pem = self
            .certificate(domain, min_validity, ISSUE_TIMEOUT)
            .await
            .map_err(|error| {
                let retry_after = match &error {
                    tailnet::Error::Certificate { retry_after, .. } => *retry_after,
                    _ => None,
                };
                IssueError {
                    message: error.to_string(),
                    retry_after,
                    disabled: self
                        .status()
                        .is_ok_and(|status| status.is_running() && status.cert_domains.is_empty()),
                }
            })?;
        Certificate::from_pem(pem.as_bytes(), pem.as_bytes()).map_err(|error| IssueError {
            message: format!(
                "the tailnet gave a certificate for {domain} that cannot be used: {error}"
            ),
            retry_after: None,
            disabled: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Certificates, HttpOptions, NodeName, NodeSpec, ObjectName, Role, Termination, TlsMode,
        TlsRoutes,
    };

    fn snapshot() -> Snapshot {
        let listener = TlsListener {
            name: "https".into(),
            hostname: None,
            mode: TlsMode::Terminate(Termination::new(
                Certificates {
                    tailnet: true,
                    secrets: Vec::new(),
                },
                TlsRoutes::all(None),
            )),
        };
        Snapshot {
            gateway: ObjectName::new("default", "web"),
            role: Role::Ingress,
            generation: 1,
            node: NodeSpec {
                name: NodeName::parse("web").unwrap(),
            },
            ports: [(443, Port::Tls(vec![listener]))].into(),
            udp_ports: [].into(),
            http_options: HttpOptions::default(),
            http_routes: [].into(),
            backends: [].into(),
        }
    }

    #[test]
    fn a_certificate_is_asked_for_again_when_the_tailnet_promises_it_at_last() {
        let name = "web.example.ts.net";
        let without_https = Status {
            state: "Running".into(),
            dns_name: name.into(),
            ips: vec![[100, 64, 0, 1].into()],
            ..Status::default()
        };
        let with_https = Status {
            cert_domains: vec![name.into()],
            ..without_https.clone()
        };
        let wish = |status: &Status| Wish::of(status, &snapshot()).unwrap();
        assert_ne!(wish(&without_https), wish(&with_https));
        let elsewhere = Status {
            health: vec!["the DERP server is slow".into()],
            ..with_https.clone()
        };
        assert_eq!(wish(&with_https), wish(&elsewhere));
    }
}
