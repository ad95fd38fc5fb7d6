//! What people and programs make of a file: whatever it holds, it is read or refused in words.

use proptest::{prelude::*, sample::Index as At};
use std::{fs, path::PathBuf};
use tailway::{index::Index, source::load};
use tempfile::TempDir;

/// The inputs of the golden cases.
fn inputs() -> Vec<String> {
    let cases = fs::read_dir("tests/golden").unwrap();
    let files = cases.map(|case| case.unwrap().path().join("in.yaml"));
    let mut files: Vec<PathBuf> = files.filter(|file| file.exists()).collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Mutation {
    /// What stands there goes.
    Cut(At, usize),
    Insert(At, String),
    /// A line stands in another place, too.
    Copy(At, At),
    /// The value of a line is another one.
    Value(At, &'static str),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let values = vec![
        "~",
        "{}",
        "[]",
        "-1",
        "65536",
        "1e99",
        "'",
        "\"\"",
        "*x",
        "&x y",
        "!!int x",
        "0x10",
        "true",
        "[[[[",
        "{a: b}",
        "99999999999999999999",
        "*.*",
        "a..b",
        "(",
        "2024-01-01",
        "|",
    ];
    prop_oneof![
        (any::<At>(), 1..40usize).prop_map(|(at, length)| Mutation::Cut(at, length)),
        (any::<At>(), any::<String>()).prop_map(|(at, text)| Mutation::Insert(at, text)),
        (any::<At>(), "[-:{}\\[\\],&*#?|>@%! \n\t]{1,6}")
            .prop_map(|(at, text)| Mutation::Insert(at, text)),
        (any::<At>(), any::<At>()).prop_map(|(from, to)| Mutation::Copy(from, to)),
        (any::<At>(), prop::sample::select(values))
            .prop_map(|(at, value)| Mutation::Value(at, value)),
    ]
}

fn mutated(text: &str, mutation: &Mutation) -> String {
    if text.is_empty() {
        return String::new();
    }
    let letters: Vec<char> = text.chars().collect();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match mutation {
        Mutation::Cut(at, length) => {
            let at = at.index(letters.len());
            let rest = letters.iter().skip(at + length);
            letters[..at].iter().chain(rest).collect()
        }
        Mutation::Insert(at, inserted) => {
            let (before, after) = letters.split_at(at.index(letters.len()));
            let inserted: Vec<_> = inserted.chars().collect();
            before.iter().chain(&inserted).chain(after).collect()
        }
        Mutation::Copy(from, to) => {
            let line = lines[from.index(lines.len())].clone();
            lines.insert(to.index(lines.len()), line);
            lines.join("\n")
        }
        Mutation::Value(at, value) => {
            let at = at.index(lines.len());
            if let Some((key, _)) = lines[at].split_once(": ") {
                lines[at] = format!("{key}: {value}");
            }
            lines.join("\n")
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_was_spoilt_is_refused_in_words_or_served(
        input in any::<At>(),
        mutations in prop::collection::vec(mutation(), 1..6),
    ) {
        let inputs = inputs();
        let text = mutations.iter().fold(input.get(&inputs).clone(), |text, one| mutated(&text, one));
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("in.yaml");
        fs::write(&file, &text).unwrap();
        match load(&[file]) {
            Ok(loaded) => {
                let mut index = Index::default();
                index.reset(loaded.objects.clone());
                let at_once = index.evaluate();
                let mut index = Index::default();
                for object in loaded.objects {
                    index.apply(object);
                    index.evaluate();
                }
                prop_assert_eq!(index.evaluate(), at_once);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
