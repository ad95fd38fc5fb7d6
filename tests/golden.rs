//! Objects in, Snapshots and statuses out, as files: `tests/golden/<case>/`.
//!
//! - `in.yaml`: the objects; `report.yaml`, when there is one: what nodes say of themselves.
//! - `problems.txt`: why the objects cannot be read; then there is nothing else.
//! - `warnings.txt`: what was passed over, when something was.
//! - `snapshot.yaml`, `status.yaml`: what the index makes of them.
//! - `check.txt`: what `tailway check` prints, and whether everything is accepted.
//!
//! `UPDATE_GOLDEN=1 cargo test golden` writes what comes out; read the difference before it is
//! committed.

use proptest::prelude::*;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};
use tailway::{
    api::Object,
    check,
    index::{Index, Key, Outcome},
    model::{NodeReport, ObjectName, Programmed, TailnetReport, TailnetState, Unready},
    source,
};

const ROOT: &str = "tests/golden";
const OUTPUTS: &[&str] = &[
    "problems.txt",
    "warnings.txt",
    "snapshot.yaml",
    "status.yaml",
    "check.txt",
];

/// `report.yaml`: by namespace/name of a Gateway.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Report {
    dns_name: String,
    addresses: Vec<IpAddr>,
    programmed: Option<i64>,
    pending: Option<String>,
    not_usable: Option<String>,
}

impl Report {
    fn into_model(self) -> NodeReport {
        let programmed = match (self.programmed, self.pending, self.not_usable) {
            (Some(generation), None, None) => Programmed::Generation(generation),
            (None, Some(message), None) => Programmed::No {
                reason: Unready::Pending,
                message,
            },
            (None, None, Some(message)) => Programmed::No {
                reason: Unready::AddressNotUsable,
                message,
            },
            _ => panic!("a report has one of programmed, pending and notUsable"),
        };
        let tailnet = match &programmed {
            Programmed::Generation(_) => TailnetReport {
                state: TailnetState::Ready,
                message: String::new(),
            },
            Programmed::No { message, .. } => TailnetReport {
                state: TailnetState::Joining,
                message: message.clone(),
            },
        };
        NodeReport {
            tailnet,
            dns_name: self.dns_name,
            addresses: self.addresses,
            programmed,
            ..NodeReport::default()
        }
    }
}

fn reports(case: &Path) -> Vec<(ObjectName, NodeReport)> {
    let Ok(text) = fs::read_to_string(case.join("report.yaml")) else {
        return Vec::new();
    };
    let reports: BTreeMap<String, Report> = serde_saphyr::from_str(&text).unwrap();
    let report = |(name, report): (String, Report)| {
        let (namespace, name) = name.split_once('/').unwrap();
        (ObjectName::new(namespace, name), report.into_model())
    };
    reports.into_iter().map(report).collect()
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(ROOT).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// What a case gives, by file name.
fn outputs(case: &Path) -> BTreeMap<&'static str, String> {
    let lines = |problems: &[source::Problem]| -> String {
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect()
    };
    let loaded = match source::load(&[case.join("in.yaml")]) {
        Ok(loaded) => loaded,
        Err(error) => return BTreeMap::from([("problems.txt", lines(&error.problems))]),
    };
    let mut index = Index::default();
    index.reset(loaded.objects);
    for (name, report) in reports(case) {
        index.report(name, report);
    }
    let Outcome {
        snapshots,
        statuses,
        ..
    } = index.evaluate();
    let snapshots: String = snapshots
        .values()
        .map(|snapshot| format!("---\n{}", serde_saphyr::to_string(&**snapshot).unwrap()))
        .collect();
    let verdict = if statuses.all_accepted() {
        "all accepted"
    } else {
        "not all accepted"
    };
    let mut outputs = BTreeMap::from([
        ("snapshot.yaml", snapshots),
        ("status.yaml", check::yaml(&statuses)),
        (
            "check.txt",
            format!("{}{verdict}\n", check::table(&statuses)),
        ),
    ]);
    if !loaded.warnings.is_empty() {
        outputs.insert("warnings.txt", lines(&loaded.warnings));
    }
    outputs
}

