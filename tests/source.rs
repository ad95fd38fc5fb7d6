//! Files that are read, and files that change, as editors and mounted ConfigMaps change them.

mod mutations;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};
use tailway::{
    api::Object,
    source::{LoadError, Loaded, load, watch},
};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

/// Far more than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

fn gateway(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  gatewayClassName: c\n  listeners: [{{name: a, port: {port}, protocol: TCP}}]\n"
    )
}

/// Names of the Services.
fn names(loaded: &Loaded) -> Vec<String> {
    let name = |object: &Object| match object {
        Object::Service(service) => service.metadata.name.clone(),
        _ => None,
    };
    loaded.objects.iter().filter_map(name).collect()
}

/// Port and generation of the Gateway.
fn port_and_generation(loaded: &Loaded) -> (i32, Option<i64>) {
    let gateway = loaded.objects.iter().find_map(|object| match object {
        Object::Gateway(gateway) => Some(gateway),
        _ => None,
    });
    let gateway = gateway.unwrap();
    (gateway.spec.listeners[0].port, gateway.metadata.generation)
}

/// The next thing that a watch tells.
async fn next(changes: &mut Receiver<Result<Loaded, LoadError>>) -> Result<Loaded, LoadError> {
    tokio::time::timeout(DEADLINE, changes.recv())
        .await
        .expect("nothing was told")
        .expect("the watch ended")
}

/// Waits until the watch tells of just these Services. What is told while several files change may
/// hold some of the change only.
async fn until(changes: &mut Receiver<Result<Loaded, LoadError>>, expected: &[&str]) {
    loop {
        if next(changes)
            .await
            .is_ok_and(|loaded| names(&loaded) == expected)
        {
            return;
        }
    }
}

/// A directory with `a.yaml`, which holds the Service one.
fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, service("one")).unwrap();
    (directory, file)
}

fn watching(path: &Path) -> Receiver<Result<Loaded, LoadError>> {
    watch(vec![path.to_owned()]).unwrap()
}

#[test]
fn a_directory_is_read_in_the_order_of_names_without_hidden_and_other_files() {
    let (directory, _) = directory();
    let path = directory.path();
    fs::write(
        path.join("c.json"),
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "three"}}"#,
    )
    .unwrap();
    fs::write(
        path.join("b.yml"),
        format!("%YAML 1.2\n---\n{}...\n", service("two")),
    )
    .unwrap();
    fs::write(path.join(".hidden.yaml"), "{").unwrap();
    fs::write(path.join("notes.txt"), "{").unwrap();
    fs::create_dir(path.join("below.yaml")).unwrap();
    assert_eq!(
        names(&load(&[path.into()]).unwrap()),
        ["one", "two", "three"]
    );
}

#[test]
fn a_file_that_is_named_is_read_whatever_it_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(".gateway");
    fs::write(&file, service("one")).unwrap();
    assert_eq!(names(&load(&[file]).unwrap()), ["one"]);
}

