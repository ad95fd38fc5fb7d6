//! Node state in a Kubernetes Secret, with a copy in a directory.

use super::StateStore;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// Node state that survives the pod (in a Secret) and is there while the API server is away (in a
/// directory that lives as long as the pod). The Secret must exist; it is never created here.
#[derive(Clone, Debug)]
pub struct SecretStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    state: Mutex<State>,
    flushed: Condvar,
    changed: Notify,
    problem: watch::Sender<String>,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Vec<u8>>,
    /// Keys whose value the Secret does not have yet.
    dirty: BTreeSet<String>,
    /// UID of the Secret that has the others.
    secret: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the state directory {path} cannot be used: {error}; it must be a volume that the pod can write"
    )]
    Directory { path: PathBuf, error: io::Error },
    #[error(
        "Secret {name} cannot be read: {error}; the pod's Role must allow to get, update and patch it"
    )]
    Refused { name: String, error: kube::Error },
}

/// What a Secret's values may add up to (API server, `MaxSecretSize`).
const MAX_SIZE: usize = 1 << 20;

/// How long a write of node state waits for the API server. After that it is safe in the
/// directory only, and the problem is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a Secret that nothing is written to is looked at: it may have been lost.
const LOOK: Duration = Duration::from_secs(30);

/// How long a start with state in the directory waits for an API server that does not answer.
const START: Duration = Duration::from_secs(5);

/// Until the API server is asked again, after the first, second, … failure in a row.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// Names the keys that wait for the API server; no key of a Secret starts with a tilde.
const DIRTY: &str = "~dirty";

/// Key that a node has once it has joined.
const IDENTITY: &str = "_current-profile";

// === impl SecretStore ===

impl SecretStore {
    /// Loads the state: from the Secret, and from the directory what the Secret does not have
    /// yet. While the API server is away, the directory is enough if it holds a state; else it is
    /// waited for. The state is written back by [`SecretStore::keep`].
    ///
    /// # Errors
    /// When the directory cannot be written, or the API server refuses to show the Secret.
    pub async fn open(
        secrets: &Api<Secret>,
        name: &str,
        directory: PathBuf,
    ) -> Result<Self, StoreError> {
        let broken = |error| StoreError::Directory {
            path: directory.clone(),
            error,
        };
        fs::create_dir_all(&directory).map_err(broken)?;
        let mut state = State::load(&directory).map_err(broken)?;
        let mut failures = 0;
        loop {
            let reading = secrets.get_opt(name);
            let read = if state.values.is_empty() {
                reading.await
            } else {
                let read = tokio::time::timeout(START, reading).await;
                let slow = |_| kube::Error::Service("it does not answer".into());
                read.map_err(slow).flatten()
            };
            match read {
                Ok(secret) => {
                    state.merge(secret.unwrap_or_default());
                    break;
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                    return Err(StoreError::Refused {
                        name: name.into(),
                        error: kube::Error::Api(status),
                    });
                }
                Err(error) if !state.values.is_empty() => {
                    tracing::warn!(%error, "the API server is away: starting with the state of the last start");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "waiting for the API server, to read the node's state");
                    tokio::time::sleep(retry(&mut failures)).await;
                }
            }
        }
        state.save(&directory).map_err(broken)?;
        Ok(Self {
            shared: Arc::new(Shared {
                directory,
                state: Mutex::new(state),
                flushed: Condvar::new(),
                changed: Notify::new(),
                problem: watch::Sender::default(),
            }),
        })
    }

    /// Writes changes to the Secret, and everything to one that takes its place, for ever.
    pub async fn keep(&self, secrets: &Api<Secret>, name: &str) -> ! {
        let mut failures = 0;
        loop {
            let due = self.due();
            let done = if due.is_empty() {
                tokio::select! {
                    () = self.shared.changed.notified() => continue,
                    () = tokio::time::sleep(LOOK) => look(secrets, name).await,
                }
            } else {
                flush(secrets, name, &due).await
            };
            match done {
                Ok(uid) => {
                    failures = 0;
                    self.settle(&due, uid);
                    self.tell(String::new());
                }
                Err(error) => {
                    let message =
                        format!("the node's state cannot be written to Secret {name}: {error}");
                    match &error {
                        kube::Error::Api(status) if status.code < 500 => self.tell(message),
                        // Away: what is in the directory is enough for as long as the pod lives.
                        _ => tracing::warn!("{message}"),
                    }
                    tokio::time::sleep(retry(&mut failures)).await;
                }
            }
        }
    }

    /// Whether a node has joined with this state.
    pub fn has_identity(&self) -> bool {
        let state = self.state();
        state.values.get(IDENTITY).is_some_and(|v| !v.is_empty())
    }

    /// Why the API server refuses to keep the state; empty when it does not.
    pub fn problem(&self) -> watch::Receiver<String> {
        self.shared.problem.subscribe()
    }

    /// Sets a value that is no node state. It reaches the Secret soon.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        let key = legal(key);
        let mut state = self.state();
        if state.values.get(&key).is_some_and(|known| known == value) {
            return Ok(());
        }
        let size: usize = state
            .values
            .iter()
            .filter(|(known, _)| **known != key)
            .map(|(known, value)| known.len() + value.len())
            .sum();
        if size + key.len() + value.len() > MAX_SIZE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "{key} of {} bytes does not fit into the Secret, which holds {size} of {MAX_SIZE}",
                    value.len()
                ),
            ));
        }
        write_file(&self.shared.directory, &key, value)?;
        state.values.insert(key.clone(), value.to_vec());
        state.dirty.insert(key);
        state.note_dirty(&self.shared.directory)?;
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let value = |key: &String| Some((key.clone(), state.values.get(key)?.clone()));
        state.dirty.iter().filter_map(value).collect()
    }

    /// The Secret of this UID has these values now.
    fn settle(&self, flushed: &BTreeMap<String, Vec<u8>>, uid: Option<String>) {
        let mut state = self.state();
        state.settle(flushed, uid);
        if let Err(error) = state.note_dirty(&self.shared.directory) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
        self.shared.flushed.notify_all();
    }

    fn tell(&self, problem: String) {
        self.shared.problem.send_if_modified(|told| {
            let changed = *told != problem;
            if changed && !problem.is_empty() {
                tracing::warn!("{problem}");
            }
            *told = problem;
            changed
        });
    }
}

