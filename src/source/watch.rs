//! Files that change.

use super::{LoadError, Loaded, load};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
#[error("cannot watch {path} for changes: {error}")]
pub struct WatchError {
    path: String,
    error: notify::Error,
}

/// Editors write, rename and set attributes; one change is all of these together.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Looks without being told too: some filesystems tell nobody.
const PERIOD: Duration = Duration::from_secs(5);

/// Loads the files again whenever they change from what they are now, and gives what was loaded.
/// Ends with its receiver. Whoever loads them after this call misses no change.
///
/// # Errors
/// When the system refuses to watch.
pub fn watch(paths: Vec<PathBuf>) -> Result<mpsc::Receiver<Result<Loaded, LoadError>>, WatchError> {
    let (touched, touches) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
        // Full means that a look is due already.
        let _ = touched.try_send(());
    })
    .map_err(|error| WatchError {
        path: "the files".into(),
        error,
    })?;
    for directory in directories(&paths) {
        watcher
            .watch(&directory, RecursiveMode::NonRecursive)
            .map_err(|error| WatchError {
                path: directory.display().to_string(),
                error,
            })?;
    }
    let (loads, loaded) = mpsc::channel(1);
    let before = fingerprint(&paths);
    tokio::spawn(run(paths, before, watcher, touches, loads));
    Ok(loaded)
}

async fn run(
    paths: Vec<PathBuf>,
    mut before: Fingerprint,
    // Kept: dropping it ends the watch.
    _watcher: RecommendedWatcher,
    mut touches: mpsc::Receiver<()>,
    loads: mpsc::Sender<Result<Loaded, LoadError>>,
) {
    loop {
        tokio::select! {
            _ = touches.recv() => {
                tokio::time::sleep(DEBOUNCE).await;
                while touches.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(PERIOD) => {}
            () = loads.closed() => return,
        }
        let now = fingerprint(&paths);
        if now == before {
            continue;
        }
        before = now;
        if loads.send(load(&paths)).await.is_err() {
            return;
        }
    }
}

/// The directories that hold the paths: a file that is replaced by renaming is another file, so
/// that watching the file itself would see the first change only. The target of a symbolic link
/// is watched too, as mounted ConfigMaps have them.
fn directories(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    let mut add = |path: &Path| {
        if path.is_dir() {
            directories.insert(path.to_owned());
        } else if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            // One that is not there is looked for by period.
            if parent.is_dir() {
                directories.insert(parent.to_owned());
            }
        }
    };
    for path in paths {
        add(path);
        if let Ok(target) = path.canonicalize() {
            add(&target);
        }
    }
    directories
}

/// What is read: equal means that nothing changed.
type Fingerprint = Vec<(PathBuf, Option<Vec<u8>>)>;

fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let mut found = Vec::new();
    for path in paths {
        let files = super::files::files(path).unwrap_or_else(|_| vec![path.clone()]);
        found.extend(files.into_iter().map(|file| {
            let content = std::fs::read(&file).ok();
            (file, content)
        }));
    }
    found
}
