//! The pod's side: the Snapshot to serve, whether or not the controller is there.

use super::{
    copy::{self, Copy},
    session::{Session, SessionError},
    wire::{self, ReadCertificates, Resources},
};
use crate::{
    metrics::Metrics,
    model::{ObjectName, Snapshot},
    tailnet::Secret,
};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

/// Where the controller is, and who asks.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// URL of the controller's Service, `https://name:port`.
    pub endpoint: String,
    /// PEM of the CAs to trust; read again for each connection.
    pub ca_bundle: PathBuf,
    /// The ServiceAccount's token; read again for each connection.
    pub token: PathBuf,
    pub gateway: ObjectName,
    /// Name of this pod, for people.
    pub pod: String,
    /// Where the last Snapshot that was served is kept. It holds private keys.
    pub copy: PathBuf,
    pub timing: ClientTiming,
}

/// How patient the client is.
#[derive(Clone, Debug)]
pub struct ClientTiming {
    /// Longest wait after the first failure; it doubles with each further one.
    pub first_retry: Duration,
    /// Longest wait of all.
    pub last_retry: Duration,
    /// A stream that held for this long was no failure.
    pub stable: Duration,
    /// How long a connection and its first answer may take.
    pub connect: Duration,
    /// How often a quiet server is asked whether it is there, and how long the answer may take.
    pub keepalive: Duration,
}

/// A Snapshot that came.
#[derive(Clone)]
pub struct Received {
    /// What the answer names.
    pub version: String,
    pub snapshot: Arc<Snapshot>,
    /// What it was made from.
    resources: Resources,
}

/// How it stands with the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Link {
    #[default]
    Connecting,
    Connected,
    /// Connected, but the controller has no Snapshot, and says why.
    Waiting(String),
    /// Away, and tried again; the text says why.
    Lost(String),
}

/// Why there is no auth key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the controller gives no auth key: {message}")]
    Refused {
        message: String,
        /// How long asking again is of no use.
        retry_after: Duration,
    },
    #[error("the subscription has ended")]
    Ended,
}

/// A pod's place at its controller. Dropping it disconnects.
pub struct Subscription {
    snapshots: watch::Receiver<Option<Received>>,
    link: watch::Receiver<Link>,
    answers: watch::Sender<Option<Answer>>,
    keys: mpsc::Sender<KeyRequest>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What the data plane made of a version.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) version: String,
    /// Why it cannot be served.
    pub(super) refusal: Option<String>,
}

pub(super) type KeyRequest = oneshot::Sender<Result<Secret, KeyError>>;

/// What outlives a stream.
pub(super) struct Client {
    pub(super) settings: ClientSettings,
    /// What came, also when it could not be used: what comes next follows on it.
    pub(super) held: Resources,
    /// Whether what is held makes a Snapshot. If not, everything is asked for by the next stream.
    pub(super) sound: bool,
    pub(super) read: ReadCertificates,
    pub(super) snapshots: watch::Sender<Option<Received>>,
    pub(super) answers: watch::Receiver<Option<Answer>>,
    pub(super) keys: mpsc::Receiver<KeyRequest>,
    /// Requests that have no answer yet, oldest first.
    pub(super) waiting: Vec<KeyRequest>,
    link: watch::Sender<Link>,
    /// What was told last, so that it is not told again.
    told: Option<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Connected,
    Waiting,
    Lost(Option<Code>),
}

pub(super) const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Requests for keys that are not looked at yet.
const KEY_REQUESTS: usize = 4;

impl Default for ClientTiming {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_secs(1),
            last_retry: Duration::from_secs(60),
            stable: Duration::from_secs(60),
            connect: Duration::from_secs(20),
            keepalive: Duration::from_secs(20),
        }
    }
}

