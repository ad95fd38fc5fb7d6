//! Compiles the messages of `src/discovery` and `src/extension`, without protoc.

use std::process::ExitCode;

/// Messages that hold a secret: their `Debug` is written by hand, beside them.
const SECRET: [&str; 2] = [
    "tailway.discovery.v1.AuthKey",
    "tailway.discovery.v1.Certificate",
];

const SNAPSHOT: &str = "src/discovery/snapshot.proto";
const EXTENSION: &str = "src/extension/service.proto";
const ENVOY: &str = "src/extension/envoy";

fn main() -> ExitCode {
    for path in [SNAPSHOT, EXTENSION, ENVOY] {
        println!("cargo::rerun-if-changed={path}");
    }
    match snapshot().and_then(|()| extension()).and_then(|()| envoy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn snapshot() -> Result<(), String> {
    let descriptors =
        protox::compile([SNAPSHOT], ["src/discovery"]).map_err(|error| error.to_string())?;
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}

/// What is echoed is not copied: its bytes are those of the request. It may hold private keys.
fn extension() -> Result<(), String> {
    let descriptors =
        protox::compile([EXTENSION], ["src/extension"]).map_err(|error| error.to_string())?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(["."])
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}

/// Maps are sorted, so that the same is always the same bytes.
fn envoy() -> Result<(), String> {
    let files: Vec<_> = std::fs::read_dir(ENVOY)
        .map_err(|error| format!("{ENVOY}: {error}"))?
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "proto")
        })
        .collect();
    let descriptors = protox::compile(files, [ENVOY]).map_err(|error| error.to_string())?;
    prost_build::Config::new()
        .btree_map(["."])
        .include_file("envoy.rs")
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}