#[test]
fn a_file_without_objects_is_empty_and_not_wrong() {
    let (directory, file) = directory();
    for text in ["", "\n", "# nothing\n", "---\n---\n# nothing\n...\n"] {
        fs::write(&file, text).unwrap();
        let loaded = load(&[directory.path().into()]).unwrap();
        assert_eq!(names(&loaded), [""; 0], "{text:?}");
        assert_eq!(loaded.warnings, [], "{text:?}");
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_do_no_harm() {
    let (directory, file) = directory();
    let text = format!("\u{feff}{}---\r\n{}", service("one"), service("two"));
    fs::write(&file, text.replace('\n', "\r\n")).unwrap();
    assert_eq!(
        names(&load(&[directory.path().into()]).unwrap()),
        ["one", "two"]
    );
}

#[test]
fn what_cannot_be_read_is_told_with_its_name() {
    let (directory, file) = directory();
    let missing = directory.path().join("missing.yaml");
    fs::write(&file, [0xff, 0xfe]).unwrap();
    let error = load(&[missing.clone(), file.clone()]).unwrap_err();
    let files: Vec<_> = error.problems.iter().map(|problem| &problem.file).collect();
    assert_eq!(files, [&missing, &file]);
    assert!(
        error
            .to_string()
            .starts_with(&format!("{}: cannot be read: ", missing.display())),
        "{error}"
    );
}

#[tokio::test]
async fn the_first_thing_told_is_what_is_there() {
    let (_directory, file) = directory();
    let mut changes = watching(&file);
    assert_eq!(names(&next(&mut changes).await.unwrap()), ["one"]);
}

#[tokio::test]
async fn a_file_that_is_written_over_is_told() {
    let (_directory, file) = directory();
    let mut changes = watching(&file);
    until(&mut changes, &["one"]).await;
    fs::write(&file, service("two")).unwrap();
    until(&mut changes, &["two"]).await;
}

#[tokio::test]
async fn a_file_that_is_replaced_by_renaming_is_told_each_time() {
    let (directory, file) = directory();
    let mut changes = watching(&file);
    until(&mut changes, &["one"]).await;
    for name in ["two", "three", "four"] {
        let new = directory.path().join("a.yaml.tmp");
        fs::write(&new, service(name)).unwrap();
        fs::rename(&new, &file).unwrap();
        until(&mut changes, &[name]).await;
    }
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_is_followed() {
    let (directory, file) = directory();
    let mut changes = watching(&file);
    until(&mut changes, &["one"]).await;
    for name in ["two", "three"] {
        let backup = directory.path().join("a.yaml~");
        fs::rename(&file, &backup).unwrap();
        fs::write(&file, service(name)).unwrap();
        fs::remove_file(&backup).unwrap();
        until(&mut changes, &[name]).await;
    }
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    // As the kubelet writes it: a link to a link, of which the inner one is swapped.
    let (directory, file) = directory();
    let path = directory.path();
    fs::remove_file(&file).unwrap();
    let version = |name: &str| {
        fs::create_dir(path.join(format!("..{name}"))).unwrap();
        fs::write(path.join(format!("..{name}/a.yaml")), service(name)).unwrap();
        symlink(format!("..{name}"), path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    version("one");
    symlink("..data/a.yaml", &file).unwrap();
    let mut by_directory = watching(path);
    let mut by_file = watching(&file);
    until(&mut by_directory, &["one"]).await;
    until(&mut by_file, &["one"]).await;
    for (before, name) in [("one", "two"), ("two", "three")] {
        version(name);
        fs::remove_dir_all(path.join(format!("..{before}"))).unwrap();
        until(&mut by_directory, &[name]).await;
        until(&mut by_file, &[name]).await;
    }
}

#[tokio::test]
async fn files_that_come_and_go_in_a_directory_are_told() {
    let (directory, file) = directory();
    let mut changes = watching(directory.path());
    until(&mut changes, &["one"]).await;
    fs::write(directory.path().join("b.yaml"), service("two")).unwrap();
    until(&mut changes, &["one", "two"]).await;
    fs::remove_file(&file).unwrap();
    until(&mut changes, &["two"]).await;
}

#[tokio::test]
async fn a_directory_that_is_made_anew_is_followed() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("conf");
    let make = |name: &str| {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), service(name)).unwrap();
    };
    make("one");
    let mut changes = watching(&path);
    until(&mut changes, &["one"]).await;
    fs::remove_dir_all(&path).unwrap();
    make("two");
    until(&mut changes, &["two"]).await;
    fs::write(path.join("a.yaml"), service("three")).unwrap();
    until(&mut changes, &["three"]).await;
}

#[tokio::test]
async fn a_link_to_a_directory_is_followed_where_it_leads_now() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join("a.yaml"), service(name)).unwrap();
    }
    let link = parent.path().join("current");
    symlink("one", &link).unwrap();
    let mut changes = watching(&link);
    until(&mut changes, &["one"]).await;
    symlink("two", parent.path().join("new")).unwrap();
    fs::rename(parent.path().join("new"), &link).unwrap();
    until(&mut changes, &["two"]).await;
    fs::write(parent.path().join("two/a.yaml"), service("three")).unwrap();
    until(&mut changes, &["three"]).await;
}

#[tokio::test]
async fn a_file_that_is_not_there_yet_is_an_error_until_it_comes() {
    let (_directory, file) = directory();
    fs::remove_file(&file).unwrap();
    let mut changes = watching(&file);
    let error = next(&mut changes).await.unwrap_err();
    assert_eq!(error.problems[0].file, file);
    fs::write(&file, service("one")).unwrap();
    until(&mut changes, &["one"]).await;
}

#[tokio::test]
async fn a_broken_file_is_told_with_its_line_and_then_mended() {
    let (_directory, file) = directory();
    let mut changes = watching(&file);
    until(&mut changes, &["one"]).await;
    fs::write(&file, format!("{}---\nkind: [\n", service("one"))).unwrap();
    let error = next(&mut changes).await.unwrap_err();
    let expected = format!("{}:6:", file.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    fs::write(&file, service("two")).unwrap();
    until(&mut changes, &["two"]).await;
}

#[tokio::test]
async fn writing_the_same_again_is_no_change() {
    let (_directory, file) = directory();
    let mut changes = watching(&file);
    until(&mut changes, &["one"]).await;
    fs::write(&file, service("one")).unwrap();
    fs::write(&file, service("two")).unwrap();
    assert_eq!(names(&next(&mut changes).await.unwrap()), ["two"]);
}

#[tokio::test]
async fn a_generation_counts_the_changes_of_the_spec() {
    let (_directory, file) = directory();
    fs::write(&file, gateway(1)).unwrap();
    assert_eq!(
        port_and_generation(&load(std::slice::from_ref(&file)).unwrap()),
        (1, Some(1))
    );
    let mut changes = watching(&file);
    assert_eq!(
        port_and_generation(&next(&mut changes).await.unwrap()),
        (1, Some(1))
    );
    fs::write(&file, gateway(2)).unwrap();
    assert_eq!(
        port_and_generation(&next(&mut changes).await.unwrap()),
        (2, Some(2))
    );
    fs::write(
        &file,
        gateway(2).replace("{name: gw}", "{name: gw, labels: {a: b}}"),
    )
    .unwrap();
    assert_eq!(
        port_and_generation(&next(&mut changes).await.unwrap()),
        (2, Some(2))
    );
    fs::write(
        &file,
        gateway(3).replace("{name: gw}", "{name: gw, generation: 9}"),
    )
    .unwrap();
    assert_eq!(
        port_and_generation(&next(&mut changes).await.unwrap()),
        (3, Some(9))
    );
}