/// Follows the Gateway for as long as the subscription lives. What is on disk is there at once.
pub async fn subscribe(settings: ClientSettings, metrics: Metrics) -> Subscription {
    let first = restore(&settings).await;
    // What another version of the program wrote may lack what this one reads: it is served, but
    // everything is asked for.
    let (mut held, mut read) = Default::default();
    let mut received = None;
    if let Some(restored) = first {
        if restored.same_program {
            held = restored.received.resources.clone();
        }
        read = restored.read;
        received = Some(restored.received);
    }
    let stored = received.as_ref().map(|received| received.version.clone());
    let (snapshots, snapshots_in) = watch::channel(received);
    let (link, link_in) = watch::channel(Link::default());
    let answers = watch::Sender::new(None);
    let (keys, keys_in) = mpsc::channel(KEY_REQUESTS);
    let keeper = keep(
        settings.clone(),
        metrics,
        stored,
        answers.subscribe(),
        snapshots_in.clone(),
    );
    let client = Client {
        settings,
        held,
        sound: true,
        read,
        snapshots,
        answers: answers.subscribe(),
        keys: keys_in,
        waiting: Vec::new(),
        link,
        told: None,
    };
    let tasks = [tokio::spawn(client.run()), tokio::spawn(keeper)];
    Subscription {
        snapshots: snapshots_in,
        link: link_in,
        answers,
        keys,
        _tasks: tasks.map(AbortOnDropHandle::new),
    }
}

// === impl Subscription ===

impl Subscription {
    /// The Snapshot to serve; `None` while none has ever come.
    pub fn snapshots(&self) -> watch::Receiver<Option<Received>> {
        self.snapshots.clone()
    }

    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Says that a version is served. It is what the next start begins with.
    pub fn applied(&self, version: &str) {
        self.answer(version, None);
    }

    /// Says that a version cannot be served, and why.
    pub fn refused(&self, version: &str, reason: impl Into<String>) {
        self.answer(version, Some(reason.into()));
    }

    fn answer(&self, version: &str, refusal: Option<String>) {
        self.answers.send_replace(Some(Answer {
            version: version.into(),
            refusal,
        }));
    }

    /// Asks for an auth key, as the node has no identity; waits for the controller to be there.
    /// Dropping the future takes the question back.
    ///
    /// # Errors
    /// When the controller refuses; it says why and for how long.
    pub async fn need_key(&self) -> Result<Secret, KeyError> {
        let (request, answer) = oneshot::channel();
        self.keys.send(request).await.map_err(|_| KeyError::Ended)?;
        answer.await.map_err(|_| KeyError::Ended)?
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("link", &*self.link.borrow())
            .finish_non_exhaustive()
    }
}

