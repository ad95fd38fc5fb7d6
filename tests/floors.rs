//! The floors of ARCHITECTURE.md, held: a module names only what lies on lower floors.

use std::{collections::BTreeMap, fs, path::Path};

/// Lowest first. A module may name those of lower floors and itself.
const FLOORS: &[&[&str]] = &[
    &["model"],
    &["api", "tailnet", "drain", "metrics"],
    &["net"],
    &["index"],
    &["source"],
    &["proxy", "extension", "discovery"],
    &["controller"],
    &["check"],
    &["admin"],
    &["args"],
    &["telemetry"],
    &["app"],
    &["main"],
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The top-level module that a file of `src/` belongs to.
fn module_of(path: &Path, root: &Path) -> String {
    let first = path
        .strip_prefix(root)
        .unwrap()
        .components()
        .next()
        .unwrap();
    let first = first.as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn rust_files(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Top-level modules that a source text names, by `crate::name` and `crate::{name, …}`.
fn named_modules(text: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut names = Vec::new();
    for marker in ["crate::", "tailway::"] {
        for (at, _) in text.match_indices(marker) {
            let rest = &text[at + marker.len()..];
            match rest.strip_prefix('{') {
                None => names.push(word(rest)),
                Some(group) => {
                    let mut depth = 0usize;
                    let mut start = true;
                    for (at, character) in group.char_indices() {
                        match character {
                            '{' => depth += 1,
                            '}' if depth == 0 => break,
                            '}' => depth -= 1,
                            ',' if depth == 0 => start = true,
                            c if start && !c.is_whitespace() => {
                                names.push(word(&group[at..]));
                                start = false;
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    }
    names
}

#[test]
fn no_module_names_one_of_its_own_or_a_higher_floor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::new();
    for file in files {
        let module = module_of(&file, &root);
        if module == "lib" {
            continue;
        }
        let floor = floor_of(&module);
        seen.insert(module.clone(), floor);
        let text = fs::read_to_string(&file).unwrap();
        for named in named_modules(&text) {
            if named == module {
                continue;
            }
            if let (Some(named_floor), Some(floor)) = (floor_of(&named), floor)
                && named_floor >= floor
            {
                wrong.push(format!("{}: {module} names {named}", file.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let homeless: Vec<_> = seen.iter().filter(|(_, floor)| floor.is_none()).collect();
    assert!(homeless.is_empty(), "no floor for {homeless:?}");
}

#[test]
fn names_are_found_alone_and_in_groups() {
    let text =
        "use crate::model::X; use crate::{ net::{A, B}, tailnet, }; fn f() { crate::drain::g() }";
    assert_eq!(named_modules(text), ["model", "net", "tailnet", "drain"]);
}
