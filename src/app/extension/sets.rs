//! TailscaleEgressSets of files.

use crate::{
    extension::{EgressSet, Hooks, Plan, SetError},
    model::ObjectName,
    source::files_of,
};
use serde_json::Value;
use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetsError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {message}", path.display())]
    Content { path: PathBuf, message: String },
}

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Follows the files for ever. What cannot be used changes nothing.
pub(super) async fn follow(
    paths: Vec<PathBuf>,
    hooks: Hooks,
    known: watch::Sender<Option<Arc<Plan>>>,
) -> Infallible {
    let mut before = None;
    let mut told = String::new();
    loop {
        let from = paths.clone();
        let sets = tokio::task::spawn_blocking(move || load(&from)).await;
        match sets {
            Ok(Ok(sets)) if before.as_ref() != Some(&sets) => {
                tracing::info!(sets = sets.len(), "TailscaleEgressSets were read");
                known.send_replace(Some(Arc::new(hooks.plan(&sets))));
                before = Some(sets);
                told.clear();
            }
            Ok(Ok(_)) => told.clear(),
            Ok(Err(error)) => {
                let error = error.to_string();
                if told != error {
                    tracing::error!(error, "files cannot be used; what was known stays");
                    told = error;
                }
            }
            // The runtime is ending.
            Err(_) => std::future::pending().await,
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The sets of files and of the YAML files of directories. Objects of other kinds are passed over.
///
/// # Errors
/// The first thing that cannot be used.
fn load(paths: &[PathBuf]) -> Result<Vec<EgressSet>, SetsError> {
    let mut sets = Vec::new();
    for path in paths {
        let unreadable = |error| SetsError::Read {
            path: path.clone(),
            error,
        };
        for file in files_of(path).map_err(unreadable)? {
            let text = fs::read_to_string(&file).map_err(unreadable)?;
            sets.extend(read(&file, &text)?);
        }
    }
    Ok(sets)
}

fn read(file: &Path, text: &str) -> Result<Vec<EgressSet>, SetsError> {
    let wrong = |message: String| SetsError::Content {
        path: file.into(),
        message,
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| wrong(error.to_string()))?;
    let mut sets = Vec::new();
    for mut document in documents {
        if document["kind"] != "TailscaleEgressSet" {
            continue;
        }
        let metadata = &document["metadata"];
        let text = |key: &str, default: &str| metadata[key].as_str().unwrap_or(default).to_owned();
        let name = ObjectName::new(text("namespace", "default"), text("name", ""));
        let set = EgressSet::from_spec(name, document["spec"].take());
        sets.push(set.map_err(|error: SetError| wrong(error.to_string()))?);
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_a_file_are_read_and_other_objects_passed_over() {
        let text = "
kind: Namespace
metadata: { name: default }
---
apiVersion: gateway.tailscale.com/v1alpha1
kind: TailscaleEgressSet
metadata: { name: eg, namespace: edge }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: eg }]
  revision: r1
---
";
        let sets = read(Path::new("sets.yaml"), text).unwrap();
        let names: Vec<_> = sets.iter().map(|set| set.name.to_string()).collect();
        assert_eq!(names, ["edge/eg"]);
    }

    #[test]
    fn a_set_of_no_gateway_is_refused_with_its_file() {
        let text = "{ kind: TailscaleEgressSet, metadata: { name: eg }, spec: {} }";
        let error = read(Path::new("sets.yaml"), text).unwrap_err().to_string();
        assert_eq!(
            error,
            "sets.yaml: TailscaleEgressSet default/eg names no Gateway in spec.targetRefs"
        );
    }
}