impl StateStore for SecretStore {
    fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().values.get(&legal(key)).cloned())
    }

    fn write(&self, key: &str, value: &[u8]) -> io::Result<()> {
        self.put(key, value)?;
        let key = legal(key);
        let waiting =
            self.shared
                .flushed
                .wait_timeout_while(self.state(), PATIENCE, |state: &mut State| {
                    state.dirty.contains(&key)
                });
        drop(waiting);
        Ok(())
    }
}

// === impl State ===

impl State {
    fn load(directory: &Path) -> io::Result<Self> {
        let mut state = Self::default();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(key) = name.to_str().filter(|name| legal(name) == *name) else {
                continue;
            };
            if entry.file_type()?.is_file() {
                state.values.insert(key.into(), fs::read(entry.path())?);
            }
        }
        if let Ok(dirty) = fs::read_to_string(directory.join(DIRTY)) {
            state.dirty = dirty.lines().map(str::to_owned).collect();
        }
        Ok(state)
    }

    fn settle(&mut self, flushed: &BTreeMap<String, Vec<u8>>, uid: Option<String>) {
        let before = std::mem::replace(&mut self.secret, uid);
        if before != self.secret {
            // The one that had the rest was lost.
            self.dirty_all();
        }
        let Self { values, dirty, .. } = self;
        dirty.retain(|key| flushed.get(key) != values.get(key));
    }

    /// Takes over what the Secret has, but for values that it has not got yet. One that was lost
    /// and made anew gets all back.
    fn merge(&mut self, secret: Secret) {
        self.secret = secret.metadata.uid;
        let data = secret.data.unwrap_or_default();
        if self.values.contains_key(IDENTITY) && !data.contains_key(IDENTITY) {
            self.dirty_all();
        }
        self.values.retain(|key, _| self.dirty.contains(key));
        for (key, ByteString(value)) in data {
            self.values.entry(key).or_insert(value);
        }
    }

    /// Makes the directory hold these values and no others.
    fn save(&self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let known = |name: &str| name == DIRTY || self.values.contains_key(name);
            let is_file = entry.file_type()?.is_file();
            if is_file && !entry.file_name().to_str().is_some_and(known) {
                fs::remove_file(entry.path())?;
            }
        }
        for (key, value) in &self.values {
            write_file(directory, key, value)?;
        }
        self.note_dirty(directory)
    }

    fn dirty_all(&mut self) {
        self.dirty = self.values.keys().cloned().collect();
    }

    fn note_dirty(&self, directory: &Path) -> io::Result<()> {
        let names: Vec<_> = self.dirty.iter().map(String::as_str).collect();
        replace(&directory.join(DIRTY), names.join("\n").as_bytes())
    }
}

