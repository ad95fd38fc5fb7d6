//! Files to objects, and files that change.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};
use tailway::{
    index::Key,
    source::{LoadError, Loaded, load, watch},
};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

/// How long a change may take to be seen; what is watched is told in a fraction of it.
const DEADLINE: Duration = Duration::from_secs(30);

fn directory_with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
}

fn keys(loaded: &Loaded) -> Vec<String> {
    let keys = loaded.objects.iter().map(Key::of);
    keys.map(|key| key.to_string()).collect()
}

/// The problems, with file names that do not depend on the directory.
fn problems(error: &LoadError, directory: &Path) -> Vec<String> {
    let prefix = format!("{}/", directory.display());
    let lines = error.problems.iter().map(ToString::to_string);
    lines.map(|line| line.replace(&prefix, "")).collect()
}

#[test]
fn a_directory_gives_its_yaml_and_json_files_by_name_and_nothing_else() {
    let directory = directory_with(&[
        ("2.yml", &service("two")),
        ("1.yaml", &service("one")),
        (
            "3.json",
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "three"}}"#,
        ),
        (".hidden.yaml", "kind: ["),
        ("notes.txt", "kind: ["),
        ("1.yaml~", "kind: ["),
    ]);
    fs::create_dir(directory.path().join("nested.yaml")).unwrap();
    fs::write(directory.path().join("nested.yaml/x.yaml"), "kind: [").unwrap();
    let loaded = load(&[directory.path().into()]).unwrap();
    assert_eq!(
        keys(&loaded),
        [
            "Service default/one",
            "Service default/two",
            "Service default/three"
        ]
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn a_file_that_is_named_is_read_whatever_it_is_called() {
    let directory = directory_with(&[(".gateway", &service("one"))]);
    let loaded = load(&[directory.path().join(".gateway")]).unwrap();
    assert_eq!(keys(&loaded), ["Service default/one"]);
}

#[test]
fn a_file_without_objects_is_empty_not_wrong() {
    let directory = directory_with(&[("a.yaml", ""), ("b.yaml", "# nothing yet\n---\n---\n...\n")]);
    let loaded = load(&[directory.path().into()]).unwrap();
    assert!(loaded.objects.is_empty() && loaded.warnings.is_empty());
}

#[test]
fn a_file_that_is_no_text_is_told() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), b"\xff\xfe\x00").unwrap();
    let error = load(&[directory.path().into()]).unwrap_err();
    assert_eq!(
        problems(&error, directory.path()),
        ["a.yaml: cannot be read: stream did not contain valid UTF-8"]
    );
}

// === Files that change ===

type Loads = Receiver<Result<Loaded, LoadError>>;

/// Waits for a load that is as expected; a file that is half written may be seen before.
async fn until(loads: &mut Loads, expected: impl Fn(&Result<Loaded, LoadError>) -> bool) {
    let mut last = None;
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            let load = loads.recv().await.expect("the watch goes on");
            if expected(&load) {
                return;
            }
            last = Some(load);
        }
    });
    if found.await.is_err() {
        panic!("not seen in {DEADLINE:?}; the last load was {last:?}");
    }
}

fn gives(names: &[&str]) -> impl Fn(&Result<Loaded, LoadError>) -> bool {
    let expected: Vec<_> = names
        .iter()
        .map(|name| format!("Service default/{name}"))
        .collect();
    move |load| load.as_ref().is_ok_and(|loaded| keys(loaded) == expected)
}

fn watched(paths: &[PathBuf]) -> Loads {
    watch(paths.to_vec()).unwrap()
}

#[tokio::test]
async fn a_file_that_is_written_again_is_loaded_again() {
    let directory = directory_with(&[("a.yaml", &service("one"))]);
    let file = directory.path().join("a.yaml");
    let mut loads = watched(std::slice::from_ref(&file));
    for name in ["two", "three"] {
        fs::write(&file, service(name)).unwrap();
        until(&mut loads, gives(&[name])).await;
    }
}

#[tokio::test]
async fn a_file_that_is_replaced_by_renaming_is_loaded_again_and_again() {
    let directory = directory_with(&[("a.yaml", &service("one"))]);
    let file = directory.path().join("a.yaml");
    let mut loads = watched(std::slice::from_ref(&file));
    for name in ["two", "three"] {
        let new = directory.path().join(".a.yaml.new");
        fs::write(&new, service(name)).unwrap();
        fs::rename(&new, &file).unwrap();
        until(&mut loads, gives(&[name])).await;
    }
}

#[tokio::test]
async fn a_mounted_config_map_is_loaded_again_when_its_link_is_swapped() {
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str| {
        let directory = mount.path().join(format!("..{name}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), service(name)).unwrap();
        let link = mount.path().join("..data_tmp");
        symlink(format!("..{name}"), &link).unwrap();
        fs::rename(&link, mount.path().join("..data")).unwrap();
    };
    version("one");
    symlink("..data/a.yaml", mount.path().join("a.yaml")).unwrap();
    let mut of_file = watched(&[mount.path().join("a.yaml")]);
    let mut of_directory = watched(&[mount.path().into()]);
    for name in ["two", "three"] {
        version(name);
        until(&mut of_file, gives(&[name])).await;
        until(&mut of_directory, gives(&[name])).await;
    }
}

#[tokio::test]
async fn files_that_come_to_a_directory_and_go_are_followed() {
    let directory = directory_with(&[("a.yaml", &service("one"))]);
    let mut loads = watched(&[directory.path().into()]);
    fs::write(directory.path().join("b.yaml"), service("two")).unwrap();
    until(&mut loads, gives(&["one", "two"])).await;
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    until(&mut loads, gives(&["two"])).await;
}

#[tokio::test]
async fn a_broken_file_is_told_and_mended_it_is_loaded() {
    let directory = directory_with(&[("a.yaml", &service("one"))]);
    let file = directory.path().join("a.yaml");
    let mut loads = watched(std::slice::from_ref(&file));
    fs::write(&file, "apiVersion: v1\nkind: Service\n").unwrap();
    until(&mut loads, |load| {
        load.as_ref().is_err_and(|error| {
            error
                .to_string()
                .contains("metadata.name of Service is missing")
        })
    })
    .await;
    fs::remove_file(&file).unwrap();
    until(&mut loads, |load| {
        load.as_ref()
            .is_err_and(|error| error.to_string().contains("cannot be read"))
    })
    .await;
    fs::write(&file, service("two")).unwrap();
    until(&mut loads, gives(&["two"])).await;
}

#[tokio::test]
async fn a_file_that_is_written_again_as_it_was_is_not_loaded_again() {
    let directory = directory_with(&[("a.yaml", &service("one")), ("b.txt", "")]);
    let file = directory.path().join("a.yaml");
    let mut loads = watched(std::slice::from_ref(&file));
    let new = directory.path().join("new");
    fs::write(&new, service("one")).unwrap();
    fs::rename(&new, &file).unwrap();
    fs::write(directory.path().join("b.txt"), "not watched").unwrap();
    fs::write(&new, service("two")).unwrap();
    fs::rename(&new, &file).unwrap();
    // The first load is that of the change.
    let load = tokio::time::timeout(DEADLINE, loads.recv()).await.unwrap();
    assert_eq!(keys(&load.unwrap().unwrap()), ["Service default/two"]);
}
