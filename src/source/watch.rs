//! Files that change.

use super::{LoadError, Loaded, files, generations::Generations};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::ModifyKind};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

#[derive(Debug, thiserror::Error)]
#[error("cannot watch {path} for changes: {error}")]
pub struct WatchError {
    path: String,
    error: notify::Error,
}

/// Editors write, rename and set attributes; one change is all that happens with pauses shorter
/// than this.
const QUIET: Duration = Duration::from_millis(50);

/// How long pauses are waited for, so that a file that never rests is read too.
const PATIENCE: Duration = Duration::from_millis(400);

/// Looks without being told too: some filesystems tell nobody.
const PERIOD: Duration = Duration::from_secs(5);

/// The same while a directory is not there to be watched.
const PERIOD_UNWATCHED: Duration = Duration::from_millis(500);

/// Loads the files again whenever they change, and gives what was loaded: the first time what is
/// there now, so that no change before the watch is missed. Objects without a
/// `metadata.generation` get one, which counts the changes of their spec as an API server does.
/// Ends with its receiver.
///
/// # Errors
/// When the system refuses to watch.
pub fn watch(paths: Vec<PathBuf>) -> Result<mpsc::Receiver<Result<Loaded, LoadError>>, WatchError> {
    let (touched, touches) = mpsc::channel(1);
    let stale = Arc::new(AtomicBool::new(false));
    let removed = Arc::clone(&stale);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Errors are worth a look, our own reading is not.
        let kind = event.map_or(EventKind::Any, |event| event.kind);
        if kind.is_access() {
            return;
        }
        if kind.is_remove() || matches!(kind, EventKind::Modify(ModifyKind::Name(_))) {
            removed.store(true, Ordering::Relaxed);
        }
        // Full means that a look is due already.
        let _ = touched.try_send(());
    })
    .map_err(|error| WatchError {
        path: "the files".into(),
        error,
    })?;
    let mut watched = Watched {
        watcher,
        directories: BTreeSet::new(),
        stale,
    };
    // Now, so that a refusal is told at once; a directory that is not there yet is no refusal.
    watched.follow(&paths).map_err(|(path, error)| WatchError {
        path: path.display().to_string(),
        error,
    })?;
    let (loads, loaded) = mpsc::channel(1);
    tokio::spawn(run(paths, watched, touches, loads));
    Ok(loaded)
}

async fn run(
    paths: Vec<PathBuf>,
    mut watched: Watched,
    mut touches: mpsc::Receiver<()>,
    loads: mpsc::Sender<Result<Loaded, LoadError>>,
) {
    let mut before = None;
    let mut generations = Generations::default();
    loop {
        // Before the look: what changes after it is told.
        let period = match watched.follow(&paths) {
            Ok(true) => PERIOD,
            Ok(false) | Err(_) => PERIOD_UNWATCHED,
        };
        let now = content(&paths).await;
        if before.as_ref() != Some(&now) {
            before = Some(now);
            let mut result = read_apart(&paths).await;
            if let Ok(loaded) = &mut result {
                generations.stamp(&mut loaded.objects);
            }
            if loads.send(result).await.is_err() {
                return;
            }
        }
        tokio::select! {
            Some(()) = touches.recv() => settle(&mut touches).await,
            () = tokio::time::sleep(period) => {}
            () = loads.closed() => return,
        }
    }
}

/// Waits until nothing has been touched for a while.
async fn settle(touches: &mut mpsc::Receiver<()>) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if tokio::time::timeout(QUIET, touches.recv()).await.is_err() {
            return;
        }
    }
}

/// What is read; equal means that nothing changed.
type Content = Vec<(PathBuf, Option<Vec<u8>>)>;

async fn content(paths: &[PathBuf]) -> Content {
    apart(paths, |paths| {
        let files = paths
            .iter()
            .flat_map(|path| files::files(path).unwrap_or_else(|_| vec![path.clone()]));
        files
            .map(|file| {
                let content = std::fs::read(&file).ok();
                (file, content)
            })
            .collect()
    })
    .await
    .unwrap_or_default()
}

async fn read_apart(paths: &[PathBuf]) -> Result<Loaded, LoadError> {
    // A runtime that is ending runs nothing more; nobody asks for the result then.
    apart(paths, files::read)
        .await
        .unwrap_or_else(|| Ok(Loaded::default()))
}

/// Reads files where a slow filesystem holds up nobody else. `None` when the runtime is ending.
async fn apart<T: Send + 'static>(
    paths: &[PathBuf],
    read: impl FnOnce(&[PathBuf]) -> T + Send + 'static,
) -> Option<T> {
    let paths = paths.to_vec();
    tokio::task::spawn_blocking(move || read(&paths)).await.ok()
}

/// The directories that are watched.
struct Watched {
    watcher: RecommendedWatcher,
    directories: BTreeSet<PathBuf>,
    /// Something was removed or renamed: a directory of the same name may be another one.
    stale: Arc<AtomicBool>,
}

impl Watched {
    /// Watches the directories that hold the paths now; `false` when one is not there.
    fn follow(&mut self, paths: &[PathBuf]) -> Result<bool, (PathBuf, notify::Error)> {
        let wanted = directories(paths);
        let stale = self.stale.swap(false, Ordering::Relaxed);
        let (watcher, directories) = (&mut self.watcher, &mut self.directories);
        directories.retain(|path| {
            let keep = !stale && wanted.contains(path) && path.is_dir();
            if !keep {
                // One that was removed is watched no more already.
                let _ = watcher.unwatch(path);
            }
            keep
        });
        let mut all = true;
        for path in wanted {
            if directories.contains(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(directories.insert(path)),
                Err(_) if !path.is_dir() => all = false,
                Err(error) => return Err((path, error)),
            }
        }
        Ok(all)
    }
}

/// The directories that hold the paths: a file that is replaced by renaming is another file, so
/// that watching the file itself would see the first change only. A symbolic link is watched where
/// it stands and where it leads.
fn directories(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut directories = BTreeSet::new();
    for path in paths {
        if !path.is_dir() || path.is_symlink() {
            directories.insert(parent(path));
        }
        if path.is_dir() {
            directories.insert(path.clone());
        }
        if let Ok(target) = path.canonicalize() {
            let directory = if target.is_dir() {
                target
            } else {
                parent(&target)
            };
            directories.insert(directory);
        }
    }
    directories
}