/// The keys of a Secret are letters, digits, `-`, `_` and `.`; anything else becomes an underscore
/// and its code.
fn legal(key: &str) -> String {
    let mut legal = String::with_capacity(key.len());
    for character in key.chars() {
        if character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.') {
            legal.push(character);
        } else {
            legal.push_str(&format!("_{:x}", u32::from(character)));
        }
    }
    legal
}

fn write_file(directory: &Path, key: &str, value: &[u8]) -> io::Result<()> {
    replace(&directory.join(key), value)
}

/// Replaces a file as a whole: after a crash it holds the old bytes or the new.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let new = path.with_file_name(format!(
        "~new-{}",
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(new, path)
}

/// The UID of the Secret.
async fn look(secrets: &Api<Secret>, name: &str) -> kube::Result<Option<String>> {
    let found = secrets.get_metadata(name).await?;
    Ok(found.metadata.uid)
}

/// Writes the values; the UID of the Secret that has them now.
async fn flush(
    secrets: &Api<Secret>,
    name: &str,
    values: &BTreeMap<String, Vec<u8>>,
) -> kube::Result<Option<String>> {
    let data: BTreeMap<_, _> = values
        .iter()
        .map(|(key, value)| (key, ByteString(value.clone())))
        .collect();
    let patch = Patch::Merge(json!({ "data": data }));
    let parameters = PatchParams::default();
    let written = secrets.patch_metadata(name, &parameters, &patch).await?;
    Ok(written.metadata.uid)
}

fn retry(failures: &mut usize) -> Duration {
    let wait = RETRIES[(*failures).min(RETRIES.len() - 1)];
    *failures += 1;
    wait
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(values: &[(&str, &str)]) -> Secret {
        let bytes = |value: &str| ByteString(value.as_bytes().to_vec());
        Secret {
            data: Some(
                values
                    .iter()
                    .map(|(key, value)| ((*key).into(), bytes(value)))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    fn state(values: &[(&str, &str)], dirty: &[&str]) -> State {
        State {
            values: values
                .iter()
                .map(|(key, value)| ((*key).into(), value.as_bytes().to_vec()))
                .collect(),
            dirty: dirty.iter().map(|key| (*key).into()).collect(),
            secret: None,
        }
    }

    #[test]
    fn a_secret_that_took_the_place_of_the_one_written_to_gets_everything() {
        let mut kept = state(&[("a", "1"), ("b", "2"), (IDENTITY, "me")], &["a"]);
        kept.secret = Some("one".into());
        let flushed = |key: &str| BTreeMap::from([(key.to_owned(), kept.values[key].clone())]);
        let (a, b) = (flushed("a"), flushed("b"));
        kept.settle(&a, Some("one".into()));
        assert_eq!(kept.dirty, BTreeSet::new());
        kept.settle(&b, Some("other".into()));
        let dirty: Vec<_> = kept.dirty.iter().map(String::as_str).collect();
        assert_eq!(dirty, [IDENTITY, "a"]);
        kept.settle(&BTreeMap::new(), Some("other".into()));
        assert_eq!(kept.dirty.len(), 2);
    }

    #[test]
    fn the_secret_goes_before_the_directory_but_for_what_it_has_not_got_yet() {
        let mut merged = state(
            &[("a", "old"), ("b", "new"), (IDENTITY, "me"), ("gone", "x")],
            &["b"],
        );
        merged.merge(secret(&[("a", "1"), ("b", "2"), (IDENTITY, "me")]));
        let expected = state(&[("a", "1"), ("b", "new"), (IDENTITY, "me")], &["b"]);
        assert_eq!(merged.values, expected.values);
        assert_eq!(merged.dirty, expected.dirty);
    }

    #[test]
    fn a_secret_that_was_lost_gets_everything_back() {
        let mut merged = state(&[("a", "1"), (IDENTITY, "me")], &[]);
        merged.merge(secret(&[]));
        let expected = state(&[("a", "1"), (IDENTITY, "me")], &["a", IDENTITY]);
        assert_eq!(merged.values, expected.values);
        assert_eq!(merged.dirty, expected.dirty);
    }

    #[test]
    fn what_a_directory_was_given_is_there_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("stale"), b"x").unwrap();
        let saved = state(&[("profile-1", "p"), (IDENTITY, "me")], &["profile-1"]);
        saved.save(path).unwrap();
        let loaded = State::load(path).unwrap();
        assert_eq!(loaded.values, saved.values);
        assert_eq!(loaded.dirty, saved.dirty);
    }

    #[test]
    fn keys_are_legal_and_stay_apart() {
        assert_eq!(legal("_machinekey"), "_machinekey");
        assert_eq!(legal("a/b c"), "a_2fb_20c");
        assert_ne!(legal("a/b"), legal("a:b"));
    }
}
