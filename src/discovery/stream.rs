//! One pod's stream, as the controller sees it.
//!
//! Everything that is to be sent is kept as "due" until the client has room for it, so that a slow
//! client costs one message, and holds up nobody.

use super::{
    keys::KeyMinter,
    proto::{self, from_pod, to_pod},
    publisher::{Follower, Refusal},
    server::{Authenticator, Shared},
};
use crate::{drain::Drain, model::ObjectName, tailnet::Secret};
use std::{collections::BTreeMap, ops::ControlFlow, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status, Streaming};

pub(super) struct Pod<A, K> {
    shared: Arc<Shared<A, K>>,
    gateway: ObjectName,
    token: Secret,
    follower: Follower,
    connected: Instant,
    /// Hashes by id of what the pod holds once it has read what was sent.
    held: BTreeMap<String, Vec<u8>>,
    in_flight: Option<InFlight>,
    due: Due,
    minting: Option<Work<Result<Secret, String>>>,
    checking: Option<Work<Result<ObjectName, Status>>>,
    next_check: Instant,
}

/// What waits for room on the way to the pod.
struct Due {
    state: bool,
    key: Option<to_pod::Message>,
}

/// A push that has not been answered.
struct InFlight {
    version: String,
    /// When the pod could have been sent this at the earliest.
    since: Instant,
    /// When newer states are not held back any longer.
    until: Instant,
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Outbound = mpsc::Sender<Result<proto::ToPod, Status>>;

/// How long a client that reads nothing may keep the reason why the stream ends.
const FAREWELL: Duration = Duration::from_secs(1);

impl<A: Authenticator, K: KeyMinter> Pod<A, K> {
    pub(super) fn new(
        shared: Arc<Shared<A, K>>,
        gateway: ObjectName,
        token: Secret,
        follower: Follower,
        held: BTreeMap<String, Vec<u8>>,
    ) -> Self {
        let next_check = Instant::now() + shared.settings.recheck;
        Self {
            shared,
            gateway,
            token,
            follower,
            connected: Instant::now(),
            held,
            in_flight: None,
            due: Due {
                state: true,
                key: None,
            },
            minting: None,
            checking: None,
            next_check,
        }
    }

    /// Follows the Gateway until either side has enough.
    pub(super) async fn run(
        mut self,
        mut inbound: Streaming<proto::FromPod>,
        outbound: Outbound,
        drain: Drain,
    ) {
        let end = loop {
            tokio::select! {
                step = self.step(&mut inbound, &outbound) => {
                    if let ControlFlow::Break(end) = step {
                        break end;
                    }
                }
                () = drain.stopping() => {
                    break Some(Status::unavailable("the controller stops; connect again"));
                }
            }
        };
        if let Some(status) = end {
            // The client is gone, or reads nothing.
            let _ = tokio::time::timeout(FAREWELL, outbound.send(Err(status))).await;
        }
    }

