//! What is installed and what the controller makes, as objects: `crds/`, `manifests/` and the
//! workloads of Gateways. No cluster is needed to see that they fit together.

pub mod install;
mod restricted;
mod workload;

use kube::CustomResourceExt;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path};
use tailway::{
    api::{
        endpoints::TailscaleEndpoints,
        tailnets::TailscaleTailnet,
        upstream::{backend::TailscaleBackend, egress::TailscaleEgressSet},
    },
    args::Arguments,
};

#[test]
fn the_crds_are_those_of_the_types() {
    let crds = [
        TailscaleTailnet::crd(),
        TailscaleEndpoints::crd(),
        TailscaleBackend::crd(),
        TailscaleEgressSet::crd(),
    ];
    let mut files = BTreeSet::new();
    for crd in crds {
        let path = format!("crds/{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
        let crd = serde_saphyr::to_string(&crd).unwrap();
        let crd = format!("# Generated from src/api by `make gen`.\n---\n{crd}");
        if update() {
            fs::write(&path, &crd).unwrap();
        }
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == crd,
            "{path} is not what the types say: `make gen` writes it"
        );
        files.insert(path);
    }
    let there = fs::read_dir("crds").unwrap();
    let there: BTreeSet<_> = there
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(there, files);
}

fn update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// The objects of a YAML file.
fn objects(path: impl AsRef<Path>) -> Vec<Value> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&text)
}

fn parse(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// Words of a list.
fn strings(value: &Value) -> BTreeSet<String> {
    let words = value.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap().into()).collect()
}

/// The variables of a container's environment.
fn variables(container: &Value) -> BTreeSet<String> {
    let variables = container["env"].as_array().into_iter().flatten();
    variables
        .map(|variable| variable["name"].as_str().unwrap().into())
        .collect()
}

/// The variables that a verb of the command line reads.
fn known_variables(verb: &str) -> BTreeSet<String> {
    use clap::CommandFactory;
    let mut command = Arguments::command();
    command.build();
    let verb = command.find_subcommand(verb).unwrap();
    verb.get_arguments()
        .filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()))
        .collect()
}
