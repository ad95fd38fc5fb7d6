//! Asks pods why they are not ready: what keeps a pod from writing its report keeps it from saying
//! so in there, such as a Role that was taken away, and what is there may be of an earlier pod.

use crate::model::ObjectName;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{StatusCode, Uri, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};

/// A pod of a Gateway, by name.
pub(super) type PodKey = (ObjectName, String);

/// What is next for who follows the pods.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// To say which pods are to be asked.
    Ask,
    /// A pod gave this reason.
    Answer(PodKey, String),
}

pub(super) struct Inquiry {
    client: Client<HttpConnector, Empty<Bytes>>,
    ticks: Interval,
    answers: JoinSet<Option<(PodKey, String)>>,
    permits: Arc<Semaphore>,
    /// Who was to be asked at the last turn.
    before: BTreeSet<PodKey>,
}

/// Between two turns. A pod is asked from its second turn on: most get ready before.
const PERIOD: Duration = Duration::from_secs(5);

/// For an answer, which needs no work, but a pod has little of a busy processor.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pods that are asked at a time.
const CONCURRENCY: usize = 16;

/// The longest answer, in bytes.
const LONGEST: usize = 2048;

// === impl Inquiry ===

impl Inquiry {
    pub(super) fn new() -> Self {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build_http(),
            ticks,
            answers: JoinSet::new(),
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
            before: BTreeSet::new(),
        }
    }

    /// Loses nothing when it is dropped.
    pub(super) async fn next(&mut self) -> Turn {
        loop {
            tokio::select! {
                Some(answered) = self.answers.join_next() => {
                    if let Ok(Some((pod, reason))) = answered {
                        return Turn::Answer(pod, reason);
                    }
                }
                _ = self.ticks.tick() => return Turn::Ask,
            }
        }
    }

    /// Asks those of these pods, with the addresses of their admin pages, that were among them at
    /// the last turn, too.
    pub(super) fn ask(&mut self, pods: BTreeMap<PodKey, SocketAddr>) {
        if self.answers.is_empty() {
            for (pod, address) in &pods {
                if !self.before.contains(pod) {
                    continue;
                }
                let (pod, address) = (pod.clone(), *address);
                let (client, permits) = (self.client.clone(), Arc::clone(&self.permits));
                self.answers.spawn(async move {
                    // The semaphore is never closed.
                    let _permit = permits.acquire().await;
                    let asked = tokio::time::timeout(PATIENCE, reason(&client, address)).await;
                    asked.ok().flatten().map(|reason| (pod, reason))
                });
            }
        }
        self.before = pods.into_keys().collect();
    }
}

/// Why a pod is not ready; `None` when it is, or does not say.
async fn reason(
    client: &Client<HttpConnector, Empty<Bytes>>,
    address: SocketAddr,
) -> Option<String> {
    let uri: Uri = format!("http://{address}/readyz").parse().ok()?;
    let response = client.get(uri).await.ok()?;
    if response.status() != StatusCode::SERVICE_UNAVAILABLE {
        return None;
    }
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let text = String::from_utf8_lossy(&body.ok()?.to_bytes())
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    async fn pod(status: &'static str, body: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = connection.read(&mut request).await;
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn key(name: &str) -> PodKey {
        (ObjectName::new("web", name), format!("{name}-web-0"))
    }

    #[tokio::test]
    async fn a_pod_that_stays_unready_is_asked_why_and_others_are_not_told_of() {
        let unready = pod("503 Service Unavailable", "no way to the controller\n").await;
        let ready = pod("200 OK", "ready\n").await;
        let pods = BTreeMap::from([(key("a"), ready), (key("b"), unready)]);
        let mut inquiry = Inquiry::new();
        assert_eq!(inquiry.next().await, Turn::Ask);
        inquiry.ask(pods.clone());
        assert!(inquiry.answers.is_empty());
        inquiry.ask(pods);
        let expected = Turn::Answer(key("b"), "no way to the controller".into());
        assert_eq!(inquiry.next().await, expected);
    }
}
