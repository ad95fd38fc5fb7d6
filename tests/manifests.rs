//! What is installed: `crds/` and `manifests/`, held to the code.
//!
//! `UPDATE_GOLDEN=1 cargo test manifests` writes the CRDs.

use kube::CustomResourceExt;
use std::fs;
use tailway::api::tailnets::TailscaleTailnet;

const CRD: &str = "crds/gateway.tailscale.com_tailscaletailnets.yaml";

#[test]
fn the_crds_are_those_of_the_types() {
    let crd = serde_saphyr::to_string(&TailscaleTailnet::crd()).unwrap();
    let crd = format!("# Generated from src/api by `make gen`.\n---\n{crd}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(CRD, &crd).unwrap();
    }
    let checked_in = fs::read_to_string(CRD).unwrap_or_default();
    assert!(checked_in == crd, "{CRD} is not fresh: `make gen` writes it");
}