    /// Waits for one thing to happen, and does what follows.
    async fn step(
        &mut self,
        inbound: &mut Streaming<proto::FromPod>,
        outbound: &Outbound,
    ) -> ControlFlow<Option<Status>> {
        let in_flight = self.in_flight.as_ref().map(|push| push.until);
        let something_due = self.due.key.is_some() || (self.due.state && in_flight.is_none());
        tokio::select! {
            message = inbound.message() => match message {
                Ok(Some(message)) => self.take(message),
                // The pod is gone.
                Ok(None) | Err(_) => return ControlFlow::Break(None),
            },
            permit = outbound.reserve(), if something_due => match permit {
                Ok(permit) => {
                    if let Some(message) = self.next() {
                        permit.send(Ok(proto::ToPod { message: Some(message) }));
                    }
                }
                Err(_) => return ControlFlow::Break(None),
            },
            changed = self.follower.state.changed() => match changed {
                Ok(()) => self.due.state = true,
                Err(_) => return ControlFlow::Break(None),
            },
            minted = done(&mut self.minting) => self.tell_key(minted),
            checked = done(&mut self.checking) => return self.judge(checked),
            () = tokio::time::sleep_until(self.next_check) => self.check(),
            () = at(in_flight) => self.in_flight = None,
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self, message: proto::FromPod) {
        match message.message {
            Some(from_pod::Message::Ack(ack)) => self.answered(&ack.version, None),
            Some(from_pod::Message::Nack(nack)) => self.answered(&nack.version, Some(nack.reason)),
            Some(from_pod::Message::NeedKey(_)) => self.need_key(),
            // Of a pod that is newer than this server, or confused: nothing depends on it.
            Some(from_pod::Message::Subscribe(_)) | None => {}
        }
    }

    fn answered(&mut self, version: &str, refusal: Option<String>) {
        let in_flight = self.in_flight.take_if(|push| push.version == version);
        let after = in_flight.map(|push| push.since.elapsed());
        let metrics = &self.shared.metrics;
        match refusal {
            None => {
                metrics.discovery_answer("ack", after);
                self.follower.served(&cut(version.into()));
            }
            Some(reason) => {
                metrics.discovery_answer("nack", after);
                let (version, reason) = (cut(version.into()), cut(reason));
                // A field is escaped: what a pod says is one line.
                tracing::warn!(gateway = %self.gateway, version, reason, "the pod refuses its snapshot");
                self.follower.refused(Refusal { version, reason });
            }
        }
    }

    /// The message that is due; there may be none after all.
    fn next(&mut self) -> Option<to_pod::Message> {
        if let Some(key) = self.due.key.take() {
            return Some(key);
        }
        self.due.state = false;
        let state = self.follower.state.borrow_and_update().clone();
        let Some(published) = state else {
            return Some(to_pod::Message::Waiting(proto::Waiting {
                message: format!(
                    "there is no snapshot of Gateway {}: it is not accepted, or the controller has just started",
                    self.gateway
                ),
            }));
        };
        let encoded = published.encoded();
        let full = self.held.is_empty();
        let mut upserted = Vec::new();
        for (id, resource) in &encoded.resources {
            if self.held.get(id) != Some(&resource.hash) {
                upserted.push(proto::Resource::clone(resource));
            }
        }
        let gone = |id: &&String| !encoded.resources.contains_key(*id);
        let removed: Vec<_> = self.held.keys().filter(gone).cloned().collect();
        for id in &removed {
            self.held.remove(id);
        }
        for resource in &upserted {
            self.held.insert(resource.id.clone(), resource.hash.clone());
        }
        self.in_flight = Some(InFlight {
            version: encoded.version.clone(),
            since: published.since.max(self.connected),
            until: Instant::now() + self.shared.settings.answer,
        });
        self.shared.metrics.discovery_push(full);
        tracing::debug!(
            gateway = %self.gateway, version = encoded.version, full,
            upserted = upserted.len(), removed = removed.len(), "pushing"
        );
        Some(to_pod::Message::Push(proto::Push {
            version: encoded.version.clone(),
            full,
            upserted,
            removed,
        }))
    }

    // === keys ===

    fn need_key(&mut self) {
        // The answer is on its way.
        if self.minting.is_some() || self.due.key.is_some() {
            return;
        }
        match self.shared.keys.take_turn(&self.gateway) {
            Ok(()) => {
                let (shared, gateway) = (Arc::clone(&self.shared), self.gateway.clone());
                self.minting = Some(Box::pin(async move { shared.minter.mint(&gateway).await }));
            }
            Err(wait) => {
                let message = "the last one was given a moment ago".into();
                self.refuse_key("refused", message, wait);
            }
        }
    }

    fn tell_key(&mut self, minted: Result<Secret, String>) {
        match minted {
            Ok(key) => {
                tracing::info!(gateway = %self.gateway, "auth key given to the pod");
                self.shared.metrics.discovery_key("minted");
                // Minters make it from a String.
                let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
                self.due.key = Some(to_pod::Message::AuthKey(proto::AuthKey { key }));
            }
            Err(message) => {
                let wait = self.shared.keys.failed(&self.gateway);
                tracing::warn!(gateway = %self.gateway, "no auth key for the pod: {message}");
                self.refuse_key("failed", message, wait);
            }
        }
    }

    fn refuse_key(&mut self, answer: &'static str, message: String, wait: Duration) {
        self.shared.metrics.discovery_key(answer);
        // Rounded up, or the pod would be early.
        let seconds = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
        self.due.key = Some(to_pod::Message::KeyRefused(proto::KeyRefused {
            message,
            retry_after_seconds: seconds,
        }));
    }

    // === the token ===

    fn check(&mut self) {
        self.next_check = Instant::now() + self.shared.settings.recheck;
        let (shared, token) = (Arc::clone(&self.shared), self.token.clone());
        self.checking = Some(Box::pin(async move { shared.authenticate(&token).await }));
    }

    fn judge(&self, checked: Result<ObjectName, Status>) -> ControlFlow<Option<Status>> {
        match checked {
            Ok(gateway) if gateway == self.gateway => ControlFlow::Continue(()),
            Ok(_) => ControlFlow::Break(Some(Status::permission_denied(
                "the token is of another Gateway's pod now",
            ))),
            // A stream that was allowed outlives an API server that is away.
            Err(status) if status.code() == Code::Unavailable => ControlFlow::Continue(()),
            Err(status) => ControlFlow::Break(Some(status)),
        }
    }
}

/// What a pod says of itself is kept up to this many bytes.
const SAID: usize = 1024;

/// Cuts a text of a pod that may be of any length.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SAID));
    text
}

/// Waits for work that is there, and takes it away.
async fn done<T>(work: &mut Option<Work<T>>) -> T {
    match work {
        Some(running) => {
            let result = running.await;
            *work = None;
            result
        }
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