#[test]
fn every_case_gives_what_stands_beside_it() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let outputs = outputs(&case);
        for name in OUTPUTS {
            let path = case.join(name);
            let expected = fs::read_to_string(&path).unwrap_or_default();
            let given = outputs.get(name).cloned().unwrap_or_default();
            if expected == given && path.exists() == outputs.contains_key(name) {
                continue;
            }
            if !update {
                wrong.push(difference(&path, &expected, &given));
            } else if outputs.contains_key(name) {
                fs::write(&path, given).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nUPDATE_GOLDEN=1 writes what came out",
        wrong.join("\n")
    );
}

/// The first line that differs, with its neighbours.
fn difference(path: &Path, expected: &str, given: &str) -> String {
    let same = expected
        .lines()
        .zip(given.lines())
        .take_while(|(expected, given)| expected == given)
        .count();
    let around = |text: &str| -> String {
        text.lines()
            .skip(same.saturating_sub(3))
            .take(10)
            .map(|line| format!("    {line}\n"))
            .collect()
    };
    format!(
        "{} differs from line {}\n  expected\n{}  given\n{}",
        path.display(),
        same + 1,
        around(expected),
        around(given)
    )
}

/// The objects and reports of all cases that can be read.
fn readable() -> Vec<(PathBuf, Vec<Object>)> {
    let objects = |case: PathBuf| {
        let loaded = source::load(&[case.join("in.yaml")]).ok()?;
        Some((case, loaded.objects))
    };
    cases().into_iter().filter_map(objects).collect()
}

fn evaluate(case: &Path, index: &mut Index) -> Outcome {
    for (name, report) in reports(case) {
        index.report(name, report);
    }
    index.evaluate()
}

/// What happens to an index: objects come, come again, and go.
#[derive(Clone, Debug)]
enum Step {
    Apply(usize),
    DeleteAndApply(usize),
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let order = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
    let again = prop::collection::vec((0..count, any::<bool>()), 0..count);
    (order, again).prop_map(|(order, again)| {
        let first = order.into_iter().map(Step::Apply);
        let again = again.into_iter().map(|(at, delete)| {
            if delete {
                Step::DeleteAndApply(at)
            } else {
                Step::Apply(at)
            }
        });
        first.chain(again).collect()
    })
}

#[test]
fn the_order_of_arrival_changes_nothing() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    for (case, objects) in readable() {
        let mut index = Index::default();
        index.reset(objects.clone());
        let expected = evaluate(&case, &mut index);
        runner
            .run(&steps(objects.len()), |steps| {
                let mut index = Index::default();
                for step in steps {
                    match step {
                        Step::Apply(at) => index.apply(objects[at].clone()),
                        Step::DeleteAndApply(at) => {
                            index.delete(&Key::of(&objects[at]));
                            index.apply(objects[at].clone());
                        }
                    }
                }
                prop_assert_eq!(&evaluate(&case, &mut index), &expected);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    }
}

#[test]
fn an_index_whose_objects_all_went_is_empty() {
    for (case, objects) in readable() {
        let mut index = Index::default();
        index.reset(objects.clone());
        for object in &objects {
            index.delete(&Key::of(object));
        }
        assert_eq!(index.evaluate(), Outcome::default(), "{}", case.display());
    }
}

#[test]
fn the_samples_are_accepted() {
    for entry in fs::read_dir("manifests/samples").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let loaded = source::load(std::slice::from_ref(&path)).unwrap();
        assert_eq!(loaded.warnings, [], "{}", path.display());
        let mut index = Index::default();
        index.reset(loaded.objects);
        let problems = check::problems(&index.evaluate().statuses);
        assert_eq!(problems, [""; 0], "{}", path.display());
    }
}