impl Received {
    pub(super) fn new(version: String, snapshot: Snapshot, resources: Resources) -> Self {
        Self {
            version,
            snapshot: Arc::new(snapshot),
            resources,
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("version", &self.version)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

// === impl Client ===

impl Client {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let mut connected = None;
            let error = self.follow(&mut connected).await;
            let stable = self.settings.timing.stable;
            if connected.is_some_and(|since: Instant| since.elapsed() >= stable) {
                failures = 0;
            }
            let wait = backoff(&self.settings.timing, failures);
            failures += 1;
            self.lost(&error, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream, from its beginning to its end. `connected` is when it was accepted.
    async fn follow(&mut self, connected: &mut Option<Instant>) -> SessionError {
        if !self.sound {
            self.held.clear();
        }
        let opened = Session::open(&self.settings, &self.held);
        let timeout = self.settings.timing.connect;
        let mut session = match tokio::time::timeout(timeout, opened).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return error,
            Err(_) => return SessionError::Slow(timeout),
        };
        *connected = Some(Instant::now());
        self.connected();
        session.run(self).await
    }

    pub(super) fn connected(&mut self) {
        if self.told != Some(Told::Connected) {
            tracing::info!(
                endpoint = self.settings.endpoint,
                "following the controller"
            );
            self.told = Some(Told::Connected);
            self.link.send_replace(Link::Connected);
        }
    }

    pub(super) fn waiting(&mut self, message: String) {
        if self.told != Some(Told::Waiting) {
            tracing::warn!("waiting for the controller: {message}");
            self.told = Some(Told::Waiting);
            self.link.send_replace(Link::Waiting(message));
        }
    }

    fn lost(&mut self, error: &SessionError, wait: Duration) {
        let told = Told::Lost(error.objection());
        if self.told == Some(told) {
            tracing::debug!(%error, retry_in = ?wait, "still cannot follow the controller");
        } else {
            let serving = self.snapshots.borrow().is_some();
            tracing::warn!(%error, serving, "cannot follow the controller; trying again");
            self.told = Some(told);
        }
        self.link.send_replace(Link::Lost(error.to_string()));
    }
}

/// Exponential, with full jitter: pods that lost the same controller do not come back at once.
fn backoff(timing: &ClientTiming, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    let most = timing
        .first_retry
        .saturating_mul(factor.max(1))
        .min(timing.last_retry);
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(RandomState::new().hash_one(failures) % (micros + 1))
}

// === the copy on disk ===

struct Restored {
    received: Received,
    read: ReadCertificates,
    same_program: bool,
}

async fn restore(settings: &ClientSettings) -> Option<Restored> {
    let (path, gateway) = (settings.copy.clone(), settings.gateway.clone());
    let read = tokio::task::spawn_blocking(move || copy::read(&path, &gateway));
    // The runtime ends, and nobody asks any more.
    let copy = match read.await.ok()? {
        Ok(copy) => copy?,
        Err(error) => {
            let path = settings.copy.display();
            tracing::warn!(%path, "the copy of the last snapshot is passed over: {error}");
            return None;
        }
    };
    let mut read = ReadCertificates::new();
    match wire::decode(&copy.resources, &mut read) {
        Ok(snapshot) if snapshot.gateway == settings.gateway => {
            tracing::info!(
                version = copy.version,
                "starting from the copy of the last snapshot"
            );
            Some(Restored {
                received: Received::new(copy.version, snapshot, copy.resources),
                read,
                same_program: copy.program_version == PROGRAM_VERSION,
            })
        }
        Ok(snapshot) => {
            tracing::warn!(gateway = %snapshot.gateway, "the copy of the last snapshot is of another Gateway");
            None
        }
        Err(error) => {
            tracing::warn!("the copy of the last snapshot is passed over: {error}");
            None
        }
    }
}

/// Writes each Snapshot that is served to disk, for ever.
async fn keep(
    settings: ClientSettings,
    metrics: Metrics,
    mut stored: Option<String>,
    mut answers: watch::Receiver<Option<Answer>>,
    snapshots: watch::Receiver<Option<Received>>,
) {
    while answers.changed().await.is_ok() {
        let answer = answers.borrow_and_update().clone();
        let Some(Answer {
            version,
            refusal: None,
        }) = answer
        else {
            continue;
        };
        let received = snapshots.borrow().clone();
        // A newer one has come meanwhile: it will be answered too.
        let Some(received) = received.filter(|received| received.version == version) else {
            continue;
        };
        if stored.as_ref() == Some(&version) {
            continue;
        }
        let copy = Copy {
            version: version.clone(),
            program_version: PROGRAM_VERSION.into(),
            resources: received.resources,
        };
        let (path, gateway) = (settings.copy.clone(), settings.gateway.clone());
        let written = tokio::task::spawn_blocking(move || copy::write(&path, &gateway, &copy));
        match written.await {
            Ok(Ok(())) => {
                stored = Some(version);
                metrics.discovery_copy(&settings.gateway.to_string(), SystemTime::now());
            }
            Ok(Err(error)) => {
                let path = settings.copy.display();
                tracing::warn!(%path, %error, "no copy of the snapshot: a restart needs the controller");
            }
            // The runtime ends.
            Err(_) => return,
        }
    }
}
