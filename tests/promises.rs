//! CONTRIBUTING.md says which test shows what is promised, and docs/features.md which are those of a
//! feature: each is there.

use std::{fs, path::Path};
use tailway::controller::FEATURES;

/// The tests and golden cases that the table names.
fn named(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    quoted
        .filter(|name| name.contains("::") || name.starts_with("golden/"))
        .collect()
}

fn is_there(name: &str) -> bool {
    if name.starts_with("golden/") {
        return Path::new("tests").join(name).is_dir();
    }
    let Some((module, test)) = name.rsplit_once("::") else {
        return false;
    };
    let module = module.replace("::", "/");
    let files = [
        format!("tests/{module}.rs"),
        format!("tests/{module}/mod.rs"),
    ];
    let mut texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.any(|text| text.contains(&format!("fn {test}(")))
}

#[test]
fn every_test_that_shows_a_promise_is_there() {
    for page in ["CONTRIBUTING.md", "docs/features.md"] {
        let text = fs::read_to_string(page).unwrap();
        let named = named(&text);
        assert!(named.len() > 20, "{named:?}");
        let missing: Vec<_> = named.iter().filter(|name| !is_there(name)).collect();
        assert_eq!(missing, Vec::<&&str>::new(), "{page}");
    }
    assert!(!is_there("cluster::life::no_such_test"));
}

#[test]
fn the_features_that_are_told_are_those_that_have_tests() {
    let text = fs::read_to_string("docs/features.md").unwrap();
    let rows = text.lines().filter(|row| row.contains('`'));
    let features = rows.filter_map(|row| row.strip_prefix("| ")?.split_once(" |"));
    let mut listed: Vec<_> = features.map(|(feature, _)| feature).collect();
    listed.sort_unstable();
    assert_eq!(listed, FEATURES);
}
